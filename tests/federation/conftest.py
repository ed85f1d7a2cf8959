"""Fixtures of what sites and disks do to a run: a short study over three sites that are alike."""

from __future__ import annotations

from pathlib import Path

import pytest
import short
import unruly

import server.exchange
import server.roster
from pm1_core import atomic


@pytest.fixture
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits longer than a test has to."""
    monkeypatch.setattr(server.exchange, "_POLL_SECONDS", 0.001)
    monkeypatch.setattr(server.exchange, "_LOOK_SECONDS", 0.05)
    monkeypatch.setattr(server.roster, "_POLL_SECONDS", 0.001)
    monkeypatch.setattr(server.roster, "_SILENT_SECONDS", 0.05)


@pytest.fixture(scope="session")
def stores(hospitals: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three sites with the same people, so that none of them moves the model further than another."""
    folder = tmp_path_factory.mktemp("stores")
    copies = {site: unruly.copied_store(hospitals["south"], folder / site, site) for site in ("east", "west")}
    return {"south": hospitals["south"], **copies}


@pytest.fixture(scope="session")
def begun(stores: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped before the last round."""
    folder = tmp_path_factory.mktemp("begun") / "run"
    coordinator = short.coordinator(stores, folder)

    def stop(phase: str, done: int, whole: int) -> None:
        if done == whole - 1:
            raise short.StoppedError

    coordinator.progress = stop
    with pytest.raises(short.StoppedError), atomic.without_sync():
        coordinator.run()
    return folder
