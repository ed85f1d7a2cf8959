"""Shares of noise add up to what is claimed, rounding lengthens no update past its bound, sums do not wrap."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.special import ive, logsumexp
from secure_sites import Sum, sum_of, terms

from pm1_core.errors import ConfigError, DataError, PrivacyError
from pm1_core.privacy.accounting import tightest
from pm1_core.privacy.distributed_noise import SiteNoise, SiteRounding, reach, skellam_rdp
from pm1_core.privacy.noise import secret_generator

_RARE = 1e-7
_SITES, _THRESHOLD, _COLLUDING = 7, 5, 1


def _plan(bits: int = 32, words: int = 40_000, noise: float = 1.0, clip: float = 1.0) -> SiteNoise:
    return SiteNoise.planned(bits, clip, clip, words, _SITES, _THRESHOLD, _COLLUDING, noise)


def _shares(plan: SiteNoise, count: int, words: int) -> np.ndarray:
    """The sum of so many sites' shares, whole numbers [words]."""
    zeros = np.zeros(words, np.float32)
    return plan.fixed.integers(
        sum_of([SiteRounding(plan, 0.0, secret_generator()).words(zeros) for _ in range(count)])
    )


@pytest.mark.parametrize("noise", [0.02, 0.05])
def test_counted_shares_add_up_to_the_claimed_distribution_when_all_others_are_missing(noise: float):
    """Seven sites: two are lost, one colludes and takes its share away; four shares are left."""
    words = 60_000
    plan = SiteNoise(32, 1.0, 1.0, 200.0, words, _SITES, _THRESHOLD, _COLLUDING, noise)
    values = np.arange(-60, 61)
    expected = stats.skellam.pmf(values, plan.variance / 2, plan.variance / 2) * words
    inner = expected > 20
    for shares, claimed in ((4, True), (3, False)):
        found = _shares(plan, shares, words)
        counts = np.array([(found == value).sum() for value in values[inner]])
        chi = ((counts - expected[inner]) ** 2 / expected[inner]).sum()
        assert bool(stats.chi2.sf(chi, inner.sum()) > _RARE) == claimed


@pytest.mark.parametrize(("bits", "noise"), [(32, 1.0), (16, 1.0), (32, 5.0), (16, 0.3)])
def test_what_sites_add_to_their_words_is_the_claimed_noise_and_one_share_fewer_is_not(
    bits: int, noise: float
):
    plan = _plan(bits, noise=noise)
    counted = _THRESHOLD - _COLLUDING
    found = _shares(plan, counted, plan.words) / math.sqrt(plan.variance)
    assert stats.kstest(found, "norm").pvalue > _RARE
    assert abs(found.var() - 1) < 6 * math.sqrt(2 / plan.words)
    assert abs(np.corrcoef(found[1:], found[:-1])[0, 1]) < 6 / math.sqrt(plan.words)
    fewer = _shares(plan, counted - 1, plan.words) / math.sqrt(plan.variance)
    assert fewer.var() < 1 - 6 * math.sqrt(2 / plan.words)
    everybody = _shares(plan, _SITES, plan.words) / math.sqrt(plan.variance)
    assert everybody.var() > 1.5


def test_no_site_adds_all_the_noise_alone():
    plan = _plan()
    assert _shares(plan, 1, plan.words).var() < 0.3 * plan.variance


class _Upwards(np.random.Generator):
    """Rounds everything up, and adds no noise: the worst that chance can do to a norm."""

    def __init__(self) -> None:
        super().__init__(np.random.PCG64(0))

    def random(self, size: int) -> np.ndarray:  # type: ignore[override]
        return np.full(size, 1 - 2**-53)

    def poisson(self, lam: float, size: int) -> np.ndarray:  # type: ignore[override]
        return np.zeros(size, np.int64)


@settings(deadline=None, max_examples=30)
@given(
    st.sampled_from([16, 32]), st.floats(0.01, 100), st.integers(0, 2**32), st.sampled_from(["up", "chance"])
)
def test_rounded_updates_are_never_longer_than_their_bounds(bits: int, clip: float, seed: int, how: str):
    words = 90_000
    plan = SiteNoise.planned(bits, clip, clip, words, _SITES, _THRESHOLD, _COLLUDING, 1.0)
    generator = np.random.default_rng(seed)
    values = generator.normal(size=words) * generator.choice([0.001, 1.0, 100.0]) * clip
    values[generator.random(words) < generator.random()] = 0.0
    rounding: np.random.Generator = _Upwards() if how == "up" else _NoNoise(seed)
    whole = _rounded(plan, values, rounding)
    assert np.linalg.norm(whole) <= plan.l2 * (1 + 1e-9)
    assert np.abs(whole).sum() <= plan.l1 * (1 + 1e-9)


