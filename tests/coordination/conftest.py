"""A run that finished and one that is under way, and where coordinators of real processes are."""

from __future__ import annotations

import shutil
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

for _room in ("federation", "doors", "drills"):
    sys.path.insert(0, str(Path(__file__).parent.parent / _room))


@pytest.fixture(scope="session")
def finished(hospitals: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a short study over three sites."""
    import short
    import unruly

    folder = tmp_path_factory.mktemp("finished")
    copies = {site: unruly.copied_store(hospitals["south"], folder / site, site) for site in ("east", "west")}
    short.run({"south": hospitals["south"], **copies}, folder / "run", short.short_study(timeout=60.0))
    return folder / "run"


@pytest.fixture
def under_way(finished: Path, tmp_path: Path) -> Path:
    """The same, as its coordinator left it within the last round."""
    folder = tmp_path / "under_way"
    shutil.copytree(finished, folder, ignore=shutil.ignore_patterns("sites", "tensorboard"))
    (folder / "checkpoints/000006.json").unlink()
    from watched import change

    said = {"state": "running", "doing": "phenotype, train 2", "waiting": ["west"]}
    change(folder / "status.json", **said, time=datetime.now(UTC).isoformat(timespec="seconds"))
    return folder
