"""A run starts from what another one released, and from nothing else."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from lineages import Run, command, later, promote, tensors, whole_run

from pm1_core import atomic
from pm1_core.checkpoint import Checkpoint, CheckpointFolder
from pm1_core.errors import CheckpointError, InputError
from pm1_core.signing import Signer, Trust
from server.origins import require_origin, start_from
from server.registry import KEY


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return whole_run(tmp_path / "first")


def _second(tmp_path: Path) -> CheckpointFolder:
    return CheckpointFolder(tmp_path / "second/checkpoints", Signer.create(tmp_path / "second" / KEY))


def test_a_run_starts_from_what_another_released(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    promote(run)
    later(run)  # a candidate beyond it
    second = _second(tmp_path)
    origin = start_from(run.folder, second, run.trust)
    assert origin == run.checkpoints.load(5)
    assert start_from(run.folder, second, run.trust) == origin
    require_origin(second, origin.hash)
    root = second.save(None, tensors("fusion", 9), study="t", config="d", phase="fusion", round=0, rounds=1)
    assert (root.parent, set(root.parts)) == (origin.hash, {"fundus", "fusion"})
    linked = second.objects.path(origin.parts["fundus"][0])
    assert linked.stat().st_ino == run.checkpoints.objects.path(origin.parts["fundus"][0]).stat().st_ino
    assert command("verify", tmp_path / "second") == 0
    assert f"starts from {origin.hash[:12]} of hearts" in capsys.readouterr().out
    own = tmp_path / "second" / f"{KEY}.pub"
    assert command("verify", tmp_path / "second", "--key", own) == 3
    assert "origin.json: its signature" in capsys.readouterr().err
    assert command("verify", tmp_path / "second", "--key", own, "--key", run.folder / f"{KEY}.pub") == 0


def test_starting_from_another_run_is_a_command(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    release = promote(run)
    key = run.folder / f"{KEY}.pub"
    assert command("start", tmp_path / "second", "--origin", run.folder, "--key", key) == 0
    assert f"start_from={release.checkpoint}" in capsys.readouterr().out
    origin = CheckpointFolder(tmp_path / "second/checkpoints").origin()
    assert origin is not None
    assert origin.hash == release.checkpoint
    assert command("start", tmp_path / "third", "--origin", tmp_path, "--key", key) == 3
    assert "found no checkpoint" in capsys.readouterr().err


def _origin_edited(folder: Path) -> None:
    file = folder / "origin.json"
    file.write_text(file.read_text().replace("hearts", "brains"))


def _origin_gone(folder: Path) -> None:
    (folder / "origin.json").unlink()


def _origin_resigned(folder: Path) -> None:
    stranger = Signer.create(folder / "stranger.pem")
    origin = Checkpoint.from_json((folder / "origin.json").read_text()).signed(stranger)
    (folder / "origin.json").write_text(origin.to_json())


@pytest.mark.parametrize(
    ("damage", "where", "sentence"),
    [
        (_origin_edited, "origin.json", "its hash does not match its content"),
        (_origin_gone, "000001.json", "its parent is"),
        (_origin_resigned, "origin.json", "its signature is not the coordinator's"),
    ],
)
def test_an_origin_that_was_touched_is_named(
    damage: Callable[[Path], None], where: str, sentence: str, run: Run, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    promote(run)
    second = _second(tmp_path)
    start_from(run.folder, second, run.trust)
    second.save(None, tensors("fusion", 9), study="t", config="d", phase="fusion", round=0, rounds=1)
    damage(second.folder)
    assert command("verify", tmp_path / "second") == 3
    printed = capsys.readouterr().err
    assert sentence in printed
    assert where in printed


def test_nothing_but_a_release_that_is_trusted_is_taken_over(run: Run, tmp_path: Path) -> None:
    second = _second(tmp_path)
    with pytest.raises(InputError, match="nothing in it is released"):
        start_from(run.folder, second, run.trust)
    promote(run)
    with pytest.raises(InputError, match="found no release of"):
        start_from(run.folder, second, run.trust, run.checkpoints.load(4).hash)
    Signer.create(tmp_path / "stranger.pem")
    with pytest.raises(CheckpointError, match="its signature is not the coordinator's"):
        start_from(run.folder, second, Trust.load(tmp_path / "stranger.pem.pub"))
    assert not second.folder.exists()
    run.checkpoints.objects.path(run.checkpoints.load(5).parts["fusion"][0]).unlink()
    with pytest.raises(CheckpointError, match="found no such object"):
        start_from(run.folder, second, run.trust)
    assert second.origin() is None


def test_a_run_that_began_otherwise_does_not_change_its_origin(run: Run, tmp_path: Path) -> None:
    promote(run)
    other = whole_run(tmp_path / "other")
    with pytest.raises(CheckpointError, match="it holds checkpoints already"):
        start_from(run.folder, other.checkpoints, run.trust)
    second = _second(tmp_path)
    start_from(run.folder, second, run.trust)
    with pytest.raises(CheckpointError, match="it began from"):
        start_from(run.folder, second, run.trust, "0" * 64)
    with pytest.raises(CheckpointError, match="the study starts from nothing"):
        require_origin(second, "")


def test_another_file_system_gets_copies_and_a_full_disk_leaves_a_run_that_has_not_begun(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = promote(run)
    second = _second(tmp_path)

    def no_links(*_: object) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "link", no_links)
    with monkeypatch.context() as broken:
        broken.setattr(atomic, "write_text", full)
        with pytest.raises(OSError, match="No space"):
            start_from(run.folder, second, run.trust)
    assert second.origin() is None
    with monkeypatch.context() as broken:
        broken.setattr(atomic, "write_bytes", full)
        with pytest.raises(OSError, match="No space"):
            start_from(run.folder, CheckpointFolder(tmp_path / "third"), run.trust)
    assert not [file for file in (tmp_path / "third").rglob("*") if file.is_file()]
    assert start_from(run.folder, second, run.trust).hash == release.checkpoint
    digest = run.checkpoints.load(5).parts["fusion"][0]
    assert second.objects.path(digest).read_bytes() == run.checkpoints.objects.path(digest).read_bytes()
