"""Studies day after day on the same processes, and what stays of them in memory and on disk.

with Working(folder, stores, short_study(), definition) as working:
    evenings = lived(working, 7)
    require_flat(evenings)

The first two days warm up: libraries are loaded, pools of threads and connections filled, databases laid out. From
then on a day leaves what is meant to last, the same bytes every day, and nothing else.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from itertools import pairwise
from pathlib import Path
from typing import Any

from processes import counted
from rehearsal import small_study
from running import await_
from working import COORDINATOR, Working

from pm1_core.logs import LARGEST
from server.study import Study

WARM = 2
"""Days after which memory and disk are compared."""
MEMORY = 8 * 2**20
"""Bytes by which a service may grow. Messages, and the app's bundle of 1.6 MB, leave holes in its memory: the most
that it had differs by some 4 MB from day to day. Over five days it finds 1.6 MiB that each study leaves."""
FILES = 8
"""Open files by which a service may grow: connections that wait to be used again."""
CHANCE = 0.1
"""Share by which what a day leaves in a place may differ: numbers have more digits or fewer."""
BLOCK = 4 * 2**10
"""Bytes by which it may differ as well."""

LASTING = {
    f"{COORDINATOR}/runs/*/checkpoints/*": "checkpoints",
    f"{COORDINATOR}/runs/*": "records of the run",
    f"{COORDINATOR}/runs.json": "records of the run",
    f"{COORDINATOR}/proposals/*": "proposals",
    "*/approvals/*": "approvals",
    "*/audit/*": "audit log",
    "*/state/outbox.jsonl": "log of the outbox",
    "*/state/studies/*/releases/*": "newest releases",
    "*/state/studies/*/memory/*": "moments and personal models",
    "*/state/studies/*": "the model",
}
"""Files below the consortium's folder -> what of a study is meant to stay there; the first that fits counts."""
DATABASES = {f"{COORDINATOR}/superlink.db": "superlink.db", f"{COORDINATOR}/run/guard.db": "guard.db"}
"""The same, of what lies in pages, of which some are free: a day may differ by as many as PAGES."""
PAGES = 16 * 2**12
BOUNDED = {
    "*.db-???": ("write-ahead logs of databases", 16 * 2**20),
    "*/run/desk.json": ("newest messages at the door", 2**20),
    "*/run/*.log*": ("logs of services", LARGEST),
    "*/run/*.jsonl*": ("logs of services", LARGEST),
    "*.log": ("logs of services", LARGEST),
}
"""What is written over, turned or cleared once it has so many bytes. Nothing else may grow."""
PLACES = {**LASTING, **DATABASES, **{pattern: place for pattern, (place, _) in BOUNDED.items()}}
OTHERS = "everything else"
_MOST = dict(BOUNDED.values())


Service = tuple[str, str]
"""Whose it is, and its name."""


@dataclass(frozen=True)
class Use:
    """Of a service's processes together.

    memory: the most bytes of their own on that day, in memory or swapped; files, threads: in the evening
    """

    pids: tuple[int, ...]
    memory: int
    files: int
    threads: int


@dataclass(frozen=True)
class Evening:
    """After a study: (owner, service) -> what it uses, and (owner, place) -> bytes on disk."""

    uses: Mapping[Service, Use]
    disk: Mapping[tuple[str, str], int]


def short_study(*phases: str) -> Study:
    """Of small_study, these phases only."""
    study = small_study()
    return replace(study, phases=tuple(phase for phase in study.phases if phase.name in phases))


def lived(working: Working, days: int, seconds: float = 1200) -> list[Evening]:
    """A study a day, each with its own name and seed; how each evening was.

    Raises TimeoutError if a study does not end in `seconds`.
    """
    first, evenings = working.study, []
    for day in range(1, days + 1):
        working.study = replace(first, name=f"day-{day}", seed=first.seed + day)
        watch = _Watch(working)
        working.submit()
        working.wait(seconds, watch)
        await_("the end of the study's own processes", lambda: not working.passing(), seconds)
        watch.now()
        uses = {service: _use(pids, watch.most[service]) for service, pids in working.staying().items()}
        evenings.append(Evening(uses, _disk(working)))
    return evenings


