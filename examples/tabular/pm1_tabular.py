"""One of a study's targets from the other columns of a site's table: a task of PM1's in a package of its own."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from pm1_core.data.store import Store
from pm1_core.data.summary import StudySummary
from pm1_core.errors import ConfigError
from pm1_core.evaluation.intervals import roc_auc
from pm1_core.evaluation.scores import gather, subgroups
from pm1_core.fields import Modality, Split
from pm1_core.model.phenotype_autoencoder import standardise
from pm1_core.training.guide import UNGUIDED, Guide
from pm1_core.training.loop import Losses, device_of, train_epochs
from pm1_core.training.order import Order, derived_seed
from pm1_core.training.parts import State, dump_part, load_part, named_part, part
from pm1_core.training.tasks import Task
from pm1_core.update import Tensors, Update
from pm1_core.validate import require_choice, require_keys, require_range


class TabularTask(Task):
    """Logistic regression, or a network with hidden layers, on standardised columns and on which are missing.

    Keys of `parameters`:
      target: name of one of the study's targets; its own column and all that give it away are no inputs
      hidden: widths of hidden layers; none is logistic regression
      penalty: L2 on weights, added as penalty / 2 * |w|^2 to the mean loss over people
      loop: see LoopConfig

    The loss is a mean over people, so that sites weighted by people add up to the pooled gradient.
    Tensors travel as "tabular-TARGET.{parameter}", so that a study may have a phase for each of several targets.
    Raises ConfigError on a wrong parameter.
    """

    name = "tabular"
    modalities = frozenset({Modality.PHENOTYPE})

    def __init__(self, parameters: Mapping[str, Any], study: StudySummary) -> None:
        super().__init__(parameters, study)
        require_keys("tabular task", parameters, ("target",), ("hidden", "penalty", "loop"), ConfigError)
        targets = {target.name: target for target in study.targets}
        name = require_choice("tabular task, target", parameters["target"], targets, ConfigError)
        for width in parameters.get("hidden", []):
            require_range("tabular task, hidden", width, 1, error=ConfigError)
        penalty = parameters.get("penalty", 0)
        self.penalty = require_range("tabular task, penalty", penalty, 0, error=ConfigError)
        self.device = device_of(parameters)
        self.target, self.prefix = name, f"tabular-{name}."
        (self._target,) = study.feature_indices([name])
        away = study.feature_indices([name, *targets[name].masked])
        self._inputs = np.setdiff1d(np.arange(len(study.features)), away)

    @property
    def needs(self) -> tuple[str, ...]:
        """Mean and standard deviation of each column over the federation, from a phase before this one."""
        return ("statistics.phenotype.",)

    def examples(self, store: Store, split: Split = Split.TRAIN) -> int:
        """People of `split` whose target is known: the weight of this site."""
        return len(self._people(store, split))

    def initial(self, state: State, seed: int) -> Tensors:
        """Random weights that follow from the seed alone."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derived_seed(seed, self.prefix, "initial"))
            return dump_part(self._build(), self.prefix)

    def train(
        self,
        store: Store,
        order: Order,
        state: State,
        tensors: Tensors,
        folder: Path,
        guide: Guide = UNGUIDED,
    ) -> Update:
        """One round on this site's training people."""
        (inputs, cases), module = self.rows(store, state, Split.TRAIN), self._build(tensors)

        def loss_of(indices: np.ndarray, draws: torch.Generator, step: int) -> Losses:
            chosen = torch.from_numpy(indices).to(self.device)
            loss = binary_cross_entropy_with_logits(module(inputs[chosen])[:, 0], cases[chosen])
            squares = sum(weights.square().sum() for weights in module.parameters() if weights.ndim > 1)
            return Losses(loss + self.penalty / 2 * squares)

        trained, people = named_part(module, self.prefix), float(len(cases))
        metrics = train_epochs(module, trained, order, folder, len(cases), loss_of, guide)
        return Update(dump_part(module, self.prefix), people, metrics, {Modality.PHENOTYPE: people})

    def evaluate(
        self, store: Store, order: Order, state: State, tensors: Tensors, folder: Path, split: Split
    ) -> dict[str, float]:
        """Figures loss (without the penalty), accuracy, and auc where there are two cases and two controls."""
        odds, cases = self._odds(store, state, tensors, split)
        figures = {"examples": float(len(cases))}
        if len(cases):
            figures["loss"] = float(binary_cross_entropy_with_logits(odds, cases))
            figures["accuracy"] = float(((odds > 0) == (cases > 0)).float().mean())
        if 2 <= cases.sum() <= len(cases) - 2:
            figures["auc"] = roc_auc(cases.numpy(), odds.numpy()).auc
        return figures

    def scores(
        self, store: Store, order: Order, state: State, tensors: Tensors, folder: Path, split: Split
    ) -> Tensors:
        """Counts of scores of cases and controls, from which areas over all sites follow."""
        odds, cases = self._odds(store, state, tensors, split)
        groups = subgroups(store, self._people(store, split))
        return gather([self.target], cases.numpy()[:, None], odds.numpy()[:, None], groups)

    def rows(self, store: Store, state: State, split: Split) -> tuple[torch.Tensor, torch.Tensor]:
        """Standardised values, 0 where missing, beside 1 where missing, [n, 2 k]; and 1 for cases, [n]."""
        values, observed = map(torch.from_numpy, store.phenotypes(self._people(store, split)))
        moments = part(state, "statistics.phenotype.")
        mean, std, kept = (torch.from_numpy(np.array(moments[name])) for name in ("mean", "std", "kept"))
        standard, known = standardise(values, observed, mean, std, kept)
        inputs = torch.cat([standard[:, self._inputs], (~known[:, self._inputs]).float()], dim=1)
        return inputs.to(self.device), values[:, self._target].to(self.device)

    def _people(self, store: Store, split: Split) -> np.ndarray:
        people = store.people(split, Modality.PHENOTYPE)
        return np.asarray(people[store.phenotypes(people)[1][:, self._target]])

    def _build(self, tensors: Tensors | None = None) -> torch.nn.Sequential:
        """The network; with the weights of `tensors` where they are given."""
        layers: list[torch.nn.Module] = []
        for before, after in pairwise([2 * len(self._inputs), *self.parameters.get("hidden", []), 1]):
            layers += [torch.nn.Linear(before, after), torch.nn.ReLU()]
        module = torch.nn.Sequential(*layers[:-1])
        if tensors is not None:
            load_part(module, tensors, self.prefix)
        return module.to(self.device)

    @torch.no_grad()
    def _odds(
        self, store: Store, state: State, tensors: Tensors, split: Split
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Log odds of being a case, and 1 for cases, float [n] each."""
        inputs, cases = self.rows(store, state, split)
        return self._build(tensors).eval()(inputs)[:, 0].cpu(), cases.cpu()
