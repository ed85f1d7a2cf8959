"""The phenotype auto-encoder over sites (section 4.1, appendix F.2)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pm1_core.data.store import Store
from pm1_core.data.summary import StudySummary
from pm1_core.errors import ConfigError
from pm1_core.evaluation.scores import gather, subgroups
from pm1_core.fields import Modality, Split
from pm1_core.model.objectives import PhenotypeLosses, phenotype_errors, phenotype_loss, phenotype_losses
from pm1_core.model.phenotype_autoencoder import (
    PhenotypeAutoencoder,
    PhenotypeAutoencoderConfig,
    copy_mask,
    hide_groups,
    predict_target,
    standardise,
)
from pm1_core.training.guide import UNGUIDED, Guide
from pm1_core.training.loop import Losses, device_of, train_epochs
from pm1_core.training.order import Order, derived_seed, generator
from pm1_core.training.parts import State, dump_part, load_part, named_part, part
from pm1_core.training.private import Units
from pm1_core.training.processes import divided
from pm1_core.training.tasks.base import Metrics, Task
from pm1_core.update import Tensors, Update
from pm1_core.validate import require_keys

_EVALUATED_AT_ONCE = 512
_PREFIX = "phenotype."


@dataclass(frozen=True)
class _Scale:
    """Federated statistics on the device: mean, std, kept, shares observed [K]; expected entries of each kind."""

    mean: torch.Tensor
    std: torch.Tensor
    kept: torch.Tensor
    observed: torch.Tensor
    expected: tuple[float, float]


def expected_entries(count: np.ndarray, kept: np.ndarray, binary: np.ndarray) -> tuple[float, float]:
    """Observed continuous and binary entries that a person of the federation has on average.

    count: people per feature [K]; kept: [K], 0 where a feature is dropped; binary: bool [K]. People are
    counted by the feature that most of them have; were some to lack it too, both kinds' losses would be
    scaled alike.

    >>> binary = np.array([False, False, True, True])
    >>> expected_entries(np.array([10, 5, 10, 2]), np.array([1, 1, 1, 0]), binary)
    (1.5, 1.0)
    """
    per_person = count * (kept > 0) / max(1.0, float(count.max(initial=0)))
    return float(per_person[~binary].sum()), float(per_person[binary].sum())


class PhenotypeTask(Task):
    """Trains the auto-encoder on copy-masked rows.

    `parameters` has model (fields of PhenotypeAutoencoderConfig) and loop (see LoopConfig). Tensors travel as
    "phenotype.{parameter}". Raises ConfigError on a wrong parameter.
    """

    name = "phenotype"
    modalities = frozenset({Modality.PHENOTYPE})
    private = True
    divides = True

    def __init__(self, parameters: Mapping[str, Any], study: StudySummary) -> None:
        super().__init__(parameters, study)
        fields = tuple(PhenotypeAutoencoderConfig.__dataclass_fields__)
        model = require_keys("phenotype task, model", parameters.get("model", {}), (), fields, ConfigError)
        self.config = PhenotypeAutoencoderConfig(**model)
        self.device = device_of(parameters)
        self._binary = np.array([feature.kind == "binary" for feature in study.features], dtype=bool)
        self._targets = [study.feature_indices([target.name]).tolist() for target in study.targets]
        self._hidden = [
            study.feature_indices([target.name, *target.masked]).tolist() for target in study.targets
        ]

    @property
    def needs(self) -> tuple[str, ...]:
        """Moments of the features, for standardisation."""
        return ("statistics.phenotype.",)

    def initial(self, state: State, seed: int) -> Tensors:
        """Random weights that follow from the seed alone."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derived_seed(seed, _PREFIX, "initial"))
            return dump_part(self._build(), _PREFIX)

    def train(
        self,
        store: Store,
        order: Order,
        state: State,
        tensors: Tensors,
        folder: Path,
        guide: Guide = UNGUIDED,
    ) -> Update:
        """One round on this site's training people. Donors of missingness are other people of the batch.

        Under record-level terms donors are nobody: what they lack is drawn by the federation's shares of people who
        have a feature, feature by feature, which `statistics` released.
        """
        people = store.people(Split.TRAIN, Modality.PHENOTYPE)
        module, scale, groups = self._load(tensors), self._scale(state), self._groups()

        def loss_of(indices: np.ndarray, draws: torch.Generator, step: int) -> Losses:
            values, known = self._rows(store, people[indices], scale)
            visible = copy_mask(known, draws, self.config.copy_mask)
            visible = hide_groups(visible, groups, draws, self.config.hide_targets)
            output = divided(module)(torch.where(visible, values, 0.0))
            losses = self._losses(output, values, known, scale)
            parts = {"continuous": losses.continuous.detach(), "binary": losses.binary.detach()}
            return Losses(losses.total, parts)

        def losses_of(indices: np.ndarray, draws: torch.Generator, step: int) -> torch.Tensor:
            values, known = self._rows(store, people[indices], scale)
            chance = torch.rand(known.shape, generator=draws, device=draws.device).to(known.device)
            visible = copy_mask(known, draws, self.config.copy_mask, donors=chance < scale.observed)
            visible = hide_groups(visible, groups, draws, self.config.hide_targets)
            output, binary = module(torch.where(visible, values, 0.0)), self._binary_on_device()
            return phenotype_losses(output, values, known, binary, self.config.reduction, scale.expected)

        trained, units = named_part(module, _PREFIX), Units(len(people), losses_of)
        metrics = train_epochs(module, trained, order, folder, len(people), loss_of, guide, units)
        weight = float(len(people))
        return Update(dump_part(module, _PREFIX), weight, metrics, {Modality.PHENOTYPE: weight})

    @torch.no_grad()
    def evaluate(
        self, store: Store, order: Order, state: State, tensors: Tensors, folder: Path, split: Split
    ) -> Metrics:
        """Figures under a copy mask that is the same in every round.

        loss, continuous, binary: the objective and its parts, over all observed entries
        imputation: mean error of the entries that the copy mask hid, if it hid any
        targets: mean error of the study's targets, each with its related columns hidden, if any is observed
        """
        people = store.people(split, Modality.PHENOTYPE)
        if not len(people):
            return {"examples": 0.0}
        module, scale = self._load(tensors).eval(), self._scale(state)
        draws = generator(order.seed, order.phase, "evaluate", split.value)
        sums: dict[str, float] = defaultdict(float)
        entries: dict[str, float] = defaultdict(float)
        for start in range(0, len(people), _EVALUATED_AT_ONCE):
            values, known = self._rows(store, people[start : start + _EVALUATED_AT_ONCE], scale)
            visible = copy_mask(known, draws, self.config.copy_mask)
            output = module(torch.where(visible, values, 0.0))
            losses = self._losses(output, values, known, scale)
            for name in ("total", "continuous", "binary"):
                key = "loss" if name == "total" else name
                sums[key] += float(getattr(losses, name)) * len(values)
                entries[key] += len(values)
            hidden = known & ~visible
            errors = phenotype_errors(output, values, self._binary_on_device())
            sums["imputation"] += float(errors[hidden].sum())
            entries["imputation"] += float(hidden.sum())
            for target, masked in zip(self._targets, self._hidden, strict=True):
                predicted = predict_target(module, values, known, target, masked)
                errors = phenotype_errors(predicted, values[:, target], self._binary_on_device()[target])
                sums["targets"] += float(errors[known[:, target]].sum())
                entries["targets"] += float(known[:, target].sum())
        metrics = {name: value / entries[name] for name, value in sums.items() if entries[name]}
        return {**metrics, "examples": float(len(people))}

    @torch.no_grad()
    def scores(
        self, store: Store, order: Order, state: State, tensors: Tensors, folder: Path, split: Split
    ) -> Tensors:
        """Counts of scores of the study's targets, each with its related columns hidden, see `gather`."""
        people = store.people(split, Modality.PHENOTYPE)
        module, scale = self._load(tensors).eval(), self._scale(state)
        labels, scores = np.full((2, len(people), len(self._targets)), np.nan)
        for start in range(0, len(people), _EVALUATED_AT_ONCE):
            rows = slice(start, start + _EVALUATED_AT_ONCE)
            values, known = self._rows(store, people[rows], scale)
            for column, ((target,), masked) in enumerate(zip(self._targets, self._hidden, strict=True)):
                scores[rows, column] = predict_target(module, values, known, [target], masked)[:, 0].cpu()
                label = torch.where(known[:, target], values[:, target], torch.nan)
                labels[rows, column] = label.cpu()
        names = [target.name for target in self.study.targets]
        return gather(names, labels, scores, subgroups(store, people))

    def _build(self) -> PhenotypeAutoencoder:
        return PhenotypeAutoencoder(self.config, len(self.study.features))

    def _load(self, tensors: Tensors) -> PhenotypeAutoencoder:
        module = self._build()
        load_part(module, tensors, _PREFIX)
        return module.to(self.device)

    def _scale(self, state: State) -> _Scale:
        found = part(state, "statistics.phenotype.")
        mean, std, kept = (
            torch.from_numpy(np.array(found[name])).to(self.device) for name in ("mean", "std", "kept")
        )
        shares = found["count"] / max(1.0, float(found["count"].max(initial=0)))
        observed = torch.from_numpy(shares.astype(np.float32)).to(self.device)
        expected = expected_entries(found["count"], found["kept"], self._binary)
        return _Scale(mean, std, kept, observed, expected)

    def _groups(self) -> torch.Tensor:
        groups = torch.zeros(len(self._hidden), len(self.study.features), dtype=torch.bool)
        for row, indices in enumerate(self._hidden):
            groups[row, indices] = True
        return groups.to(self.device)

    def _binary_on_device(self) -> torch.Tensor:
        return torch.from_numpy(self._binary).to(self.device)

    def _rows(self, store: Store, people: np.ndarray, scale: _Scale) -> tuple[torch.Tensor, torch.Tensor]:
        values, observed = store.phenotypes(people)
        return standardise(
            torch.from_numpy(values).to(self.device),
            torch.from_numpy(observed).to(self.device),
            scale.mean,
            scale.std,
            scale.kept,
        )

    def _losses(
        self, output: torch.Tensor, values: torch.Tensor, known: torch.Tensor, scale: _Scale
    ) -> PhenotypeLosses:
        binary = self._binary_on_device()
        return phenotype_loss(output.float(), values, known, binary, self.config.reduction, scale.expected)