def require_flat(evenings: Sequence[Evening], memory: int = MEMORY) -> None:
    """Raise AssertionError naming what grew, by how much, and what was allowed.

    memory: bytes by which a service may grow
    """
    warm, last = evenings[WARM - 1], evenings[-1]
    same = all(use.pids == last.uses[key].pids for key, use in warm.uses.items())
    assert same, "a process ended, or was started anew"
    for (owner, name), use in last.uses.items():
        before = warm.uses[owner, name]
        more = use.memory - before.memory
        assert more <= memory, f"{name} of {owner} grew by {more} bytes in memory, more than {memory}"
        opened = use.files - before.files
        assert opened <= FILES, f"{name} of {owner} has {opened} more open files, more than {FILES}"
    for (owner, place), size in last.disk.items():
        grown = daily(evenings, owner, place)
        where = f"{place} of {owner}"
        if place in _MOST:
            assert size <= _MOST[place], f"{where} has {size} bytes, more than {_MOST[place]}"
        elif place == OTHERS:
            assert sum(grown) <= BLOCK, f"{where} grew by {grown} bytes a day, together more than {BLOCK}"
        else:
            more = PAGES if place in DATABASES.values() else CHANCE * max(grown) + BLOCK
            differ = f"{where} grew by {grown} bytes a day, which differ by more than {more:.0f}"
            assert max(grown) - min(grown) <= more, differ


def daily(evenings: Sequence[Evening], owner: str, place: str) -> list[int]:
    """Bytes that each day after the first two left in a place."""
    sizes = [evening.disk.get((owner, place), 0) for evening in evenings[WARM - 1 :]]
    return [after - before for before, after in pairwise(sizes)]


def figures(evenings: Sequence[Evening]) -> dict[str, Any]:
    """For people: every service after the warm days and after the last, and bytes that a day leaves in every place.

    Of sites, the one that grew most.
    """
    warm, last = evenings[WARM - 1], evenings[-1]
    uses, disk = {}, {}
    for (owner, name), use in sorted(
        last.uses.items(), key=lambda one: one[1].memory - warm.uses[one[0]].memory
    ):
        before = warm.uses[owner, name]
        uses[_whose(owner), name] = {
            "memory": [before.memory, use.memory],
            "files": [before.files, use.files],
            "threads": [before.threads, use.threads],
        }
    for owner, place in sorted(last.disk, key=lambda one: sum(daily(evenings, *one))):
        disk[_whose(owner), place] = {
            "daily": daily(evenings, owner, place),
            "bytes": last.disk[owner, place],
            "most": _MOST.get(place),
        }
    return {
        "days": len(evenings),
        "uses": [{"owner": owner, "name": name, **one} for (owner, name), one in sorted(uses.items())],
        "disk": [{"owner": owner, "place": place, **one} for (owner, place), one in sorted(disk.items())],
    }


def _whose(owner: str) -> str:
    return owner if owner == COORDINATOR else "site"


@dataclass
class _Watch:
    """The most memory that services had since this was made, looked at once a second, or `now`."""

    working: Working
    most: Counter[Service] = field(default_factory=Counter)
    due: float = 0.0

    def __call__(self) -> None:
        if time.monotonic() >= self.due:
            self.now()

    def now(self) -> None:
        self.due = time.monotonic() + 1.0
        for service, pids in self.working.staying().items():
            rolls = [Path(f"/proc/{pid}/smaps_rollup") for pid in pids]
            with suppress(
                OSError, KeyError
            ):  # the beginning of another process, which has its own name by now
                held = sum(counted(roll, key) for roll in rolls for key in ("Pss_Anon:", "SwapPss:"))
                self.most[service] = max(self.most[service], held)


def _use(pids: tuple[int, ...], memory: int) -> Use:
    folders = [Path(f"/proc/{pid}") for pid in pids]
    files, threads = (sum(len(list((folder / of).iterdir())) for folder in folders) for of in ("fd", "task"))
    return Use(pids, memory, files, threads)


def _disk(working: Working) -> dict[tuple[str, str], int]:
    """(owner, place) -> bytes; links are not followed: a prepared store is no part of a site's folder."""
    found: Counter[tuple[str, str]] = Counter()
    for folder, _, names in os.walk(working.folder):
        for name in names:
            file = Path(folder, name)
            path = file.relative_to(working.folder)
            with suppress(FileNotFoundError):  # written beside another, which it has replaced by now
                owner = path.parts[0].removesuffix(".log")
                found[owner, _place(str(path))] += (
                    _pages(file) if file.suffix == ".db" else file.lstat().st_size
                )
    return dict(found)


def _place(path: str) -> str:
    """Of a file, by its path below the consortium's folder."""
    return next((place for pattern, place in PLACES.items() if fnmatch(path, pattern)), OTHERS)


def _pages(database: Path) -> int:
    """Bytes of a database, those included that its write-ahead log still holds."""
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as base:
        (count,), (size,) = (base.execute(f"PRAGMA {of}").fetchone() for of in ("page_count", "page_size"))
    return int(count * size)
