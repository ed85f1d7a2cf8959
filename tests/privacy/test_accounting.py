"""Accountants agree with each other, with closed forms, with published figures and with brute force."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from dp_accounting.pld.privacy_loss_distribution import from_gaussian_mechanism
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.optimize import brentq
from scipy.stats import norm

from pm1_core.errors import ConfigError
from pm1_core.privacy import curves
from pm1_core.privacy.accounting import (
    delta_of,
    pld_epsilon,
    rdp_epsilon,
    tightest,
    within,
)
from pm1_core.privacy.mechanisms import Mechanism, as_record, merged
from pm1_core.training.accountants import prv_epsilon

_DELTA = 1e-5
_GRID = [(q, z, steps) for q in (0.001, 0.01, 0.1, 0.5) for z in (0.6, 1.0, 2.0, 8.0) for steps in (10, 1000)]


def _sampled(z: float, q: float, steps: int = 1) -> Mechanism:
    return Mechanism("sampled", z, q, steps)


def _grouped(z: float, q: float, steps: int = 1) -> Mechanism:
    return Mechanism("grouped", z, q, steps)


@pytest.mark.parametrize(("q", "z", "steps"), _GRID)
def test_prv_rdp_and_pld_agree_within_their_bounds(q: float, z: float, steps: int):
    mechanisms = [_sampled(z, q, steps)]
    by_rdp = rdp_epsilon(mechanisms, _DELTA)
    if by_rdp > 30:
        assert tightest(mechanisms, _DELTA).value <= by_rdp
        return
    low, estimate, high = prv_epsilon(mechanisms, _DELTA)
    by_pld = pld_epsilon(mechanisms, _DELTA)
    assert low <= by_pld <= high
    assert by_pld <= 1.002 * estimate + 1e-3
    assert by_rdp >= low
    assert tightest(mechanisms, _DELTA).value == min(by_rdp, by_pld)


def test_they_agree_where_mechanisms_differ():
    mechanisms = [_sampled(1.0, 0.01, 500), _sampled(2.0, 0.1, 100), Mechanism("gaussian", 6.0, steps=2)]
    low, _, high = prv_epsilon(mechanisms, _DELTA)
    assert low <= pld_epsilon(mechanisms, _DELTA) <= high
    assert rdp_epsilon(mechanisms, _DELTA) >= low


@pytest.mark.parametrize("z", [0.5, 1.0, 3.0, 20.0])
@pytest.mark.parametrize("delta", [1e-3, 1e-5, 1e-8])
def test_gaussian_noise_has_its_closed_form(z: float, delta: float):
    # Balle and Wang 2018, "Improving the Gaussian mechanism", theorem 8.
    def excess(epsilon: float) -> float:
        return norm.cdf(0.5 / z - epsilon * z) - math.exp(epsilon) * norm.cdf(-0.5 / z - epsilon * z) - delta

    exact = brentq(excess, 0.0, 60.0, xtol=1e-12) if excess(0.0) > 0 else 0.0
    found = tightest([Mechanism("gaussian", z)], delta)
    assert found.value == pytest.approx(exact, rel=1e-4, abs=1e-9)
    assert exact <= pld_epsilon([Mechanism("gaussian", z)], delta) * (1 + 1e-9)
    assert pld_epsilon([Mechanism("gaussian", z)], delta) <= exact * 1.005 + 1e-3
    assert rdp_epsilon([Mechanism("gaussian", z)], delta) >= exact
    assert delta_of([Mechanism("gaussian", z)], found.value) == pytest.approx(delta, rel=1e-3)


def test_published_figures():
    # Abadi et al. 2016, section 3.2: q = 0.01, sigma = 4, T = 10000 steps, delta = 1e-5 give epsilon 1.26 by the
    # moments accountant; what came later is at most that.
    assert (
        0.9
        < tightest([_sampled(4.0, 0.01, 10_000)], 1e-5).value
        < rdp_epsilon([_sampled(4.0, 0.01, 10_000)], 1e-5)
        < 1.26
    )
    # dp-accounting, with a grid ten times finer than ours:
    #   from dp_accounting.pld.privacy_loss_distribution import from_gaussian_mechanism as g
    #   g(1.0, sampling_prob=0.01, value_discretization_interval=1e-5, use_connect_dots=True)
    #     .self_compose(1000).get_epsilon_for_delta(1e-5)   -> 1.8282367367
    assert tightest([_sampled(1.0, 0.01, 1000)], 1e-5).value == pytest.approx(1.8282367, rel=1e-3)
    #   g(1.0, sampling_prob=0.1, value_discretization_interval=1e-5, use_connect_dots=True)
    #     .self_compose(1000).get_epsilon_for_delta(1e-5)   -> 25.2045536
    assert tightest([_sampled(1.0, 0.1, 1000)], 1e-5).value == pytest.approx(25.2045536, rel=1e-3)


@pytest.mark.parametrize(("q", "z", "steps"), [(0.01, 1.0, 1000), (0.1, 2.0, 100), (0.3, 4.0, 3000)])
def test_the_grid_errs_to_the_safe_side_and_by_less_than_two_thousandths(q: float, z: float, steps: int):
    fine = from_gaussian_mechanism(
        z, sampling_prob=q, value_discretization_interval=2.0**-15, use_connect_dots=True
    ).self_compose(steps)
    exact = fine.get_epsilon_for_delta(_DELTA)
    found = pld_epsilon([_sampled(z, q, steps)], _DELTA)
    assert exact * (1 - 1e-4) <= found <= exact * 1.002


def _brute(first: np.ndarray, second: np.ndarray, epsilon: float, width: float) -> float:
    return float(np.maximum(first - math.exp(epsilon) * second, 0).sum() * width)


@pytest.mark.parametrize("q", [0.01, 0.1, 0.5])
@pytest.mark.parametrize("z", [0.7, 1.5, 4.0])
def test_the_curve_of_groups_lies_above_brute_force_and_that_of_sensitivity_c_does_not(q: float, z: float):
    points = np.linspace(-60, 60, 400_001)
    width = points[1] - points[0]
    # A person turns her group's gradient from C to -C: nothing else changes.
    before = (1 - q) * norm.pdf(points, 0, z) + q * norm.pdf(points, 1, z)
    after = (1 - q) * norm.pdf(points, 0, z) + q * norm.pdf(points, -1, z)
    others = (1 - q) * norm.pdf(points, 0, z) + q * norm.pdf(points, 0.3, z)
    below = 0
    for epsilon in (-2.0, -0.3, 0.0, 0.02, 0.1, 0.5, 1.0, 2.0):
        bound = float(curves.grouped_delta(np.asarray(epsilon), z, q))
        true = max(_brute(before, after, epsilon, width), _brute(after, before, epsilon, width))
        assert true <= bound * (1 + 1e-6) + 1e-12
        assert _brute(before, others, epsilon, width) <= bound * (1 + 1e-6) + 1e-12
        wrong = float(curves.grouped_delta(np.asarray(epsilon), z, q, moves=1.0))
        below += wrong < true * (1 - 1e-6)
    assert below >= 3
    # Where all are in the step it is exact.
    exact = _brute(norm.pdf(points, 1, z), norm.pdf(points, -1, z), 0.5, width)
    assert float(curves.grouped_delta(np.asarray(0.5), z, 1.0)) == pytest.approx(exact, rel=1e-5)


@pytest.mark.parametrize(("q", "z"), [(0.02, 0.8), (0.2, 2.0), (0.7, 5.0)])
def test_the_curve_of_groups_is_that_of_a_pair_of_distributions(q: float, z: float):
    gamma = np.concatenate([np.linspace(1e-3, 1, 4001), np.linspace(1, 12, 8001)[1:]])
    h = curves.grouped_delta(np.log(gamma), z, q)
    slopes = np.diff(h) / np.diff(gamma)
    assert (np.diff(slopes) > -1e-9).all()  # convex
    assert (slopes <= 1e-12).all()
    assert (h >= np.maximum(0, 1 - gamma) - 1e-12).all()
    assert h[0] == pytest.approx(1 - gamma[0], abs=1e-3)


def test_composed_groups_lie_above_what_people_can_be_told_apart_by_and_sensitivity_c_does_not():
    q, z, steps, many = 0.1, 1.2, 20, 200_000
    generator = np.random.default_rng(5)
    losses = np.zeros(many)
    for _ in range(steps):
        drawn = generator.normal(size=many) * z + (generator.random(many) < q)
        first = (1 - q) * norm.pdf(drawn, 0, z) + q * norm.pdf(drawn, 1, z)
        second = (1 - q) * norm.pdf(drawn, 0, z) + q * norm.pdf(drawn, -1, z)
        losses += np.log(first / second)

    def true_delta(epsilon: float) -> tuple[float, float]:
        parts = np.maximum(0, -np.expm1(epsilon - losses))
        return float(parts.mean()), float(parts.std() / math.sqrt(many))

    for epsilon in (0.3, 1.0, 2.0):
        delta, error = true_delta(epsilon)
        assert delta - 5 * error <= delta_of([_grouped(z, q, steps)], epsilon)
    # As if each person were clipped by herself: a printed epsilon that is not true.
    claimed = tightest([_sampled(z, q, steps)], 1e-3).value
    delta, error = true_delta(claimed)
    assert delta - 5 * error > 5e-3
    honest = tightest([_grouped(z, q, steps)], 1e-3).value
    assert true_delta(honest)[0] < 1e-3


@pytest.mark.parametrize(("q", "z"), [(0.01, 1.0), (0.2, 2.0), (0.5, 6.0)])
def test_renyi_divergences_of_groups_are_the_integral_of_their_curve(q: float, z: float):
    found = curves.rdp(_grouped(z, q))
    for alpha in (2.0, 5.0, 3 + 4 * z):

        def integrand(t: float, alpha: float = alpha) -> float:
            h = float(curves.grouped_delta(np.asarray(t), z, q))
            return (math.exp((alpha - 1) * t) + math.exp(-alpha * t)) * h

        edge = math.log1p(q * math.expm1(min(300, (alpha + 8 * z) * 4 / z**2 + 10)))
        parts = np.linspace(0, edge, 40)
        whole = sum(quad(integrand, a, b, limit=200)[0] for a, b in pairwise(parts))
        exact = math.log1p(alpha * (alpha - 1) * whole) / (alpha - 1)
        assert found[curves.ORDERS.index(alpha)] == pytest.approx(exact, rel=1e-4)
        assert found[curves.ORDERS.index(alpha)] >= exact * (1 - 1e-7)


def test_groups_that_are_always_taken_are_gaussian_noise_of_half_the_multiplier():
    assert merged([_grouped(3.0, 1.0, 4)]) == merged([Mechanism("gaussian", 1.5, steps=4)])
    orders = np.asarray(curves.ORDERS)
    nearly = curves.rdp(_grouped(3.0, 1 - 1e-9))
    assert nearly == pytest.approx(orders * 4 / (2 * 9), rel=1e-5)


@pytest.mark.parametrize(("q", "z", "steps"), [(0.01, 2.0, 1000), (0.1, 4.0, 300), (0.5, 8.0, 50)])
def test_for_groups_both_accountants_are_above_people_clipped_alone(q: float, z: float, steps: int):
    alone = tightest([_sampled(z, q, steps)], _DELTA).value
    doubled = tightest([_sampled(z / 2, q, steps)], _DELTA).value
    by_rdp, by_pld = (f([_grouped(z, q, steps)], _DELTA) for f in (rdp_epsilon, pld_epsilon))
    assert alone < doubled <= by_pld * (1 + 1e-3) < by_rdp * (1 + 1e-3)
    assert by_pld < 1.5 * doubled


def test_skellam_noise_tends_to_gaussian_noise_and_never_below_it():
    gaussian = rdp_epsilon([Mechanism("gaussian", 4.0, unit="site")], _DELTA)
    previous = math.inf
    for l2 in (3.0, 30.0, 3e4):
        skellam = Mechanism("skellam", 4.0, unit="site", l1=20 * l2, l2=l2)
        found = tightest([skellam], _DELTA)
        assert found.accountant == "rdp"
        assert gaussian <= found.value < previous
        previous = found.value
    assert previous == pytest.approx(gaussian, rel=1e-3)


def test_a_site_that_is_hidden_hides_a_person_half_as_well():
    site = Mechanism("gaussian", 6.0, unit="site")
    assert as_record(site) == Mechanism("gaussian", 3.0)
    skellam = as_record(Mechanism("skellam", 6.0, unit="site", l1=40.0, l2=10.0))
    assert (skellam.noise_multiplier, skellam.l1, skellam.l2) == (3.0, 80.0, 20.0)
    # The noise itself does not change.
    assert skellam.noise_multiplier * skellam.l2 == 60.0
    assert as_record(as_record(site)) == as_record(site)


_MECHANISMS = st.builds(
    Mechanism,
    st.sampled_from(["sampled", "grouped"]),
    st.floats(0.8, 20.0),
    st.floats(0.005, 0.9),
    st.integers(1, 300),
)


@settings(max_examples=25, deadline=None)
@given(_MECHANISMS, st.floats(1.02, 2.0), st.integers(1, 200))
def test_more_noise_less_sampling_and_fewer_steps_cost_less(item: Mechanism, factor: float, more: int):
    def cost(noise: float = 1.0, rate: float = 1.0, steps: int = 0) -> float:
        changed = Mechanism(
            item.kind, item.noise_multiplier * noise, min(1.0, item.sample_rate * rate), item.steps + steps
        )
        return tightest([changed], _DELTA).value

    here, slack = cost(), 1.004
    assert cost(noise=factor) <= here * slack + 1e-3
    assert cost(rate=factor) * slack + 1e-3 >= here
    assert cost(steps=more) * slack + 1e-3 >= here


@settings(max_examples=15, deadline=None)
@given(st.lists(_MECHANISMS, min_size=2, max_size=4), st.randoms())
def test_composition_costs_at_least_each_part_and_not_by_the_order(items: list[Mechanism], random: object):
    whole = tightest(items, _DELTA).value
    shuffled = list(items)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert tightest(shuffled, _DELTA).value == whole
    assert whole * 1.004 + 1e-3 >= max(tightest([item], _DELTA).value for item in items)
    assert within(items, whole, _DELTA)
    assert not within(items, whole * 0.9 - 1e-3, _DELTA) or whole == 0


@settings(max_examples=15, deadline=None)
@given(_MECHANISMS, st.floats(1e-8, 1e-2))
def test_delta_and_epsilon_are_two_views_of_one_curve(item: Mechanism, delta: float):
    found = tightest([item], delta).value
    if math.isfinite(found) and found < 50:
        assert delta_of([item], found) <= delta * (1 + 1e-6)
    assert tightest([item], delta / 10).value >= found


def test_equal_mechanisms_are_counted_together():
    parts = [_sampled(1.0, 0.1, 3), _grouped(2.0, 0.1), _sampled(1.0, 0.1, 4)]
    assert merged(parts) == merged([_grouped(2.0, 0.1), _sampled(1.0, 0.1, 7)])
    assert len(merged(parts)) == 2


def test_nothing_costs_nothing_and_hardly_any_noise_costs_everything():
    assert tightest([], _DELTA).value == 0.0
    assert delta_of([], 0.0) == 0.0
    assert tightest([_sampled(1e-6, 0.5, 100)], _DELTA).value > 1e6
    assert tightest([_grouped(1e-6, 0.5, 100)], _DELTA).value > 1e6
    assert tightest([Mechanism("gaussian", 1e9)], _DELTA).value < 1e-6


def test_units_are_not_mixed_and_delta_is_a_probability():
    with pytest.raises(ConfigError, match="record, site"):
        tightest([_sampled(1.0, 0.1), Mechanism("gaussian", 1.0, unit="site")], _DELTA)
    for delta in (0.0, 1.0, -1e-5):
        with pytest.raises(ConfigError, match="delta"):
            tightest([_sampled(1.0, 0.1)], delta)


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": "laplace", "noise_multiplier": 1.0},
        {"kind": "sampled", "noise_multiplier": 0.0},
        {"kind": "sampled", "noise_multiplier": 1.0, "sample_rate": 1.2},
        {"kind": "sampled", "noise_multiplier": 1.0, "steps": 0},
        {"kind": "sampled", "noise_multiplier": 1.0, "steps": 1.5},
        {"kind": "gaussian", "noise_multiplier": 1.0, "sample_rate": 0.5},
        {"kind": "sampled", "noise_multiplier": 1.0, "unit": "site"},
        {"kind": "skellam", "noise_multiplier": 1.0, "unit": "site"},
        {"kind": "gaussian", "noise_multiplier": 1.0, "unit": "hospital"},
        {"kind": "gaussian"},
        {"kind": "gaussian", "noise_multiplier": 1.0, "rate": 0.5},
    ],
)
def test_what_is_no_mechanism_is_refused(fields: dict[str, object]):
    with pytest.raises(ConfigError, match="mechanism"):
        Mechanism.from_json(fields)


def test_a_mechanism_survives_its_json():
    for item in (_grouped(1.5, 0.1, 7), Mechanism("skellam", 2.5, unit="site", l1=11.0, l2=3.0)):
        assert Mechanism.from_json(item.to_json()) == item
