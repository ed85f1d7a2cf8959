"""Whoever does not keep to the protocol is caught and named; nothing that is sent does worse than be refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from secure_sites import Sum, keys, signer, sum_of, terms

from pm1_core.errors import ConfigError, PrivacyError
from pm1_core.privacy import secure_view
from pm1_core.privacy.primitives import public_of, split
from pm1_core.privacy.secure_sum import STAGES, Collector, Member, Terms
from pm1_core.signing import Signer


def _changed(message: bytes, change: Callable[[Any], None]) -> bytes:
    content = json.loads(message)
    change(content)
    return json.dumps(content).encode()


def test_a_coordinator_that_swaps_a_long_term_key_is_caught_by_what_sites_know():
    known = keys(4)
    own = Signer(Ed25519PrivateKey.generate()).key.public_key().public_bytes_raw().hex()
    swapped = Terms("run", "fusion", 3, 0, {**known, "site02": own}, 8)
    with pytest.raises(PrivacyError, match="'site02': its key is another one"):
        Member.create(swapped, "site00", signer("site00"), known)
    invented = Terms("run", "fusion", 3, 0, {**known, "site99": own}, 8)
    with pytest.raises(PrivacyError, match="'site99': its key is not known"):
        Member.create(invented, "site00", signer("site00"), known)


def test_a_coordinator_that_swaps_fresh_keys_is_caught():
    round_ = Sum(terms(4)).until("share")
    request = round_.collector.request("site00")

    def swap(content: Any) -> None:
        content["keys"]["site02"]["mask"] = public_of(bytes(range(32))).hex()

    with pytest.raises(PrivacyError, match=r"site 'site02'.*not signed by this site"):
        round_.members["site00"].share(_changed(request, swap))


def test_a_coordinator_that_signs_swapped_keys_itself_is_caught():
    round_ = Sum(terms(4)).until("share")
    agreed, own = round_.terms, Signer(Ed25519PrivateKey.generate())
    public = own.key.public_key().public_bytes_raw().hex()
    # The coordinator's own site of that name, in terms with the coordinator's key: bound to other terms.
    forged = Terms.from_json({**agreed.to_json(), "sites": {**agreed.sites, "site02": public}})
    advert = json.loads(Member.create(forged, "site02", own, forged.sites).advertise())
    del advert["site"]

    def swap(content: Any) -> None:
        content["keys"]["site02"] = advert

    with pytest.raises(PrivacyError, match=r"site 'site02'.*not signed by this site"):
        round_.members["site00"].share(_changed(round_.collector.request("site00"), swap))


def test_keys_of_an_earlier_attempt_are_refused():
    earlier, later = Sum(terms(4, attempt=0)).until("share"), Sum(terms(4, attempt=1)).until("share")
    request = earlier.collector.request("site00")
    with pytest.raises(PrivacyError, match="not signed by this site for this attempt"):
        later.members["site00"].share(request)
    with pytest.raises(PrivacyError, match="for this attempt"):
        Collector(later.terms).receive("site00", earlier.answers["advertise"]["site00"])


@pytest.mark.parametrize("name", ["run", "phase", "round", "what", "agreed", "words", "bits"])
def test_nothing_signed_serves_in_another_sum(name: str):
    agreed = terms(4)
    other = {
        "run": "other",
        "phase": "other",
        "round": 4,
        "what": "sums",
        "agreed": "x",
        "words": 9,
        "bits": 16,
    }
    foreign = Terms.from_json({**agreed.to_json(), name: other[name]})
    said = Member.create(foreign, "site01", signer("site01"), keys(4)).advertise()
    with pytest.raises(PrivacyError, match=r"'site01'.*not signed"):
        Collector(agreed).receive("site01", said)


def test_no_two_attempts_have_masks_in_common():
    first, again = (Sum(terms(3, 4096, attempt=i)) for i in (0, 1))
    first.run()
    again.run()
    for site in first.sent:
        # The same plain words: with the same masks what is sent would be the same.
        assert (first.sent[site] == again.sent[site]).mean() < 0.01


def test_own_keys_that_come_back_changed_are_refused():
    round_ = Sum(terms(4)).until("share")

    def drop(content: Any) -> None:
        del content["keys"]["site00"]

    with pytest.raises(PrivacyError, match="'site00' itself are missing"):
        round_.members["site00"].share(_changed(round_.collector.request("site00"), drop))


def test_two_sites_that_are_shown_two_lists_of_survivors_find_out_who_was_shown_another():
    """Five sites, threshold four: the coordinator tells two that site04 is lost, and three that it survived."""
    round_ = Sum(terms(5)).until("agree")
    whole = json.loads(round_.collector.request("site00"))
    cut = {"survivors": {s: said for s, said in whole["survivors"].items() if s != "site04"}}
    signed = {}
    for site, member in round_.members.items():
        shown = cut if site in ("site00", "site01") else whole
        answer = json.loads(member.agree(json.dumps(shown).encode()))
        del answer["site"]
        signed[site] = answer
    request = json.dumps({"signatures": signed}).encode()
    with pytest.raises(PrivacyError, match="the coordinator showed 'site00' other survivors than here"):
        round_.members["site03"].reveal(request)
    # Only those that agree with the reader are relayed: too few.
    same = json.dumps({"signatures": {s: signed[s] for s in ("site02", "site03", "site04")}}).encode()
    with pytest.raises(PrivacyError, match="3 of 5 sites are left; nothing is revealed"):
        round_.members["site03"].reveal(same)


def test_sites_that_are_shown_two_lists_of_sharers_find_out_before_they_sign():
    round_ = Sum(terms(5)).until("input")

    def drop(content: Any) -> None:
        content["sharers"].remove("site04")
        del content["boxes"]["site04"]

    receipts = {}
    for site, member in round_.members.items():
        request = round_.collector.request(site)
        member.open(_changed(request, drop) if site == "site01" else request)
        member.mask(np.zeros(8, "<u4"), 0)
        receipts[site] = json.loads(member.receipt())["signature"]
    request = json.dumps({"survivors": receipts}).encode()
    with pytest.raises(
        PrivacyError, match="'site01' did not sign that it masked for the sites that are listed"
    ):
        round_.members["site00"].agree(request)
    with pytest.raises(PrivacyError, match=r"'site01'.*not signed by it for this attempt and these sites"):
        round_.collector.receive("site01", round_.members["site01"].receipt())


def test_a_site_that_gave_no_words_cannot_be_put_on_the_list():
    round_ = Sum(terms(5))
    for stage in STAGES[:3]:
        round_.step(["site04"] if stage == "input" else [])

    def add(content: Any) -> None:
        content["survivors"]["site04"] = content["survivors"]["site03"]

    with pytest.raises(PrivacyError, match="'site04' did not sign"):
        round_.members["site00"].agree(_changed(round_.collector.request("site00"), add))


def test_a_forged_signature_under_the_list_is_named():
    round_ = Sum(terms(4)).until("reveal")

    def forge(content: Any) -> None:
        content["signatures"]["site02"]["signature"] = "00" * 64

    with pytest.raises(PrivacyError, match="signature of 'site02' is forged"):
        round_.members["site00"].reveal(_changed(round_.collector.request("site00"), forge))


def test_both_shares_of_one_site_are_never_had():
    """The coordinator asks once as if site04 had survived, and once as if it had been lost."""
    round_ = Sum(terms(5)).until("agree")
    whole = round_.collector.request("site00")
    member = round_.members["site00"]
    member.agree(whole)

    def drop(content: Any) -> None:
        del content["survivors"]["site04"]

    with pytest.raises(PrivacyError, match="asked a second time, for something else"):
        member.agree(_changed(whole, drop))
    # Nor after it came back from its file, nor with what it revealed once.
    with pytest.raises(PrivacyError, match="asked a second time"):
        Member.from_bytes(member.to_bytes(), signer("site00")).agree(_changed(whole, drop))
    for site in round_.collector.asked:
        round_.collector.receive(site, round_.members[site].agree(whole))
    round_.collector.close()
    request = round_.collector.request("site00")
    revealed = json.loads(member.reveal(request))
    assert not set(revealed["own"]) & set(revealed["mask"])

    def fewer(content: Any) -> None:
        del content["signatures"]["site03"]

    with pytest.raises(PrivacyError, match="asked a second time"):
        member.reveal(_changed(request, fewer))


def test_a_wrong_share_is_named_with_who_gave_it():
    round_ = Sum(terms(4)).until("reveal")
    answer = round_.members["site01"].reveal(round_.collector.request("site01"))

    def wrong(content: Any) -> None:
        content["own"]["site02"] = "11" * 32

    with pytest.raises(PrivacyError, match="'site01': its share of the own mask of 'site02' is a wrong one"):
        round_.collector.receive("site01", _changed(answer, wrong))

    def less(content: Any) -> None:
        del content["own"]["site02"]

    with pytest.raises(PrivacyError, match="'site01': it did not reveal one share of each"):
        round_.collector.receive("site01", _changed(answer, less))


def test_a_dealer_whose_shares_give_something_else_back_is_named(monkeypatch: pytest.MonkeyPatch):
    def bad(secret: bytes, threshold: int, shares: int) -> list[bytes]:
        return split(bytes(32), threshold, shares)

    round_ = Sum(terms(4)).until("share")
    monkeypatch.setattr("pm1_core.privacy.secure_member.split", bad)
    request = round_.collector.request("site02")
    round_.collector.receive("site02", round_.members["site02"].share(request))
    monkeypatch.undo()
    for site in ("site00", "site01", "site03"):
        round_.collector.receive(site, round_.members[site].share(request))
    round_.collector.close()
    round_.until("reveal")
    with pytest.raises(PrivacyError, match="'site02': they do not give back what it committed to"):
        round_.step()
    assert round_.collector.stage == "failed"


def test_a_share_that_does_not_fit_its_fingerprint_is_named_by_who_gets_it():
    round_ = Sum(terms(4)).until("input")

    def other(content: Any) -> None:
        content["boxes"]["site03"]["own"] = "22" * 32

    with pytest.raises(PrivacyError, match="from site 'site03': they do not fit"):
        round_.members["site00"].open(_changed(round_.collector.request("site00"), other))


def test_envelopes_that_are_exchanged_are_named():
    round_ = Sum(terms(4)).until("input")

    def exchange(content: Any) -> None:
        boxes = content["boxes"]
        boxes["site01"], boxes["site03"] = boxes["site03"], boxes["site01"]

    with pytest.raises(PrivacyError, match=r"from site 'site01'.*changed"):
        round_.members["site00"].open(_changed(round_.collector.request("site00"), exchange))


def test_a_key_that_agrees_with_everybody_is_named():
    """A site may sign what it likes as its own key: of small order, it would make masks that all can know."""
    round_ = Sum(terms(4))
    agreed = round_.terms
    for site in sorted(agreed.sites):
        said = json.loads(round_.answer(site, agreed.to_bytes(), "advertise"))
        if site == "site02":
            content = {"channel": said["channel"], "mask": "00" * 32, "commitment": said["commitment"]}
            message = secure_view.statement(agreed, secure_view.KEYS, site, content)
            said |= {"mask": "00" * 32, "signature": signer(site).sign(message)}
        round_.collector.receive(site, json.dumps(said).encode())
    round_.collector.close()
    for site in ("site00", "site01", "site03"):
        round_.collector.receive(site, round_.members[site].share(round_.collector.request(site)))
    round_.collector.close()
    round_.members["site00"].open(round_.collector.request("site00"))
    words = np.zeros(8, "<u4")
    # Everybody masks only for those who shared; site02 did not, and its key is not used.
    round_.members["site00"].mask(words, 0)
    with pytest.raises(PrivacyError, match=r"'site02'.*agrees with everybody"):
        round_.members["site00"]._require_roll().mask_key(bytes(range(32)), "site00", "site02")


def test_two_sites_with_one_key_are_refused():
    round_ = Sum(terms(4)).until("share")

    def same(content: Any) -> None:
        content["keys"]["site01"] = content["keys"]["site02"]

    with pytest.raises(PrivacyError, match="site 'site01'"):
        round_.members["site00"].share(_changed(round_.collector.request("site00"), same))
    with pytest.raises(ConfigError, match="two have the same key"):
        Terms("run", "fusion", 3, 0, dict.fromkeys(keys(4), keys(1)["site00"]), 8)


def test_strangers_latecomers_and_two_answers_are_refused():
    round_ = Sum(terms(4)).until("share")
    late = round_.answers["advertise"]["site00"]
    for site, answer in (("nobody", b"{}"), ("site00", late), ("site01", b'{"site":"site02"}')):
        with pytest.raises(PrivacyError, match="secure sum"):
            round_.collector.receive(site, answer)
    request = round_.collector.request("site00")
    first = round_.members["site00"].share(request)
    round_.collector.receive("site00", first)

    def other(content: Any) -> None:
        content["boxes"]["site01"]["own"] = "33" * 32

    with pytest.raises(PrivacyError, match="answered twice, with different things"):
        round_.collector.receive("site00", _changed(first, other))


def test_stages_out_of_turn_are_refused():
    round_ = Sum(terms(4)).until("share")
    member = round_.members["site00"]
    for call in (member.open, member.agree, member.reveal):
        with pytest.raises(PrivacyError, match="the last was 'advertise'"):
            call(b"{}")
    with pytest.raises(PrivacyError, match="not asked at stage"):
        round_.collector.request("nobody")
    with pytest.raises(PrivacyError, match="nothing can be opened"):
        round_.collector.unmask(np.zeros(1, "<u4"), 0)


def test_a_site_whose_key_is_not_the_one_in_the_terms_does_not_take_part():
    with pytest.raises(PrivacyError, match="not its key"):
        Member.create(terms(4), "site00", signer("site01"), keys(4))
    with pytest.raises(PrivacyError, match="not its key"):
        Member.create(terms(4), "site77", signer("site77"), keys(4))
    round_ = Sum(terms(4)).until("share")
    with pytest.raises(PrivacyError, match="not its key"):
        Member.from_bytes(round_.members["site00"].to_bytes(), signer("site01"))


def test_wrong_words_spoil_a_sum_and_open_nothing_else():
    """A coordinator that adds a site's words twice, or leaves one out, gets noise."""
    round_ = Sum(terms(4, 4096))
    round_.run()
    left_out = sum_of([round_.sent[site] for site in ("site00", "site01", "site02")])
    round_.collector.unmask(left_out, 0)
    wanted = sum_of([round_.vector(site) for site in ("site00", "site01", "site02")])
    assert (left_out == wanted).mean() < 0.01
