"""Energy that a machine used, read from its own counters: never estimated.

    processors, memory   Linux powercap (RAPL of Intel and AMD): intel-rapl:*/energy_uj, microjoules
    GPUs                 NVIDIA's library: nvmlDeviceGetTotalEnergyConsumption, millijoules

Everything that ran on the machine in the meantime is counted, this process or not. What has no counter (disks,
fans, the power supply's loss) is not in the figure. Linux lets only root read energy_uj; a site that wants its
processors counted gives the reading user that right. Where nothing can be read the answer is None, not zero.

Source: Linux kernel, Documentation/power/powercap/powercap.rst; NVML API reference, "Device Queries".
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from types import TracebackType

POWERCAP = Path("/sys/class/powercap")
SAMPLED_SECONDS = 60.0
"""A counter of RAPL wraps after some 15 minutes at full load; it is read this often, so that no turn is lost."""
_COUNTED_ZONES = ("package", "dram")
"""Zones that add up. "core" and "uncore" lie inside a package, "psys" around everything."""

Counter = Callable[[], float]
"""Joules since some instant. Raises OSError if it cannot be read."""


class Meter:
    """Joules between entering and leaving a block.

    >>> with Meter(powercap=Path("/nonexistent"), gpus=list) as meter:
    ...     pass
    >>> print(meter.joules, meter.sources)
    None ()

    joules: after (or within) the block; None if no source could be read all the time
    sources: which of "processors", "memory", "gpus" are in that sum

    A source counts only if each of its counters could be read at every sample: half of a machine's packages is no
    measurement of its processors.
    """

    def __init__(
        self,
        powercap: Path = POWERCAP,
        gpus: Callable[[], Iterable[Counter]] | None = None,
        sampled_seconds: float = SAMPLED_SECONDS,
    ) -> None:
        self._found = _zones(powercap)
        of_gpus = [_Rising(read) for read in (gpus or nvidia_counters)()]
        if of_gpus:
            self._found["gpus"] = list(of_gpus)
        self._seconds = sampled_seconds
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Meter:
        for counter in self._counters():
            counter.begin()
        if self._found:
            self._thread = threading.Thread(target=self._watch, name="energy", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        if self._thread:
            self._thread.join()
        self.sample()

    @property
    def sources(self) -> tuple[str, ...]:
        """What the sum covers."""
        return tuple(
            source
            for source, counters in sorted(self._found.items())
            if all(counter.joules is not None for counter in counters)
        )

    @property
    def joules(self) -> float | None:
        """Joules up to the last sample, None where nothing is measured."""
        sources = self.sources
        return sum(c.joules or 0.0 for s in sources for c in self._found[s]) if sources else None

    def sample(self) -> None:
        """Read every counter once; a thread does this while the block runs."""
        with self._lock:
            for counter in self._counters():
                counter.sample()

    def _counters(self) -> list[_Rising]:
        return [counter for counters in self._found.values() for counter in counters]

    def _watch(self) -> None:
        while not self._over.wait(self._seconds):
            self.sample()


class _Rising:
    """A counter that rises, and begins again at `turn` joules if it has one.

    joules: since `begin`; None before it, and for good once the counter could not be read or fell without a turn
    """

    def __init__(self, read: Counter, turn: float | None = None) -> None:
        self._read, self._turn = read, turn
        self._last = 0.0
        self.joules: float | None = None

    def begin(self) -> None:
        try:
            self._last = self._read()
        except (OSError, ValueError):
            return
        self.joules = 0.0

    def sample(self) -> None:
        if self.joules is None:
            return
        try:
            now = self._read()
        except (OSError, ValueError):
            self.joules = None
            return
        used = now - self._last
        if used < 0:
            used += self._turn or 0.0
        self.joules = None if used < 0 else self.joules + used
        self._last = now


def _zones(powercap: Path) -> dict[str, list[_Rising]]:
    """Counters of the packages and of the memory beside them; one that cannot be read is there and stays None."""
    found: dict[str, list[_Rising]] = {}
    for folder in sorted(powercap.glob("intel-rapl:*")):
        try:
            kind = (folder / "name").read_text().strip().partition("-")[0]
            if kind not in _COUNTED_ZONES:
                continue
        except OSError:
            continue
        turn: float | None = None
        with suppress(OSError, ValueError):
            turn = int((folder / "max_energy_range_uj").read_text()) * 1e-6
        source = "processors" if kind == "package" else "memory"
        found.setdefault(source, []).append(_Rising(_microjoules(folder / "energy_uj"), turn))
    return found


def _microjoules(file: Path) -> Counter:
    return lambda: int(file.read_text()) * 1e-6


def nvidia_counters() -> list[Counter]:
    """A counter for each GPU that the driver shows; none where there is no driver."""
    try:
        library = ctypes.CDLL("libnvidia-ml.so.1")
        if library.nvmlInit_v2() != 0:
            return []
        count = ctypes.c_uint()
        if library.nvmlDeviceGetCount_v2(ctypes.byref(count)) != 0:
            return []
        return [_millijoules(library, index) for index in range(count.value)]
    except (OSError, AttributeError):
        return []


def _millijoules(library: ctypes.CDLL, index: int) -> Counter:
    def read() -> float:
        device, used = ctypes.c_void_p(), ctypes.c_ulonglong()
        code = library.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(device))
        code = code or library.nvmlDeviceGetTotalEnergyConsumption(device, ctypes.byref(used))
        if code:
            raise OSError(f"NVML refuses with code {code}")  # a GPU older than Volta has no such counter
        return used.value * 1e-3

    return read
