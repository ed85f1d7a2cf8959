"""Whatever a site does, the round ends by quorum or with a sentence, and the others' work counts."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import unruly
from short import LAST, last_round, phases, run, short_study
from unruly import Deed, UnrulyGrid

import server.exchange
import strategies
from pm1_core.checkpoint import CheckpointFolder
from pm1_core.errors import FederationError

pytestmark = pytest.mark.usefixtures("_impatient")


@pytest.mark.parametrize(
    ("deed", "why"),
    [
        (unruly.dies, "node is unavailable"),
        (unruly.hangs, "no answer in 0 s"),
        (unruly.is_late, "no answer in 0 s"),
        (unruly.repeats_an_earlier_round, "it is to an earlier or another request"),
        (unruly.under_the_name_of("west"), "it is of site 'west', not 'east'"),
    ],
)
def test_a_site_that_does_not_answer_the_round_is_named_and_the_others_go_on(
    deed: Deed,
    why: str,
    stores: dict[str, Path],
    begun: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    shutil.copytree(begun, tmp_path / "run")
    grid = UnrulyGrid(stores, tmp_path / "run", {("east", "train", "phenotype", 2): deed})
    if deed is unruly.repeats_an_earlier_round:
        shutil.rmtree(tmp_path / "run")  # it takes part in the round before as well
    latest = run(stores, tmp_path / "run", grid=grid)
    assert set(latest.sites) == {"south", "west"}
    assert why in phases(tmp_path / "run")["phenotype"]["lost"]["round 2"]["east"]
    assert any("phenotype, round 2: without east" in record.getMessage() for record in caplog.records)


def test_a_late_answer_and_one_given_twice_are_counted_and_dropped(
    stores: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    deeds = {
        ("east", "train", "phenotype", 1): unruly.is_late,
        ("west", "train", "phenotype", 1): unruly.twice,
        ("south", "train", "phenotype", 2): unruly.sends_an_old_message,
    }
    latest = run(stores, tmp_path, grid=UnrulyGrid(stores, tmp_path, deeds))
    dropped = json.loads((tmp_path / "dropped.json").read_text())
    assert dropped == {
        "east": {"answered phenotype, train 1 too late": 1},
        "west": {"answered phenotype, train 1 twice": 1},
        "south": {"answered phenotype, train 1 twice": 1},
    }
    assert set(latest.sites) == {"east", "south", "west"}  # all of them are back in the last round
    said = [record.getMessage() for record in caplog.records]
    assert sum(line.endswith(": dropped") for line in said) == 3


def test_what_sites_answer_twice_or_too_late_does_not_change_a_byte(
    stores: dict[str, Path], tmp_path: Path
) -> None:
    plain = run(stores, tmp_path / "plain")
    deeds = {(None, "train", None, None): unruly.twice, (None, "evaluate", None, None): unruly.twice}
    doubled = run(stores, tmp_path / "doubled", grid=UnrulyGrid(stores, tmp_path / "doubled", deeds))
    assert doubled.hash == plain.hash


@pytest.mark.parametrize(
    ("quorum", "lack"),
    [({"min_sites": 2}, "1 of at least 2 sites"), ({"min_share": 0.5}, "33% of at least 50% of the people")],
)
def test_too_few_answers_end_the_round_with_who_and_why_and_the_run_can_be_resumed(
    quorum: dict[str, Any], lack: str, stores: dict[str, Path], tmp_path: Path
) -> None:
    study = short_study(quorum)
    undisturbed = run(stores, tmp_path / "undisturbed", study)
    deeds = {("east", *LAST): unruly.hangs, ("west", *LAST): unruly.dies}
    with pytest.raises(FederationError) as refused:
        run(stores, tmp_path / "run", study, UnrulyGrid(stores, tmp_path / "run", deeds))
    for part in (
        "'phenotype', round 2",
        lack,
        "east: no answer in 0 s",
        "west: node is unavailable",
        "resume",
    ):
        assert part in str(refused.value)
    latest = CheckpointFolder(tmp_path / "run" / "checkpoints").latest()
    assert latest
    assert (latest.phase, latest.round) == ("phenotype", 1)
    assert run(stores, tmp_path / "run", study).hash == undisturbed.hash


def test_waiting_is_bounded_and_says_for_whom(
    stores: dict[str, Path],
    begun: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(server.exchange, "_SAY_SECONDS", 0.01)
    caplog.set_level(logging.INFO)
    last_round(stores, begun, tmp_path, unruly.hangs, grace=None)
    assert any("waiting for east (" in record.getMessage() for record in caplog.records)


def test_a_site_that_comes_late_joins_at_the_next_round(stores: dict[str, Path], tmp_path: Path) -> None:
    def arrive(kind: str, phase: str, number: int) -> None:
        if (kind, phase, number) == ("train", "phenotype", 1):
            grid.away.clear()

    grid = UnrulyGrid(stores, tmp_path, before=arrive)
    grid.away.add("east")
    run(stores, tmp_path, grid=grid)
    sites = {(c.phase, c.round): set(c.sites) for c in CheckpointFolder(tmp_path / "checkpoints").verify()}
    assert sites["phenotype", 1] == {"south", "west"}
    assert sites["phenotype", 2] == {"east", "south", "west"}
    assert set(phases(tmp_path)["phenotype"]["sites"]) == {"east", "south", "west"}


def test_a_site_that_was_away_goes_on_with_the_state_on_its_own_disk(
    stores: dict[str, Path], tmp_path: Path
) -> None:
    def come_and_go(kind: str, phase: str, number: int) -> None:
        if kind == "train" and phase == "phenotype":
            (grid.away.add if number == 1 else grid.away.discard)("east")

    grid = UnrulyGrid(stores, tmp_path, before=come_and_go)
    run(stores, tmp_path, short_study({"rounds": 3}), grid)
    sites = {(c.phase, c.round): set(c.sites) for c in CheckpointFolder(tmp_path / "checkpoints").verify()}
    assert "east" not in sites["phenotype", 2]
    assert "east" in sites["phenotype", 3]
    moments = sorted((tmp_path / "sites/east/studies").glob("*/memory/*phenotype/*.safetensors"))
    assert [file.stem for file in moments] == ["000001", "000003"]  # round 3 went on from round 1


@pytest.mark.parametrize("connected", [False, True], ids=["as another start", "unnoticed"])
def test_a_site_that_comes_back_with_an_empty_disk_gets_what_it_lacks(
    connected: bool, stores: dict[str, Path], tmp_path: Path
) -> None:
    lost: list[str] = []

    def lose(kind: str, phase: str, number: int) -> None:
        if (kind, phase, number) == ("train", "phenotype", 2) and not lost:
            shutil.rmtree(tmp_path / "sites" / "east")
            lost.append("east")
            if not connected:
                grid.away.add("east")
        if number == 3:
            grid.away.clear()

    deeds = {} if connected else {("east", "train", "phenotype", 2): unruly.dies}
    grid = UnrulyGrid(stores, tmp_path, deeds, lose)
    latest = run(stores, tmp_path, short_study({"rounds": 4}), grid)
    why = "node is unavailable" if not connected else "1 objects are not here"
    assert why in phases(tmp_path)["phenotype"]["lost"]["round 2"]["east"]
    assert set(latest.sites) == {"east", "south", "west"}


def test_of_two_nodes_with_one_name_one_takes_part_and_the_other_is_named(
    stores: dict[str, Path], tmp_path: Path
) -> None:
    grid = UnrulyGrid({**stores, "twin": stores["east"]}, tmp_path)
    latest = run({**stores, "twin": stores["east"]}, tmp_path, grid=grid)
    assert set(latest.sites) == {"east", "south", "west"}
    assert phases(tmp_path)["phenotype"]["absent"]["east (node 5)"] == "another node has this site's name"
    trained = [key for key in grid.asked if key[1:] == LAST]
    assert sorted(site for site, *_ in trained) == ["east", "south", "west"]


def test_a_node_that_was_put_aside_takes_its_place_again_when_the_other_is_gone(
    stores: dict[str, Path], tmp_path: Path
) -> None:
    def arrive(kind: str, phase: str, number: int) -> None:
        if (kind, phase, number) == ("train", "statistics", 1):
            grid.away.discard("twin")
        if (kind, phase, number) == ("train", "phenotype", 1):
            grid.away.add("twin")

    everybody = {**stores, "twin": stores["east"]}
    grid = UnrulyGrid(everybody, tmp_path, before=arrive)
    grid.away.add("twin")
    latest = run(everybody, tmp_path, grid=grid)
    assert set(latest.sites) == {"east", "south", "west"}
    asked = {
        number: {site for site, *rest in grid.asked if rest == ["train", "phenotype", number]}
        for number in (1, 2)
    }
    assert asked[1] == {"twin", "south", "west"}  # the newer node of a name counts
    assert asked[2] == {"east", "south", "west"}


def test_nobody_waits_long_for_a_node_that_never_says_what_it_has(
    stores: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    clock = [0.0]

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        clock[0] += seconds

    monkeypatch.setattr(server.exchange, "_POLL_SECONDS", 0.5)
    monkeypatch.setattr(server.exchange, "time", SimpleNamespace(sleep=sleep, monotonic=lambda: clock[0]))
    deeds = {("east", "query.ready", None, None): unruly.hangs}
    latest = run(
        stores, tmp_path, short_study(timeout=40.0, gather=40.0), UnrulyGrid(stores, tmp_path, deeds)
    )
    assert set(latest.sites) == {"south", "west"}
    assert "no answer" in phases(tmp_path)["phenotype"]["absent"]["node 3"]
    assert sum(waits) < 60  # the node is there all the time; only the first question is waited for


def test_a_site_that_is_killed_in_a_round_and_comes_back_as_another_node_is_asked_there(
    stores: dict[str, Path], begun: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a key of its own a SuperNode is a new node after each start; Flower lists both for a minute."""
    monkeypatch.setattr(server.exchange, "_LOOK_SECONDS", 0.0)
    plain = run(stores, shutil.copytree(begun, tmp_path / "plain"))
    folder = shutil.copytree(begun, tmp_path / "run")
    grid = UnrulyGrid(stores, folder, {("east", *LAST): unruly.moves})
    latest = run(stores, folder, short_study(timeout=30.0), grid)
    assert latest.parts == plain.parts
    assert latest.sites == plain.sites


def test_what_went_with_an_update_that_came_too_late_is_taken_back(
    stores: dict[str, Path], tmp_path: Path
) -> None:
    """SCAFFOLD's common variate stays the mean of the sites' own, weighted by their examples."""
    study = short_study({"rounds": 3}, strategy=strategies.build({"name": "scaffold"}).options())
    grid = UnrulyGrid(stores, tmp_path, {("east", "train", "phenotype", 1): unruly.is_late})
    run(stores, tmp_path, study, grid)
    checkpoints = CheckpointFolder(tmp_path / "checkpoints")
    held = [checkpoints.load(number) for number in checkpoints.sequences()]
    second = next(made for made in held if (made.phase, made.round) == ("phenotype", 2))
    assert set(second.sites) == set(stores)
    common, whole = checkpoints.state(second), sum(second.sites.values())
    own = {}
    for site in stores:
        (file,) = (tmp_path / "sites" / site).glob("studies/*/memory/control.phenotype/000002.safetensors")
        own[site] = safetensors.numpy.load_file(file)
    for name in own["east"]:
        mean = sum(own[site][name] * (weight / whole) for site, weight in second.sites.items())
        np.testing.assert_allclose(common[f"control.{name}"], mean, atol=1e-5)
