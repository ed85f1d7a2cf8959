"""Files that are either whole or absent: write beside, fsync, rename.

A process that is killed leaves the old file or the new one, whatever happens here, and perhaps one beside it that
nobody reads (`sweep` removes those). fsync is for the machine that loses power; simulations, which can be run
again, do without it (`without_sync`).
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pm1_core.errors import StateError
from pm1_core.validate import refusal

_SYNC = [True]
_BESIDE = ".beside"
_writing: set[str] = set()


@contextmanager
def without_sync() -> Iterator[None]:
    """Leave it to the operating system when files reach the disk, in this process, while the block runs."""
    before, _SYNC[0] = _SYNC[0], False
    try:
        yield
    finally:
        _SYNC[0] = before


def sync(handle: int) -> None:
    """Fsync an open file, unless within `without_sync`."""
    if _SYNC[0]:
        os.fsync(handle)


def _sync_folder(folder: Path) -> None:
    if not _SYNC[0]:
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to `path` so that a crash at any instant leaves the old file or the new one.

    Raises OSError with `path` as its file name, also where the system names none (a disk that is full).
    """
    beside = ""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, beside = tempfile.mkstemp(_BESIDE, f".{path.name}.{os.getpid()}.", path.parent)
        _writing.add(beside)
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            stream.flush()
            sync(stream.fileno())
        Path(beside).replace(path)
    except BaseException as error:
        if beside:
            Path(beside).unlink(missing_ok=True)
        if isinstance(error, OSError):
            name_file(error, path)
        raise
    finally:
        _writing.discard(beside)
    _sync_folder(path.parent)


def append_lines(path: Path, lines: Sequence[str]) -> None:
    """Append whole lines to a file of lines, so that each is on disk, or is the torn last one, whatever happens.

    A torn line that a process left when it died stays a line of its own: what follows is never joined to it.
    Raises OSError with `path` as its file name.
    """
    content = "".join(line + "\n" for line in lines).encode()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab+") as stream:
            if stream.tell():
                stream.seek(-1, os.SEEK_END)
                content = content if stream.read(1) == b"\n" else b"\n" + content
            stream.write(content)
            stream.flush()
            sync(stream.fileno())
    except OSError as error:
        name_file(error, path)
        raise


def whole_lines(path: Path) -> list[str]:
    """The lines of a file that were written to their end; what follows the last line feed is left out."""
    return path.read_text(errors="replace").split("\n")[:-1]


@contextmanager
def locked(path: Path, remedy: str) -> Iterator[None]:
    """Hold the lock file `path` while the block runs; it is free again when the process ends, however that is.

    Raises StateError with `remedy` if another process, or another thread of this one, holds it.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        stream = path.open("a")
    except OSError as error:
        name_file(error, path)
        raise
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StateError(refusal(path.parent, "another process works in it", remedy)) from None
        yield


def name_file(error: OSError, path: Path) -> None:
    """Let an error say which file it is about: the system does not when a write fails."""
    if error.errno is not None:
        error.filename = str(path)


def sweep(folder: Path) -> None:
    """Remove what processes that were killed in `write_bytes` left in `folder`, not below it.

    The name tells the process; what one that is still alive writes is left alone.
    """
    for file in folder.glob(f".*{_BESIDE}"):
        process = file.name.removesuffix(_BESIDE).split(".")[-2]
        if str(file) not in _writing and not (process.isdecimal() and _alive(int(process))):
            file.unlink(missing_ok=True)


def _alive(process: int) -> bool:
    """Whether another process of this number is there."""
    if process == os.getpid():
        return False  # a former process of this number: in a container it is always the same
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def write_text(path: Path, content: str) -> None:
    """`write_bytes` for UTF-8 text."""
    write_bytes(path, content.encode())


def write_json(path: Path, content: Any) -> None:
    """`write_bytes` for JSON with sorted keys, so that equal contents give equal bytes."""
    write_text(path, json.dumps(content, indent=1, sort_keys=True) + "\n")


def read_json(path: Path) -> Any:
    """What `write_json` wrote. Raises StateError if the file is torn or no JSON."""
    try:
        return json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise StateError(
            refusal(path, f"found no whole JSON ({error})", "remove it and run the command again")
        ) from None


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Yield a folder beside `path` that takes its place only when the block ends without an error.

    An existing folder at `path` is replaced. A crash leaves `path` as it was, or for an instant under the name
    `.NAME.old.partial`, and folders `.NAME.XXXX.partial` beside it; the next call for the same path puts the
    former back and removes the latter.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    old = path.with_name(f".{path.name}.old.partial")
    if old.exists() and not path.exists():
        old.replace(path)  # a crash fell between the two renames below
    for left_over in path.parent.glob(f".{path.name}.*.partial"):
        shutil.rmtree(left_over, ignore_errors=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent))
    try:
        yield beside
        for file in beside.rglob("*"):
            if file.is_file():
                with file.open("rb") as stream:
                    sync(stream.fileno())
        if path.exists():
            path.replace(old)
            beside.replace(path)
            shutil.rmtree(old)
        else:
            beside.replace(path)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    _sync_folder(path.parent)
