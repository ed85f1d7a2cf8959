"""A study is proposed before it is started; what was started is written down, stopped, and gone on with."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import short
from running import Coordinator, await_

import server.cli
from pm1_core.proposal import Proposal
from pm1_core.signing import Trust
from server import submission
from server.consortium import Consortium
from server.runs import Runs

_APP = """
[project]
name = "quiet"
version = "1.0.0"
license = {file = "LICENSE"}
dependencies = ["flwr>=1.41"]
[tool.flwr.app]
publisher = "pm1"
fab-format-version = 1
flwr-version-target = "1.41.0"
fab-include = ["LICENSE", "quiet.py"]
[tool.flwr.app.config]
study = ""
definition = ""
run = ""
key = ""
tasks = ""
[tool.flwr.app.components]
serverapp = "quiet:server"
clientapp = "quiet:client"
"""
_QUIET = """
import time
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

client, server = ClientApp(), ServerApp()

@server.main()
def main(grid, context):
    time.sleep(600)
"""

pytestmark = pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")


@pytest.fixture
def app(tmp_path: Path) -> Path:
    """An app that waits, small enough to be bundled in no time."""
    folder = tmp_path / "quiet"
    folder.mkdir()
    (folder / "pyproject.toml").write_text(_APP)
    (folder / "quiet.py").write_text(_QUIET)
    (folder / "LICENSE").write_text("as you like")
    return folder


@pytest.fixture
def study(tmp_path: Path) -> Path:
    file = tmp_path / "study.json"
    file.write_text(short.short_study().to_json())
    return file


@pytest.fixture
def consortium(tmp_path: Path) -> Consortium:
    return Consortium.create(tmp_path / "consortium", "Eyes", "localhost:8443")


@pytest.fixture
def definition(hospitals: dict[str, Path]) -> Path:
    return hospitals["south"].parent.parent / "study.yaml"


def submit(consortium: Consortium, study: Path, definition: Path, app: Path, *more: str) -> int:
    given = ["--definition", definition, "--app", app, "--folder", consortium.folder, *more]
    return server.cli.main(["study", "submit", str(study), *map(str, given)])


def test_a_dry_run_writes_the_proposal_and_nothing_else(
    consortium: Consortium, study: Path, definition: Path, app: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {file for file in consortium.folder.rglob("*") if file.is_file()}
    assert submit(consortium, study, definition, app, "--dry-run", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    after = {file for file in consortium.folder.rglob("*") if file.is_file()}
    assert after - before == {Path(told["proposal"])}
    proposal = Proposal.from_json(Path(told["proposal"]).read_text(), "proposal")
    proposal.require(Trust.load(consortium.folder / "keys/checkpoint.pem.pub"))
    assert proposal.bundle == hashlib.sha256(submission.built(app)).hexdigest()
    assert Path(told["proposal"]).stem == proposal.config[:16] == short.short_study().hash[:16]
    assert proposal.run_config["run"] == str(consortium.folder.resolve() / "runs" / proposal.study["name"])


def test_the_same_study_and_code_are_the_same_proposal_and_other_code_is_said(
    consortium: Consortium, study: Path, definition: Path, app: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = consortium.folder / "proposals" / f"{short.short_study().hash[:16]}.json"
    contents = []
    for _ in range(2):
        assert submit(consortium, study, definition, app, "--dry-run") == 0
        contents.append(file.read_bytes())
    assert contents[0] == contents[1]
    assert "approve it again" not in capsys.readouterr().out
    (app / "quiet.py").write_text(_QUIET + "# another")
    assert submit(consortium, study, definition, app, "--dry-run") == 0
    assert "approve it again" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("break_", "sentence"),
    [
        (lambda c, s, d, a: s.write_text("{"), "found no resolved study"),
        (lambda c, s, d, a: s.unlink(), "found no such file"),
        (lambda c, s, d, a: (a / "pyproject.toml").unlink(), "found no pyproject.toml"),
        (lambda c, s, d, a: (a / "pyproject.toml").write_text("[project"), "cannot be built"),
        (lambda c, s, d, a: (c.folder / "consortium.json").unlink(), "found no consortium"),
        (lambda c, s, d, a: _another_study(c), "use another --run NAME"),
    ],
)
def test_what_cannot_run_is_a_sentence_and_no_proposal(  # type: ignore[no-untyped-def]
    consortium: Consortium, study: Path, definition: Path, app: Path, break_, sentence: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    break_(consortium, study, definition, app)
    assert submit(consortium, study, definition, app) in (2, 3)
    printed = capsys.readouterr().err
    assert sentence in printed
    assert "Traceback" not in printed
    assert not list((consortium.folder / "proposals").iterdir())


def _another_study(consortium: Consortium) -> None:
    folder = consortium.folder / "runs" / short.short_study().name
    folder.mkdir(parents=True)
    (folder / "study.json").write_text(short.short_study(seed=43).to_json())


def test_a_superlink_that_is_not_there_is_a_sentence_and_no_run(
    consortium: Consortium, study: Path, definition: Path, app: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("PM1_SUPERLINK", "127.0.0.1:9")
    assert submit(consortium, study, definition, app) == 4
    assert "does not answer" in capsys.readouterr().err
    assert Runs(consortium.folder).all() == []
    assert server.cli.main(["study", "stop", "nothing", "--folder", str(consortium.folder)]) == 2
    assert "never submitted" in capsys.readouterr().err


@pytest.fixture
def coordinator(tmp_path: Path) -> Iterator[Coordinator]:
    with Coordinator(tmp_path / "working") as coordinator:
        yield coordinator


@pytest.mark.slow
def test_a_run_is_started_once_stopped_and_gone_on_with(
    coordinator: Coordinator, study: Path, definition: Path, app: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv("PM1_SUPERLINK", f"127.0.0.1:{coordinator.superlink}")
    consortium, name = coordinator.consortium, short.short_study().name
    link = submission.control(consortium)
    assert submit(consortium, study, definition, app, "--json") == 0
    first = json.loads(capsys.readouterr().out)
    assert [str(run.run) for run in Runs(consortium.folder).all()] == [first["run"]]
    assert os.path.samefile(  # noqa: PTH121
        f"{first['folder']}/keys/coordinator.pem", consortium.folder / "keys/checkpoint.pem"
    )
    await_("the run", lambda: link.status(int(first["run"])) == "running")
    assert submit(consortium, study, definition, app) == 2
    assert "under way" in capsys.readouterr().err
    for words in ("is stopped", "had ended before"):
        assert server.cli.main(["study", "stop", name, "--folder", str(consortium.folder)]) == 0
        assert words in capsys.readouterr().out
    assert link.status(int(first["run"])) == "finished:stopped"
    assert submit(consortium, study, definition, app) == 0
    runs = Runs(consortium.folder)
    assert len(runs.all()) == 2
    assert runs.all()[0].stopped
    assert len(runs.newest()) == 1
    assert link.status(runs.newest()[0].run) in ("pending", "starting", "running")
    assert link.status(12345) == "unknown"
