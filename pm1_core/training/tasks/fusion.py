"""The fusion transformer over sites (sections 4.2, E.5, F.5)."""

from __future__ import annotations

import hmac
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pm1_core.data.store import Store
from pm1_core.data.summary import StudySummary
from pm1_core.errors import ConfigError
from pm1_core.fields import TOKENS_OF, Modality, Split
from pm1_core.model.fusion import FusionConfig, FusionTransformer, Tokens
from pm1_core.model.fusion_objectives import FusionObjective, fusion_losses, group_losses
from pm1_core.privacy.mechanisms import GROUPED, Mechanism
from pm1_core.privacy.terms import record_terms
from pm1_core.training.ahead import drawing_on
from pm1_core.training.guide import UNGUIDED, Guide
from pm1_core.training.loop import Losses, LossOf, Read, device_of, train_epochs
from pm1_core.training.order import Order, derived_seed, generator
from pm1_core.training.parts import State, dump_part, load_part, named_part
from pm1_core.training.pm1 import PM1
from pm1_core.training.prediction import target_counts
from pm1_core.training.private import Units
from pm1_core.training.processes import divided, in_turn
from pm1_core.training.tasks.base import Metrics, Task
from pm1_core.training.token_cache import ENCODERS, load_tokens, raw_tokens
from pm1_core.training.token_set import TokenSet
from pm1_core.update import Tensors, Update
from pm1_core.validate import require_keys

PREFIX = "fusion."
_EVALUATED_AT_ONCE = 128


class FusionTask(Task):
    """Trains the transformer on the standardised tokens of people who have at least one.

    Keys of `parameters`:
      model: fields of FusionConfig
      objective: fields of FusionObjective
      encoders: {"genotype": {...}, "phenotype": {...}, "fundus": {...}}, see PM1
      cache: how tokens are kept, see pm1_core.training.token_cache
      loop: see LoopConfig; the negatives of InfoNCE are the other people of a batch

    L_mask and L_recon add over people, so that sites weighted by people add up to the pooled gradient. InfoNCE
    does not, its negatives are local: with lambda > 0 a federation is not its pooled counterpart to the bit.
    Tensors travel as "fusion.{parameter}". Raises ConfigError on a wrong parameter.
    """

    name = "fusion"
    modalities = frozenset(Modality)
    private = True
    divides = True
    grouped = True

    def __init__(self, parameters: Mapping[str, Any], study: StudySummary) -> None:
        super().__init__(parameters, study)
        model = require_keys(
            "fusion task, model",
            parameters.get("model", {}),
            (),
            tuple(FusionConfig.__dataclass_fields__),
            ConfigError,
        )
        objective = require_keys(
            "fusion task, objective",
            parameters.get("objective", {}),
            (),
            tuple(FusionObjective.__dataclass_fields__),
            ConfigError,
        )
        self.config, self.objective = FusionConfig(**model), FusionObjective(**objective)
        self.device = device_of(parameters)

    @property
    def needs(self) -> tuple[str, ...]:
        """The frozen encoders, and the statistics that standardise their tokens."""
        return (*ENCODERS, "tokens.")

    def initial(self, state: State, seed: int) -> Tensors:
        """Random weights that follow from the seed alone."""
        return dump_part(FusionTransformer(self.config, derived_seed(seed, PREFIX, "initial")), PREFIX)

    def modality_of(self, name: str) -> Modality | None:
        """The modality whose tokens a projection, in or out, maps."""
        _, _, path = name.partition(PREFIX)
        side, _, rest = path.partition(".")
        return Modality(rest.split(".")[0]) if side in ("inputs", "outputs") else None

    def train(
        self,
        store: Store,
        order: Order,
        state: State,
        tensors: Tensors,
        folder: Path,
        guide: Guide = UNGUIDED,
    ) -> Update:
        """One round on this site's training people; its weight is the number of them with a token.

        Projections of a modality that nobody has a token of are neither trained, not even by weight decay, nor
        sent; under terms of privacy they are, with noise as all others, or their silence would tell that
        nobody here has it.
        """
        with in_turn():
            held = load_tokens(store, state, self.parameters, folder, Split.TRAIN)
        examples = {str(m): float(held.present[:, places].any(1).sum()) for m, places in TOKENS_OF.items()}
        module = self._load(tensors)
        for name, count in examples.items():
            if not count and not order.privacy:
                module.inputs[name].requires_grad_(False)
                module.outputs[name].requires_grad_(False)

        trained, units = named_part(module, PREFIX), self._groups(module, store, held, order)
        read, loss_of = self.steps(module, held)
        metrics = train_epochs(module, trained, order, folder, len(held.people), loss_of, guide, units, read)
        sent = {
            name: array
            for name, array in dump_part(module, PREFIX).items()
            if order.privacy or (modality := self.modality_of(name)) is None or examples[modality]
        }
        return Update(sent, float(len(held.people)), metrics, examples)

    def steps(self, module: FusionTransformer, held: TokenSet) -> tuple[Read, LossOf]:
        """How a step of `train_epochs` reads its people of `held`, and what it minimises."""

        def read(indices: np.ndarray) -> tuple[Tokens, torch.Tensor]:
            return self._batch(held, indices)

        def loss_of(batch: tuple[Tokens, torch.Tensor], draws: torch.Generator, step: int) -> Losses:
            draws = drawing_on(self.device, draws)
            losses = fusion_losses(module, *batch, self.objective, draws, over=divided)
            parts = {name: getattr(losses, name).detach() for name in ("mask", "recon", "contrast")}
            return Losses(losses.total, parts)

        return read, loss_of

    @torch.no_grad()
    def evaluate(
        self, store: Store, order: Order, state: State, tensors: Tensors, folder: Path, split: Split
    ) -> Metrics:
        """Figures with the same masks in every round and no corruption.

        loss, mask, recon, contrast: eq. 3 and its parts, averaged over people
        mask.M, recon.M: mean squared error per token of modality M; 1 is what the training mean would give
        anchor: eq. 2 per anchor, among batches of 128
        cross.M: mean squared error of M's tokens from the person's other modalities alone
        """
        held = load_tokens(store, state, self.parameters, folder, split)
        n = len(held.people)
        if not n:
            return {"examples": 0.0}
        module = self._load(tensors).eval()
        draws = generator(order.seed, order.phase, "evaluate", split.value)
        sums: dict[str, float] = defaultdict(float)
        counts: dict[str, float] = defaultdict(float)
        for indices in _blocks(n):
            tokens, present = self._batch(held, indices)
            losses = fusion_losses(module, tokens, present, self.objective, draws, corrupt=False)
            found = {
                **{
                    name: (float(value) * len(indices), len(indices))
                    for name, value in (
                        ("loss", losses.total),
                        ("mask", losses.mask),
                        ("recon", losses.recon),
                        ("contrast", losses.contrast),
                    )
                },
                **losses.errors,
                "anchor": losses.anchors,
                **_cross(module, tokens, present),
            }
            for name, (total, count) in found.items():
                sums[name] += total
                counts[name] += count
        return {**{name: sums[name] / counts[name] for name in sums if counts[name]}, "examples": float(n)}

    def scores(
        self, store: Store, order: Order, state: State, tensors: Tensors, folder: Path, split: Split
    ) -> Tensors:
        """Counts of scores of the study's targets, see `target_counts`; none without a phenotype encoder."""
        model = PM1(state, self.study, self.parameters["encoders"], device=self.device)
        if model.phenotype is None:
            return {}
        model.fusion = self._load(tensors).eval()
        return target_counts(model, store, raw_tokens(store, state, self.parameters, folder, split))

    def mechanisms(self, order: Order) -> tuple[Mechanism, ...]:
        """Steps over groups: a person who is added or removed changes one group's gradient."""
        terms = record_terms(order.privacy)
        if terms is None:
            return ()
        return (Mechanism(GROUPED, terms.noise_multiplier, terms.sample_rate, terms.steps),)

    def _groups(self, module: FusionTransformer, store: Store, held: TokenSet, order: Order) -> Units | None:
        """Groups of people as units, for record-level terms: InfoNCE couples those of a group, and nobody else."""
        terms = record_terms(order.privacy)
        if terms is None:
            return None
        subjects = store.subjects["subject"].to_numpy()[held.people]
        group = groups_of(subjects, terms.groups, order)
        members = [np.flatnonzero(group == number) for number in range(terms.groups)]

        def shares_of(chosen: np.ndarray) -> tuple[int, ...]:
            return tuple(len(members[number]) for number in chosen)

        def losses_of(chosen: np.ndarray, draws: torch.Generator, step: int) -> torch.Tensor:
            tokens, present = self._batch(held, np.concatenate([members[number] for number in chosen]))
            shares = shares_of(chosen)
            return group_losses(module, tokens, present, self.objective, draws, shares) / terms.group_size

        return Units(terms.groups, losses_of, shares_of)

    def _load(self, tensors: Tensors) -> FusionTransformer:
        module = FusionTransformer(self.config, seed=None)
        load_part(module, tensors, PREFIX)
        return module.to(self.device)

    def _batch(self, held: TokenSet, indices: np.ndarray) -> tuple[Tokens, torch.Tensor]:
        return held.batch(indices, self.device)


