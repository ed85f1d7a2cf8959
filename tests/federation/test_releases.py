"""A checkpoint is released only if the gates of its study hold, and the record is there for good."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from pathlib import Path

import pytest
from lineages import WORSE, Run, command, later, promote, whole_run

from pm1_core.errors import BoundError, CheckpointError, InputError
from pm1_core.gates import Gates
from pm1_core.signing import Signer
from server.registry import Registry
from server.releases import ReleaseFolder


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return whole_run(tmp_path / "first")


def test_a_release_records_who_why_and_the_figures_seen(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    command("promote", run.folder, "--by", "A. Example", "--because", "end of the study")
    printed = capsys.readouterr().out
    assert "is release 1" in printed
    assert "diabetes.sex=F, the lowest of 2 groups" in printed
    (release,) = ReleaseFolder(run.folder / "checkpoints/releases").all(run.trust)
    assert (release.by, release.because, release.sequence) == ("A. Example", "end of the study", 5)
    assert release.checkpoint == run.checkpoints.load(5).hash
    assert release.gates["max_auc_fall"] == 0.02
    assert [figure["gate"] for figure in release.figures] == [
        "max_auc_fall", "min_group_auc", "min_sites", "min_people",
    ]  # fmt: skip
    command("list", run.folder)
    stages = [line.split()[4:6] for line in capsys.readouterr().out.splitlines()[1:]]
    assert stages[4] == ["release", "1"]
    assert stages[1][0] == "candidate"


def test_releases_are_linked(run: Run) -> None:
    first = promote(run)
    later(run)
    second = promote(run)
    assert (first.parent, second.parent, second.number) == ("", first.hash, 2)


def test_a_gate_that_fails_leaves_a_candidate(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    promote(run)
    later(run, WORSE)
    assert command("promote", run.folder, "--by", "A", "--because", "B") == 1
    printed = capsys.readouterr().err
    assert "checkpoint 6 stays a candidate" in printed
    assert "gate max_auc_fall = 0.02 fails with 0.05 (diabetes.all: 0.8000 -> 0.7500)" in printed
    assert len(Registry(run.folder).releases.all()) == 1


def test_every_gate_that_fails_or_cannot_be_computed_is_named(run: Run) -> None:
    later(run, {})
    with pytest.raises(BoundError) as refused:
        promote(run)
    assert "gate max_auc_fall cannot be computed: the checkpoint holds no area" in str(refused.value)
    assert "gate min_group_auc cannot be computed: no group" in str(refused.value)
    assert not (run.folder / "checkpoints/releases").exists()


def test_only_the_end_of_a_phase_can_be_released_unless_there_is_no_gate(tmp_path: Path, run: Run) -> None:
    with pytest.raises(InputError, match="it is round 1 of 2 of phase 'fusion'"):
        promote(run, "4")
    free = whole_run(
        tmp_path / "free", Gates(max_auc_fall=None, min_group_auc=None, min_sites=None, min_people=None)
    )
    assert promote(free, "4").figures == []


def test_gates_cannot_be_moved_after_the_figures_are_seen(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    promote(run)
    later(run, WORSE)
    easier = replace(run.study, gates=Gates(max_auc_fall=0.5))
    (run.folder / "study.json").write_text(easier.to_json())
    assert command("promote", run.folder, "--by", "A", "--because", "B") == 3
    assert "give the study as it was when the run began" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--by", " ", "--because", "B"], "--by: found nothing"),
        (["--by", "A", "--because", ""], "--because: found nothing"),
        (["--by", "A", "--because", "B", "--key", "/nonexistent.pem"], "/nonexistent.pem"),
        (["--by", "A", "--because", "B", "--study", "/nonexistent.json"], "give the resolved study"),
        (["77", "--by", "A", "--because", "B"], "found no such checkpoint"),
    ],
)
def test_what_is_missing_for_a_release_is_said(
    arguments: list[str], sentence: str, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("promote", run.folder, *arguments) == 2
    assert sentence in capsys.readouterr().err


def test_who_and_why_have_to_be_given(run: Run) -> None:
    with pytest.raises(SystemExit):
        command("promote", run.folder, "--by", "A")


def test_a_stranger_can_release_nothing(run: Run) -> None:
    registry = Registry(run.folder)
    stranger = Signer.create(run.folder.parent / "stranger.pem")
    with pytest.raises(CheckpointError, match="its signature is not the coordinator's"):
        registry.promote(registry.find(), run.study.gates, stranger, "A", "B")


def test_a_checkpoint_is_released_once_and_a_damaged_one_never(run: Run) -> None:
    promote(run)
    with pytest.raises(InputError, match="is this checkpoint already"):
        promote(run)
    broken = later(run)
    run.checkpoints.objects.path(broken.parts["fusion"][0]).write_bytes(b"")
    with pytest.raises(CheckpointError, match="the bytes do not match the name"):
        promote(run)


def test_a_record_is_never_overwritten(run: Run) -> None:
    release = promote(run)
    with pytest.raises(CheckpointError, match="at the same time"):
        Registry(run.folder).releases.add(replace(release, by="Somebody else").signed(run.signer))
    assert Registry(run.folder).releases.all() == [release]
    assert [file.name for file in (run.folder / "checkpoints/releases").iterdir()] == ["000001.json"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
def test_a_disk_that_takes_nothing_leaves_no_release_and_says_so(
    code: int, run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", refuse)
        assert command("promote", run.folder, "--by", "A", "--because", "B") == 2
    printed = capsys.readouterr().err
    assert "the disk is full" in printed or "the file system is read-only" in printed
    assert "checkpoints/releases" in printed
    assert list((run.folder / "checkpoints/releases").iterdir()) == []
    assert promote(run).number == 1
