"""What sites persisted of a private study in secure sums, held against what the coordinator made of it.

    site: trains, with noise    -> sealed/REQUEST.json and objects: changes, float32      the release
          -> ledger.jsonl: its cost -> whole numbers of weight * change, masked -> audit.jsonl, through the door
    coordinator: masked words of all sites, added up, less the masks -> / scale and weights: the mean change
          -> what was sent + mean change, float32: FedAvg of the one sum -> Task.advance -> checkpoint
    here: the same of the releases, which no mask was ever on, against each two checkpoints that follow

Equal is bit for bit after that arithmetic. Of a mean it says that the whole numbers are equal, every one: their
grid is coarser than float32 is at the model's weights (`rehearsal.private_study`), so that no other sum gives the
same tensor. Of statistics, which are added up exactly in 64 bits, it says as much as a float32 can.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import reduce
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from client.outbox import Release
from client.sealed import Sealed
from pm1_core import atomic
from pm1_core.chain import Chain
from pm1_core.checkpoint import Checkpoint, CheckpointFolder, State
from pm1_core.data.summary import StudySummary
from pm1_core.objects import ObjectStore, Reader
from pm1_core.privacy.accounting import Epsilon, tightest
from pm1_core.privacy.accounts import release_hash
from pm1_core.privacy.ledger import Ledger
from pm1_core.privacy.mechanisms import RECORD, Mechanism
from pm1_core.privacy.secure_plan import EXACT, TENSOR, TRAIN, Plan, Secured, exact_numbers, exact_words
from pm1_core.training.tasks import build_task
from server.study import Study

_FILES = ("*.json", "objects/*.safetensors", "sums/*/answer.json", "sums/*/*/plan.json")


@dataclass(frozen=True)
class Persisted:
    """One release of one site: what of it is added up, under which plan, and its arrays."""

    release: Release
    said: Sealed
    plan: Plan
    arrays: Mapping[str, np.ndarray]

    @staticmethod
    def at(folder: Path) -> list[Persisted]:
        """All that are in a site's folder of sealed answers."""
        return [_persisted(folder, file) for file in sorted(folder.glob("*.json"))]


class Keeper:
    """Keeps in `folder` what sites forget with the next phase.

    sealed: site -> its folder of sealed answers
    """

    def __init__(self, sealed: Mapping[str, Path], folder: Path) -> None:
        self.sealed = sealed
        self.folder = folder

    def keep(self) -> None:
        """Link what is new. A file under such a name is whole: it was written beside it, and renamed."""
        for site, folder in self.sealed.items():
            for file in (file for pattern in _FILES for file in folder.glob(pattern)):
                link = self.folder / site / file.relative_to(folder)
                link.parent.mkdir(parents=True, exist_ok=True)
                with suppress(FileExistsError, FileNotFoundError):
                    link.hardlink_to(file)

    def kept(self) -> dict[str, list[Persisted]]:
        """Site -> its releases."""
        return {site: Persisted.at(self.folder / site) for site in self.sealed}


def require_summed(
    checkpoints: CheckpointFolder,
    study: Study,
    summary: StudySummary,
    kept: Mapping[str, Sequence[Persisted]],
) -> int:
    """Raise AssertionError unless every round's model is the sum of what sites persisted; how many rounds."""
    lineage = checkpoints.verify()
    rounds = [(before, after) for before, after in pairwise(lineage) if after.round]
    for before, after in rounds:
        where = f"phase {after.phase!r}, round {after.round}"
        given = {site: _of_round(kept[site], site, after) for site in kept}
        assert set(after.sites) == set(given), f"{where}: it is of {sorted(after.sites)}"
        received = _trained(checkpoints.state(before), after)
        plans = {one.plan.to_json() for one in given.values()}
        assert len(plans) == 1, f"{where}: the sites were given {len(plans)} plans"
        added = _mean if next(iter(given.values())).plan.words else _sum
        phase = next(phase for phase in study.phases if phase.name == after.phase)
        task = build_task(study.order(phase, after.round), summary)
        folded = {**received, **dict(added(given, received, Secured.of(study.secure), where))}
        found = _trained(checkpoints.state(after), after)
        for name, array in task.advance(after.round, received, folded).items():
            same = array.dtype == found[name].dtype and array.tobytes() == found[name].tobytes()
            assert same, f"{where}: {name!r} is not the sum of what the sites persisted"
    return len(rounds)


