"""The processes that descend from one test, found through their environment, and the memory that they take.

Flower's processes start sessions of their own and outlive those that started them, so that neither a process group
nor a tree of parents holds them all. A variable that is given to the first is inherited by all.
"""

from __future__ import annotations

import secrets
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

_VARIABLE = "PM1_TEST_PROCESSES"


@dataclass(frozen=True)
class Process:
    """A living process of a deployment.

    owner: "coordinator" or the site that it belongs to
    command: the name of what runs, such as "flower-supernode" or "flwr-clientapp"
    """

    pid: int
    owner: str
    command: str


@dataclass
class Memory:
    """Memory of all processes, in bytes.

    peaks: (owner, command) -> largest VmHWM of any such process
    together: largest sum over all processes at one moment, pages that they share counted once per sharer (Pss)
    at_peak: the share of each (owner, command) in that sum
    """

    peaks: dict[tuple[str, str], int] = field(default_factory=dict)
    together: int = 0
    at_peak: dict[tuple[str, str], int] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """A table for people: name, peak, share of the largest sum, in MiB."""
        rows = [
            f"{' '.join(name):40} {peak / 2**20:9.0f} {self.at_peak.get(name, 0) / 2**20:9.0f}"
            for name, peak in sorted(self.peaks.items())
        ]
        return [*rows, f"{'all together':40} {'':9} {self.together / 2**20:9.0f}"]

    def watch(self, family: Family, stop: threading.Event) -> None:
        """Measure every process of a family a few times a second until told to stop."""
        while not stop.wait(0.2):
            now: dict[tuple[str, str], int] = {}
            for process in family.living():
                with suppress(OSError, KeyError):
                    name = (process.owner, process.command)
                    peak = counted(Path(f"/proc/{process.pid}/status"), "VmHWM:")
                    share = counted(Path(f"/proc/{process.pid}/smaps_rollup"), "Pss:")
                    self.peaks[name] = max(self.peaks.get(name, 0), peak)
                    now[name] = now.get(name, 0) + share
            if sum(now.values()) > self.together:
                self.together, self.at_peak = sum(now.values()), now


class Closing(ABC):
    """Ends its processes when it is left, however that is."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @abstractmethod
    def close(self) -> None:
        """End them."""


def tails(folder: Path, logs: Iterable[Path], characters: int) -> str:
    """The ends of logs below `folder`, for the message of a test that fails."""
    return "\n".join(
        f"--- {log.relative_to(folder)}\n{log.read_text(errors='replace')[-characters:]}"
        for log in sorted(logs)
    )


class Family:
    """All processes with this family's entry in their environment, each with the owner that the entry names."""

    def __init__(self) -> None:
        self._token = secrets.token_hex(8)

    def entry(self, owner: str) -> dict[str, str]:
        """The variable to start a process with."""
        return {_VARIABLE: f"{self._token}:{owner}"}

    def living(self, owner: str | None = None) -> list[Process]:
        """Those that run now, or those of one owner, by pid."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with suppress(OSError):  # it ended while we looked, or is not ours to look at
                    process = self._recognise(entry)
                    if process and owner in (None, process.owner):
                        found.append(process)
        return sorted(found, key=lambda process: process.pid)

    def _recognise(self, entry: Path) -> Process | None:
        """The process under /proc/PID, unless it is of somebody else or has ended."""
        prefix = f"{_VARIABLE}={self._token}:".encode()
        for variable in (entry / "environ").read_bytes().split(b"\0"):
            if variable.startswith(prefix):
                words = (entry / "cmdline").read_bytes().split(b"\0")
                if not words[0]:
                    return None  # ended, and not yet collected
                names = [Path(word.decode(errors="replace")).name for word in words[:2]]
                command = names[1] if names[0].startswith("python") and len(names) > 1 else names[0]
                return Process(int(entry.name), variable[len(prefix) :].decode(), command)
        return None


def counted(file: Path, key: str) -> int:
    """Bytes that /proc gives in kB. Raises KeyError."""
    for line in file.read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) * 1024
    raise KeyError(key)
