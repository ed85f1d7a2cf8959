"""A study that is disturbed on purpose, and what came of it.

with Working(folder, stores, small_study(), definition) as working:
    figures = killed(working, KILLS[0])
    assert parts(working.checkpoints) == parts(an undisturbed study's)
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from persisted import Keeper, require_paid, require_summed
from studies import coordinate, site_paths, tiny_study
from working import COORDINATOR, Working

from client import page as site_page
from client.audit import LEFT, Audit
from client.audit import NAME as AUDIT
from client.folder import SiteFolder
from pm1_core.checkpoint import CheckpointFolder
from pm1_core.data.store import Store
from pm1_core.privacy.ledger import Ledger
from pm1_core.privacy.mechanisms import RECORD
from server import page as coordinator_page
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

_POLICY = "min_sites: 2\nprivacy: {unit: record, epsilon: 8, delta: 1.0e-5}\n"
"""What doors ask of a private study, beside their sites' approval."""


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


def small_study(left_out: Sequence[str] = (), **changes: str) -> Study:
    """Every kind of phase but those left out, a round of each."""
    rounds = {f"study__phases__{name}__rounds": "1" for name in ("genotype", "phenotype", "fundus", "fusion")}
    # Nobody is gone on without, so that it ends as if nothing had happened.
    least = dict(zip(KINDS, ("2", "2", "2", "2", "3", "3"), strict=True))
    sites = {f"study__phases__{kind}__min_sites": count for kind, count in least.items()}
    waits = {"gather": "300", "timeout": "300"}
    given = {"study__phases__genotype__chromosomes": "[22]", **rounds, **sites, **waits, **changes}
    return tiny_study(left_out, **given)


def secure_study() -> Study:
    """The same in secure sums of three sites, which have every modality (alike.py)."""
    sites = {f"study__phases__{kind}__min_sites": "3" for kind in KINDS}
    return replace(small_study(**sites, timeout="600"), secure={"bits": 32, "range": 8.0, "threshold": 0.67})


def private_study(left_out: Sequence[str] = ()) -> Study:
    """The same under record-level privacy as configs/privacy/record.yaml has it, for sites that train on 48 people.

    A change of one element is cut to 1,024 where others cut it to 8. So the sum of three sites has steps of 5e-7,
    which a float32 below 4 tells apart: no step of any release is lost in a checkpoint.
    """
    sites = {f"study__phases__{kind}__min_sites": "3" for kind in KINDS}
    secure = {"aggregation": "secure", "aggregation__range": "1024"}
    return small_study(left_out, **sites, **secure, timeout="600", privacy="record", privacy__people="48")


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


def privately(working: Working, seconds: float = 2400) -> dict[str, float]:
    """Submit a private study, see it end, and hold it against what its sites persisted; what came of it.

    Raises TimeoutError if it does not end, and AssertionError if anything is not what `persisted` asks for, or if a
    manifest or a page says another epsilon than the ledgers.
    """
    sealed = {}
    for site, place in working.places.items():
        _ledger(place).open(site, {RECORD: (8.0, 1e-5)})
        place.file("policy.yaml").write_text(_POLICY)
        sealed[site] = place.file("state") / "studies" / working.study.hash[:16] / "sealed"
    keeper = Keeper(sealed, working.folder / "kept")
    working.submit()
    ended = working.wait(seconds, keeper.keep)
    keeper.keep()
    assert ended == "finished:completed", ended
    kept = keeper.kept()
    summary = Store.open(working.places[min(kept)].file("store")).study
    rounds = require_summed(working.checkpoints, working.study, summary, kept)
    (run,) = coordinator_page.Reader(working.consortium.folder)()["runs"]
    manifests = {made.privacy for made in working.checkpoints.verify(objects=False)}
    for site, place in working.places.items():
        left = [line for line in Audit(place.file(AUDIT)).lines() if line["event"] == LEFT]
        spent = require_paid(_ledger(place), [line for line in left if line["what"] == "masked"], kept[site])
        page = site_page.Reader(place)()["ledger"]["units"][RECORD]
        told = run["privacy"]["spent"]["epsilon"], page["spent"]
        assert all(math.isclose(one, spent.value) for one in told), f"{site} spent {spent}, pages say {told}"
        assert manifests == {f"differential privacy: {spent}"}, f"{site} spent {spent}, not {manifests}"
    return {"rounds": rounds, "releases": sum(map(len, kept.values())), "epsilon": spent.value}


def _ledger(place: SiteFolder) -> Ledger:
    return Ledger(place.file("state") / Ledger.NAME)
