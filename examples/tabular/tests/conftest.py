"""Three small hospitals of PM1's own tests, prepared once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hospitals import prepare_hospitals

from pm1_core import atomic
from pm1_core.data.store import Store


@pytest.fixture(autouse=True)
def _without_sync() -> Iterator[None]:
    """Moments of some hundred rounds need not survive a loss of power."""
    with atomic.without_sync():
        yield


@pytest.fixture(scope="session")
def sites(tmp_path_factory: pytest.TempPathFactory) -> list[Store]:
    """The two hospitals that have a table; the third has photographs only."""
    stores: dict[str, Path] = prepare_hospitals(tmp_path_factory.mktemp("hospitals"))
    return [Store.open(stores[site]) for site in ("north", "south")]
