"""Gates hold a checkpoint against the release before; what cannot be computed does not pass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pm1_core.checkpoint import Checkpoint
from pm1_core.errors import ConfigError
from pm1_core.gates import Gates, Verdict, judge


def _gates(**bounds: Any) -> Gates:
    """Only these gates."""
    off: dict[str, Any] = {item.name: None for item in fields(Gates) if item.name != "min_group_people"}
    return Gates(**(off | bounds))


def _area(auc: float, cases: float = 50, controls: float = 50) -> dict[str, float]:
    return {"auc": auc, "cases": cases, "controls": controls}


def _checkpoint(areas: Mapping[str, Mapping[str, float]] | None = None, **more: Any) -> Checkpoint:
    return Checkpoint(
        sequence=1, parent="", study="s", config="c", phase=more.pop("phase", "fusion"), round=1, rounds=1,
        parts={}, areas=areas or {}, **more,
    )  # fmt: skip


def _only(verdicts: list[Verdict]) -> Verdict:
    (verdict,) = verdicts
    return verdict


def test_no_gate_judges_nothing() -> None:
    gates = _gates()
    assert gates.none
    assert judge(gates, _checkpoint(), None) == []
    assert not Gates().none


@pytest.mark.parametrize(("now", "passed"), [(0.79, True), (0.78, True), (0.779, False), (0.9, True)])
def test_an_auc_may_fall_to_the_bound_and_no_further(now: float, passed: bool) -> None:
    gates = _gates(max_auc_fall=0.02)
    before = _checkpoint({"a.all": _area(0.8), "b.all": _area(0.6)})
    verdict = _only(judge(gates, _checkpoint({"a.all": _area(now), "b.all": _area(0.6)}), before))
    assert verdict.passed is passed
    assert verdict.found == pytest.approx(max(0.8 - now, 0.0))


def test_the_worst_of_all_targets_decides_and_is_named() -> None:
    gates = _gates(max_auc_fall=0.02)
    before = _checkpoint({"a.all": _area(0.8), "b.all": _area(0.6)})
    verdict = _only(judge(gates, _checkpoint({"a.all": _area(0.9), "b.all": _area(0.5)}), before))
    assert not verdict.passed
    assert verdict.note == "b.all: 0.6000 -> 0.5000"


@pytest.mark.parametrize(
    ("areas", "before", "missing"),
    [
        ({}, None, "holds no area over everybody"),
        ({}, {"a.all": _area(0.8)}, "holds no area over everybody"),
        ({"a.sex=F": _area(0.8)}, None, "holds no area over everybody"),
        ({"a.all": _area(0.8)}, {}, "the release before holds no area"),
        ({"a.all": _area(0.8)}, {"a.all": _area(0.8), "b.all": _area(0.8)}, "holds no b.all"),
        ({"a.all": _area(float("nan"))}, {"a.all": _area(0.8)}, "holds no area over everybody"),
    ],
)
def test_a_fall_that_cannot_be_computed_does_not_pass(areas: Any, before: Any, missing: str) -> None:
    gates = _gates(max_auc_fall=0.02)
    verdict = _only(judge(gates, _checkpoint(areas), None if before is None else _checkpoint(before)))
    assert (verdict.found, verdict.passed) == (None, False)
    assert missing in verdict.note


def test_a_first_release_has_nothing_to_fall_from_and_says_so() -> None:
    gates = _gates(max_auc_fall=0.02)
    verdict = _only(judge(gates, _checkpoint({"a.all": _area(0.5)}), None))
    assert verdict.passed
    assert verdict.note.startswith("first release")


def test_the_worst_group_decides_among_those_that_are_large_enough() -> None:
    gates = _gates(min_group_auc=0.6)
    areas = {
        "a.all": _area(0.1),  # everybody is no group
        "a.sex=F": _area(0.7),
        "a.sex=M": _area(0.62),
        "a.ancestry=AFR": _area(0.3, cases=19),
        "a.ancestry=EAS": _area(0.3, controls=19),
    }
    verdict = _only(judge(gates, _checkpoint(areas), None))
    assert (verdict.passed, verdict.found) == (True, 0.62)
    assert verdict.note == "a.sex=M, the lowest of 2 groups; 2 too small to be held to it"
    lower = _only(judge(gates, _checkpoint({**areas, "a.ancestry=EAS": _area(0.3, 20, 20)}), None))
    assert (lower.passed, lower.found) == (False, 0.3)


def test_no_group_of_enough_people_does_not_pass() -> None:
    gates = _gates(min_group_auc=0.6)
    verdict = _only(judge(gates, _checkpoint({"a.all": _area(0.9), "a.sex=F": _area(0.9, 3)}), None))
    assert (verdict.found, verdict.passed) == (None, False)
    assert "no group of at least 20 cases and controls among 1 groups" in verdict.note


@pytest.mark.parametrize(
    ("sites", "sites_pass", "people_pass"),
    [
        ({"a": 60.0, "b": 40.0}, True, True),
        ({"a": 99.0, "b": 0.0}, False, False),
        ({"a": 200.0}, False, True),
    ],
)
def test_sites_and_people_are_counted(sites: Any, sites_pass: bool, people_pass: bool) -> None:
    gates = _gates(min_sites=2, min_people=100)
    of_sites, of_people = judge(gates, _checkpoint(sites=sites), None)
    assert (of_sites.gate, of_sites.passed) == ("min_sites", sites_pass)
    assert (of_people.gate, of_people.passed) == ("min_people", people_pass)


def test_where_sites_are_not_named_they_cannot_be_counted() -> None:
    gates = _gates(min_people=1)
    assert _only(judge(gates, _checkpoint(), None)).found is None


@pytest.mark.parametrize(
    ("here", "before", "phase", "found", "passed"),
    [
        (1.05, 1.0, "fusion", 0.05, True),
        (1.11, 1.0, "fusion", 0.11, False),
        (0.5, 1.0, "fusion", -0.5, True),
        (1.0, 1.0, "genotype.1", None, False),
        (None, 1.0, "fusion", None, False),
        (1.0, None, "fusion", None, False),
        (1.0, 0.0, "fusion", None, False),
    ],
)
def test_a_loss_is_compared_with_that_of_the_same_phase(
    here: float | None, before: float | None, phase: str, found: float | None, passed: bool
) -> None:
    def of(loss: float | None, phase: str) -> Checkpoint:
        return _checkpoint(metrics={} if loss is None else {"all": {"validation.loss": loss}}, phase=phase)

    gates = _gates(max_loss_rise=0.1)
    verdict = _only(judge(gates, of(here, "fusion"), of(before, phase)))
    assert verdict.passed is passed
    assert verdict.found == (found if found is None else pytest.approx(found))


@given(
    auc=st.floats(0, 1),
    before=st.floats(0, 1),
    limit=st.floats(0, 1),
    looser=st.floats(0, 1),
)
def test_a_looser_gate_passes_whatever_a_stricter_one_passes(
    auc: float, before: float, limit: float, looser: float
) -> None:
    def passes(bound: float) -> bool:
        gates = _gates(max_auc_fall=bound)
        checkpoints = _checkpoint({"a.all": _area(auc)}), _checkpoint({"a.all": _area(before)})
        return _only(judge(gates, *checkpoints)).passed

    assert not passes(min(limit, looser)) or passes(max(limit, looser))


@pytest.mark.parametrize(
    "wrong", [{"max_auc_fall": -0.1}, {"min_group_auc": 1.5}, {"min_sites": -1}, {"max_loss_rise": "x"}]
)
def test_a_bound_that_makes_no_sense_is_refused(wrong: Any) -> None:
    with pytest.raises(ConfigError, match=f"gates.{next(iter(wrong))}"):
        Gates(**{**asdict(Gates()), **wrong})
