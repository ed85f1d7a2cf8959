"""Fixed point: sums are exact and do not wrap, or the encoding is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from secure_sites import Sum, sum_of, terms

from pm1_core.errors import ConfigError, DataError
from pm1_core.privacy.fixed_point import FixedPoint

_BITS = st.sampled_from([16, 32, 64])


@settings(deadline=None)
@given(
    _BITS, st.lists(st.integers(1, 500), min_size=3, max_size=12), st.floats(1e-3, 1e3), st.integers(0, 2**32)
)
def test_a_decoded_sum_is_the_clipped_mean_within_a_rounding_of_each_site(
    bits: int, weights: list[int], limit: float, seed: int
):
    generator = np.random.default_rng(seed)
    fixed = FixedPoint.fitting(bits, limit, weights)
    values = [(generator.normal(size=50) * limit).astype(np.float32) for _ in weights]
    total = sum_of([fixed.encode(v, w) for v, w in zip(values, weights, strict=True)])
    mean = sum(w * np.clip(v.astype(np.float64), -limit, limit) for v, w in zip(values, weights, strict=True))
    error = np.abs(fixed.decode(total, sum(weights)) - mean / sum(weights))
    bound = len(weights) / 2 / (fixed.scale * sum(weights))
    assert (error <= bound + limit * 1e-14).all()
    assert bound <= len(weights) * limit / 2 ** (bits - 1)


@given(_BITS, st.lists(st.floats(1e-3, 1e6), min_size=3, max_size=30), st.floats(1e-6, 1e6))
def test_the_largest_sum_does_not_wrap_and_a_little_more_is_refused(
    bits: int, weights: list[float], limit: float
):
    try:
        fixed = FixedPoint.fitting(bits, limit, weights)
    except ConfigError as error:
        assert "use more bits" in str(error)  # noqa: PT017
        return
    for sign in (1, -1):
        total = sum_of([fixed.encode(np.array([sign * limit * 2]), w) for w in weights])
        whole = sum(int(fixed.integers(fixed.encode(np.array([sign * limit]), w))[0]) for w in weights)
        assert int(fixed.integers(total)[0]) == whole
        assert abs(whole) <= fixed.most
    with pytest.raises(ConfigError, match="may reach"):
        FixedPoint(bits, limit, fixed.scale * 1.01, tuple(weights), int(fixed.most * 0.001) + 2)


def test_a_sum_that_could_wrap_is_refused_with_what_it_may_reach():
    with pytest.raises(ConfigError, match=r"a sum over 3 sites may reach 33003, past 32767"):
        FixedPoint(16, 1.0, 100.0, (100.0, 100.0, 130.0))
    FixedPoint(16, 1.0, 100.0, (100.0, 100.0, 120.0))
    with pytest.raises(ConfigError, match="may reach"):
        FixedPoint(16, 1.0, 100.0, (100.0, 100.0, 120.0), reserve=1000)
    with pytest.raises(ConfigError, match="use more bits"):
        FixedPoint.fitting(16, 1.0, (1.0, 1.0, 1e6))


def test_whole_numbers_are_summed_exactly_and_never_cut():
    fixed = FixedPoint.whole(2**55, 20)
    generator = np.random.default_rng(0)
    counts = [generator.integers(-(2**55), 2**55, 1000) for _ in range(20)]
    total = fixed.integers(sum_of([fixed.encode(c, 1.0) for c in counts]))
    assert total.tolist() == [sum(int(c[i]) for c in counts) for i in range(1000)]
    for beyond in (2**55 + 1, -(2**55) - 1):
        with pytest.raises(DataError, match="limit"):
            fixed.encode(np.array([beyond]), 1.0)
    with pytest.raises(ConfigError, match="may reach"):
        FixedPoint.whole(2**60, 20)
    with pytest.raises(ConfigError, match="whole numbers times"):
        FixedPoint.fitting(32, 1.0, (1.0,) * 3).encode(np.array([1]), 1.0)


def test_real_statistics_in_64_bits_lose_less_than_float64_does():
    fixed = FixedPoint.fitting(64, 1e9, [1.0] * 10)
    values = np.random.default_rng(1).uniform(-1e9, 1e9, (10, 500))
    total = fixed.decode(sum_of([fixed.encode(v, 1.0) for v in values]))
    assert np.abs(total - values.sum(0)).max() <= 10 * 1e9 * 2.0**-52


def test_rounding_at_random_is_right_on_average_and_rounding_to_the_nearest_is_not():
    fixed = FixedPoint(32, 1.0, 1000.0, (1.0,))
    values = np.full(200_000, 0.0123, np.float32)
    exact = float(values[0]) * 1000
    drawn = fixed.integers(fixed.encode(values, 1.0, np.random.default_rng(2)))
    assert set(drawn) == {12, 13}
    assert abs(drawn.mean() - exact) < 6 * 0.5 / np.sqrt(values.size)
    assert abs(fixed.integers(fixed.encode(values, 1.0)).mean() - exact) > 0.2


def test_large_arrays_of_any_shape_are_encoded_in_their_order():
    fixed = FixedPoint.fitting(16, 2.0, (1.0,) * 4)
    values = np.random.default_rng(3).normal(size=(3, 70_001)).astype(np.float32)
    words = fixed.encode(values, 1.0)
    assert words.shape == (values.size,)
    assert words.dtype == np.dtype("<u2")
    assert np.abs(fixed.decode(words) - np.clip(values, -2, 2).reshape(-1)).max() <= 0.5 / fixed.scale
    assert fixed.outside(values) == (np.abs(values) > 2).sum() > 0


@pytest.mark.parametrize("bits", [16, 32, 64])
def test_infinite_values_are_cut_and_what_is_no_number_is_refused(bits: int):
    fixed = FixedPoint.fitting(bits, 1.0, (1.0,) * 3)
    assert (fixed.encode(np.array([np.inf, -np.inf]), 1.0) == fixed.encode(np.array([1.0, -1.0]), 1.0)).all()
    with pytest.raises(DataError, match="no number"):
        fixed.encode(np.array([0.0, np.nan]), 1.0)


def test_a_weight_that_was_not_declared_is_refused():
    with pytest.raises(ConfigError, match="declared"):
        FixedPoint.fitting(32, 1.0, (1.0, 2.0, 3.0)).encode(np.zeros(3), 4.0)


@given(_BITS, st.integers(0, 1000))
def test_an_encoding_goes_through_json(bits: int, reserve: int):
    fixed = FixedPoint.fitting(bits, 0.1, (1.0, 2.5, 3.0), reserve)
    assert FixedPoint.from_json(fixed.to_json()) == fixed
    with pytest.raises(ConfigError):
        FixedPoint.from_json({**fixed.to_json(), "scale": fixed.scale * 3})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("bits", 8),
        ("limit", 0.0),
        ("limit", np.nan),
        ("scale", -1.0),
        ("weights", ()),
        ("weights", (0.0,)),
        ("reserve", -1),
    ],
)
def test_values_out_of_bounds_are_refused(name: str, value: object):
    fields = {"bits": 32, "limit": 1.0, "scale": 1.0, "weights": (1.0,), "reserve": 0}
    with pytest.raises(ConfigError, match=name):
        FixedPoint(**{**fields, name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("lost", [{}, {"input": ["site04"]}, {"reveal": ["site01"]}])
def test_an_update_comes_out_of_a_secure_sum_as_the_weighted_mean_of_who_is_in_it(lost: dict[str, list[str]]):
    agreed = terms(6, 5000)
    weights = {site: float(10 + i) for i, site in enumerate(agreed.sites)}
    fixed = FixedPoint.fitting(32, 0.5, list(weights.values()))
    generator = np.random.default_rng(5)
    updates = {site: generator.normal(size=5000).astype(np.float32) * 0.1 for site in weights}
    round_ = Sum(agreed, {site: fixed.encode(updates[site], weights[site]) for site in weights})
    opened = round_.run(lost)
    survivors = round_.collector.survivors
    total = sum(weights[site] for site in survivors)
    mean = sum(weights[s] * np.clip(updates[s].astype(np.float64), -0.5, 0.5) for s in survivors) / total
    assert np.abs(fixed.decode(opened, total) - mean).max() <= 6 / (fixed.scale * total) < 1e-8
