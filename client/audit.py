"""audit.jsonl: a line for each thing that left a site or was stopped, which nobody changes unseen.

    time, event   "left", "stopped", "refused", "approved", "withdrawn", "started"
    study, phase, round, what, bytes, sha256, figures, epsilon, delta, unit     of what left
    run, reason   of what did not

Each line has the SHA-256 of the one before it, and audit.head knows the last one: `verify` names a line that was
removed, changed, moved or cut off (pm1_core.chain). A line is on disk before what it tells of leaves; where it
cannot be written, nothing leaves.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pm1_core.chain import Chain, Head, held

NAME = "audit/audit.jsonl"  # a folder of its own: head and lock lie beside it
EVENTS = LEFT, STOPPED, REFUSED, APPROVED, WITHDRAWN, STARTED = (
    "left",
    "stopped",
    "refused",
    "approved",
    "withdrawn",
    "started",
)
FACTS = ("study", "phase", "round", "what", "bytes", "sha256", "figures", "epsilon", "delta", "unit")
"""What a line tells of an answer."""


class Audit:
    """The log at `path`; several threads and processes may write to it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._chain = Chain(path)
        self._lock = threading.Lock()
        self._bytes: dict[str, int] = {}

    def write(self, event: str, facts: Mapping[str, Any]) -> int:
        """Add a line, on disk when this returns, and return its number.

        Raises StateError if the log was tampered with, OSError if it cannot be written.
        """
        line = {"time": datetime.now(UTC).isoformat(timespec="seconds"), "event": event, **facts}
        with self._lock, held(self.path):
            self._take()
            number = self._chain.append(line)
            self._count(line)
            return number

    def bytes_on(self, day: str) -> int:
        """Bytes of tensors that left on a day of UTC, such as "2026-03-01"."""
        with self._lock:
            self._take()
            return self._bytes.get(day, 0)

    def lines(self) -> list[dict[str, Any]]:
        """All lines. Raises StateError naming the first that does not belong where it is."""
        return Chain(self.path).read()

    def verify(self, digest: str = "") -> Head:
        """Read all lines anew, and return where they end.

        digest: hash of the last line at an earlier time, which has to be one of the lines now

        Raises StateError naming the first line that was removed, changed, moved or cut off.
        """
        with self._lock, held(self.path):
            fresh = Chain(self.path)
            fresh.read()
            fresh.require_close()
            fresh.require_known(digest)
            return fresh.head

    def _take(self) -> None:
        for line in self._chain.read():
            self._count(line)

    def _count(self, line: Mapping[str, Any]) -> None:
        if line["event"] == LEFT:
            day = str(line["time"])[:10]
            self._bytes[day] = self._bytes.get(day, 0) + int(line.get("bytes", 0))


def today() -> str:
    """The day of UTC, as `bytes_on` takes it."""
    return datetime.now(UTC).date().isoformat()