def require_paid(ledger: Ledger, left: Sequence[Mapping[str, Any]], kept: Sequence[Persisted]) -> Epsilon:
    """Raise AssertionError unless a site paid for each release, and nothing else, before it left; what it spent.

    left: lines of its audit log on masked words. A line has the charge that was made for it, so it came after that
    """
    ledger.verify()
    charged = {line["request"]: line for line in Chain(ledger.path).read() if line["what"] != "open"}
    # Of lines on one round the first: what leaves again was paid for.
    told = {(line["phase"], line["round"]): line.get("epsilon") for line in reversed(left)}
    delta = ledger.budget()[RECORD][1]
    for release in (one.release for one in kept):
        where = f"{ledger.site}, phase {release.phase!r}, round {release.round}"
        line = charged.pop(release.request, {"release": None, "mechanisms": []})
        assert line["release"] == release_hash(release.objects, release.figures), (
            f"{where}: nobody paid for it"
        )
        assert line["mechanisms"] == release.mechanisms, f"{where}: it was paid for as {line['mechanisms']}"
        alone = tightest(map(Mechanism.from_json, release.mechanisms), delta).value
        found = told.get((release.phase, release.round))
        assert found == alone, f"{where}: it left with epsilon {found}, and costs {alone}"
    assert not charged, f"{ledger.site}: charged for {len(charged)} releases that nobody saw"
    return ledger.spent()


def _persisted(folder: Path, file: Path) -> Persisted:
    release = Release(**atomic.read_json(file))
    sums = folder / "sums" / release.request
    said = Sealed(**atomic.read_json(sums / "answer.json"))
    plans = sorted(sums.glob("*/plan.json"), key=lambda one: int(one.parent.name))
    assert plans, f"{file}: no sum was begun with it"
    plan = Plan.from_json(plans[-1].read_text())
    return Persisted(release, said, plan, Reader(ObjectStore(folder / "objects"), release.objects))


def _of_round(kept: Sequence[Persisted], site: str, made: Checkpoint) -> Persisted:
    found = [one for one in kept if (one.release.phase, one.release.round) == (made.phase, made.round)]
    assert len(found) == 1, f"phase {made.phase!r}, round {made.round}: {len(found)} releases of {site!r}"
    return found[0]


def _trained(state: State, made: Checkpoint) -> dict[str, np.ndarray]:
    return {name: state[name] for part in made.trained for name in state.part(part)}


def _mean(
    given: Mapping[str, Persisted], received: Mapping[str, np.ndarray], asked: Secured, where: str
) -> Iterator[tuple[str, np.ndarray]]:
    """What was sent and the mean change, of each tensor that anybody trained."""
    first = next(iter(given.values()))
    for place in first.said.layout:
        weights = first.plan.weights[place.kind]
        fixed = first.plan.fixed(place.kind, asked)
        name = f"{TRAIN}/{place.name}"
        words = [fixed.encode(given[site].arrays[name], weight) for site, weight in weights.items()]
        change = fixed.decode(reduce(np.add, words), sum(weights.values()))
        before = received[place.name]
        after = (before + change.reshape(before.shape)).astype(np.float32)
        step = 1 / (fixed.scale * sum(weights.values()))
        assert np.spacing(np.abs(after)).max() < step, f"{where}: {place.name!r} has room for several sums"
        yield place.name, after


def _sum(
    given: Mapping[str, Persisted], received: Mapping[str, np.ndarray], asked: Secured, where: str
) -> Iterator[tuple[str, np.ndarray]]:
    """The sum of each tensor; what nobody has is 0."""
    entries = next(iter(given.values())).plan.entries
    for name, before in received.items():
        total = np.zeros(before.size)
        if entry := entries.get(TENSOR + name):
            words = [exact_words(given[site].arrays[f"{EXACT}/{TENSOR}{name}"]) for site in entry.sites]
            total = exact_numbers(reduce(np.add, words))
        yield name, total.reshape(before.shape).astype(np.float32)
