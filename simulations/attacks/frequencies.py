"""Membership from allele frequencies: was this person in the pool whose frequencies were told?

Homer et al. 2008 ("Resolving individuals contributing trace amounts of DNA to highly complex mixtures") showed that
a pool's frequencies give its people away. The statistic here is the likelihood ratio of Sankararaman et al. 2009
("Genomic privacy and limits of individual detection in a pool"): for alternate alleles x at a SNP, pool frequency p
and reference frequency q,

    sum over SNPs of x log(p / q) + (2 - x) log((1 - p) / (1 - q))
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from dp_accounting import get_sigma_gaussian

from pm1_core.data.manifest import load_manifest
from pm1_core.data.preparation import prepare
from pm1_core.data.store import Store
from pm1_core.fields import CHROMOSOMES, MISSING_DOSAGE, Modality
from pm1_core.privacy.noise import gaussian, secret_generator
from pm1_core.privacy.terms import RecordTerms, to_order
from pm1_core.training.local import train_locally
from pm1_core.training.order import Order
from pm1_core.training.tasks import build_task
from pm1_core.training.tasks.reference import pin_reference
from pm1_core.update import Tensors
from simulations.attacks.figures import curve, separation
from simulations.attacks.membership import Candidates, statistics_of
from simulations.attacks.outcome import Cell, Outcome, Setting
from simulations.pooled import PooledStore
from simulations.real_cohort import EUROPEANS, RealData, write_real_cohort

PUBLIC = "public statistics only"
_ROUNDS = 2


@dataclass(frozen=True)
class Pool:
    """People in thirds: of the pool, of the reference, and others. dosages: uint8 [n, S] of each."""

    members: np.ndarray
    reference: np.ndarray
    others: np.ndarray

    @property
    def people(self) -> np.ndarray:
        """Who is told apart: members, then others."""
        return np.concatenate([self.members, self.others])

    @property
    def member(self) -> np.ndarray:
        """Of `people`, bool [n]."""
        return np.arange(len(self.people)) < len(self.members)


def frequencies_of(dosages: np.ndarray) -> np.ndarray:
    """Frequency of the alternate allele at each SNP, float64 [S], of uint8 dosages [n, S]; 0.5 for nobody typed."""
    typed = dosages != MISSING_DOSAGE
    alleles = 2 * typed.sum(0)
    share: np.ndarray = np.where(typed, dosages, 0).sum(0) / np.maximum(alleles, 1)
    return np.where(alleles > 0, share, 0.5)


def likelihood_ratio(dosages: np.ndarray, pool: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """The statistic of each person, float64 [n], of dosages [n, S]; missing genotypes add nothing.

    Frequencies of 0 and 1 are drawn in by a hundredth of a percent, or one genotype would decide alone.
    """
    p, q = (np.clip(array, 1e-4, 1 - 1e-4) for array in (pool, reference))
    typed = dosages != MISSING_DOSAGE
    alternate = np.where(typed, dosages, 0).astype(np.float64)
    rest = np.where(typed, 2 - alternate, 0)
    found: np.ndarray = alternate @ np.log(p / q) + rest @ np.log((1 - p) / (1 - q))
    return found


def noised_frequencies(dosages: np.ndarray, epsilon: float, delta: float) -> np.ndarray:
    """The pool's frequencies with Gaussian noise for one person added or removed, float64 [S].

    A person's row of dosages over two is at most sqrt(S) long; its number of people is taken to be public.
    """
    sums = np.where(dosages == MISSING_DOSAGE, 1, dosages).astype(np.float64).sum(0) / 2
    sensitivity, multiplier = dosages.shape[1] ** 0.5, float(get_sigma_gaussian(epsilon, delta))
    noised = gaussian(sums, sensitivity, multiplier, secret_generator())
    return np.clip(noised / len(dosages), 0, 1)


def released_frequencies(store: Store, epsilon: float, delta: float, folder: Path) -> np.ndarray:
    """What the statistics phase tells of allele frequencies under record-level terms, float64 [S].

    It releases the shares of the three dosages of a whole chromosome, so that all its SNPs have one frequency.
    """
    multiplier = float(get_sigma_gaussian(epsilon, delta)) * _ROUNDS**0.5
    privacy = to_order(RecordTerms(noise_multiplier=multiplier))
    orders = [
        Order("statistics", "statistics", n, _ROUNDS, 0, privacy=privacy) for n in range(1, _ROUNDS + 1)
    ]
    return _frequencies_in(train_locally(build_task(orders[0], store.study), store, orders, {}, folder))


def public_frequencies(store: Store, panel: Store, folder: Path) -> np.ndarray:
    """What a study tells of allele frequencies that takes its statistics from a panel of others, float64 [S]."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "panel.safetensors"
    file.write_bytes(safetensors.numpy.save(dict(statistics_of(panel, folder))))
    order = Order("statistics", "reference", 1, 1, 0, {"kind": "statistics", **pin_reference(file)})
    return _frequencies_in(train_locally(build_task(order, store.study), store, [order], {}, folder))


def _frequencies_in(tensors: Tensors) -> np.ndarray:
    """Of each SNP, or under privacy one of all SNPs of a chromosome, float64 [S]."""
    pieces = []
    for chromosome in CHROMOSOMES:
        name = f"statistics.genotype.{chromosome}.counts"
        if name in tensors:
            counts = np.maximum(tensors[name].astype(np.float64), 0)
            pieces.append((counts[:, 1] + 2 * counts[:, 2]) / np.maximum(2 * counts.sum(1), 1e-9))
    return np.concatenate(pieces)


