"""The meter reads counters and says None where there are none: on a made tree of /sys/class/powercap."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from pm1_core.energy import Counter, Meter, nvidia_counters

TURN = 262_143_328_850  # microjoules, what Intel's packages have


def _zone(root: Path, name: str, kind: str, energy: int | None, turn: int = TURN) -> Path:
    zone = root / name
    zone.mkdir(parents=True)
    (zone / "name").write_text(kind + "\n")
    (zone / "max_energy_range_uj").write_text(f"{turn}\n")
    if energy is not None:
        (zone / "energy_uj").write_text(f"{energy}\n")
    return zone / "energy_uj"


def _gpu(values: list[float]) -> Callable[[], list[Counter]]:
    """One GPU whose counter shows `values` one after the other; None of them left is a counter that fails."""
    left = iter(values)

    def read() -> float:
        value = next(left, None)
        if value is None:
            raise OSError("gone")
        return value

    return lambda: [read]


def _meter(root: Path, gpus: Callable[[], list[Counter]] = list) -> Meter:
    return Meter(root, gpus, sampled_seconds=1e6)


def test_packages_and_memory_add_up_and_zones_within_them_do_not(tmp_path: Path) -> None:
    first = _zone(tmp_path, "intel-rapl:0", "package-0", 5_000_000)
    second = _zone(tmp_path, "intel-rapl:1", "package-1", 7_000_000)
    memory = _zone(tmp_path, "intel-rapl:0:1", "dram", 1_000_000)
    core = _zone(tmp_path, "intel-rapl:0:0", "core", 0)
    platform = _zone(tmp_path, "intel-rapl:2", "psys", 0)
    copy = _zone(tmp_path, "intel-rapl-mmio:0", "package-0", 0)
    with _meter(tmp_path) as meter:
        first.write_text("8000000")
        second.write_text("8500000")
        memory.write_text("1250000")
        for other in (core, platform, copy):
            other.write_text("99000000")
    assert meter.joules == pytest.approx(3 + 1.5 + 0.25)
    assert meter.sources == ("memory", "processors")


def test_a_counter_that_turns_over_is_followed(tmp_path: Path) -> None:
    file = _zone(tmp_path, "intel-rapl:0", "package-0", TURN - 2_000_000)
    with _meter(tmp_path) as meter:
        file.write_text("3000000")
        meter.sample()
        file.write_text(f"{TURN - 1_000_000}")
        meter.sample()
        file.write_text("0")
    assert meter.joules == pytest.approx(TURN * 1e-6 + 2)


def test_a_machine_without_counters_has_no_figure(tmp_path: Path) -> None:
    with _meter(tmp_path / "absent") as meter:
        pass
    assert (meter.joules, meter.sources) == (None, ())


@pytest.mark.parametrize("damage", ["absent", "no number", "a folder"])
def test_a_package_that_cannot_be_read_leaves_no_half_figure(damage: str, tmp_path: Path) -> None:
    first = _zone(tmp_path, "intel-rapl:0", "package-0", 0)
    second = _zone(tmp_path, "intel-rapl:1", "package-1", None)
    if damage == "no number":
        second.write_text("")
    elif damage == "a folder":
        second.mkdir()
    with _meter(tmp_path) as meter:
        first.write_text("5000000")
        if damage == "a folder":
            second.rmdir()
        if damage != "no number":
            second.write_text("5000000")  # there at the end, but not at the start
    assert (meter.joules, meter.sources) == (None, ())


def test_a_counter_that_vanishes_on_the_way_is_not_counted(tmp_path: Path) -> None:
    file = _zone(tmp_path, "intel-rapl:0", "package-0", 0)
    with _meter(tmp_path, _gpu([100.0, 130.0])) as meter:
        file.unlink()
    assert (meter.joules, meter.sources) == (30.0, ("gpus",))


def test_a_gpu_whose_counter_begins_again_is_not_guessed(tmp_path: Path) -> None:
    with _meter(tmp_path, _gpu([100.0, 20.0])) as meter:
        pass
    assert meter.joules is None


def test_a_gpu_without_such_a_counter_leaves_the_processors(tmp_path: Path) -> None:
    file = _zone(tmp_path, "intel-rapl:0", "package-0", 0)
    with _meter(tmp_path, _gpu([])) as meter:
        file.write_text("2000000")
    assert (meter.joules, meter.sources) == (2.0, ("processors",))


def test_the_meter_reads_while_the_block_runs(tmp_path: Path) -> None:
    """At full load a counter turns over more than once an hour: a thread has to look in between."""
    read = threading.Semaphore(0)

    def counter() -> float:
        read.release()
        return 1.0

    with Meter(tmp_path, lambda: [counter], sampled_seconds=0.001) as meter:
        assert all(read.acquire(timeout=30) for _ in range(3))
    assert meter.joules == 0.0


def test_asking_for_gpus_does_no_harm_where_there_is_no_driver() -> None:
    for read in nvidia_counters():
        assert read() >= 0
