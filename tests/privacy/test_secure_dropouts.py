"""The sum is exact for every pattern of lost sites that the threshold allows, and nothing is revealed below it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import combinations

import numpy as np
import pytest
from secure_sites import Sum, keys, plain, signer, sum_of, terms

from pm1_core.errors import ConfigError, PrivacyError
from pm1_core.privacy.secure_sum import DONE, FAILED, STAGES, Collector, Member, Terms, least_survivors

_WORDS = 24


def _subsets(sites: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    for size in range(len(sites) + 1):
        yield from combinations(sites, size)


class _Tree:
    """Every pattern: at each stage every subset of those who are asked answers.

    Patterns that differ only in what is after a failure are one: nothing comes after it. All state goes through
    bytes between the stages.
    """

    def __init__(self, count: int, bits: int) -> None:
        self.terms = terms(count, _WORDS, bits)
        self.opened = 0
        self.failed = dict.fromkeys(STAGES, 0)
        self._sent: dict[str, np.ndarray] = {}

    def visit(self, collector: bytes, members: dict[str, bytes]) -> None:
        now = Collector.from_bytes(collector)
        answers, after = {}, {}
        for site in now.asked:
            answers[site], after[site] = self._answer(now.stage, site, now.request(site), members)
        for answering in _subsets(now.asked):
            here = Collector.from_bytes(collector)
            for site in answering:
                here.receive(site, answers[site])
            if len(answering) < self.terms.threshold:
                self._fail(here, answering, answers)
                continue
            here.close()
            if here.stage == DONE:
                self._open(here)
            else:
                self.visit(here.to_bytes(), after)

    def _answer(
        self, stage: str, site: str, request: bytes, members: dict[str, bytes]
    ) -> tuple[bytes, bytes]:
        if stage == "advertise":
            member = Member.create(Terms.from_bytes(request), site, signer(site), keys(len(self.terms.sites)))
            return member.advertise(), member.to_bytes()
        member = Member.from_bytes(members[site], signer(site))
        if stage != "input":
            return getattr(member, stage)(request), member.to_bytes()
        member.open(request)
        self._sent[site] = member.mask(plain(site, _WORDS, self.terms.bits), 0)
        return member.receipt(), member.to_bytes()

    def _open(self, collector: Collector) -> None:
        total = sum_of([self._sent[site] for site in collector.survivors])
        expected = sum_of([plain(site, _WORDS, self.terms.bits) for site in collector.survivors])
        assert not (total == expected).all()
        assert (collector.unmask(total, 0) == expected).all()
        self.opened += 1

    def _fail(self, collector: Collector, answering: tuple[str, ...], answers: dict[str, bytes]) -> None:
        stage = collector.stage
        with pytest.raises(PrivacyError, match="nothing is revealed"):
            collector.close()
        assert collector.stage == FAILED
        assert collector.asked == ()
        for call in (lambda: collector.unmask(np.zeros(1, "<u4"), 0), collector.close):
            with pytest.raises(PrivacyError):
                call()
        if stage == "reveal":
            # All that has been revealed: fewer shares of each secret than give it back.
            assert len(answering) < self.terms.neighbourhood.threshold
        else:
            assert not any(b'"own":{' in answers[site] and stage != "share" for site in answering)
        self.failed[stage] += 1


@pytest.mark.parametrize(("count", "bits", "opened"), [(3, 32, 1), (4, 16, 21), (5, 64, 26), (6, 32, 31)])
def test_the_sum_is_exact_for_every_tolerated_pattern_and_nothing_is_revealed_below(
    count: int, bits: int, opened: int
):
    tree = _Tree(count, bits)
    tree.visit(Collector(tree.terms).to_bytes(), {})
    # One site may be lost at one of five stages, from four sites on; or nobody.
    assert tree.opened == opened
    assert all(tree.failed[stage] > 0 for stage in STAGES)


@pytest.mark.parametrize(
    "lost",
    [
        {"advertise": ["site00"], "share": ["site03"], "agree": ["site05"]},
        {"input": ["site01"], "reveal": ["site07", "site08"]},
    ],
)
def test_several_sites_may_be_lost_at_several_stages(lost: dict[str, list[str]]):
    round_ = Sum(terms(10, 1000))
    assert (round_.run(lost) == round_.expected()).all()
    assert len(round_.collector.survivors) == 10 - sum(
        len(sites) for stage, sites in lost.items() if stage in ("advertise", "share", "input")
    )


@pytest.mark.parametrize("stage", ["share", "input", "agree", "reveal"])
def test_a_site_goes_no_further_with_too_few_whatever_the_coordinator_says(stage: str):
    """A coordinator that goes on below the threshold finds every site refusing by itself."""
    round_ = Sum(terms(5)).until(stage)
    request = json.loads(round_.collector.request("site00"))
    held = {"share": "keys", "input": "sharers", "agree": "survivors", "reveal": "signatures"}[stage]
    gone = sorted(round_.terms.sites)[-2:]
    if stage == "input":
        request["sharers"] = [s for s in request["sharers"] if s not in gone]
        request["boxes"] = {s: box for s, box in request["boxes"].items() if s not in gone}
    else:
        request[held] = {s: said for s, said in request[held].items() if s not in gone}
    member = round_.members["site00"]
    with pytest.raises(PrivacyError, match="nothing is revealed"):
        getattr(member, "open" if stage == "input" else stage)(json.dumps(request).encode())


@pytest.mark.parametrize("count", [0, 1, 2])
def test_fewer_than_three_sites_are_refused(count: int):
    with pytest.raises(ConfigError, match="of at least 3"):
        terms(count)


@pytest.mark.parametrize("count", range(3, 200, 7))
def test_the_threshold_is_above_two_thirds_and_at_least_three(count: int):
    least = least_survivors(count)
    assert 3 * least > 2 * count
    assert 3 <= least <= count
    assert 3 * (least - 1) <= 2 * count or least == 3
    assert least_survivors(count, 0.9) >= 0.9 * count - 1e-6
    for wrong in (least - 1, count + 1):
        with pytest.raises(ConfigError, match="threshold"):
            terms(count, threshold=wrong)


def test_three_sites_tolerate_no_loss():
    assert least_survivors(3) == 3


def test_a_coordinator_and_sites_that_are_asked_again_go_on_to_the_same_bytes():
    round_ = Sum(terms(5, 100)).until("reveal")
    for stage in ("share", "agree"):
        for site, request in round_.requests[stage].items():
            again = Member.from_bytes(round_.members[site].to_bytes(), signer(site))
            assert getattr(again, stage)(request) == round_.answers[stage][site]
    for site in round_.collector.asked:
        request = round_.collector.request(site)
        first = round_.members[site].reveal(request)
        assert Member.from_bytes(round_.members[site].to_bytes(), signer(site)).reveal(request) == first
        for _ in range(2):
            round_.collector.receive(site, first)
    round_.collector.close()
    later = Collector.from_bytes(round_.collector.to_bytes())
    assert (later.unmask(round_.masked(), 0) == round_.opened()).all()


def test_no_vector_is_masked_twice_and_none_is_sent_in_part():
    round_ = Sum(terms(4, 100)).until("input")
    member = round_.members["site00"]
    with pytest.raises(PrivacyError, match="not the time"):
        member.mask(np.zeros(10, "<u4"), 0)
    member.open(round_.collector.request("site00"))
    member.mask(np.zeros(60, "<u4"), 40)
    again = Member.from_bytes(member.to_bytes(), signer("site00"))
    for offset, size in ((40, 1), (99, 1), (0, 41), (50, 10)):
        with pytest.raises(PrivacyError, match="masked before"):
            again.mask(np.zeros(size, "<u4"), offset)
    for offset, size in ((0, 101), (-1, 1), (100, 1)):
        with pytest.raises(PrivacyError, match="do not fit"):
            again.mask(np.zeros(size, "<u4"), offset)
    with pytest.raises(PrivacyError, match="60 of 100"):
        again.receipt()
    with pytest.raises(PrivacyError, match="uint32"):
        again.mask(np.zeros(10, "<u8"), 0)
    again.mask(np.zeros(40, "<u4"), 0)
    again.receipt()
    with pytest.raises(PrivacyError, match="not the time"):
        again.mask(np.zeros(1, "<u4"), 0)


def test_secrets_are_forgotten_after_the_reveal():
    round_ = Sum(terms(4))
    round_.run()
    state = json.loads(round_.members["site00"].to_bytes())["content"]["state"]
    assert (state["channel"], state["mask"], state["secret"], state["shares"]) == ("", "", "", {})
