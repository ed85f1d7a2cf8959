"""`pm1-sim sweep` from the command line: a small grid, killed and gone on with, its ledgers and its files."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pm1_core.privacy.ledger import Ledger
from simulations.cli import main
from simulations.sweep_grid import sweep_of

SMALL = [
    "epsilon=8,none", "seed=1", "sites=1", "people=120", "test_people=60", "name=small",
    "study.phases.genotype.chromosomes=[22]", "study.phases.genotype.rounds=1",
    "study.phases.phenotype.rounds=1", "study.phases.phenotype.loop.epochs=1", "study.phases.fundus.rounds=1",
    "study.phases.fundus.loop.epochs=1", "study.phases.fusion.rounds=1", "study.phases.fusion.loop.epochs=1",
]  # fmt: skip
_PATIENCE = 600.0


def _command(arguments: list[str]) -> list[str]:
    return [sys.executable, "-m", "simulations.cli", "sweep", *arguments]


@pytest.mark.slow
def test_a_killed_sweep_goes_on_and_keeps_what_it_has(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*SMALL, f"runs={tmp_path / 'runs'}", f"cohorts={tmp_path / 'cohorts'}", "--jobs", "1"]
    cells = tmp_path / "runs" / "small" / "cells"
    process = subprocess.Popen(_command(arguments), start_new_session=True, stderr=subprocess.PIPE)
    deadline = time.monotonic() + _PATIENCE
    while not list(cells.glob("*.json")):
        assert process.poll() is None, process.stderr.read().decode() if process.stderr else ""
        assert time.monotonic() < deadline
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    (kept,) = cells.glob("*.json")
    before = kept.stat().st_mtime_ns, kept.read_bytes()

    assert main(["sweep", *arguments, "--dry-run"]) == 0
    assert "2 cells" in (listing := capsys.readouterr().out)
    assert "1 to run" in listing

    assert main(["sweep", *arguments, "--json"]) == 0
    outcome = json.loads(capsys.readouterr().out)
    assert (kept.stat().st_mtime_ns, kept.read_bytes()) == before
    assert {cell["values"]["epsilon"] for cell in outcome["cells"]} == {"8", "none"}
    with Path(outcome["table"]).open() as stream:
        assert [row["epsilon"] for row in csv.DictReader(stream)] == ["8", "none"]
    assert Path(outcome["page"]).read_text().count("<svg") >= 3

    (private,) = (cell for cell in outcome["cells"] if cell["values"]["epsilon"] == "8")
    assert 7.5 < private["spent"] <= 8
    files = sorted((tmp_path / "runs" / "small").glob("fusion/*/ledgers/*.jsonl"))
    assert files
    phases = {item.phase for file in files for item in Ledger(file).by_phase("record")}
    assert {"statistics", "genotype.22", "phenotype", "fusion"} <= phases  # encoders and fusion in one ledger


def test_a_dry_run_lists_the_cells_and_touches_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = [f"runs={tmp_path / 'runs'}", "epsilon=1,none", "seed=1,2"]
    assert main(["sweep", *where, "--dry-run", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [cell["hash"] for cell in listed["cells"]] == [cell.hash[:16] for cell in sweep_of(where).cells]
    assert not any(cell["done"] for cell in listed["cells"])
    assert not list(tmp_path.iterdir())


def test_a_wrong_argument_ends_with_a_sentence_and_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", "epsilon=plenty", "--dry-run"]) == 2
    assert "use a number above 0, or none" in capsys.readouterr().err


def test_help_shows_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["sweep", "--help"])
    shown = capsys.readouterr().out
    assert "pm1-sim sweep --dry-run" in shown
    assert "--jobs" in shown
