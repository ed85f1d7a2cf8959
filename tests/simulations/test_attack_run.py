import json
import sys
from pathlib import Path
from typing import Any

import pytest

from pm1_core.errors import StateError
from simulations import cli
from simulations.attacks import run
from simulations.attacks.page import write_page
from simulations.attacks.run import ATTACKS

FEW = ["attack.canaries=400", "attack.epsilons=[2.0]", "attack.audit_steps=3", "model=tiny"]


def attacked(folder: Path, *arguments: str) -> int:
    return cli.main(["attack", f"runs={folder}", "name=few", *FEW, *arguments])


def test_an_attack_is_run_by_name_and_printed_as_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert attacked(tmp_path, "audit", "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert Path(printed["page"]) == tmp_path / "few" / "attacks.html"
    written = json.loads((tmp_path / "few" / "attacks.json").read_text())
    assert printed["attacks"] == written
    assert set(written) == {"audit"}
    assert {row["verdict"] for row in written["audit"]["rows"]} == {"below the claim", "exceeds the claim"}
    assert written["audit"]["run"]["options"]["canaries"] == 400


def test_the_page_says_who_attacks_and_keeps_what_earlier_attacks_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert attacked(tmp_path, "audit", "attack.audit_runs=3") == 0
    path = tmp_path / "few" / "attacks.json"
    found: dict[str, Any] = json.loads(path.read_text())
    assert all(row["least"] <= row["bound"] <= row["most"] for row in found["audit"]["rows"])
    assert "Medians of 3 runs" in found["audit"]["sets"]
    found["membership"] = {
        **found["audit"],
        "title": "Membership <inference>",
        "columns": [{"key": "a", "label": "A", "kind": "text"}, {"key": "b", "label": "B", "kind": "figure"}],
        "rows": [{"a": "x", "b": {"value": 0.7, "low": 0.6, "high": 0.8}}, {"a": "y", "b": None}],
        "plot": {"kind": "roc", "curves": [{"label": "x", "fpr": [0, 0.1, 1], "tpr": [0, 0.5, 1]}]},
    }
    path.write_text(json.dumps(found))
    assert attacked(tmp_path, "audit") == 0
    assert set(json.loads(path.read_text())) == {"audit", "membership"}
    page = (tmp_path / "few" / "attacks.html").read_text()
    for words in ("The attacker.", "The sets.", "Membership &lt;inference&gt;", "0.600–0.800", "<svg"):
        assert words in page, words
    assert "http" not in page


def test_unknown_attacks_and_runs_without_any_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert attacked(tmp_path, "burglary") != 0
    said = capsys.readouterr().err
    assert all(name in said for name in ("burglary", *ATTACKS))
    with pytest.raises(StateError, match="run pm1-sim attack first"):
        write_page(tmp_path)


@pytest.mark.parametrize("names", [(), ("all",), ("audit", "all")])
def test_all_attacks_are_run_when_all_or_none_is_named(
    names: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = []
    monkeypatch.setattr(run, "ATTACKS", {name: f"{__name__}:{name}" for name in ATTACKS})
    outcome = {
        "title": "x",
        "attacker": "x",
        "sets": "x",
        "columns": [],
        "rows": [],
        "findings": [],
        "notes": [],
    }
    for name in ATTACKS:
        monkeypatch.setattr(
            sys.modules[__name__],
            name,
            lambda setting: ran.append(setting.folder.name) or outcome,
            raising=False,
        )
    assert attacked(tmp_path, *names) == 0
    assert ran == list(ATTACKS)
