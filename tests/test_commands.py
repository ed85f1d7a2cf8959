"""The three commands: help, sentences instead of tracebacks, exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hospitals import write_hospitals

import client.cli
import server.cli
import simulations.cli


@pytest.mark.parametrize("command", [client.cli, server.cli, simulations.cli])
def test_help_names_every_subcommand(command, capsys: pytest.CaptureFixture[str]) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(SystemExit) as ended:
        command.main(["--help"])
    assert ended.value.code == 0
    assert "Examples" in capsys.readouterr().out or command is simulations.cli


@pytest.mark.parametrize(
    ("main", "arguments", "code", "sentence"),
    [
        (simulations.cli.main, ["run", "sitez=3"], 2, "there is no such key"),
        (simulations.cli.main, ["run", "name=../up"], 2, "use a plain folder name"),
        (simulations.cli.main, ["run", "resume=nothing", "runs=/nonexistent"], 2, "found no run"),
        (simulations.cli.main, ["run", "people=7"], 2, "scenario people"),
        (simulations.cli.main, ["report", "/nonexistent"], 3, "finish the run"),
        (server.cli.main, ["checkpoints", "list", "/nonexistent"], 3, "found no checkpoint"),
        (server.cli.main, ["study", "resolve", "model=huge"], 2, "accepted: paper"),
        (client.cli.main, ["check", "/nonexistent/site.yaml"], 2, "no such file"),
        (client.cli.main, ["prepare"], 2, "manifest"),
    ],
)
def test_bad_input_gets_one_sentence_and_an_exit_code(  # type: ignore[no-untyped-def]
    main, arguments: list[str], code: int, sentence: str, capsys: pytest.CaptureFixture[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == code
    printed = capsys.readouterr()
    assert sentence in printed.err
    assert "Traceback" not in printed.err
    assert len(printed.err.strip().splitlines()) == 1
    assert not list(tmp_path.rglob("*.json"))


def test_a_folder_that_cannot_be_used_is_said_before_the_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("in the way")
    assert simulations.cli.main(["run", f"runs={tmp_path}/file/runs", f"cohorts={tmp_path}/cohorts"]) == 2
    assert "not a directory" in capsys.readouterr().err
    assert not (tmp_path / "cohorts").exists()


def test_a_torn_file_of_our_own_is_named_with_code_3(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "request.json").write_text('{"study": {')
    assert simulations.cli.main(["run", "resume=r", f"runs={tmp_path}"]) == 3
    assert "request.json: found no whole JSON" in capsys.readouterr().err


def test_a_site_checks_and_prepares_its_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = write_hospitals(tmp_path / "h")["south"]
    assert client.cli.main(["check", str(manifest)]) == 0
    assert "Nothing was written" in capsys.readouterr().out
    assert not (manifest.parent / "store").exists()
    assert client.cli.main(["prepare", str(manifest), "--json"]) == 0
    outcome = json.loads(capsys.readouterr().out)
    assert Path(outcome["store"]).is_dir()
    assert outcome["counts"]["subjects"] == 40
    assert client.cli.main(["prepare", str(manifest)]) == 0
    assert "was there already" in capsys.readouterr().out


def test_a_coordinator_writes_a_resolved_study(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "study.json"
    assert server.cli.main(["study", "resolve", "model=paper", "--out", str(out)]) == 0
    assert "genotype.22" in capsys.readouterr().out
    assert json.loads(out.read_text())["name"] == "ukb_eyepacs"
