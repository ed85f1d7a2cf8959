"""Federated sums that everything else rests on: dosage counts per SNP, moments per phenotype feature.

Two rounds, so that a variance is a sum of squared deviations from the pooled mean instead of a difference of
large numbers: round 1 sums counts and values, round 2 sums squared deviations from the mean of round 1.
Statistics come from training people only (appendix E.3) and are pooled over the sites, never a site's own. Which
features are used follows from the pooled sums too, so that all sites agree on them, whichever came first.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pm1_core.data.store import Store
from pm1_core.fields import CHROMOSOMES, MISSING_DOSAGE, Modality, Split
from pm1_core.privacy.noise import secret_generator
from pm1_core.privacy.terms import RecordTerms, record_terms
from pm1_core.training.guide import UNGUIDED, Guide
from pm1_core.training.order import Order
from pm1_core.training.parts import State
from pm1_core.training.tasks import noised_sums
from pm1_core.training.tasks.base import Task
from pm1_core.update import Tensors, Update

_PEOPLE_AT_ONCE = 1024
_MOMENTS = ("count", "validated", "mean", "std", "kept")


class StatisticsTask(Task):
    """Counts of dosages [S, 3] per chromosome; count, validated, mean, std and kept [K] of phenotype features.

    count, validated: training and validation people in whom a feature is observed, over all sites
    kept: 1 for features that are used: of more than one value in training people, and observed in validation
    people (E.3), where the study has any
    """

    name = "statistics"
    aggregation = "sum"
    modalities = frozenset({Modality.GENOTYPE, Modality.PHENOTYPE})
    private = True

    def initial(self, state: State, seed: int) -> Tensors:
        """Zeros of the shapes that the sums have."""
        features = np.zeros(len(self.study.features), np.float32)
        counts = {
            f"statistics.genotype.{c}.counts": np.zeros((self.study.chromosome_sizes[c], 3), np.float32)
            for c in CHROMOSOMES
            if self.study.chromosome_sizes.get(c)
        }
        moments = {f"statistics.phenotype.{name}": features for name in _MOMENTS}
        return {**counts, **moments}

    def train(
        self,
        store: Store,
        order: Order,
        state: State,
        tensors: Tensors,
        folder: Path,
        guide: Guide = UNGUIDED,
    ) -> Update:
        """This site's sums over its training people. In round 2 only the squared deviations are new."""
        terms = record_terms(order.privacy)
        if terms:
            return self._noised(store, order, tensors, terms)
        sums = {name: np.zeros(array.shape, np.float64) for name, array in tensors.items()}
        people = store.people(Split.TRAIN, Modality.PHENOTYPE)
        mean = tensors["statistics.phenotype.mean"].astype(np.float64)
        for chunk in _chunks(people):
            values, observed = store.phenotypes(chunk)
            if order.round == 1:
                sums["statistics.phenotype.count"] += observed.sum(0)
                sums["statistics.phenotype.mean"] += (values.astype(np.float64) * observed).sum(0)
            else:
                sums["statistics.phenotype.std"] += (((values - mean) ** 2) * observed).sum(0)
        if order.round == 1:
            for chunk in _chunks(store.people(Split.VALIDATION, Modality.PHENOTYPE)):
                sums["statistics.phenotype.validated"] += store.phenotypes(chunk)[1].sum(0)
            carriers = store.people(Split.TRAIN, Modality.GENOTYPE)
            for name, total in sums.items():
                if name.startswith("statistics.genotype."):
                    chromosome = int(name.split(".")[2])
                    for chunk in _chunks(carriers):
                        dosages = store.dosages(chromosome, chunk)
                        for dosage in range(MISSING_DOSAGE):
                            total[:, dosage] += (dosages == dosage).sum(0)
        return Update({name: total.astype(np.float32) for name, total in sums.items()}, 1.0, {})

    def _noised(self, store: Store, order: Order, tensors: Tensors, terms: RecordTerms) -> Update:
        """The same sums with a bound per person and noise, see `noised_sums`."""
        shapes = {name: array.shape for name, array in tensors.items()}
        counted = sorted(name for name in shapes if name.startswith("statistics.genotype."))
        sums = noised_sums.statistics_sums(self.study, order.round, len(counted))
        mean = tensors["statistics.phenotype.mean"].astype(np.float64)
        people = store.people(Split.TRAIN, Modality.PHENOTYPE)
        chunks = (store.phenotypes(chunk) for chunk in _chunks(people))
        noised_sums.add_phenotypes(sums, self.study, chunks, mean, order.round)
        if "dosage" in sums.bounds:
            for chunk in _chunks(store.people(Split.TRAIN, Modality.GENOTYPE)):
                shares = [
                    noised_sums.dosage_shares(store.dosages(int(name.split(".")[2]), chunk))
                    for name in counted
                ]
                sums.add("dosage", np.stack(shares, 1))
        features = (len(self.study.features),)
        blocks = {"observed": features, "value": features, "square": features, "dosage": (len(counted), 3)}
        released = sums.released(terms.noise_multiplier, secret_generator(), blocks)
        return Update(noised_sums.statistics_tensors(self.study, order.round, released, shapes), 1.0, {})

    def advance(self, round_number: int, tensors: Tensors, aggregate: Tensors) -> Tensors:
        """Sums to statistics, and which features are kept."""
        prefix = "statistics.phenotype."
        if round_number == 1:
            # Noised sums may be below zero, where no count and no square is.
            count = np.maximum(aggregate[prefix + "count"], 0)
            mean = aggregate[prefix + "mean"] / np.maximum(count, 1)
            return {**aggregate, prefix + "count": count, prefix + "mean": mean.astype(np.float32)}
        count, mean = tensors[prefix + "count"], tensors[prefix + "mean"]
        squares = aggregate[prefix + "std"]
        deviation = np.sqrt(np.maximum(squares, 0) / np.maximum(count, 1))
        # Only noise brings a sum of squares below zero.
        deviation = np.where(squares < 0, noised_sums.usual_deviation(self.study), deviation)
        kept = (count > 1) & (deviation > 1e-6 * np.maximum(1e-6, np.abs(mean)))
        validated = tensors[prefix + "validated"] > 0
        kept &= validated | ~validated.any()
        binary = np.array([feature.kind == "binary" for feature in self.study.features], dtype=bool)
        scaled = kept & ~binary
        return {
            **tensors,
            prefix + "mean": np.where(scaled, mean, 0).astype(np.float32),
            prefix + "std": np.where(scaled, deviation, 1).astype(np.float32),
            prefix + "kept": kept.astype(np.float32),
        }


def _chunks(people: np.ndarray) -> list[np.ndarray]:
    return [people[start : start + _PEOPLE_AT_ONCE] for start in range(0, len(people), _PEOPLE_AT_ONCE)]
