"""Nothing is lost: killed at any instant, coordinator and sites go on to the very bytes of an undisturbed run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mortal import ForkServer
from mortal_work import LOSSY, PLAIN, SHORT, contents, fresh

from client.outbox import Outbox
from pm1_core import atomic
from pm1_core.checkpoint import CheckpointFolder
from server.journal import Journal

Stores = dict[str, str]


@pytest.fixture(scope="module")
def server() -> Iterator[ForkServer]:
    with ForkServer() as running:
        yield running


@pytest.fixture(scope="module")
def stores(hospitals: dict[str, Path]) -> Stores:
    return {site: str(store) for site, store in hospitals.items()}


class Runs:
    """Undisturbed runs, made once each."""

    def __init__(self, server: ForkServer, stores: Stores, folder: Path) -> None:
        self.server, self.stores, self.folder = server, stores, folder

    def __call__(self, changes: dict[str, Any], stores: Stores | None = None) -> Path:
        sites = stores or self.stores
        folder = self.folder / str(abs(hash(json.dumps([changes, sites]))))
        if not folder.exists():
            self.server.call("federate", changes, sites, str(folder))
        return folder


@pytest.fixture(scope="module")
def undisturbed(server: ForkServer, stores: Stores, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(server, stores, tmp_path_factory.mktemp("undisturbed"))


def assert_nothing_was_lost(killed: Path, whole: Path) -> None:
    """The same lineage, tensors, figures and memories, and nothing beside them."""
    one, other = CheckpointFolder(killed / "checkpoints"), CheckpointFolder(whole / "checkpoints")
    assert [c.hash for c in one.verify()] == [c.hash for c in other.verify()]
    for pattern in (
        "checkpoints/**/*.safetensors",
        "sites/*/studies/*/memory/**/*",
        "sites/*/studies/*/parts/*",
        "sites/*/studies/*/releases/objects/*",
    ):
        assert contents(killed, pattern) == contents(whole, pattern), pattern
    assert lines(killed) == lines(whole)
    assert [file for file in killed.rglob("*") if file.name.endswith(".beside")] == []
    assert [file for file in killed.glob("spool/**/*") if file.is_file()] == []
    assert json.loads((killed / "phases.json").read_text()) == json.loads((whole / "phases.json").read_text())


def lines(folder: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without what depends on the clock."""
    read = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for line in read:
        del line["seconds"]
        line["metrics"].pop("energy_joules", None)
    return read


@pytest.mark.slow
@pytest.mark.parametrize(("changes", "kills"), [(PLAIN, 32), (LOSSY, 10)], ids=["plain", "scaffold-int8"])
def test_a_run_killed_at_random_instants_ends_with_the_same_bytes(
    changes: dict[str, Any],
    kills: int,
    server: ForkServer,
    stores: Stores,
    undisturbed: Runs,
    tmp_path: Path,
) -> None:
    whole = undisturbed(changes)
    lineage = CheckpointFolder(whole / "checkpoints").verify()
    draws, died_in = np.random.default_rng(len(changes)), []
    for life in range(kills):
        target = life * (len(lineage) - 1) // kills
        death = {"checkpoint": target, "after": float(draws.uniform(0.005, 0.25))}
        assert server.call("federate", changes, stores, str(tmp_path), death) is None, "it came to its end"
        latest = CheckpointFolder(tmp_path / "checkpoints").latest()
        died_in.append(latest.phase if latest else "")
    server.call("federate", changes, stores, str(tmp_path))
    assert_nothing_was_lost(tmp_path, whole)
    assert len(set(died_in)) >= 5, died_in


@pytest.mark.slow
def test_a_run_killed_at_every_write_of_a_checkpoint_ends_with_the_same_bytes(
    server: ForkServer, stores: Stores, undisturbed: Runs, tmp_path: Path
) -> None:
    one = {"south": stores["south"]}
    whole = undisturbed(SHORT, one)
    last = len(CheckpointFolder(whole / "checkpoints").sequences())
    before = tmp_path / "before"
    # The last checkpoint but one has a strategy's state in it, the last one is evaluated before it is in force.
    for number in (last - 1, last):
        shutil.rmtree(before, ignore_errors=True)
        death = {"checkpoint": number, "step": 1}
        assert server.call("federate", SHORT, one, str(before), death) is None
        for step in range(1, 1000):
            run = fresh(before, tmp_path / "run")
            death["step"] = step
            outcome = server.call("federate", SHORT, one, str(run), death)
            if outcome is not None:
                assert outcome["steps"] == step - 1  # it came to its end: there are no more
                break
            server.call("federate", SHORT, one, str(run))
            assert_nothing_was_lost(run, whole)
        assert step > 12


