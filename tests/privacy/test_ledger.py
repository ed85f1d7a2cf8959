"""A ledger is never behind what has left, refuses before the budget is passed, and shows who touched it."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import pytest
from charged import BUDGET, STEP, charge, charged, lines_of, opened

from pm1_core.errors import ConfigError, PrivacyError, StateError
from pm1_core.privacy.accounting import tightest
from pm1_core.privacy.accounts import release_hash
from pm1_core.privacy.ledger import Ledger
from pm1_core.privacy.mechanisms import Mechanism, as_record


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return opened(tmp_path)


def _until_refused(ledger: Ledger, item: Mechanism, first: int = 1) -> tuple[int, str]:
    """The number of the first release that is refused, and why."""
    for number in range(first, 1000):
        try:
            charge(ledger, number, item)
        except PrivacyError as error:
            return number, str(error)
    raise AssertionError("nothing was refused")


def test_what_is_spent_is_the_composition_of_all_phases_and_studies(ledger: Ledger):
    fusion = Mechanism("grouped", 6.0, 0.1, 20)
    charge(ledger, 1)
    charge(ledger, 2, fusion, phase="fusion")
    charge(ledger, 3, Mechanism("gaussian", 5.0), study="another", phase="statistics")
    together = tightest([STEP, fusion, Mechanism("gaussian", 5.0)], 1e-5)
    assert ledger.spent() == together
    assert ledger.remaining() == 3.0 - together.value
    assert [(s.study, s.phase, s.releases) for s in ledger.by_phase()] == [
        ("s", "p", 1),
        ("s", "fusion", 1),
        ("another", "statistics", 1),
    ]
    assert [(s.study, s.phase, s.releases) for s in ledger.by_study()] == [("s", "", 2), ("another", "", 1)]
    assert ledger.by_phase()[0].epsilon == tightest([STEP], 1e-5)
    # Another process reads the same.
    assert Ledger(ledger.path).spent() == together


def test_the_same_release_costs_nothing_again_and_another_for_the_same_request_is_refused(ledger: Ledger):
    assert charge(ledger, 1)
    content = ledger.path.read_bytes()
    for again in (ledger, Ledger(ledger.path)):
        assert not charge(again, 1)
        with pytest.raises(PrivacyError, match="another release for the request q1"):
            again.charge("s", "p", 1, "q1", "other", [STEP])
    assert ledger.path.read_bytes() == content


def test_a_budget_is_refused_before_it_is_passed_and_the_refusal_says_what_remains(ledger: Ledger):
    number, refused = _until_refused(ledger, STEP)
    assert 5 < number < 1000
    content = ledger.path.read_bytes()
    spent, would = (tightest([STEP] * count, 1e-5).value for count in (number - 1, number))
    assert spent <= 3.0 < would
    assert ledger.spent().value == spent
    for figure in (
        f"{spent:.4g}",
        f"{would:.4g}",
        "budget of 3",
        f"{3.0 - spent:.4g} remains",
        "delta 1e-05",
    ):
        assert figure in refused
    # It stays refused, for everybody and for every kind, and costs nothing to ask.
    for again in (ledger, Ledger(ledger.path)):
        assert not again.affords([STEP])
        with pytest.raises(PrivacyError):
            charge(again, number)
    assert ledger.path.read_bytes() == content
    # What was released before can still be sent.
    assert not charge(ledger, 1)
    # A smaller release may still fit.
    assert ledger.affords([Mechanism("gaussian", 1e4)])
    assert charge(ledger, number, Mechanism("gaussian", 1e4))


def test_a_larger_budget_needs_a_reason_and_lets_the_refused_release_leave(ledger: Ledger):
    much = Mechanism("gaussian", 1.2)
    with pytest.raises(PrivacyError):
        charge(ledger, 1, much)
    for epsilon, reason in ((2.0, "why"), (3.0, "why"), (8.0, " ")):
        with pytest.raises(ConfigError):
            ledger.raise_budget("record", epsilon, 1e-5, reason)
    ledger.raise_budget("record", 8.0, 1e-5, "board of 3 March")
    assert Ledger(ledger.path).budget() == {"record": (8.0, 1e-5)}
    assert charge(ledger, 1, much)
    assert json.loads(ledger.path.read_text().splitlines()[1])["reason"] == "board of 3 March"


def test_what_releases_nothing_of_anybody_is_free(ledger: Ledger):
    content = ledger.path.read_bytes()
    assert not ledger.charge("s", "reference", 1, "q", "h", ()).new
    assert ledger.path.read_bytes() == content


def test_without_a_ledger_nothing_leaves_and_nothing_is_written(tmp_path: Path):
    ledger = Ledger(tmp_path / "none" / Ledger.NAME)
    assert not ledger.exists
    with pytest.raises(PrivacyError, match="pm1-site privacy open"):
        charge(ledger, 1)
    assert not ledger.path.exists()


def test_a_ledger_is_opened_once(ledger: Ledger):
    with pytest.raises(PrivacyError, match="open already"):
        ledger.open("Freiburg", {"record": (100.0, 1e-5)})
    assert ledger.budget() == {"record": (3.0, 1e-5)}
    for bad in ({}, {"people": (1.0, 1e-5)}, {"record": (math.inf, 1e-5)}, {"record": (1.0, 0.9)}):
        with pytest.raises(ConfigError):
            Ledger(ledger.path.with_name("other.jsonl")).open("Freiburg", bad)


def test_what_hides_a_site_is_charged_to_its_people_too_at_double_sensitivity(ledger: Ledger):
    noise = Mechanism("skellam", 5.0, unit="site", l1=400.0, l2=100.0)
    with pytest.raises(PrivacyError, match="unit 'site'"):
        charge(ledger, 1, noise)
    ledger.raise_budget("site", 2.0, 1e-6, "agreed")
    charge(ledger, 1, noise)
    charge(ledger, 2)
    assert ledger.spent("site") == tightest([noise], 1e-6)
    assert ledger.spent("record") == tightest([as_record(noise), STEP], 1e-5)
    # The people's budget can be what refuses.
    _, refused = _until_refused(ledger, Mechanism("gaussian", 20.0, unit="site", steps=3), first=3)
    assert "unit 'record'" in refused
    assert ledger.spent("site").value < 2.0


def test_releases_without_privacy_are_written_down_and_named(ledger: Ledger):
    assert ledger.note("open study", "fusion", 1, "q1", "h1", "no differential privacy").new
    assert not ledger.note("open study", "fusion", 1, "q1", "h1", "no differential privacy").new
    with pytest.raises(PrivacyError, match="another release"):
        ledger.note("open study", "fusion", 1, "q1", "h2", "no differential privacy")
    charge(ledger, 2)
    assert Ledger(ledger.path).unprotected() == {"open study": 1}
    assert [spent.study for spent in ledger.by_study()] == ["s"]


@pytest.mark.slow
def test_a_thousand_rounds_are_charged_each_in_a_ledger_opened_anew(ledger: Ledger):
    ledger.raise_budget("record", 20.0, 1e-5, "a long study")
    for number in range(1000):
        # A client's process is new for every round.
        charge(Ledger(ledger.path), number, Mechanism("sampled", 1.0, 0.01, 10), phase=f"p{number % 27}")
    assert ledger.verify().lines == 1002


def test_the_hash_of_a_release_is_that_of_its_bytes():
    known = release_hash(["a", "b"], {"weight": 1.0, "loss": 0.5})
    assert known == release_hash(["a", "b"], {"loss": 0.5, "weight": 1.0})
    others = {
        release_hash(["b", "a"], {"weight": 1.0, "loss": 0.5}),
        release_hash(["a", "b"], {"weight": 1.0}),
        release_hash(["a", "b"], {"weight": 1.0, "loss": 0.25}),
    }
    assert len({known, *others}) == 4


@pytest.fixture
def written(tmp_path: Path) -> Ledger:
    return charged(tmp_path)


def test_verify_names_a_line_that_was_removed_changed_inserted_or_moved(written: Ledger):
    lines = lines_of(written)
    cheap = lines[2].replace('"noise_multiplier":1.0', '"noise_multiplier":9.0')
    assert cheap != lines[2]
    faults = {
        "line 3 is missing, line 4 is in its place": [*lines[:2], *lines[3:]],
        "line 4 does not follow from line 3": [*lines[:2], cheap, *lines[3:]],
        "line 3 is in the place of line 4": [*lines[:3], lines[2], *lines[3:]],
        "line 3 is missing, line 5 is in its place": [*lines[:2], lines[4], lines[3], lines[2], lines[5]],
        "between lines 2 and 3": [*lines[:2], "made up", *lines[2:]],
        "line 6 is not the one its head knows": [*lines[:5], lines[5].replace('"h5"', '"h6"')],
        "line 2 is missing, line 6": [lines[0], lines[5]],
    }
    for named, changed in faults.items():
        written.path.write_text("\n".join(changed) + "\n")
        for act in (Ledger(written.path).verify, lambda: charge(Ledger(written.path), 9)):
            with pytest.raises(StateError, match=named):
                act()
    written.path.write_text("\n".join(lines) + "\n")
    assert Ledger(written.path).verify().lines == 6


@pytest.mark.parametrize("left", [0, 1, 3, 5])
def test_lines_cut_off_at_the_end_are_missed(written: Ledger, left: int):
    lines = lines_of(written)
    written.path.write_text("".join(line + "\n" for line in lines[:left]))
    with pytest.raises(StateError, match=f"found {left} lines, its head knows of 6"):
        Ledger(written.path).verify()
    with pytest.raises(StateError):
        charge(Ledger(written.path), 9)
    # Also half a line.
    written.path.write_text("".join(line + "\n" for line in lines)[:-20])
    with pytest.raises(StateError, match="found 5 lines, its head knows of 6"):
        Ledger(written.path).verify()


def test_a_ledger_that_was_removed_is_missed(written: Ledger):
    written.path.unlink()
    with pytest.raises(StateError, match="found 0 lines, its head knows of 6"):
        Ledger(written.path).open("Freiburg", BUDGET)


def test_an_earlier_state_of_both_files_is_missed_by_who_wrote_the_hash_down(written: Ledger):
    before = written.path.read_bytes(), written.path.with_suffix(".head").read_bytes()
    old = written.verify()
    charge(written, 6)
    new = written.verify()
    assert written.verify(old.digest) == new
    written.path.write_bytes(before[0])
    written.path.with_suffix(".head").write_bytes(before[1])
    assert Ledger(written.path).verify(old.digest) == old  # nothing on this disk tells
    with pytest.raises(StateError, match="no line has the hash"):
        Ledger(written.path).verify(new.digest)


def test_a_head_that_was_put_back_by_more_than_a_kill_explains_is_missed(written: Ledger):
    head = written.path.with_suffix(".head")
    for number in (6, 7):
        before = head.read_bytes()
        charge(written, number)
        if number == 6:
            older = before
    head.write_bytes(before)  # as a kill between line and head leaves it
    assert Ledger(written.path).verify().lines == 8
    head.write_bytes(older)
    with pytest.raises(StateError, match="knows of 6 lines, there are 8"):
        Ledger(written.path).verify()


def test_random_histories_add_up(tmp_path: Path):
    generator = random.Random(7)
    kinds = [
        STEP,
        Mechanism("grouped", 8.0, 0.1, 5),
        Mechanism("gaussian", 12.0),
        Mechanism("sampled", 2.0, 0.1),
    ]
    ledger = Ledger(tmp_path / Ledger.NAME)
    ledger.open("Freiburg", {"record": (6.0, 1e-5)})
    charged: list[Mechanism] = []
    for number in range(60):
        chosen = generator.choice(kinds)
        request = generator.randrange(40)
        known = request in {int(json.loads(line)["request"][1:]) for line in lines_of(ledger)[1:]}
        fits = tightest([*charged, chosen], 1e-5).value <= 6.0
        if known or fits:
            hashed = next(
                (json.loads(x)["release"] for x in lines_of(ledger)[1:] if f'"q{request}"' in x), f"h{number}"
            )
            new = ledger.charge("s", "p", number, f"q{request}", hashed, [chosen]).new
            assert new is not known
            charged += [chosen] * new
        else:
            with pytest.raises(PrivacyError):
                ledger.charge("s", "p", number, f"q{request}", f"h{number}", [chosen])
    assert len(charged) > 10
    assert ledger.spent() == tightest(charged, 1e-5)
