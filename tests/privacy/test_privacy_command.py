"""pm1-site privacy: a site's IT sees what is spent, and every refusal is a sentence with an exit code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import client.cli
from pm1_core.privacy.accounting import tightest
from pm1_core.privacy.calibration import Plan, calibrate
from pm1_core.privacy.hospitals import BUDGETS, at_hospitals, stand_in
from pm1_core.privacy.ledger import Ledger
from pm1_core.privacy.mechanisms import Mechanism


def _run(*arguments: object) -> int:
    return client.cli.main(["privacy", *(str(argument) for argument in arguments)])


def _json(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict:
    assert _run(*arguments, "--json") == 0
    return json.loads(capsys.readouterr().out)


@pytest.fixture
def folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    assert _run("open", tmp_path / "state", "--site", "leeds", "--epsilon", 8, "--delta", "1e-5") == 0
    capsys.readouterr()
    return tmp_path / "state"


def _study(file: Path, **privacy: object) -> Path:
    """A resolved study as far as the ledger reads one: sums, two chromosomes and phenotypes."""
    terms = {"unit": "record", "noise_multiplier": 4.0} if privacy.get("private", True) else {}
    steps = {**terms, "sample_rate": 0.1, "steps": 20} if terms else {}

    def phase(name: str, rounds: int, privacy: dict[str, object], **parameters: object) -> dict[str, object]:
        task = name.split(".")[0]
        return {"name": name, "task": task, "rounds": rounds, "parameters": parameters, "privacy": privacy}

    phases = [phase("statistics", 2, terms)]
    phases += [phase(f"genotype.{c}", 5, steps, chromosome=c) for c in (21, 22)]
    phases.append(phase("phenotype", 10, steps))
    file.write_text(json.dumps({"name": "retina", "seed": 1, "phases": phases}))
    return file


_OF_STUDY = (
    Mechanism("gaussian", 4.0, steps=2),
    Mechanism("sampled", 4.0, 0.1, steps=2 * 5 * 20 + 10 * 20),
)


def test_help_has_examples_and_exit_codes(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        _run("--help")
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    for word in ("Examples", "open", "show", "raise", "verify", "hospitals", "Exit codes", "ledger.jsonl"):
        assert word in printed


def test_a_fresh_ledger_shows_its_budget(folder: Path, capsys: pytest.CaptureFixture[str]):
    outcome = _json(capsys, "show", folder)
    assert outcome["site"] == "leeds"
    assert outcome["units"]["record"]["epsilon"] == 8.0
    assert outcome["units"]["record"]["spent"]["value"] == 0.0
    assert outcome["units"]["record"]["remaining"] == 8.0
    assert outcome["unprotected"] == {}


def test_what_is_spent_is_shown_by_study_and_phase(folder: Path, capsys: pytest.CaptureFixture[str]):
    ledger, step = Ledger(folder / Ledger.NAME), Mechanism("sampled", 1.5, 0.1, 20)
    for number in range(3):
        ledger.charge("retina", "fusion", number, f"q{number}", "h", [step])
    ledger.charge("heart", "statistics", 1, "q9", "h", [Mechanism("gaussian", 5.0)])
    ledger.note("open", "fusion", 1, "q10", "h", "no differential privacy")
    spent = tightest([step] * 3 + [Mechanism("gaussian", 5.0)], 1e-5)
    record = _json(capsys, "show", folder)["units"]["record"]
    assert record["spent"]["value"] == spent.value
    assert record["spent"]["accountant"] == spent.accountant
    assert [(p["study"], p["phase"], p["releases"]) for p in record["phases"]] == [
        ("retina", "fusion", 3),
        ("heart", "statistics", 1),
    ]
    assert [s["study"] for s in record["studies"]] == ["retina", "heart"]
    assert _run("show", folder) == 0
    printed = capsys.readouterr().out
    for figure in (
        f"spent {spent.value:.4g} ({spent.accountant})",
        f"remaining {8 - spent.value:.4g}",
        "1e-05",
    ):
        assert figure in printed
    assert "a person at this site is added or removed" in printed
    assert "study open: 1 releases without differential privacy; no figure covers them" in printed


def test_a_study_is_divided_and_said_to_be_afforded_or_not(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    study = _study(tmp_path / "study.json")
    found = _json(capsys, "show", folder, "--study", study)["study"]
    assert found["composed"]["record"]["value"] == pytest.approx(tightest(_OF_STUDY, 1e-5).value, rel=1e-6)
    assert [(p["name"], p["count"]) for p in found["phases"]] == [
        ("statistics", 1), ("genotype", 2), ("phenotype", 1),
    ]  # fmt: skip
    assert found["affordable"]
    assert _run("show", folder, "--study", study) == 0
    assert "the ledger affords it" in capsys.readouterr().out
    Ledger(folder / Ledger.NAME).charge("x", "y", 1, "q", "h", [stand_in(7.9, 1e-5)])
    assert not _json(capsys, "show", folder, "--study", study)["study"]["affordable"]


def test_a_study_without_privacy_is_never_shown_as_covered(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert _run("show", folder, "--study", _study(tmp_path / "study.json", private=False)) == 0
    printed = capsys.readouterr().out
    assert printed.count("no differential privacy") == 3
    assert "no figure covers this study" in printed
    assert "affords" not in printed


def test_a_budget_is_raised_with_a_reason(folder: Path, capsys: pytest.CaptureFixture[str]):
    outcome = _json(capsys, "raise", folder, "--epsilon", 12, "--delta", "1e-5", "--reason", "board, 3 March")
    assert outcome["units"]["record"]["epsilon"] == 12.0
    outcome = _json(
        capsys, "raise", folder, "--epsilon", 2, "--delta", "1e-6", "--unit", "site", "--reason", "agreed"
    )
    assert outcome["units"]["site"]["epsilon"] == 2.0
    assert outcome["lines"] == 3


def test_verify_prints_the_hash_that_a_later_one_asks_for(folder: Path, capsys: pytest.CaptureFixture[str]):
    digest = _json(capsys, "verify", folder)["digest"]
    Ledger(folder / Ledger.NAME).charge("s", "p", 1, "q", "h", [Mechanism("gaussian", 5.0)])
    assert _json(capsys, "verify", folder, "--digest", digest)["lines"] == 2
    changed = (folder / Ledger.NAME).read_text().replace('"epsilon', '"Epsilon').replace("leeds", "london")
    (folder / Ledger.NAME).write_text(changed)
    assert _run("verify", folder) == 3
    assert "line 2 does not follow from line 1" in capsys.readouterr().err
    assert _run("show", folder) == 3


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["show", "{none}"], 5, "found no ledger; make one: pm1-site privacy open"),
        (["verify", "{none}"], 5, "found no ledger"),
        (["open", "{folder}", "--epsilon", "3", "--delta", "1e-5"], 5, "open already"),
        (["open", "{none}", "--epsilon", "-1", "--delta", "1e-5"], 2, "epsilon"),
        (["open", "{none}", "--epsilon", "1", "--delta", "2"], 2, "delta"),
        (["raise", "{folder}", "--epsilon", "3", "--delta", "1e-5", "--reason", "x"], 2, "give a larger one"),
        (["raise", "{folder}", "--epsilon", "9", "--delta", "1e-5", "--reason", " "], 2, "say why"),
        (["verify", "{folder}", "--digest", "abc"], 3, "no line has the hash"),
        (["show", "{folder}", "--study", "{none}/study.json"], 2, "no such file"),
        (["show", "{folder}", "--study", "{folder}/ledger.head"], 2, "no resolved study"),
    ],
)
def test_refusals_are_sentences(
    arguments: list[str], code: int, sentence: str, folder: Path, capsys: pytest.CaptureFixture[str]
):
    content = (folder / Ledger.NAME).read_bytes()
    given = [a.format(folder=folder, none=folder.parent / "none") for a in arguments]
    assert _run(*given) == code
    printed = capsys.readouterr().err
    assert sentence in printed
    assert len(printed.strip().splitlines()) == 1
    assert (folder / Ledger.NAME).read_bytes() == content
    assert not (folder.parent / "none" / Ledger.NAME).exists()


def test_a_person_at_several_hospitals(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    budgets = _json(capsys, "hospitals")["budgets"]
    assert [float(name) for name in budgets] == list(BUDGETS)
    for name, rows in budgets.items():
        figures = [row["epsilon"]["value"] for row in rows]
        assert figures[0] == pytest.approx(float(name), rel=1e-3)
        for count, figure in enumerate(figures, 1):
            assert count**0.5 * figures[0] * 0.999 <= figure <= count * figures[0] * 1.001
            assert rows[count - 1]["plain"] == [count * figures[0], count * 1e-5]
    study = _json(capsys, "hospitals", "--study", _study(tmp_path / "study.json"))["budgets"]["retina"]
    assert study[2]["epsilon"]["value"] == pytest.approx(tightest(_OF_STUDY * 3, 1e-5).value, rel=1e-6)


def test_one_gaussian_mechanism_stands_for_a_study_of_27_phases():
    plans = [
        Plan("statistics", 0.05, "gaussian", steps=2),
        Plan("genotype", 0.30, "sampled", 0.1, 300, compositions=22),
        Plan("phenotype", 0.25, "sampled", 0.1, 500),
        Plan("fundus", 0.10, "sampled", 0.05, 400),
        Plan("tokens", 0.05, "gaussian", steps=2),
        Plan("fusion", 0.25, "grouped", 0.1, 1000),
    ]
    for epsilon in (1.0, 8.0):
        study = calibrate(plans, epsilon, 1e-5)
        items = [item for phase in study.mechanisms.values() for item in phase]
        exact = at_hospitals(items, 1e-5)
        for row, simple in zip(exact, at_hospitals([stand_in(epsilon, 1e-5)], 1e-5), strict=True):
            assert row.epsilon.value == pytest.approx(simple.epsilon.value, rel=0.05)