@pytest.mark.slow
def test_a_run_killed_at_any_step_on_disk_of_coordinator_and_sites_ends_with_the_same_bytes(
    server: ForkServer, stores: Stores, undisturbed: Runs, tmp_path: Path
) -> None:
    whole = undisturbed(SHORT)
    last = len(CheckpointFolder(whole / "checkpoints").sequences())
    before = tmp_path / "before"
    death = {"checkpoint": last, "round": 1}
    assert server.call("federate", SHORT, stores, str(before), death) is None
    steps = server.call(
        "federate", SHORT, stores, str(fresh(before, tmp_path / "run")), {**death, "round": 10**9}
    )
    chosen = np.random.default_rng(0).choice(steps["steps"], 20, replace=False) + 1
    for step in chosen.tolist():
        run = fresh(before, tmp_path / "run")
        assert server.call("federate", SHORT, stores, str(run), {**death, "round": step}) is None
        server.call("federate", SHORT, stores, str(run))
        assert_nothing_was_lost(run, whole)


@pytest.mark.slow
def test_a_site_killed_alone_at_every_step_of_a_round_gives_the_same_answer(
    server: ForkServer, stores: Stores, undisturbed: Runs, tmp_path: Path
) -> None:
    outcome = server.call("site_dies_at_every_step", stores, str(tmp_path), SHORT)
    assert outcome["deaths"] > 35
    assert outcome["torn"] > 0  # also in the middle of a line of its outbox
    assert outcome["outcomes"] == 1
    one = CheckpointFolder(tmp_path / "checkpoints").latest()
    other = CheckpointFolder(undisturbed(SHORT) / "checkpoints").latest()
    assert one
    assert other
    assert one.hash == other.hash


@pytest.mark.slow
def test_a_release_once_made_is_sent_again_even_if_noise_would_now_be_drawn_anew(
    server: ForkServer, stores: Stores, tmp_path: Path
) -> None:
    one = {"south": stores["south"]}
    releases = "sites/south/studies/*/releases/*.json"

    def sent(folder: Path) -> dict[str, Any]:
        """The first line about the round in the site's outbox."""
        written = (folder / "sites/south/outbox.jsonl").read_text().splitlines()
        trained = [line for line in map(json.loads, written) if line["what"] == "train"]
        return next(line for line in trained if line["phase"] == "phenotype")

    for _ in range(2):  # the second process dies where the first did: it makes no other release
        assert server.call("with_noise", one, str(tmp_path / "killed"), True) is None
    (made,) = (
        content
        for file in (tmp_path / "killed").glob(releases)
        if (content := json.loads(file.read_text()))["phase"] == "phenotype"
    )
    server.call("with_noise", one, str(tmp_path / "killed"), False)
    assert sent(tmp_path / "killed")["sha256"] == made["objects"]
    assert sent(tmp_path / "killed")["facts"] == {"again": True}
    server.call("with_noise", one, str(tmp_path / "other"), False)
    assert sent(tmp_path / "other")["sha256"] != made["objects"]  # the noise is indeed drawn anew each time


def test_a_torn_line_of_the_outbox_stays_a_line_of_its_own(tmp_path: Path) -> None:
    outbox = Outbox("north", tmp_path / "outbox.jsonl", tmp_path / "releases", lambda release: None)
    outbox.tell("ready", {"lacking": []})
    whole = (tmp_path / "outbox.jsonl").read_text()
    (tmp_path / "outbox.jsonl").write_text(whole + whole[:20])
    outbox.tell("ready", {"lacking": []})
    outbox.tell("ready", {"lacking": []})
    assert atomic.whole_lines(tmp_path / "outbox.jsonl") == [
        whole.strip(), whole[:20], whole.strip(), whole.strip(),
    ]  # fmt: skip


@pytest.mark.parametrize("torn", ['{"sequence": 1, "pha', "\x00" * 30, '{"sequence": 1}\n[]\n{"seq'])
def test_torn_lines_of_metrics_are_dropped_when_a_run_goes_on(torn: str, tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.write(1, "fusion", 1, "north", {"loss": 1.0}, 10, 0.5)
    journal.close()
    whole = journal.file.read_text()
    journal.file.write_text(whole + torn)
    resumed = Journal(tmp_path, 1)
    resumed.write(2, "fusion", 2, "north", {"loss": 0.5}, 10, 0.5)
    resumed.close()
    read = [json.loads(line) for line in journal.file.read_text().splitlines()]
    assert [line["sequence"] for line in read if "metrics" in line] == [1, 2]
