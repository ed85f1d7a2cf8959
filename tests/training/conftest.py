from __future__ import annotations

from pathlib import Path

import pytest
from whole import Part, parts

from pm1_core.data.store import Store


@pytest.fixture(scope="session")
def north(hospitals: dict[str, Path]) -> Store:
    """A hospital with all modalities."""
    return Store.open(hospitals["north"])


@pytest.fixture(scope="session")
def whole(north: Store, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Part]:
    """Every part of PM1 before a round at `north`."""
    return parts(north, tmp_path_factory.mktemp("whole"))
