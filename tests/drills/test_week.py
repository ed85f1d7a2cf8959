"""Study after study on the same processes leaves what is meant to last, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from week import MEMORY, OTHERS, Evening, Use, lived, require_flat, short_study
from working import Working

DOOR = ("north", "door")


def evening(day: int, **use: int) -> Evening:
    """Of a week as it should be: 30 kB of checkpoints a day. use: changes to the door's"""
    disk = {("coordinator", "checkpoints"): 30_000 * day, ("coordinator", OTHERS): 2_000_000}
    return Evening({DOOR: Use(**{"pids": (7,), "memory": 60 * 2**20, "files": 16, "threads": 9} | use)}, disk)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")
def test_memory_and_disk_are_flat(hospitals: dict[str, Path], tmp_path: Path) -> None:
    """Three days of the shortest study; `make drills` does a week.

    One day after the warm ones tells a leak in memory from chance only if it is large.
    """
    study, definition = short_study("statistics"), hospitals["north"].parent.parent / "study.yaml"
    with Working(tmp_path / "working", hospitals, study, definition) as working:
        evenings = lived(working, 3)
    assert len(evenings) == 3
    require_flat(evenings, memory=4 * MEMORY)


@pytest.mark.parametrize(
    ("last", "sentence"),
    [
        (lambda: evening(4, memory=69 * 2**20), "door of north grew by 9437184 bytes in memory"),
        (lambda: evening(4, files=25), "door of north has 9 more open files"),
        (lambda: evening(4, pids=(8,)), "started anew"),
        (lambda: evening(5), "checkpoints of coordinator grew by"),
        (lambda: grown(OTHERS, 2_010_000), "everything else of coordinator grew by"),
        (lambda: grown("logs of services", 2**25), "logs of services of coordinator has 33554432 bytes"),
    ],
)
def test_what_grows_is_named(last: Callable[[], Evening], sentence: str) -> None:
    days = [evening(1, memory=50 * 2**20), evening(2), evening(3)]
    require_flat([*days, evening(4)])
    with pytest.raises(AssertionError, match=sentence):
        require_flat([*days, last()])


def grown(place: str, size: int) -> Evening:
    """The fourth, with so many bytes in one of the coordinator's places."""
    fourth = evening(4)
    return Evening(fourth.uses, {**fourth.disk, ("coordinator", place): size})
