"""A study that is disturbed on purpose, and what came of it.

with Working(folder, stores, small_study(), definition) as working:
    figures = killed(working, KILLS[0])
    assert parts(working.checkpoints) == parts(an undisturbed study's)
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from studies import coordinate, site_paths, tiny_study
from working import COORDINATOR, Working

from pm1_core.checkpoint import CheckpointFolder
from server.study import Study
from simulations.grid import run_in_process

SITE = "north"
"""The one that has every modality, and so takes part in every phase."""
KINDS = ("statistics", "genotype", "phenotype", "fundus", "tokens", "fusion")
TARGETS = (
    (SITE, "supernode"),
    (COORDINATOR, "superlink"),
    (SITE, "door"),
    (COORDINATOR, "nginx"),
    (COORDINATOR, "guard"),
    (SITE, "clientapp"),
    (COORDINATOR, "serverapp"),
    (COORDINATOR, "executor"),
    (SITE, "machine"),
    (COORDINATOR, "machine"),
)


@dataclass(frozen=True)
class Kill:
    """What was killed in which kind of phase, and the seconds until the study's next checkpoint."""

    kind: str
    owner: str
    what: str
    seconds: float


def plan(number: int) -> dict[str, tuple[str, str]]:
    """Kind of phase -> what is killed in it, in study `number` of len(TARGETS): over all of them, all in each."""
    return {kind: TARGETS[(number + place) % len(TARGETS)] for place, kind in enumerate(KINDS)}


def small_study(**changes: str) -> Study:
    """Every kind of phase, a round of each."""
    rounds = {f"study__phases__{name}__rounds": "1" for name in ("genotype", "phenotype", "fundus", "fusion")}
    # Nobody is gone on without, so that it ends as if nothing had happened.
    least = dict(zip(KINDS, ("2", "2", "2", "2", "3", "3"), strict=True))
    sites = {f"study__phases__{kind}__min_sites": count for kind, count in least.items()}
    waits = {"gather": "300", "timeout": "300"}
    return tiny_study(study__phases__genotype__chromosomes="[22]", **{**rounds, **sites, **waits, **changes})


def secure_study() -> Study:
    """The same in secure sums of three sites, which have every modality (alike.py)."""
    sites = {f"study__phases__{kind}__min_sites": "3" for kind in KINDS}
    return replace(small_study(**sites, timeout="600"), secure={"bits": 32, "range": 8.0, "threshold": 0.67})


def undisturbed(stores: Mapping[str, Path], study: Study, folder: Path) -> list[object]:
    """Parts of every checkpoint of a study in one process."""
    sites = site_paths(dict(stores), folder, secure=bool(study.secure))
    run_in_process(coordinate(study, dict(stores), folder), sites)
    return parts(CheckpointFolder(folder / "checkpoints"))


def parts(checkpoints: CheckpointFolder) -> list[object]:
    """Hashes of the model's parts, a checkpoint each."""
    return [one.parts for one in checkpoints.verify()]


def killed(working: Working, kills: Mapping[str, tuple[str, str]], seconds: float = 2400) -> Sequence[Kill]:
    """Submit the study and kill as planned, each as soon as the site works on a phase of its kind.

    Raises TimeoutError if the study does not end, and AssertionError if a kill had no occasion.
    """
    pending, open_, done = dict(kills), [], []

    def look() -> None:
        told = working.told()
        for kind, owner, what, when, count in list(open_):
            if told.checkpoints > count:
                done.append(Kill(kind, owner, what, round(time.monotonic() - when, 1)))
                open_.remove((kind, owner, what, when, count))
        kind = told.phase.partition(".")[0]
        if kind not in pending or SITE not in told.waiting or open_:
            return
        owner, what = pending[kind]
        if working.kill(owner, what):
            del pending[kind]
            open_.append((kind, owner, what, time.monotonic(), told.checkpoints))
            if what == "machine":
                working.start(owner)

    working.submit()
    ended = working.wait(seconds, look)
    look()
    assert ended == "finished:completed", ended
    assert not pending, f"no occasion to kill {pending}"
    return done


def pulled(working: Working, seconds: float) -> str:
    """Submit the study, pull the cable in its phenotype phase for `seconds`, and see it end; why a run ended."""
    cut: list[float] = []
    why = [""]

    def look() -> None:
        told = working.told()
        if not cut and told.phase == "phenotype" and told.waiting:
            working.link.cut()
            cut.append(time.monotonic())
        if cut and why[0] == "":
            why[0] = told.why
        if cut and time.monotonic() - cut[0] > seconds:
            working.link.mend()

    working.submit()
    ended = working.wait(seconds + 1200, look)
    assert ended == "finished:completed", ended
    assert why[0], "the run did not end while the cable was pulled"
    return why[0]
