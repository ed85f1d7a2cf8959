"""What sites agree upon before a sum: exact numbers, who is in it, and what a site holds a plan against."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pm1_core.errors import ConfigError, DataError, PrivacyError
from pm1_core.privacy.secure_plan import (
    LARGEST,
    Entry,
    Place,
    Plan,
    Secured,
    exact_numbers,
    exact_words,
    layout_digest,
    planned_noise,
    require_addable,
    require_noise,
)
from pm1_core.privacy.terms import SiteTerms

LAYOUT = [Place("a.bias", 2, "train"), Place("a.weight", 6, "fundus")]
NUMBERS = st.floats(-LARGEST, LARGEST, allow_nan=False)


def plan() -> Plan:
    weights = {"train": {"a": 3.0, "b": 2.0, "c": 1.0}, "fundus": {"a": 3.0, "b": 2.0, "c": 1.0}}
    return Plan("ab" * 32, 0, layout_digest(LAYOUT), 8, weights, {"figure:loss": Entry(2, ("a", "b", "c"))})


def own(of: Plan, weights: dict[str, float] | None = None, entries: dict[str, int] | None = None) -> None:
    of.require_own(
        "a", layout_digest(LAYOUT), 8, weights or {"train": 3.0, "fundus": 3.0}, entries or {"figure:loss": 2}
    )


@given(st.lists(st.lists(NUMBERS, min_size=3, max_size=3), min_size=1, max_size=6))
def test_exact_numbers_add_up_to_their_steps(vectors: list[list[float]]) -> None:
    words = sum((exact_words(np.array(vector)) for vector in vectors), np.zeros(6, "<u8"))
    expected = np.array(vectors).sum(0)
    size = np.abs(np.array(vectors)).sum(0)
    assert (np.abs(exact_numbers(words) - expected) <= len(vectors) * 2.0**-40 + size * 2.0**-50).all()


def test_whole_numbers_add_up_exactly() -> None:
    words = exact_words(np.array([2.0**49, -7.0])) + exact_words(np.array([1.0, 3.0]))
    assert exact_numbers(words).tolist() == [2.0**49 + 1, -4.0]


@pytest.mark.parametrize("value", [np.nan, np.inf, 2.0 * LARGEST])
def test_what_is_no_number_is_refused(value: float) -> None:
    with pytest.raises(DataError, match="beyond 2\\^50"):
        exact_words(np.array([value]))


def test_more_sites_than_words_hold_are_refused() -> None:
    require_addable(8000)
    with pytest.raises(ConfigError, match="a sum over 8200 sites may reach"):
        require_addable(8200)


def test_a_plan_survives_its_text() -> None:
    again = Plan.from_json(plan().to_json())
    assert again == plan()
    assert again.digest == plan().digest
    assert again.masked != replace(plan(), attempt=1).masked


@pytest.mark.parametrize(
    "change",
    [{"attempt": -1}, {"attempt": True}, {"words": 0.5}, {"weights": {"train": {"a": 0.0}}}, {"entries": []},
     {"weights": {"train": {"a": "x"}}}, {"more": 1}],
)  # fmt: skip
def test_another_text_is_no_plan(change: dict[str, object]) -> None:
    with pytest.raises(PrivacyError, match="plan: cannot be read"):
        Plan.from_json(json.dumps({**json.loads(plan().to_json()), **change}))


def test_a_site_knows_what_it_said_itself() -> None:
    own(plan())
    with pytest.raises(PrivacyError, match="this site weighs 3 for 'train'; it declared 4"):
        own(plan(), weights={"train": 4.0, "fundus": 3.0})
    with pytest.raises(PrivacyError, match="entry 'figure:loss' is none of this site"):
        own(plan(), entries={"figure:other": 2})
    with pytest.raises(PrivacyError, match="other tensors than were trained here"):
        own(replace(plan(), layout="0" * 64))


def test_fewer_than_three_in_one_kind_hide_nobody() -> None:
    two = replace(plan(), weights={"train": plan().weights["train"], "fundus": {"a": 3.0, "b": 2.0}})
    with pytest.raises(PrivacyError, match="train 'fundus': 2 sites would be in the sum"):
        own(two)
    plan().require_enough("train", "a", "abc")
    with pytest.raises(PrivacyError, match="2 sites would be in the sum"):
        plan().require_enough("train", "a", "ab")
    plan().require_enough("train", "z", "ab")  # none of it is z's


def test_words_too_short_for_the_noise_are_refused() -> None:
    terms, asked = SiteTerms(1.0), Secured()
    noise = planned_noise(terms, asked, 8, 5)
    require_noise(replace(plan(), noise=noise.to_json()), terms, asked, 5)
    with pytest.raises(ConfigError, match=r"use aggregation\.bits=32|use more bits"):
        planned_noise(SiteTerms(10.0), Secured(bits=16), 10**6, 20)
    with pytest.raises(PrivacyError, match="noise that the order does not ask for"):
        require_noise(replace(plan(), noise=noise.to_json()), None, asked, 5)
