"""The genotype auto-encoder of one chromosome over sites (section 4.1, appendix F.1)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pm1_core.data.store import Store
from pm1_core.data.summary import StudySummary
from pm1_core.errors import ConfigError
from pm1_core.evaluation.genotype import dosage_confusion, plain_accuracy, weighted_accuracy
from pm1_core.fields import Modality, Split
from pm1_core.model.baselines import GenotypeModel, build_genotype_model
from pm1_core.model.genotype_vae import GenotypeVAEConfig, sample
from pm1_core.model.objectives import GenotypeLosses, annealing, dosage_weights, genotype_losses
from pm1_core.training.ahead import placed
from pm1_core.training.guide import UNGUIDED, Guide
from pm1_core.training.loop import LoopConfig, Losses, LossOf, Read, device_of, train_epochs
from pm1_core.training.order import Order, derived_seed
from pm1_core.training.parts import State, dump_part, load_part, named_part, part
from pm1_core.training.private import Units
from pm1_core.training.processes import divided
from pm1_core.training.tasks.base import Metrics, Task
from pm1_core.update import Tensors, Update
from pm1_core.validate import refusal, require_keys

_EVALUATED_AT_ONCE = 256


class GenotypeTask(Task):
    """Trains one chromosome; the paper's study has 22 phases of it.

    Keys of `parameters`:
      chromosome: 1 to 22
      model: fields of GenotypeVAEConfig
      architecture: "convolutional" (PM1's), or the baselines "linear" and "shallow"
      loop: see LoopConfig

    Tensors travel as "genotype.{chromosome}.{parameter}". Raises ConfigError on a wrong parameter.
    """

    name = "genotype"
    modalities = frozenset({Modality.GENOTYPE})
    private = True
    divides = True

    def __init__(self, parameters: Mapping[str, Any], study: StudySummary) -> None:
        super().__init__(parameters, study)
        chromosome, sizes = parameters.get("chromosome"), study.chromosome_sizes
        if not isinstance(chromosome, int) or not sizes.get(chromosome):
            remedy = f"use one of the study's: {', '.join(str(held) for held, size in sizes.items() if size)}"
            raise ConfigError(refusal("genotype task, chromosome", f"found {chromosome!r}", remedy))
        self.chromosome, self.snps = chromosome, sizes[chromosome]
        fields = tuple(GenotypeVAEConfig.__dataclass_fields__)
        model = require_keys("genotype task, model", parameters.get("model", {}), (), fields, ConfigError)
        self.config = GenotypeVAEConfig(**model)
        self.architecture: str = parameters.get("architecture", "convolutional")
        self.prefix = f"genotype.{self.chromosome}."
        self.device = device_of(parameters)

    @property
    def needs(self) -> tuple[str, ...]:
        """Counts of dosages, for the class weights."""
        return (f"statistics.{self.prefix}",)

    def initial(self, state: State, seed: int) -> Tensors:
        """Random weights that follow from the seed and the chromosome alone."""
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
        """One round on this site's training people; the KL weight goes on rising from the last round."""
        people = store.people(Split.TRAIN, Modality.GENOTYPE)
        module, weights = self._load(tensors), self._weights(state)

        def losses_of(indices: np.ndarray, draws: torch.Generator, step: int) -> torch.Tensor:
            share = annealing(step, self.config.kl_anneal_steps)
            dosages = self._dosages(store, people[indices])
            return self._each(module, dosages, weights, share, draws)[0].total

        trained, units = named_part(module, self.prefix), Units(len(people), losses_of)
        # Counted from the order: a site that missed rounds starts its own count afresh, but the study's
        # weights are warmed up.
        read, loss_of = self.steps(module, store, weights, self._steps_before(order, len(people)))
        metrics = train_epochs(module, trained, order, folder, len(people), loss_of, guide, units, read)
        weight = float(len(people))
        return Update(dump_part(module, self.prefix), weight, metrics, {Modality.GENOTYPE: weight})

    def steps(
        self, module: GenotypeModel, store: Store, weights: torch.Tensor, before: int = 0
    ) -> tuple[Read, LossOf]:
        """How a step of `train_epochs` reads training people of `store`, and what it minimises.

        weights: of dosages, see `dosage_weights`; before: steps of the phase that were taken before
        """
        people, steps = store.people(Split.TRAIN, Modality.GENOTYPE), count(before)

        def read(indices: np.ndarray) -> torch.Tensor:
            return self._dosages(store, people[indices])

        def loss_of(dosages: torch.Tensor, draws: torch.Generator, step: int) -> Losses:
            share = annealing(next(steps), self.config.kl_anneal_steps)
            losses, _ = self._losses(module, dosages, weights, share, draws)
            parts = {"cross_entropy": losses.cross_entropy.detach(), "kl": losses.kl.detach()}
            return Losses(losses.total, parts)

        return read, loss_of

    @torch.no_grad()
    def evaluate(
        self, store: Store, order: Order, state: State, tensors: Tensors, folder: Path, split: Split
    ) -> Metrics:
        """Loss at the full KL weight, its parts and accuracies, all reconstructed from the latent's mean.

        "weighted_accuracy" is balanced accuracy per SNP among this site's people: a mean of it over sites is
        not that of the pooled people, for which the tables of `dosage_confusion` have to be added up.
        """
        people = store.people(split, Modality.GENOTYPE)
        if not len(people):
            return {"examples": 0.0}
        module, weights = self._load(tensors).eval(), self._weights(state)
        sums: dict[str, float] = defaultdict(float)
        confusion = np.zeros((self.snps, 3, 3), np.int64)
        for start in range(0, len(people), _EVALUATED_AT_ONCE):
            dosages = self._dosages(store, people[start : start + _EVALUATED_AT_ONCE])
            losses, logits = self._losses(module, dosages, weights, 1.0, None)
            for name in ("total", "cross_entropy", "kl"):
                sums[name] += float(getattr(losses, name)) * len(dosages)
            confusion += dosage_confusion(dosages.cpu().numpy(), logits.argmax(-1).cpu().numpy())
        metrics = {"loss" if name == "total" else name: value / len(people) for name, value in sums.items()}
        accuracies = {
            "accuracy": plain_accuracy(confusion),
            "weighted_accuracy": weighted_accuracy(confusion),
        }
        metrics |= {name: value for name, value in accuracies.items() if np.isfinite(value)}
        return {**metrics, "examples": float(len(people))}

    @torch.no_grad()
    def reconstruct(self, tensors: Tensors, dosages: np.ndarray) -> np.ndarray:
        """Most likely dosages uint8 [n, S] after encoding to the mean and decoding."""
        module = self._load(tensors).eval()
        pieces = []
        for start in range(0, len(dosages), _EVALUATED_AT_ONCE):
            block = torch.from_numpy(dosages[start : start + _EVALUATED_AT_ONCE]).to(self.device)
            pieces.append(module(block, None)[0].argmax(-1).to(torch.uint8).cpu().numpy())
        return np.concatenate(pieces)

    def _build(self) -> GenotypeModel:
        return build_genotype_model(self.architecture, self.config, self.snps)

    def _load(self, tensors: Tensors) -> GenotypeModel:
        module = self._build()
        load_part(module, tensors, self.prefix)
        return module.to(self.device)

    def _weights(self, state: State) -> torch.Tensor:
        counts = torch.from_numpy(np.array(part(state, f"statistics.{self.prefix}")["counts"]))
        return dosage_weights(counts, self.config.weight_cap, self.config.weights).to(self.device)

    def _dosages(self, store: Store, people: np.ndarray) -> torch.Tensor:
        return placed(torch.from_numpy(store.dosages(self.chromosome, people)), self.device)

    def _losses(
        self,
        module: GenotypeModel,
        dosages: torch.Tensor,
        weights: torch.Tensor,
        kl_share: float,
        generator: torch.Generator | None,
    ) -> tuple[GenotypeLosses, torch.Tensor]:
        """Losses and logits [B, S, 3] of a batch."""
        each, logits = self._each(module, dosages, weights, kl_share, generator)
        return GenotypeLosses(each.total.mean(), each.cross_entropy.mean(), each.kl.mean()), logits

    def _each(
        self,
        module: GenotypeModel,
        dosages: torch.Tensor,
        weights: torch.Tensor,
        kl_share: float,
        generator: torch.Generator | None,
    ) -> tuple[GenotypeLosses, torch.Tensor]:
        """Each person's losses, in float32 whatever the network computed in, and logits."""
        mean, log_variance = divided(module.encode)(dosages)
        z = mean if generator is None or log_variance is None else sample(mean, log_variance, generator)
        logits = divided(module.decode)(z)
        losses = genotype_losses(
            logits.float(),
            mean.float(),
            None if log_variance is None else log_variance.float(),
            dosages,
            weights,
            self.config.beta * kl_share,
            self.config.reconstruction,
            self.config.kl_scale,
        )
        return losses, logits

    def _steps_before(self, order: Order, examples: int) -> int:
        loop = LoopConfig.of(order.parameters)
        return (order.round - 1) * loop.epochs * -(-examples // (loop.batch_size or max(1, examples)))
