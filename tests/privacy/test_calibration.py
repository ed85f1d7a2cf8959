"""Noise that is calibrated keeps to the budget, hardly falls short of it, and follows the shares."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pm1_core.errors import ConfigError
from pm1_core.privacy.accounting import tightest
from pm1_core.privacy.calibration import Plan, calibrate

_STUDY = (
    Plan("statistics", 0.05, "gaussian", steps=2),
    Plan("genotype", 0.30, "sampled", 0.1, 300, compositions=22),
    Plan("phenotype", 0.25, "sampled", 0.1, 500),
    Plan("fundus", 0.10, "sampled", 0.05, 400),
    Plan("tokens", 0.05, "gaussian", steps=2),
    Plan("fusion", 0.25, "grouped", 0.1, 1000),
)


@pytest.mark.parametrize("epsilon", [0.5, 2.0, 8.0, 30.0])
@pytest.mark.parametrize("delta", [1e-5, 1e-7])
def test_a_whole_study_keeps_to_its_budget_and_uses_99_percent_of_it(epsilon: float, delta: float):
    found = calibrate(_STUDY, epsilon, delta)
    assert 0.99 * epsilon <= found.epsilon.value <= epsilon
    # All 22 chromosomes and five other phases, added up one by one.
    released = [item for items in found.mechanisms.values() for item in items]
    assert len(released) == 27
    assert tightest(released, delta).value == found.epsilon.value


def test_each_phase_costs_less_than_all_and_by_its_share():
    found = calibrate(_STUDY, 8.0, 1e-5)
    alone = {name: epsilon.value for name, epsilon in found.alone.items()}
    assert max(alone.values()) < 8.0 < sum(alone.values())
    # Equal shares of unlike phases cost about alike; a smaller share costs less.
    assert alone["statistics"] < alone["fundus"] < alone["phenotype"] < alone["genotype"]
    assert alone["fusion"] == pytest.approx(alone["phenotype"], rel=0.3)


def test_the_share_of_22_chromosomes_is_that_of_one_phase_with_all_their_steps():
    together = calibrate([Plan("a", 1.0, "sampled", 0.1, 100, compositions=22)], 4.0, 1e-5)
    one = calibrate([Plan("a", 1.0, "sampled", 0.1, 2200)], 4.0, 1e-5)
    assert together.noise == one.noise


def test_shares_are_relative():
    doubled = [Plan(p.name, 2 * p.share, p.kind, p.sample_rate, p.steps, p.compositions) for p in _STUDY]
    assert calibrate(doubled, 8.0, 1e-5).noise == calibrate(_STUDY, 8.0, 1e-5).noise


@settings(max_examples=15, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.floats(0.05, 1.0),
            st.sampled_from(["gaussian", "sampled", "grouped"]),
            st.floats(0.005, 0.9),
            st.integers(1, 2000),
            st.sampled_from([1, 3, 22]),
        ),
        min_size=1,
        max_size=4,
    ),
    st.floats(0.1, 20.0),
)
def test_any_study_keeps_to_any_budget(parts: list[tuple[float, str, float, int, int]], epsilon: float):
    plans = [
        Plan(str(place), share, kind, 1.0 if kind == "gaussian" else rate, steps, times)
        for place, (share, kind, rate, steps, times) in enumerate(parts)
    ]
    found = calibrate(plans, epsilon, 1e-5)
    assert 0.99 * epsilon <= found.epsilon.value <= epsilon
    more = calibrate(plans, 1.1 * epsilon, 1e-5)
    assert all(more.noise[name] <= noise * 1.001 for name, noise in found.noise.items())


def test_what_cannot_be_divided_is_refused():
    with pytest.raises(ConfigError, match="phases"):
        calibrate([], 8.0, 1e-5)
    with pytest.raises(ConfigError, match="phases"):
        calibrate([_STUDY[0], _STUDY[0]], 8.0, 1e-5)
    with pytest.raises(ConfigError, match="share"):
        Plan("a", 0.0, "gaussian")
    with pytest.raises(ConfigError, match="kind"):
        Plan("a", 1.0, "skellam")
    with pytest.raises(ConfigError, match="epsilon"):
        calibrate(_STUDY, 0.0, 1e-5)
    with pytest.raises(ConfigError, match="sampling rate"):
        Plan("a", 1.0, "gaussian", sample_rate=0.5)
