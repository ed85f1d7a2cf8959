"""A study under secure aggregation is the clear study to within its words, and opens nothing of one site."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import short
import unruly
from mortal_work import fresh
from unruly import UnrulyGrid

from pm1_core import atomic
from pm1_core.checkpoint import Checkpoint, CheckpointFolder
from pm1_core.errors import FederationError
from pm1_core.objects import ObjectStore, Reader
from pm1_core.privacy.secure_plan import Plan, Secured, exact_words
from pm1_core.privacy.secure_sum import STAGES
from server.study import Study
from strategies import records

pytestmark = pytest.mark.usefixtures("_impatient")

SECURE = {"bits": 32, "range": 8.0, "threshold": 0.67}
LAST = ("phenotype", 2)
"""Phase and round of the last training."""


@cache
def _clear() -> Study:
    return short.short_study(timeout=30.0, gather=2.0, grace=None)


def study(timeout: float = 30.0, **secure: Any) -> Study:
    """The short study, whose answers are added up."""
    phases = tuple(replace(phase, min_sites=3) for phase in _clear().phases)
    return replace(_clear(), phases=phases, secure={**SECURE, **secure}, timeout=timeout)


def run(
    stores: Mapping[str, Path], folder: Path, asked: Study | None = None, grid: UnrulyGrid | None = None
) -> Checkpoint:
    asked = asked or study()
    return short.run(stores, folder, asked, grid or UnrulyGrid(stores, folder, secure=bool(asked.secure)))


def tensors(folder: Path, checkpoint: Checkpoint) -> dict[str, np.ndarray]:
    return {n: np.array(a) for n, a in CheckpointFolder(folder / "checkpoints").state(checkpoint).items()}


def furthest(one: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]) -> float:
    assert set(one) == set(other)
    return max(float(np.abs(one[name] - other[name]).max()) for name in one)


@pytest.fixture(scope="module")
def four(stores: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Four sites: one may be lost."""
    folder = tmp_path_factory.mktemp("four")
    return {**stores, "mid": unruly.copied_store(stores["south"], folder / "mid", "mid")}