def thirds(store: Store, seed: int) -> tuple[Pool, list[np.ndarray]]:
    """A random pool among the genotyped people of `store`, and who is in each third (int64), the pool first."""
    people = store.people(None, Modality.GENOTYPE)
    shuffled = np.random.default_rng(seed).permutation(people)
    parts = np.array_split(shuffled, 3)
    dosages = [
        np.concatenate([store.dosages(c, part) for c in CHROMOSOMES if store.snps(c)], axis=1)
        for part in parts
    ]
    return Pool(*dosages), parts


def measured(
    title: str, stores: Sequence[Store], seed: int, epsilons: Sequence[float], delta: float, folder: Path
) -> tuple[list[dict[str, Cell]], list[dict[str, Any]]]:
    """Rows and curves of one data set."""
    everybody = PooledStore(stores)
    pool, (chosen, panel, _) = thirds(everybody, seed)
    reference = frequencies_of(pool.reference)
    told: dict[str, np.ndarray] = {"exact frequencies": frequencies_of(pool.members)}
    for epsilon in epsilons:
        told[f"frequencies noised, epsilon {epsilon:g}"] = noised_frequencies(pool.members, epsilon, delta)
    store = Candidates(stores, chosen)
    for epsilon in epsilons:
        told[f"statistics phase, epsilon {epsilon:g}"] = released_frequencies(
            store, epsilon, delta, folder / f"{epsilon:g}"
        )
    # The attacker's reference is the other half of the panel, or all his ratios were one.
    told[PUBLIC] = public_frequencies(store, Candidates(stores, panel[::2]), folder / "public")
    against = {PUBLIC: frequencies_of(pool.reference[1::2])}
    rows: list[dict[str, Cell]] = []
    curves = []
    for what, frequencies in told.items():
        scores = likelihood_ratio(pool.people, frequencies, against.get(what, reference))
        found = separation(scores, pool.member, seed=seed)
        figures = {key: found[key] for key in ("auc", "tpr_0.001", "tpr_0.01")}
        counts = {"members": int(pool.member.sum()), "snps": pool.members.shape[1]}
        rows.append({"data": title, "told": what, **figures, **counts})
        curves.append({"label": f"{title}: {what}", **curve(scores, pool.member)})
    return rows, curves


def real_europeans(folder: Path) -> Store | None:
    """The 1000 Genomes Europeans as a prepared store, if PM1_REAL_DATA names the open data sets."""
    named = os.environ.get("PM1_REAL_DATA")
    if not named:
        return None
    manifests: Mapping[str, Path] = write_real_cohort(
        RealData(Path(named)), folder / "real", "1", photographs=False
    )
    prepare(load_manifest(manifests[EUROPEANS]), folder / "real" / "stores" / EUROPEANS)
    return Store.open(folder / "real" / "stores" / EUROPEANS)


def attack(setting: Setting) -> Outcome:
    """Simulated people, and real ones where there are any, each with exact, noised and phase-wide frequencies."""
    epsilons, delta = list(setting.options["epsilons"]), float(setting.config["privacy"]["delta"])
    genotyped = [s for s in setting.workspace.open().values() if Modality.GENOTYPE in s.modalities]
    data: dict[str, Sequence[Store]] = {"simulated": genotyped}
    real = real_europeans(setting.folder)
    if real is not None:
        data["1000 Genomes Europeans"] = [real]
    rows: list[dict[str, Cell]] = []
    curves: list[dict[str, Any]] = []
    with setting.stages.stage("allele frequencies") as step:
        for done, (title, stores) in enumerate(data.items()):
            step(title, done, len(data))
            more, drawn = measured(
                title, stores, setting.config["seed"], epsilons, delta, setting.folder / title
            )
            rows, curves = [*rows, *more], [*curves, *drawn]
        step("", len(data), len(data))
    findings = []
    for row in rows:
        area: Any = row["auc"]
        findings.append(
            f"{str(row['data'])[0].upper()}{str(row['data'])[1:]} people, {row['told']}: AUC {area['value']:.3f} "
            f"({area['low']:.3f}–{area['high']:.3f})."
        )
    return {
        "title": "Membership from allele frequencies",
        "attacker": "Holds a person's genotypes, the frequencies that a site told, and those of a reference panel "
        "of the same population.",
        "sets": "; ".join(
            f"{title}: {sum(len(s.people(None, Modality.GENOTYPE)) for s in stores)} genotyped people in thirds, "
            "the pool, the reference and others"
            for title, stores in data.items()
        )
        + ".",
        "columns": [
            {"key": "data", "label": "People", "kind": "text"},
            {"key": "told", "label": "What the site told", "kind": "text"},
            {"key": "auc", "label": "ROC-AUC", "kind": "figure"},
            {"key": "tpr_0.001", "label": "TPR at 0.1% FPR", "kind": "figure"},
            {"key": "tpr_0.01", "label": "TPR at 1% FPR", "kind": "figure"},
            {"key": "members", "label": "In the pool", "kind": "count"},
            {"key": "snps", "label": "SNPs", "kind": "count"},
        ],
        "rows": rows,
        "plot": {"kind": "roc", "curves": [c for c in curves if "noised" not in c["label"]]},
        "findings": findings,
        "notes": [
            "The statistics phase tells three shares a chromosome, with noise; frequencies noised SNP by SNP stand "
            "beside it for what the same epsilon would make of them.",
            f"Epsilon is of this release alone, for one person added or removed, at delta {delta:g}. Public "
            "statistics (privacy.statistics=public) are those of the reference panel: sites send zeros.",
        ],
    }
