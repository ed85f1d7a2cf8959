"""Association scan: which SNPs do the embeddings know of? (section 5.1 of the paper)

The paper runs PLINK 2 on principal components of the fusion embeddings. Here every SNP is tested
against all K components at once. With M the annihilator of the covariates and the intercept, the
dosage Mg is regressed on the components MY: with R^2 of that regression,

    F = (R^2 / K) / ((1 - R^2) / (n - C - 1 - K))   on (K, n - C - 1 - K) degrees of freedom,

which for one SNP is the exact form of Wilks' lambda of the multivariate regression of Y on g, and for
K = 1 the t-test of PLINK's linear regression. One p-value per SNP therefore needs no correction for the
number of components, and is uniform under the null, so that the genomic control lambda means something.

A missing dosage is replaced by the SNP's mean, as in REGENIE (Mbatchou et al., Nature Genetics
2021;53:1097). Sources: Muller and Peterson, Computational Statistics 1984;2:143 (exact F); Devlin and
Roeder, Biometrics 1999;55:997 (lambda).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import special, stats

from pm1_core.errors import InputError
from pm1_core.fields import MISSING_DOSAGE
from pm1_core.validate import refusal, require_range, require_shape

GENOME_WIDE = 5e-8
_BLOCK = 2_000


@dataclass(frozen=True)
class Scan:
    """Result per SNP, in the order of the variants given.

    chrom int64 [S], pos int64 [S]
    log10_p float64 [S]: -log10 of the joint p-value; NaN for a SNP without variation
    betas float64 [S, K]: change of each component per alternate allele, covariates held
    people, covariates: n and C
    """

    chrom: np.ndarray
    pos: np.ndarray
    log10_p: np.ndarray
    betas: np.ndarray
    people: int
    covariates: int

    @property
    def p(self) -> np.ndarray:
        """p-values float64 [S]; below about 1e-308 they are 0, `log10_p` is not."""
        return np.asarray(np.power(10.0, -self.log10_p))

    @property
    def inflation(self) -> float:
        """Genomic control lambda: median chi-square (1 df) over its value under the null."""
        tested = self.p[np.isfinite(self.log10_p)]
        return float(np.median(stats.chi2.isf(tested, 1)) / stats.chi2.median(1))


@dataclass(frozen=True)
class Locus:
    """Strongest SNP of a stretch of the genome."""

    chrom: int
    pos: int
    log10_p: float


@dataclass(frozen=True)
class Recovery:
    """Where a planted SNP came out.

    rank: of the planted SNP among the tested SNPs, 1 the strongest; snps: how many were tested
    region_rank: of the planted SNP's region among the loci (strongest SNP per `window`), 1 the strongest
    lead: the strongest SNP of that region, with its r^2 with the planted SNP
    """

    chrom: int
    pos: int
    log10_p: float
    rank: int
    snps: int
    region_rank: int
    lead: Locus
    lead_r2: float
    genome_wide: bool

    def to_json(self) -> dict[str, Any]:
        """Plain types, for results.json."""
        return asdict(self)


def association_scan(
    dosages: Mapping[int, np.ndarray],
    variants: pd.DataFrame,
    outcomes: np.ndarray,
    covariates: np.ndarray,
) -> Scan:
    """Test every SNP against all outcomes at once.

    dosages: chromosome -> uint8 [n, S_c], 3 = missing
    variants: columns chrom and pos, sorted by chromosome as `dosages`, one row per SNP
    outcomes float [n, K]: principal components of the embeddings
    covariates float [n, C]: ancestry components and the like, without the intercept; C may be 0

    Raises InputError on other shapes, on NaN, on covariates that explain the outcomes wholly, and on
    fewer than 10 people more than columns.
    """
    outcomes, covariates = np.asarray(outcomes, np.float64), np.asarray(covariates, np.float64)
    n = outcomes.shape[0]
    require_shape("outcomes", outcomes, (None, None))
    require_shape("covariates", covariates, (n, None))
    if not (np.isfinite(outcomes).all() and np.isfinite(covariates).all()):
        raise InputError(refusal("outcomes and covariates", "found NaN", "leave these people out"))
    k = outcomes.shape[1]
    freedom = n - covariates.shape[1] - 1 - k
    require_range("people beyond covariates and outcomes", freedom, 10)

    design = _basis(np.column_stack([np.ones(n), covariates]))  # [n, <= C + 1], orthonormal
    residual = outcomes - design @ (design.T @ outcomes)
    basis = _basis(residual)  # [n, K]
    spread, left_over = outcomes.var(axis=0) * n, (residual**2).sum(axis=0)
    if basis.shape[1] < k or (left_over < 1e-12 * spread).any():
        raise InputError(
            refusal("outcomes", "found one that the others or the covariates explain", "leave it out")
        )
    log10_p, betas = [], []
    for chromosome in sorted(dosages):
        values = dosages[chromosome]
        require_shape(f"dosages of chromosome {chromosome}", values, (n, None))
        expected = int((variants["chrom"] == chromosome).sum())
        require_shape(f"dosages of chromosome {chromosome}", values, (n, expected))
        for start in range(0, values.shape[1], _BLOCK):
            genotypes = _filled(values[:, start : start + _BLOCK])  # [n, b], centred
            before = (genotypes**2).sum(axis=0)
            genotypes -= design @ (design.T @ genotypes)
            left = (genotypes**2).sum(axis=0)  # [b]
            varies = left > 1e-8 * np.maximum(before, 1e-300)
            safe = np.where(varies, left, 1.0)
            explained = ((basis.T @ genotypes) ** 2).sum(axis=0) / safe
            unexplained = np.clip(1.0 - explained, 0.0, 1.0)
            log10_p.append(np.where(varies, _log10_p(unexplained, k, freedom), np.nan))
            betas.append(np.where(varies[:, None], (residual.T @ genotypes / safe).T, np.nan))
    kept = variants[variants["chrom"].isin(list(dosages))]
    return Scan(
        kept["chrom"].to_numpy(np.int64),
        kept["pos"].to_numpy(np.int64),
        np.concatenate(log10_p),
        np.concatenate(betas),
        n,
        covariates.shape[1],
    )


def loci(scan: Scan, window: int) -> list[Locus]:
    """Strongest SNP of each stretch: greedily, no two within `window` base pairs; strongest first."""
    require_range("window", window, 1)
    found: list[Locus] = []
    covered = np.isnan(scan.log10_p)
    for index in np.argsort(-np.nan_to_num(scan.log10_p, nan=-1.0), kind="stable"):
        if covered[index]:
            continue
        found.append(_locus(scan, int(index)))
        covered |= (scan.chrom == scan.chrom[index]) & (np.abs(scan.pos - scan.pos[index]) <= window)
    return found


def recovery(
    scan: Scan, dosages: np.ndarray, chromosome: int, position: int, window: int = 250_000
) -> Recovery:
    """How well the scan finds a planted SNP, itself or through its neighbours within `window` bp.

    dosages uint8 [n, S_c]: of `chromosome`, in the order of the scan
    Raises InputError if the scan has no such SNP, or if it does not vary.
    """
    here = np.flatnonzero(scan.chrom == chromosome)
    planted = here[scan.pos[here] == position]
    if planted.size == 0 or np.isnan(scan.log10_p[planted[0]]):
        found = "no such SNP" if planted.size == 0 else "a SNP without variation"
        raise InputError(refusal(f"planted SNP {chromosome}:{position}", f"found {found}", "scan it too"))
    index = int(planted[0])
    strength = scan.log10_p[index]
    near = here[np.abs(scan.pos[here] - position) <= window]
    lead = int(near[np.nanargmax(scan.log10_p[near])])
    stronger = [locus for locus in loci(scan, window) if locus.log10_p > scan.log10_p[lead]]
    elsewhere = [x for x in stronger if x.chrom != chromosome or abs(x.pos - position) > window]
    first = here[0]
    return Recovery(
        chromosome,
        position,
        float(strength),
        1 + int((scan.log10_p > strength).sum()),
        int(np.isfinite(scan.log10_p).sum()),
        1 + len(elsewhere),
        _locus(scan, lead),
        squared_correlation(dosages[:, index - first], dosages[:, lead - first]),
        bool(scan.log10_p[lead] >= -np.log10(GENOME_WIDE)),
    )


def squared_correlation(one: np.ndarray, other: np.ndarray) -> float:
    """r^2 of two SNPs, uint8 [n] each, over the people typed at both; 0 if one does not vary among them.

    Linkage disequilibrium without phase: Rogers AR, Huff C (2009) Genetics 182:839-844.
    """
    typed = (one != MISSING_DOSAGE) & (other != MISSING_DOSAGE)
    pair = np.stack([one, other])[:, typed].astype(np.float64)
    if not typed.any() or (np.ptp(pair, axis=1) == 0).any():
        return 0.0
    return float(np.asarray(np.corrcoef(pair))[0, 1] ** 2)


def _locus(scan: Scan, index: int) -> Locus:
    return Locus(int(scan.chrom[index]), int(scan.pos[index]), float(scan.log10_p[index]))


def _basis(columns: np.ndarray) -> np.ndarray:
    """Orthonormal basis of the columns' span; columns are first brought to one length."""
    lengths = np.linalg.norm(columns, axis=0)
    left, singular, _ = np.linalg.svd(columns / np.where(lengths > 0, lengths, 1.0), full_matrices=False)
    return left[:, singular > 1e-9 * singular.max(initial=1e-300)]


