"""Whatever is sent in a secure sum is refused or means the same."""

from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mutations import mutated
from secure_sites import Sum, keys, signer, terms

from pm1_core.errors import PM1Error
from pm1_core.privacy.secure_sum import STAGES, Collector, Member, Terms

_FLIPPED = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def finished() -> tuple[Sum, dict[str, bytes]]:
    """A round, and what site00 held before each stage."""
    round_ = Sum(terms(4))
    held = {}
    for stage in STAGES:
        if stage != "advertise":
            held[stage] = round_.members["site00"].to_bytes()
        round_.step(["site03"] if stage == "input" else [])
    return round_, held


@pytest.mark.parametrize("stage", STAGES)
@_FLIPPED
@given(data=st.data())
def test_whatever_a_coordinator_sends_is_refused_or_means_the_same(
    stage: str, finished: tuple[Sum, dict[str, bytes]], data: st.DataObject
):
    whole, held = finished
    message = mutated(whole.requests[stage]["site00"], data)
    try:
        if stage == "advertise":
            Member.create(Terms.from_bytes(message), "site00", signer("site00"), keys(4))
            return
        round_ = Sum(whole.terms)
        round_.members["site00"] = Member.from_bytes(held[stage], signer("site00"))
        round_.answer("site00", message, stage)
    except PM1Error:
        return
    assert _same(message, whole.requests[stage]["site00"], stage)


def _same(message: bytes, sent: bytes, stage: str) -> bool:
    """Only what carries no meaning of its own may differ: who else signed, as long as enough did."""
    one, other = json.loads(message), json.loads(sent)
    if stage in ("agree", "reveal"):
        name = {"agree": "survivors", "reveal": "signatures"}[stage]
        return all(other[name].get(site) == said for site, said in one[name].items())
    return bool(one == other)


@pytest.mark.parametrize("stage", STAGES)
@_FLIPPED
@given(data=st.data())
def test_whatever_a_site_answers_is_refused_or_changes_nothing(
    stage: str, finished: tuple[Sum, dict[str, bytes]], data: st.DataObject
):
    whole, _ = finished
    message = mutated(whole.answers[stage]["site01"], data)
    collector = Collector(whole.terms)
    for now in STAGES[: STAGES.index(stage)]:
        for site, answer in whole.answers[now].items():
            collector.receive(site, answer)
        collector.close()
    try:
        collector.receive("site01", message)
    except PM1Error:
        assert "site01" not in collector.answered
        return
    if stage != "share":
        assert json.loads(message) == json.loads(whole.answers[stage]["site01"])


@_FLIPPED
@given(data=st.data())
def test_a_damaged_file_is_refused(finished: tuple[Sum, dict[str, bytes]], data: st.DataObject):
    whole, _ = finished
    for state, read in (
        (whole.members["site00"].to_bytes(), lambda b: Member.from_bytes(b, signer("site00"))),
        (whole.collector.to_bytes(), Collector.from_bytes),
    ):
        out = bytearray(state)
        out[data.draw(st.integers(0, len(out) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        try:
            again = read(bytes(out))
        except PM1Error:
            continue
        assert again.to_bytes() == state
