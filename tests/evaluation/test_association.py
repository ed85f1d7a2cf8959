"""The scan equals ordinary regression, is calibrated under the null, and finds a planted SNP."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from scipy import special, stats

from pm1_core.errors import InputError
from pm1_core.evaluation.association import _log10_p, _log10_p_series, association_scan, loci, recovery


def genomes(n: int, snps: int, seed: int = 0) -> tuple[dict[int, np.ndarray], pd.DataFrame, np.ndarray]:
    """Two populations, neighbours in LD on chromosome 15, a few missing; and the population as covariate."""
    rng = np.random.default_rng(seed)
    population = rng.random(n) < 0.3
    dosages, rows = {}, []
    for chromosome in (1, 15):
        low = rng.uniform(0.1, 0.5, snps)
        high = np.clip(low + rng.normal(0, 0.15, snps), 0.05, 0.95)
        values = rng.binomial(2, np.where(population[:, None], high, low)).astype(np.uint8)
        copy = rng.random((n, snps)) < 0.7
        for snp in range(1, snps):  # a copy of the left neighbour in 70% of people
            values[copy[:, snp], snp] = values[copy[:, snp], snp - 1]
        values[rng.random(values.shape) < 0.01] = 3
        dosages[chromosome] = values
        rows += [(chromosome, 50_000 * (snp + 1)) for snp in range(snps)]
    return dosages, pd.DataFrame(rows, columns=["chrom", "pos"]), population[:, None].astype(float)


def test_one_outcome_equals_least_squares() -> None:
    dosages, variants, covariates = genomes(200, 6)
    for values in dosages.values():
        values[values == 3] = 1  # least squares below has no missing
    outcome = np.random.default_rng(1).standard_normal((200, 1))
    scan = association_scan(dosages, variants, outcome, covariates)
    everything = np.hstack([dosages[1], dosages[15]]).astype(float)
    for snp in range(12):
        design = np.column_stack([np.ones(200), covariates, everything[:, snp]])
        solution, rss, *_ = np.linalg.lstsq(design, outcome[:, 0], rcond=None)
        error = (rss[0] / (200 - 3) * np.linalg.inv(design.T @ design)[2, 2]) ** 0.5
        p = 2 * stats.t.sf(abs(solution[2] / error), 200 - 3)
        assert scan.p[snp] == pytest.approx(p, rel=1e-9)
        assert scan.betas[snp, 0] == pytest.approx(solution[2], rel=1e-9)


def test_several_outcomes_equal_wilks_lambda() -> None:
    dosages, variants, covariates = genomes(150, 3)
    outcomes = np.random.default_rng(1).standard_normal((150, 4))
    scan = association_scan({1: dosages[1]}, variants[variants.chrom == 1], outcomes, covariates)
    snp = np.where(dosages[1][:, 0] == 3, np.nan, dosages[1][:, 0])
    snp = np.where(np.isnan(snp), np.nanmean(snp), snp)
    null = np.column_stack([np.ones(150), covariates])
    full = np.column_stack([null, snp])

    def residual_determinant(design: np.ndarray) -> float:
        left = outcomes - design @ np.linalg.lstsq(design, outcomes, rcond=None)[0]
        return float(np.linalg.det(left.T @ left))

    wilks = residual_determinant(full) / residual_determinant(null)
    freedom = 150 - 3 - 3  # n minus columns of the full design, minus K - 1
    p = stats.f.sf((1 - wilks) / wilks * freedom / 4, 4, freedom)
    assert scan.p[0] == pytest.approx(p, rel=1e-8)


def test_lambda_is_one_under_the_null_and_only_with_the_ancestry_covariate() -> None:
    dosages, variants, covariates = genomes(800, 1200)
    rng = np.random.default_rng(2)
    outcomes = rng.standard_normal((800, 5)) + 1.5 * covariates
    adjusted = association_scan(dosages, variants, outcomes, covariates)
    assert adjusted.inflation == pytest.approx(1.0, abs=0.12)
    assert stats.kstest(adjusted.p[::8], "uniform").pvalue > 0.01  # every 8th: neighbours are in LD
    naive = association_scan(dosages, variants, outcomes, np.empty((800, 0)))
    assert naive.inflation > 1.5


def test_a_planted_snp_comes_out_first_and_its_region_with_it() -> None:
    dosages, variants, covariates = genomes(800, 400)
    rng = np.random.default_rng(3)
    planted = 137
    effect = np.where(dosages[15][:, planted] == 3, 0, dosages[15][:, planted])
    outcomes = rng.standard_normal((800, 5)) + covariates
    outcomes[:, 2] += 0.6 * effect
    scan = association_scan(dosages, variants, outcomes, covariates)
    found = recovery(scan, dosages[15], 15, 50_000 * (planted + 1))
    assert (found.rank, found.region_rank, found.genome_wide) == (1, 1, True)
    assert (found.lead.pos, round(found.lead_r2, 6)) == (found.pos, 1.0)
    assert found.snps == 800
    leads = loci(scan, 250_000)
    assert (leads[0].chrom, leads[0].pos) == (15, found.pos)
    assert all(a.log10_p >= b.log10_p for a, b in pairwise(leads))
    same = [lead.pos for lead in leads if lead.chrom == 15]
    assert np.diff(sorted(same)).min() > 250_000


def test_an_unlinked_snp_is_not_reported_as_recovered() -> None:
    dosages, variants, covariates = genomes(500, 300)
    outcomes = np.random.default_rng(4).standard_normal((500, 3))
    found = recovery(association_scan(dosages, variants, outcomes, covariates), dosages[15], 15, 5_000_000)
    assert not found.genome_wide
    assert found.rank > 5


def test_snps_without_variation_are_not_tested() -> None:
    dosages, variants, covariates = genomes(100, 5)
    dosages[1][:, 2] = 2
    outcomes = np.random.default_rng(5).standard_normal((100, 2))
    scan = association_scan(dosages, variants, outcomes, covariates)
    assert np.isnan(scan.log10_p).sum() == 1
    assert np.isfinite(scan.inflation)
    with pytest.raises(InputError, match="without variation"):
        recovery(scan, dosages[1], 1, 150_000)


@pytest.mark.parametrize("k", [1, 4, 10, 20])
def test_p_values_too_small_for_a_float_go_on_smoothly(k: int) -> None:
    x = np.linspace(0.23, 0.3, 50)
    direct = -np.log10(special.betainc(450, k / 2, x))
    np.testing.assert_allclose(_log10_p_series(x, 450, k / 2), direct, atol=0.02)
    tiny = _log10_p(np.array([1e-3, 1e-4]), k, 900)
    assert np.isfinite(tiny).all()
    assert tiny[1] > tiny[0] > 300


def test_wrong_shapes_are_refused() -> None:
    dosages, variants, covariates = genomes(100, 5)
    with pytest.raises(InputError, match="shape"):
        association_scan({1: dosages[1][:, :3]}, variants, np.arange(100.0)[:, None], covariates)
    with pytest.raises(InputError, match="explain"):
        association_scan(dosages, variants, covariates, covariates)