def _filled(dosages: np.ndarray) -> np.ndarray:
    """Centred dosages float64 [n, S], a missing one at the mean."""
    observed = dosages != MISSING_DOSAGE
    total = np.where(observed, dosages, 0).sum(axis=0, dtype=np.float64)
    mean = total / np.maximum(observed.sum(axis=0), 1)
    return np.where(observed, dosages - mean, 0.0)


def _log10_p(unexplained: np.ndarray, k: int, freedom: int) -> np.ndarray:
    """-log10 of the F-test's p-value, which is the regularised beta function I_(1-R^2)(freedom/2, K/2).

    Where it underflows (p below 1e-300) its hypergeometric series stands for it, x^a (1 - x)^b /
    (a B(a, b)) times 2F1(a + b, 1; a + 1; x), summed as a geometric one, which it nearly is for large a;
    the error is below 0.01 in log10 p there.
    """
    a, b = freedom / 2.0, k / 2.0
    x = np.maximum(unexplained, 1e-300)
    p = special.betainc(a, b, x)
    with np.errstate(divide="ignore"):
        direct = -np.log10(p)
    return np.where(p > 1e-300, direct, _log10_p_series(x, a, b))


def _log10_p_series(x: np.ndarray, a: float, b: float) -> np.ndarray:
    ratio = np.clip(x * (a + b) / (a + 1), 0.0, 0.999)
    log_p = a * np.log(x) + b * np.log1p(-np.minimum(x, 0.999)) - np.log(a) - special.betaln(a, b)
    return np.asarray((np.log1p(-ratio) - log_p) / np.log(10))