@pytest.fixture(scope="module")
def whole(stores: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed secure run over three sites."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    run(stores, folder)
    return folder


@pytest.fixture(scope="module")
def before_last(four: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A secure run over four sites that was stopped before the last round."""
    folder = tmp_path_factory.mktemp("before") / "run"
    coordinator = short.coordinator(four, folder, study(), UnrulyGrid(four, folder, secure=True))

    def stop(phase: str, done: int, rounds: int) -> None:
        if done == rounds - 1:
            raise short.StoppedError

    coordinator.progress = stop
    with pytest.raises(short.StoppedError), atomic.without_sync():
        coordinator.run()
    return folder


def test_the_model_is_that_of_the_clear_study(stores: dict[str, Path], whole: Path, tmp_path: Path) -> None:
    clear = run(stores, tmp_path, _clear())
    secure = CheckpointFolder(whole / "checkpoints").latest()
    # Half a step of each of three words, and float32's own rounding, in two rounds.
    resolution = 3 * 8.0 / 2**31 + 2**-22
    assert furthest(tensors(tmp_path, clear), tensors(whole, secure)) < 2 * resolution
    assert secure.sites == clear.sites
    assert dict(secure.metrics["all"]) == pytest.approx(dict(clear.metrics["all"]), abs=1e-5)
    assert secure.areas == clear.areas
    assert set(secure.metrics) == {"all"}
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert lines
    assert {line["site"] for line in lines} == {None}


def test_sixteen_bits_are_half_the_bytes(stores: dict[str, Path], whole: Path, tmp_path: Path) -> None:
    checkpoint = run(stores, tmp_path, study(bits=16, range=0.05))
    full = CheckpointFolder(whole / "checkpoints").latest()
    # Rounded at random, a mean of three is off by less than a step of each.
    assert furthest(tensors(tmp_path, checkpoint), tensors(whole, full)) < 2 * 3 * 0.05 / 2**15 * 3
    assert 2 * _sent(tmp_path) == _sent(whole)


def _sent(folder: Path) -> int:
    """Bytes of the words of an update, as they left."""
    (releases,) = (folder / "sites/east/studies").glob("*/releases")
    found = [json.loads(file.read_text()) for file in releases.glob("*.json")]
    masked = [Reader(ObjectStore(releases / "objects"), release["objects"]) for release in found]
    sizes = {sum(words[name].nbytes for name in words if name.startswith("train/")) for words in masked}
    (size,) = sizes - {0}
    return size


@pytest.mark.parametrize("stage", STAGES)
def test_a_site_lost_at_any_stage_is_tolerated(
    four: dict[str, Path], before_last: Path, tmp_path: Path, stage: str
) -> None:
    folder = fresh(before_last, tmp_path / "run")
    grid = UnrulyGrid(four, folder, {("east", f"query.{stage}", *LAST): unruly.dies}, secure=True)
    checkpoint = run(four, folder, grid=grid)
    expected = set(four) - {"east"} if stage in STAGES[:3] else set(four)
    assert set(checkpoint.sites) == expected
    lost = short.phases(folder)["phenotype"]["lost"]["round 2"]
    assert "unavailable" in lost["east"]
    assert ("east", "train", *LAST) in grid.asked
    begun = [key for key in grid.asked if key[1:] == ("query.advertise", *LAST)]
    assert len(begun) == 2 * len(four)  # one attempt at the round, one at its evaluation


@pytest.mark.parametrize("stage", STAGES)
def test_below_the_threshold_nothing_is_revealed_and_the_round_can_be_made_up_for(
    stores: dict[str, Path], whole: Path, tmp_path: Path, stage: str
) -> None:
    folder = tmp_path / "run"
    deeds = {("east", f"query.{stage}", *LAST): unruly.dies}
    grid = UnrulyGrid(stores, folder, deeds, secure=True)
    with pytest.raises(FederationError, match=r"phenotype.*secure sum.*2 of (at least )?3 sites"):
        run(stores, folder, grid=grid)
    latest = CheckpointFolder(folder / "checkpoints").latest()
    assert (latest.phase, latest.round) == ("phenotype", 1)
    assert not list((folder / "spool").glob("*/*/opened"))
    if stage != "reveal":
        assert not [key for key in grid.asked if key[1:] == ("query.reveal", *LAST)]
    checkpoint = run(stores, folder)
    assert checkpoint.parts == CheckpointFolder(whole / "checkpoints").latest().parts


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("kind", ["train", "evaluate"])
def test_a_coordinator_killed_in_any_stage_goes_on(
    stores: dict[str, Path], whole: Path, tmp_path: Path, stage: str, kind: str
) -> None:
    folder, seen = tmp_path / "run", list[str]()

    def stop(what: str, phase: str, number: int) -> None:
        if (phase, number) == LAST and what in ("train", "evaluate"):
            seen.append(what)
        if seen and seen[-1] == kind and what == f"query.{stage}":
            seen.append("stopped")
            raise short.StoppedError

    with pytest.raises(short.StoppedError):
        run(stores, folder, grid=UnrulyGrid(stores, folder, before=stop, secure=True))
    grid = UnrulyGrid(stores, folder, secure=True)
    checkpoint = run(stores, folder, grid=grid)
    expected = CheckpointFolder(whole / "checkpoints").latest()
    assert checkpoint.parts == expected.parts
    assert checkpoint.metrics == expected.metrics
    if kind == "train":
        assert not [key for key in grid.asked if key[1:] == ("train", *LAST)]
    assert not list((folder / "spool").glob("*"))


def test_the_coordinator_holds_and_gets_nothing_of_one_site(stores: dict[str, Path], tmp_path: Path) -> None:
    """Whatever arrives, and whatever is on its disk when masked words have come: search it for what is sealed."""
    folder = tmp_path / "run"

    def stop(what: str, phase: str, number: int) -> None:
        if (phase, number) == LAST and what == "query.reveal":
            raise short.StoppedError

    grid = UnrulyGrid(stores, folder, before=stop, secure=True)
    with pytest.raises(short.StoppedError):
        run(stores, folder, grid=grid)
    held = b"".join(
        file.read_bytes()
        for place in ("spool", "checkpoints")
        for file in sorted((folder / place).rglob("*"))
        if file.is_file()
    )
    arrived = [message.content for message in grid.answered.values()]
    for content in arrived:
        held += b"".join(data for _, data in records.objects_of(content)) + str(content).encode()
        assert set(content.metric_records.get("figures", {})) <= {"weight"}
    searched = 0
    for site in stores:
        (own,) = (folder / "sites" / site / "studies").iterdir()
        vault = own / "sealed"
        release = json.loads(_newest(vault).read_text())
        sums = vault / "sums" / release["request"]
        weight = json.loads((sums / "answer.json").read_text())["weights"]["train"]
        plan = Plan.from_json((sums / "0" / "plan.json").read_text())
        sealed = Reader(ObjectStore(vault / "objects"), release["objects"])
        for name in sealed:
            for plain in _plain(sealed[name], plan, weight):
                for start in range(0, len(plain) - 15, 16):
                    if plain[start : start + 16].count(0) < 8:
                        searched += 1
                        assert plain[start : start + 16] not in held, (site, name)
    assert searched > 500


def _newest(vault: Path) -> Path:
    return max(vault.glob("*.json"), key=lambda file: json.loads(file.read_text())["round"])


def _plain(array: np.ndarray, plan: Plan, weight: float) -> list[bytes]:
    """What a careless site would have sent: the numbers, the weighed ones, their words before masks."""
    kinds = [array, (array * weight).astype(array.dtype), exact_words(array)]
    if array.dtype == np.float32:
        kinds.append(plan.fixed("train", Secured()).encode(array, weight))
    return [np.ascontiguousarray(kind).tobytes() for kind in kinds]


def test_what_left_a_site_is_written_down(whole: Path) -> None:
    lines = [json.loads(line) for line in (whole / "sites/east/outbox.jsonl").read_text().splitlines()]
    kinds = [line["what"] for line in lines if (line["phase"], line["round"]) == LAST]
    one = ["advertise", "share", "masked", "agree", "reveal"]
    assert kinds == 2 * one  # of the training round, and of the evaluation
    assert {line["what"] for line in lines} - set(one) == {
        "ready", "objects", "train, sealed", "evaluate, sealed",
    }  # fmt: skip
    for line in lines:
        assert set(line["figures"]) <= {"weight"}
        assert line["weight"] in (None, 1.0)


def test_an_interrupted_site_gives_the_same_answers(
    stores: dict[str, Path], whole: Path, tmp_path: Path
) -> None:
    """Asked for everything twice, it answers twice with the same bytes."""
    folder = tmp_path / "run"

    def again(grid: UnrulyGrid, message: Any) -> list[Any]:
        first = grid.honest(message)
        second = grid.honest(message)
        assert dict(second.content.config_records["site"]) == dict(first.content.config_records["site"])
        assert dict(records.objects_of(second.content)) == dict(records.objects_of(first.content))
        return [second]

    deeds = {("east", f"query.{stage}", None, None): again for stage in STAGES}
    checkpoint = run(stores, folder, grid=UnrulyGrid(stores, folder, deeds, secure=True))
    assert checkpoint.parts == CheckpointFolder(whole / "checkpoints").latest().parts


def test_the_same_answers_are_not_opened_over_one_site_fewer(
    four: dict[str, Path], before_last: Path, tmp_path: Path
) -> None:
    """A coordinator opens a round, forgets that it did, and tries again without one of the sites."""
    folder = fresh(before_last, tmp_path / "run")

    def stop(what: str, phase: str, number: int) -> None:
        if what == "evaluate":
            raise short.StoppedError

    with pytest.raises(short.StoppedError):
        run(four, folder, grid=UnrulyGrid(four, folder, before=stop, secure=True))
    shutil.rmtree(folder / "spool")
    grid = UnrulyGrid(four, folder, secure=True)
    grid.away = {"east"}
    with pytest.raises(FederationError, match="with what was opened before over other sites it tells a sum"):
        run(four, folder, replace(study(), gather=0.3), grid)
    assert run(four, folder).round == 2  # with all of them again


def test_statistics_are_not_opened_over_one_site_fewer_in_another_study(
    four: dict[str, Path], before_last: Path, tmp_path: Path
) -> None:
    folder, other = fresh(before_last, tmp_path / "run"), tmp_path / "other"
    shutil.copytree(folder / "keys", other / "keys")
    for site in four:
        (other / "sites" / site).mkdir(parents=True)
        shutil.copy(folder / "sites" / site / "opened.json", other / "sites" / site)
    grid = UnrulyGrid(four, other, secure=True)
    grid.away = {"east"}
    with pytest.raises(FederationError, match=r"statistics.*with what was opened before over other sites"):
        run(four, other, replace(study(), seed=43, gather=0.3), grid)
    assert not list((other / "checkpoints").glob("000002.json"))
