"""Lines that are only added, each with the hash of the one before it, and a head that tells where they end.

A line is a JSON object with "n", its number from 1, "previous", the SHA-256 of the line before it (64 zeros in
the first), and "torn". A process that dies while it writes leaves the beginning of a line, which is no JSON
object, and which nothing ever follows from. It stays where it is; the next whole line has its hash under
"torn", so that nothing unreadable lies between lines without one that vouches for it.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pm1_core import atomic
from pm1_core.errors import StateError
from pm1_core.validate import refusal

_START = "0" * 64
_RETRY = 0.02
_REMEDY = "restore the file from a backup, and find out who wrote to it"


@dataclass(frozen=True)
class Head:
    """Where a chain ends. lines: how many there are; digest: SHA-256 of the last one."""

    lines: int
    digest: str


class Chain:
    """The lines of `path`, whose head lies beside it as NAME.head. Whoever appends has it `held`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.head_file = path.with_suffix(".head")
        self.digests: list[str] = []
        self._taken = 0  # bytes
        self._torn: list[str] = []
        self._tail = b""
        self._open_ended = False  # the last line is whole, but for its line feed

    @property
    def head(self) -> Head:
        """The end of what was read."""
        return Head(len(self.digests), self.digests[-1] if self.digests else _START)

    def read(self) -> list[dict[str, Any]]:
        """Lines that were added since the last call.

        Raises StateError naming the first that does not follow from the one before it, or if lines are missing
        that the head knows.
        """
        head = self._written_head()  # first: others may add lines, and move it, while this process reads
        content = self._added()
        *whole, self._tail = content.split(b"\n")
        self._taken += len(content) - len(self._tail)
        if self._open_ended and whole:
            self._open_ended = whole.pop(0) != b""
        found = [line for raw in whole if (line := self._take(raw))]
        if _parsed(self._tail) is not None:
            line = self._take(self._tail)
            found += [line] if line else []
            self._taken += len(self._tail)
            self._tail, self._open_ended = b"", True
        if head.lines > len(self.digests):
            found_lines = f"found {len(self.digests)} lines, its head knows of {head.lines}"
            raise StateError(refusal(self.path, f"{found_lines}: the last ones were removed", _REMEDY))
        if head.lines and self.digests[head.lines - 1] != head.digest:
            raise StateError(refusal(self.path, f"line {head.lines} is not the one its head knows", _REMEDY))
        return found

    def append(self, line: Mapping[str, Any]) -> int:
        """Add a line after `read`, on disk when this returns, and return its number."""
        self.require_close()
        torn = [*self._torn, *([_digest(self._tail)] if self._tail else [])]
        number = len(self.digests) + 1
        whole = {**line, "n": number, "previous": self.head.digest, "torn": torn}
        content = json.dumps(whole, sort_keys=True, separators=(",", ":"))
        if self.head != self._written_head():
            self._write_head()  # so that it is one line behind at most, whenever this is killed
        atomic.append_lines(self.path, [content])
        self.digests.append(_digest(content.encode()))
        self._torn, self._tail, self._open_ended = [], b"", False
        self._taken = self.path.stat().st_size
        self._write_head()
        return number

    def require_close(self) -> None:
        """Raise StateError if the head is more than one line behind: it was put back to an earlier state."""
        head = self._written_head()
        if len(self.digests) > head.lines + 1:
            found = f"knows of {head.lines} lines, there are {len(self.digests)}"
            raise StateError(refusal(self.head_file, found, _REMEDY))

    def require_known(self, digest: str) -> None:
        """Raise StateError unless a line that was read has this hash; "" asks for nothing."""
        if digest and digest not in self.digests:
            remedy = "it was put back to an earlier state, or belongs to another site"
            raise StateError(refusal(self.path, f"no line has the hash {digest}", remedy))

    def _added(self) -> bytes:
        try:
            with self.path.open("rb") as stream:
                if stream.seek(0, 2) < self._taken:
                    raise StateError(refusal(self.path, "became shorter", _REMEDY))
                stream.seek(self._taken)
                return stream.read()
        except FileNotFoundError:
            return b""

    def _take(self, raw: bytes) -> dict[str, Any] | None:
        """Add a line to the chain and return it, or None if it is torn."""
        line = _parsed(raw)
        if line is None:
            self._torn.append(_digest(raw))
            return None
        number = len(self.digests) + 1
        if line.get("n") != number or line.get("previous") != self.head.digest:
            raise StateError(refusal(self.path, self._fault(line, number), _REMEDY))
        if line.get("torn") != self._torn:
            found = f"between lines {number - 1} and {number} lies something that line {number} does not know"
            raise StateError(refusal(self.path, found, _REMEDY))
        self.digests.append(_digest(raw))
        self._torn = []
        return line

    def _fault(self, line: Mapping[str, Any], number: int) -> str:
        found = line.get("n")
        if found == number:
            return f"line {number} does not follow from line {number - 1}: one of the two was changed"
        if isinstance(found, int) and found > number:
            return f"line {number} is missing, line {found} is in its place: lines were removed or moved"
        return f"line {found} is in the place of line {number}: lines were inserted or moved"

    def _written_head(self) -> Head:
        if not self.head_file.exists():
            return Head(0, _START)
        content = atomic.read_json(self.head_file)
        return Head(int(content["lines"]), str(content["digest"]))

    def _write_head(self) -> None:
        atomic.write_json(self.head_file, asdict(self.head))


@contextmanager
def held(path: Path, wait: float = 60.0) -> Iterator[None]:
    """Hold the chain at `path` while the block runs. Raises StateError if another holds it for `wait` seconds."""
    end = time.monotonic() + wait
    with ExitStack() as lock:
        while True:
            try:
                lock.enter_context(atomic.locked(path.with_suffix(".lock"), "wait until it is done"))
                break
            except StateError:
                if time.monotonic() > end:
                    raise
            time.sleep(_RETRY)
        yield


def _parsed(raw: bytes) -> dict[str, Any] | None:
    """A line, or None if it is no JSON object. The beginning of one never is."""
    try:
        line = json.loads(raw)
    except ValueError:
        return None
    return line if isinstance(line, dict) else None


def _digest(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()
