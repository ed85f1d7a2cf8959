"""Files and folders are whole or absent, whenever a process dies."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pm1_core import atomic
from pm1_core.errors import StateError

_WRITER = """
import sys
from pathlib import Path
from pm1_core import atomic
import os
path = Path(sys.argv[1])
real = os.fsync
def dying(handle):
    real(handle)
    os.kill(os.getpid(), 9)
os.fsync = dying
if sys.argv[2] == "file":
    atomic.write_text(path, "new" * 100_000)
else:
    with atomic.whole_folder(path) as beside:
        (beside / "a").write_text("new")
        (beside / "b").write_text("new")
"""


@pytest.mark.parametrize("kind", ["file", "folder"])
@pytest.mark.parametrize("before", ["absent", "old"])
def test_a_process_killed_at_its_first_sync_leaves_what_was_there(
    kind: str, before: str, tmp_path: Path
) -> None:
    path = tmp_path / "thing"
    if before == "old" and kind == "file":
        path.write_text("old")
    elif before == "old":
        path.mkdir()
        (path / "a").write_text("old")
    killed = subprocess.run([sys.executable, "-c", _WRITER, str(path), kind], check=False)
    assert killed.returncode == -signal.SIGKILL
    if before == "absent":
        assert not path.exists()
    elif kind == "file":
        assert path.read_text() == "old"
    else:
        assert [file.name for file in path.iterdir()] == ["a"]
        assert (path / "a").read_text() == "old"


def test_left_overs_of_a_killed_process_are_swept_by_the_next(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", _WRITER, str(tmp_path / "thing"), "folder"], check=False)
    assert list(tmp_path.glob(".thing.*.partial"))
    with atomic.whole_folder(tmp_path / "thing") as beside:
        (beside / "a").write_text("whole")
    assert [path.name for path in tmp_path.iterdir()] == ["thing"]


def test_only_what_dead_processes_left_beside_a_file_is_swept(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", _WRITER, str(tmp_path / "thing"), "file"], check=False)
    (left,) = tmp_path.glob(".thing.*")
    alive = tmp_path / f".thing.{os.getppid()}.abc{left.suffix}"
    alive.write_text("another process is writing this")
    former = tmp_path / f".thing.{os.getpid()}.abc{left.suffix}"
    former.write_text("of a process that had this number before")
    (tmp_path / ".hidden").write_text("somebody else's")
    atomic.sweep(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([alive, tmp_path / ".hidden"])


def test_an_error_says_which_file_could_not_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="thing") as caught:
        atomic.write_text(tmp_path / "thing", "new")
    assert caught.value.filename == str(tmp_path / "thing")
    assert list(tmp_path.iterdir()) == []


def test_an_error_inside_leaves_the_old_folder_and_nothing_beside(tmp_path: Path) -> None:
    with atomic.whole_folder(tmp_path / "thing") as beside:
        (beside / "a").write_text("old")

    def fail() -> None:
        with atomic.whole_folder(tmp_path / "thing") as beside:
            (beside / "a").write_text("new")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert (tmp_path / "thing" / "a").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["thing"]


def test_a_folder_is_worked_in_by_one_at_a_time(tmp_path: Path) -> None:
    with (
        atomic.locked(tmp_path / "lock", "wait"),
        pytest.raises(StateError, match="another process works in it; wait"),
        atomic.locked(tmp_path / "lock", "wait"),
    ):
        pass
    with atomic.locked(tmp_path / "lock", "wait"):
        pass
