"""A full disk, a read-only folder, a clock that jumps: a sentence, no damage, and the same bytes."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message
from mortal import ForkServer, Steps
from mortal_work import fresh
from short import LAST, coordinator, phases, run, short_study
from unruly import UnrulyGrid, hangs

import simulations.cli
import simulations.run
from pm1_core.checkpoint import CheckpointFolder
from pm1_core.command import guarded
from pm1_core.errors import FederationError

pytestmark = pytest.mark.usefixtures("_impatient")
ALL = {"min_sites": 3}


class FullDisk(Steps):
    """From the `fatal`-th attempt to write on there is no space left; removing and renaming go on."""

    def step(self) -> None:
        if self.on:
            self.count += 1
            if self.fatal and self.count >= self.fatal:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _stepping(self, function: Any, skipped: bool) -> Any:
        def writing(*arguments: Any, **options: Any) -> Any:
            new = function.__name__ == "mkdir" and not Path(arguments[0]).exists()
            if new or (function.__name__ == "open" and arguments[1] & (os.O_WRONLY | os.O_RDWR)):
                self.step()
            return function(*arguments, **options)

        return writing


class Grid(UnrulyGrid):
    """The disk of one side only is full: that of the coordinator, or of `east`."""

    disk: FullDisk
    side: str

    def _answer(self, message: Message) -> Message:
        here = self.sites[message.metadata.dst_node_id] == self.side
        before, self.disk.on = self.disk.on, here
        try:
            return super()._answer(message)
        finally:
            self.disk.on = before


def attempt(stores: dict[str, Path], folder: Path, side: str, fatal: int) -> FullDisk:
    """Go on with a run while the disk of one side fills up."""
    grid = Grid(stores, folder)
    grid.disk, grid.side = FullDisk(fatal), side
    made = coordinator(stores, folder, short_study(ALL), grid)
    grid.disk.on = side == "coordinator"
    with grid.disk:
        made.run()
    return grid.disk


@pytest.fixture(scope="module")
def before(stores: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that needs all sites, before its last round."""
    folder = tmp_path_factory.mktemp("before") / "run"
    grid = UnrulyGrid(stores, folder, {("east", *LAST): hangs})
    with pytest.raises(FederationError):
        run(stores, folder, short_study(ALL), grid)
    return folder


@pytest.fixture(scope="module")
def expected(stores: dict[str, Path], before: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The hash of the undisturbed run's last checkpoint."""
    return run(stores, fresh(before, tmp_path_factory.mktemp("expected") / "run"), short_study(ALL)).hash


@pytest.mark.parametrize("side", ["coordinator", "east"])
def test_a_disk_that_fills_up_at_any_write_ends_in_a_sentence_and_the_run_goes_on_later(
    side: str,
    stores: dict[str, Path],
    before: Path,
    expected: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    whole = attempt(stores, fresh(before, tmp_path / "run"), side, 0).count
    assert whole > 10
    for fatal in range(1, whole + 1, max(1, whole // 12)):
        folder = fresh(before, tmp_path / "run")
        code = guarded("pm1-server", lambda fatal=fatal, folder=folder: attempt(stores, folder, side, fatal))  # type: ignore[misc]
        said = capsys.readouterr().err
        if code:  # what is only told beside (a curve, a log) does not end a run
            assert said.count("\n") == 1, said
            assert "Traceback" not in said
            if side == "coordinator":
                assert code == 2
                assert "the disk is full; free some space" in said
                assert str(tmp_path) in said
            else:
                assert code == 4
                assert "No space left on device" in said
        elif "evaluation" in phases(folder)["phenotype"].get("lost", {}):
            continue  # the phase ends without the figures of that site
        assert run(stores, folder, short_study(ALL)).hash == expected
        assert not list(folder.rglob("*.beside"))


def test_the_command_says_that_the_disk_is_full_and_exits_with_2(
    stores: dict[str, Path],
    before: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = fresh(before, tmp_path / "run")
    monkeypatch.setattr(
        simulations.run, "run", lambda config, stages: attempt(stores, folder, "coordinator", 9)
    )
    assert simulations.cli.main(["run", "model=tiny"]) == 2
    assert "the disk is full; free some space and run the command again." in capsys.readouterr().err


@pytest.fixture(scope="module")
def server() -> Iterator[ForkServer]:
    with ForkServer() as running:
        yield running


@pytest.mark.slow
@pytest.mark.parametrize(
    ("disk", "sentence"),
    [
        ({"tmpfs": 40}, "the disk is full"),
        ({"read_only": True}, "read-only"),
        ({"file_size": 3000}, "file too large"),
    ],
    ids=["full", "read-only", "limited"],
)
def test_a_real_disk_that_takes_no_more_ends_in_a_sentence_and_the_run_goes_on_elsewhere(
    disk: dict[str, Any],
    sentence: str,
    server: ForkServer,
    stores: dict[str, Path],
    before: Path,
    expected: str,
    tmp_path: Path,
) -> None:
    paths = {site: str(store) for site, store in stores.items()}
    outcome = server.call("on_a_disk", paths, str(before), str(tmp_path), ALL, disk)
    if "skipped" in outcome:
        pytest.skip(outcome["skipped"])
    assert outcome["code"] in (2, 4)
    assert sentence in outcome["said"].lower()
    assert "Traceback" not in outcome["said"]
    assert run(stores, tmp_path / "after", short_study(ALL)).hash == expected


@pytest.mark.parametrize("jump", [-86_400.0, 86_400.0], ids=["back", "ahead"])
def test_a_clock_that_jumps_changes_nothing(
    jump: float,
    stores: dict[str, Path],
    before: Path,
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [time.time()]

    def jumping() -> float:
        now[0] += jump
        return now[0]

    monkeypatch.setattr(time, "time", jumping)
    folder = fresh(before, tmp_path / "run")
    assert run(stores, folder, short_study(ALL)).hash == expected
    CheckpointFolder(folder / "checkpoints").verify()
    assert "round 2" in phases(folder)["phenotype"]["lost"]  # of the run before, in which east did not answer