def groups_of(subjects: np.ndarray, groups: int, order: Order) -> np.ndarray:
    """Each person's group, int64 [n] from 0: a keyed hash of the identifier, whoever else is there.

    The key follows from the order's seed and phase, so that groups stay as they are from round to round.
    """
    key = derived_seed(order.seed, order.phase, "groups").to_bytes(8, "big")
    digests = (hmac.digest(key, str(subject).encode(), "sha256") for subject in subjects)
    return np.array([int.from_bytes(digest[:8], "big") % groups for digest in digests], np.int64)


def _cross(module: FusionTransformer, tokens: Tokens, present: torch.Tensor) -> dict[str, tuple[float, int]]:
    """Sum of errors and number of tokens per modality, each predicted as if it had never been measured."""
    found = {}
    for modality, places in TOKENS_OF.items():
        given = present.clone()
        given[:, places] = False
        rows = given.any(1) & present[:, places].any(1)
        if not bool(rows.any()):
            continue
        hidden = module({m: tokens[m][rows] for m in Modality}, given[rows])
        wanted = present[rows][:, places]
        errors = (module.reconstruct(hidden)[modality] - tokens[modality][rows]).square().mean(-1)
        found[f"cross.{modality}"] = (float(errors[wanted].sum()), int(wanted.sum()))
    return found


def _blocks(count: int) -> Iterator[np.ndarray]:
    for start in range(0, count, _EVALUATED_AT_ONCE):
        yield np.arange(start, min(start + _EVALUATED_AT_ONCE, count))
