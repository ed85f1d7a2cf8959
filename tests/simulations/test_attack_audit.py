from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from pm1_core.errors import InputError
from pm1_core.privacy.accounting import tightest
from pm1_core.privacy.calibration import Plan, calibrate
from pm1_core.privacy.mechanisms import Mechanism
from pm1_core.privacy.terms import RecordTerms
from pm1_core.training import private
from simulations.attacks.audit import (
    Guesses,
    audited,
    coins,
    gaussian_sum,
    guessing_probability,
    lower_bound,
    private_training,
    record_terms_for,
    rehearsed,
)

DELTA = 1e-5
CANARIES = 10_000


def claimed(terms: RecordTerms) -> float:
    """The accountant's upper bound."""
    mechanism = Mechanism("sampled", terms.noise_multiplier, terms.sample_rate, terms.steps)
    return tightest([mechanism], DELTA).value


def test_without_delta_the_bound_is_the_binomial_tail() -> None:
    found = guessing_probability(80, 100, 1000, 1.0, 0.0)
    assert found == pytest.approx(stats.binom.sf(79, 100, np.e / (1 + np.e)))


@pytest.mark.parametrize(("right", "guesses", "epsilon"), [(9, 10, 0.7), (45, 60, 1.0), (3, 9, 0.0)])
def test_the_term_of_delta_is_that_of_the_theorem(right: int, guesses: int, epsilon: float) -> None:
    canaries, delta = 200, 1e-3
    mass = stats.binom.pmf(np.arange(guesses + 1), guesses, 1 / (1 + np.exp(-epsilon)))
    worst = max(mass[max(0, right - i) : right].sum() / i for i in range(1, canaries + 1))
    expected = min(1.0, mass[right:].sum() + 2 * canaries * delta * worst)
    assert guessing_probability(right, guesses, canaries, epsilon, delta) == pytest.approx(expected)


def test_bounds_grow_with_what_is_right_and_shrink_with_delta_and_confidence() -> None:
    bounds = [lower_bound(right, 200, 1000, DELTA) for right in (100, 130, 160, 190, 200)]
    assert bounds == sorted(bounds)
    assert bounds[0] == 0.0 < bounds[1]
    assert lower_bound(190, 200, 1000, 1e-4) < lower_bound(190, 200, 1000, 0.0)
    assert lower_bound(190, 200, 1000, DELTA, 0.99) < lower_bound(190, 200, 1000, DELTA, 0.9)


def test_counts_out_of_order_are_refused() -> None:
    with pytest.raises(InputError, match="11 right of 10 guesses"):
        guessing_probability(11, 10, 100, 1.0, 0.0)


def test_guesses_at_random_refute_nothing_more_often_than_they_may() -> None:
    rng = np.random.default_rng(3)
    plans = [Guesses(50, 50), Guesses(200, 0)]
    wrong = 0
    for _ in range(200):
        wrong += audited(rng.random(400), rng.random(400) < 0.5, plans, DELTA).epsilon > 0
    assert wrong <= stats.binom.ppf(0.999, 200, 0.05)


def test_randomised_response_is_never_refuted_beyond_its_epsilon_more_often_than_said() -> None:
    """Each coin told truly with probability e^eps / (1 + e^eps): the mechanism for which the bound is tight."""
    rng, epsilon, beyond = np.random.default_rng(4), 1.5, 0
    found = []
    for _ in range(100):
        included = rng.random(500) < 0.5
        told = included ^ (rng.random(500) > np.exp(epsilon) / (1 + np.exp(epsilon)))
        plans = [Guesses(int(told.sum()), int((~told).sum()))]
        found.append(audited(told.astype(float), included, plans, 0.0).epsilon)
        beyond += found[-1] > epsilon
    assert beyond <= stats.binom.ppf(0.999, 100, 0.05)
    assert np.mean(found) > 0.8 * epsilon


@pytest.mark.parametrize("epsilon", [2.0, 4.0])
def test_of_a_gaussian_mechanism_a_third_is_recovered_and_not_more_than_all(epsilon: float) -> None:
    noise = calibrate([Plan("sum", 1.0, "gaussian")], epsilon, DELTA).noise["sum"]
    terms, bounds = RecordTerms(noise), []
    plans = rehearsed(CANARIES, terms, DELTA, 99)
    for seed in range(5):
        included = coins(CANARIES, seed)
        bounds.append(audited(gaussian_sum(included, noise), included, plans, DELTA).epsilon)
    assert max(bounds) <= claimed(terms)
    assert np.median(bounds) >= epsilon / 3


@pytest.mark.parametrize("rate", [1.0, 0.3])
def test_the_private_step_keeps_below_its_claim_and_without_noise_is_caught(
    rate: float, tmp_path: Path
) -> None:
    terms = record_terms_for(4.0, DELTA, rate, 8)
    plans, included = rehearsed(CANARIES, terms, DELTA, 99), coins(CANARIES, 1)
    sound = audited(private_training(included, terms, tmp_path), included, plans, DELTA)
    assert 0.1 * claimed(terms) < sound.epsilon <= claimed(terms)
    silent = replace(terms, noise_multiplier=1e-6)
    caught = audited(private_training(included, silent, tmp_path), included, plans, DELTA)
    assert caught.epsilon > claimed(terms)


def test_a_step_that_keeps_the_terms_but_loses_its_noise_is_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The order says what it should; the code adds a millionth of it."""
    loud = private.gaussian_each
    monkeypatch.setattr(
        private, "gaussian_each", lambda sums, clip, noise, *rest: loud(sums, clip, 1e-6 * noise, *rest)
    )
    terms = record_terms_for(4.0, DELTA, 1.0, 4)
    plans, included = rehearsed(CANARIES, terms, DELTA, 99), coins(CANARIES, 2)
    found = audited(private_training(included, terms, tmp_path), included, plans, DELTA)
    assert found.epsilon > claimed(terms)


def test_a_tenth_of_the_noise_is_caught(tmp_path: Path) -> None:
    """As if the bound of one person were wrong by ten."""
    terms = record_terms_for(1.0, DELTA, 1.0, 4)
    loud = replace(terms, noise_multiplier=terms.noise_multiplier / 10)
    plans, included = rehearsed(CANARIES, terms, DELTA, 99), coins(CANARIES, 3)
    found = audited(private_training(included, loud, tmp_path), included, plans, DELTA)
    assert found.epsilon > claimed(terms)
