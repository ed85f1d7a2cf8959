"""What the processes of mortal.py do: run the small study, or one request at one site."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import io
import json
import logging
import os
import resource
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.app import Message
from mortal import Steps, die_after, in_process
from studies import coordinate, site_paths, tiny_study

import client.app
from client.outbox import Outbox
from client.site import SitePaths
from client.work import Work
from pm1_core import atomic
from pm1_core.checkpoint import Checkpoint, CheckpointFolder
from pm1_core.command import guarded
from pm1_core.training.tasks.phenotype import PhenotypeTask
from pm1_core.update import Update
from server.study import Study
from simulations.grid import InProcessGrid, run_in_process
from strategies import records

assert Work  # imported before any process is forked

PLAIN: dict[str, Any] = {}
LOSSY: dict[str, Any] = {"strategy": "scaffold", "encoding": "int8"}
"""Sites keep a control variate and a residual from round to round."""
SHORT: dict[str, Any] = {**LOSSY, "phases": ["statistics", "phenotype"]}
SHORTEST: dict[str, Any] = {"phases": ["statistics", "phenotype"]}


def warm() -> None:
    """What every process would do first."""
    torch.set_num_threads(1)
    logging.getLogger("pm1").setLevel(logging.ERROR)
    for changes in (PLAIN, LOSSY, SHORT, SHORTEST):
        _study(json.dumps(changes))


def federate(
    changes: dict[str, Any],
    stores: dict[str, str],
    folder: str,
    death: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Run what is left of the small study in `folder`, and say in how many steps the disk was changed.

    changes: as `tiny_study` takes them; "phases" lists the names of those that are kept; "encoding"
    death: {"checkpoint": n, "after": s} dies s seconds after checkpoint n was put in force (0: after the start);
        {"checkpoint": n, "step": k} dies before the k-th step that changes the disk while n is written;
        {"checkpoint": n, "round": k} likewise while the round that leads to n goes on, sites included
    """
    death = dict(death or {})
    paths = {site: Path(store) for site, store in stores.items()}
    root = Path(folder)
    with _dying(root, death) as steps:
        study = _study(json.dumps(changes))
        run_in_process(coordinate(study, paths, root), site_paths(paths, root))
    return {"steps": steps.count}


@contextmanager
def _dying(folder: Path, death: dict[str, Any]) -> Iterator[Steps]:
    """Die in the block as `federate` says."""
    steps = Steps(death.get("step", 0) or death.get("round", 0))
    steps.on = False
    draft, commit = CheckpointFolder.draft, CheckpointFolder.commit

    def in_force(number: int) -> None:
        if "after" in death and number >= death["checkpoint"]:
            die_after(death.pop("after"))
        steps.on = "round" in death and number + 1 == death["checkpoint"]

    def counted(action: Any) -> Any:
        def acting(checkpoints: CheckpointFolder, *arguments: Any, **options: Any) -> Checkpoint:
            number = getattr(arguments[0], "sequence", 0) + (action is draft)
            steps.on = steps.on or ("step" in death and number == death["checkpoint"])
            checkpoint: Checkpoint = action(checkpoints, *arguments, **options)
            if action is commit:
                in_force(number)
            elif "step" in death:
                steps.on = False
            return checkpoint

        return acting

    CheckpointFolder.draft, CheckpointFolder.commit = counted(draft), counted(commit)  # type: ignore[method-assign]
    latest = CheckpointFolder(folder / "checkpoints").latest()
    in_force(latest.sequence if latest else 0)
    with steps if {"step", "round"} & set(death) else atomic.without_sync():
        yield steps


def site_dies_at_every_step(stores: dict[str, str], folder: str, changes: dict[str, Any]) -> dict[str, Any]:
    """Run a study in which `north` is killed at every step that it takes on disk in the last round of training.

    After each death a new process gets the same request. Returns how often it died, at which files, and whether
    all answers and all that is then on the site's disk were the same.
    """
    paths = {site: Path(store) for site, store in stores.items()}
    root = Path(folder)
    grid = _Mortal(site_paths(paths, root), root / "sites" / "north")
    with atomic.without_sync():
        coordinate(_study(json.dumps(changes)), paths, root)(grid).run()
    return {"deaths": grid.deaths, "outcomes": len(grid.outcomes), "torn": grid.torn}


class _Mortal(InProcessGrid):
    """A grid whose first site dies and is started again, many times, over one request."""

    def __init__(self, sites: list[SitePaths], folder: Path) -> None:
        super().__init__(client.app.app, sites)
        self.folder = folder
        self.deaths = 0
        self.torn = 0
        self.outcomes: set[str] = set()

    def _answer(self, message: Message) -> Message:
        order = json.loads(str(message.content.config_records["order"]["order"]))
        last = message.metadata.message_type == "train" and order["round"] == order["rounds"] > 1
        if last and message.metadata.dst_node_id == 2 and order["phase"] != "statistics":
            self._die_often(message)
        return super()._answer(message)

    def _die_often(self, message: Message) -> None:
        before = self.folder.with_name("before")
        shutil.copytree(self.folder, before)
        answer = super()._answer
        draws = np.random.default_rng(0)
        ways = [*((0, float(s)) for s in draws.uniform(0.001, 0.08, 10)), *((k, 0.0) for k in range(1, 1000))]
        for step, seconds in ways:
            fresh(before, self.folder)

            def mortal(step: int = step, seconds: float = seconds) -> None:
                if seconds:
                    die_after(seconds)
                with Steps(step):
                    answer(message)

            status, _ = in_process(mortal)
            assert status in (0, -signal.SIGKILL)
            if status == 0 and step:
                break  # it takes fewer steps than that
            self.deaths += status != 0
            text = (self.folder / "outbox.jsonl").read_text()
            self.torn += not text.endswith("\n")
            status, outcome = in_process(lambda: _outcome(answer(message), self.folder))
            assert status == 0, outcome
            self.outcomes.add(outcome)
        fresh(before, self.folder)
        shutil.rmtree(before)