class _NoNoise(np.random.Generator):
    def __init__(self, seed: int) -> None:
        super().__init__(np.random.PCG64(seed))

    def poisson(self, lam: float, size: int) -> np.ndarray:  # type: ignore[override]
        return np.zeros(size, np.int64)


def _rounded(plan: SiteNoise, values: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """In three tensors."""
    norm = float(np.linalg.norm(np.clip(values, -plan.limit, plan.limit)))
    rounding = SiteRounding(plan, norm, generator)
    parts = np.split(values, [10, values.size // 2])
    return plan.fixed.integers(np.concatenate([rounding.words(part) for part in parts]))


def test_rounding_up_everywhere_would_pass_the_bound_without_its_guard():
    """The guard is not idle: the same update rounded up throughout is longer than l2."""
    plan = _plan(16, words=200_000)
    values = np.full(plan.words, 1 / math.sqrt(plan.words))
    upwards = np.ceil(values * plan.scale)
    assert np.linalg.norm(upwards) > 1.02 * plan.l2
    assert np.linalg.norm(_rounded(plan, values, _Upwards())) <= plan.l2


def test_chance_rounds_rightly_on_average_and_hardly_lengthens():
    plan = _plan(16, words=200_000)
    values = np.random.default_rng(1).normal(size=plan.words)
    values /= np.linalg.norm(values)
    whole = _rounded(plan, values, _NoNoise(2))
    assert abs((whole - values * plan.scale).mean()) < 6 * 0.5 / math.sqrt(plan.words)
    assert plan.l2 < 1.1 * plan.scale * plan.clip


def test_a_long_update_is_cut_to_the_clip_and_a_short_one_is_not():
    plan = _plan()
    values = np.random.default_rng(3).normal(size=plan.words)
    for length in (0.5, 1.0, 30.0):
        scaled = values / np.linalg.norm(values) * length
        found = _rounded(plan, scaled, _NoNoise(4)) / plan.scale
        expected = np.clip(scaled, -1, 1) * min(1.0, 1 / length)
        assert np.abs(found - expected).max() <= 1.01 / plan.scale


def test_an_update_that_is_longer_than_it_said_is_refused():
    plan = _plan()
    values = np.random.default_rng(5).normal(size=plan.words)
    with pytest.raises(PrivacyError, match="longer than its norm"):
        SiteRounding(plan, 1.0, secret_generator()).words(values)
    with pytest.raises(PrivacyError, match="values of"):
        SiteRounding(plan, 1.0, secret_generator()).words(np.zeros(plan.words + 1))
    for norm in (math.nan, math.inf, -1.0):
        with pytest.raises(DataError, match="norm"):
            SiteRounding(plan, norm, secret_generator())
    with pytest.raises(DataError, match="no number"):
        SiteRounding(plan, 1.0, secret_generator()).words(np.array([math.nan]))


def _exact(alpha: int, distance: int, variance: float) -> float:
    """Rényi divergence of Skellam noise and the same, `distance` further, by summing over whole numbers."""
    reached = int(12 * math.sqrt(variance) + 4 * alpha * distance + 60)
    k = np.arange(-reached, reached + 1)
    with np.errstate(divide="ignore"):
        near, far = (np.log(ive(np.abs(k - d), variance)) for d in (0, distance))
    known = np.isfinite(near) & np.isfinite(far)
    return float(logsumexp(alpha * near[known] - (alpha - 1) * far[known])) / (alpha - 1)


@pytest.mark.parametrize("alpha", [2, 3, 5, 16, 64])
@pytest.mark.parametrize("distance", [1, 3, 10])
@pytest.mark.parametrize("variance", [4.0, 30.0, 400.0, 5000.0])
def test_the_bound_is_above_the_exact_divergence_and_near_it_where_noise_is_ample(
    alpha: int, distance: int, variance: float
):
    exact = _exact(alpha, distance, variance)
    bound = float(skellam_rdp(alpha, variance, distance, distance))
    assert exact <= bound * (1 + 1e-9) + 1e-12
    if variance >= 400 and alpha * distance < variance / 10:
        assert bound < 1.1 * exact


def test_the_bound_of_vectors_covers_the_sum_over_their_elements():
    generator = np.random.default_rng(6)
    for _ in range(20):
        moves = generator.integers(0, 5, 6)
        if not moves.any():
            continue
        exact = sum(_exact(8, int(d), 50.0) for d in moves if d)
        assert exact <= skellam_rdp(8.0, 50.0, moves.sum(), np.linalg.norm(moves))


def test_no_bound_is_claimed_for_orders_that_are_not_whole():
    assert np.isinf(skellam_rdp(np.array([1.0, 1.5, 0.0]), 10.0, 1.0, 1.0)).all()


@given(st.floats(1e-2, 1e12), st.integers(1, 10**9))
def test_noise_hardly_ever_reaches_what_is_reserved_for_it(variance: float, words: int):
    bound = reach(variance, words, 1e-9)
    if variance < 1e6:
        tail = 2 * words * stats.skellam.sf(bound - 1, variance / 2, variance / 2)
    else:
        tail = 2 * words * stats.norm.sf(bound / math.sqrt(variance))
    assert tail <= 1e-9
    # And it is no waste: a quarter less would not do.
    assert bound < 20 * (math.sqrt(variance) + 1) * math.sqrt(math.log(words) + 1) + 100


@pytest.mark.parametrize("bits", [16, 32])
@pytest.mark.parametrize(("words", "noise"), [(10, 1.0), (10**6, 1.0), (10**6, 0.5), (10**5, 3.0)])
def test_a_plan_leaves_room_for_all_sums_with_noise_and_uses_what_there_is(
    bits: int, words: int, noise: float
):
    plan = SiteNoise.planned(bits, 2.0, 0.5, words, 10, 7, 1, noise)
    fixed = plan.fixed
    assert fixed.largest_sum <= fixed.most
    assert fixed.reserve >= reach(plan.share * 10, words)
    # It is bounded by the room, or by how large Poisson means may be.
    assert fixed.largest_sum > 0.95 * fixed.most or plan.share > 0.95 * 2.0**31
    with pytest.raises(ConfigError):
        SiteNoise(**{**plan.to_json(), "scale": plan.scale * 1.1})
    assert SiteNoise.from_json(plan.to_json()) == plan


def test_what_a_ledger_is_charged_is_the_plans_noise_in_its_own_units():
    plan = _plan(noise=4.0)
    mechanism = plan.mechanism(steps=3)
    assert (mechanism.kind, mechanism.unit, mechanism.steps) == ("skellam", "site", 3)
    assert mechanism.noise_multiplier * mechanism.l2 == pytest.approx(math.sqrt(plan.variance))
    assert 0 < tightest([mechanism], 1e-5).value < 3


def test_without_a_counted_share_there_is_no_plan():
    with pytest.raises(PrivacyError, match="no share of noise is left"):
        SiteNoise.planned(32, 1.0, 1.0, 10, 5, 4, 4, 1.0)
    with pytest.raises(ConfigError, match="use more bits"):
        SiteNoise.planned(16, 1.0, 1.0, 10**9, 20, 14, 1, 1.0)


@pytest.mark.parametrize("bits", [16, 32])
@pytest.mark.parametrize("lost", [{}, {"input": ["site03"], "share": ["site06"]}])
def test_a_noisy_sum_of_clipped_updates_comes_out_of_a_secure_sum(bits: int, lost: dict[str, list[str]]):
    """It is the sum of the clipped updates and the survivors' shares, which is more than what is counted."""
    agreed = terms(_SITES, 30_000, bits, threshold=_THRESHOLD)
    plan = _plan(bits, agreed.words, noise=0.5)
    generator = np.random.default_rng(7)
    updates, vectors = {}, {}
    for site in agreed.sites:
        values = generator.normal(size=agreed.words).astype(np.float32)
        updates[site] = values / np.linalg.norm(values)
        rounding = SiteRounding(plan, float(np.linalg.norm(values)), secret_generator())
        vectors[site] = np.concatenate([rounding.words(values[:100]), rounding.words(values[100:])])
    round_ = Sum(agreed, vectors)
    opened = round_.run(lost)
    survivors = round_.collector.survivors
    noise = plan.fixed.integers(opened) - plan.scale * sum(updates[site] for site in survivors)
    ratio = noise.var() / (plan.share * len(survivors) + len(survivors) / 6)
    assert abs(ratio - 1) < 6 * math.sqrt(2 / agreed.words) + 0.01
    assert noise.var() > plan.variance