def _outcome(reply: Message, folder: Path) -> str:
    """A digest of an answer and of what the site remembers."""
    assert not reply.has_error(), reply.error.reason
    figures = {n: v for n, v in records.figures_of(reply.content).items() if n != "energy_joules"}
    objects = [hashlib.sha256(data).hexdigest() for _, data in records.objects_of(reply.content)]
    state = contents(folder, "studies/*/memory/**/*") | contents(folder, "studies/*/releases/objects/*")
    facts = records.facts_of(reply.content, "site")
    return hashlib.sha256(json.dumps([figures, objects, facts, state], sort_keys=True).encode()).hexdigest()


def with_noise(stores: dict[str, str], folder: str, dies: bool) -> None:
    """Train one phase at one site whose task draws noise that no seed repeats; `dies` once the release is made."""
    train = PhenotypeTask.train

    def noisy(task: PhenotypeTask, *arguments: Any, **options: Any) -> Update:
        update = train(task, *arguments, **options)
        noise = int.from_bytes(os.urandom(4), "little") / 2**32
        return replace(update, tensors={n: a + np.float32(noise) for n, a in update.tensors.items()})

    def death(outbox: Outbox, release: Any, again: bool) -> None:
        if release.phase == "phenotype" and release.kind == "train":
            os.kill(os.getpid(), signal.SIGKILL)
        return answer(outbox, release, again)

    answer = Outbox.answer
    PhenotypeTask.train = noisy  # type: ignore[method-assign]
    if dies:
        Outbox.answer = death  # type: ignore[method-assign,assignment]
    federate(SHORTEST, stores, folder)


@lru_cache
def _study(changes: str) -> Study:
    given = json.loads(changes)
    kept, encoding = given.pop("phases", None), given.pop("encoding", "full")
    study = tiny_study(**given)
    phases = tuple(phase for phase in study.phases if kept is None or phase.name in kept)
    return replace(study, phases=phases, encoding=encoding)


def contents(folder: Path, pattern: str) -> dict[str, str]:
    """Path below `folder` -> SHA-256, of files that match."""
    return {
        file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.glob(pattern))
        if file.is_file()
    }


def fresh(source: Path, target: Path) -> Path:
    """A copy in the place of whatever is at `target`."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)
    return target


def on_a_disk(
    stores: dict[str, str], before: str, folder: str, phase: dict[str, Any], disk: dict[str, Any]
) -> dict[str, Any]:
    """Go on with the short run in `before` on a disk of a mount namespace of its own; folder/after is what it left.

    disk: {"tmpfs": kilobytes beyond what the run takes so far}, {"read_only": true} or {"file_size": bytes}
    """
    import short  # it takes what is above

    place = Path(folder) / "disk"
    place.mkdir()
    if "file_size" not in disk:
        libc = ctypes.CDLL(None, use_errno=True)
        user, group = os.getuid(), os.getgid()
        if libc.unshare(0x10020000):  # CLONE_NEWUSER | CLONE_NEWNS
            return {"skipped": f"no namespace of its own ({os.strerror(ctypes.get_errno())})"}
        for name, text in (("setgroups", "deny"), ("uid_map", f"0 {user} 1"), ("gid_map", f"0 {group} 1")):
            Path(f"/proc/self/{name}").write_text(text)
        size = sum(-(-file.stat().st_size // 4096) * 4 for file in Path(before).rglob("*") if file.is_file())
        limit = f"size={size + disk.get('tmpfs', 10**5)}k".encode()
        if libc.mount(b"none", str(place).encode(), b"tmpfs", 0, limit):
            return {"skipped": f"cannot mount ({os.strerror(ctypes.get_errno())})"}
    shutil.copytree(before, place / "run")
    if "read_only" in disk and libc.mount(b"none", str(place).encode(), b"tmpfs", 33, None):
        return {"skipped": f"cannot remount ({os.strerror(ctypes.get_errno())})"}  # MS_REMOUNT | MS_RDONLY
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    if "file_size" in disk:
        resource.setrlimit(resource.RLIMIT_FSIZE, (disk["file_size"], unlimited))
    paths = {site: Path(store) for site, store in stores.items()}
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        code = guarded("pm1-server", lambda: short.run(paths, place / "run", short.short_study(phase)))
    resource.setrlimit(resource.RLIMIT_FSIZE, (unlimited, unlimited))
    shutil.copytree(place / "run", Path(folder) / "after")
    return {"code": code, "said": said.getvalue()}
