"""Where tests of the containers are skipped."""

from __future__ import annotations

import pytest
from namespaces import missing


@pytest.fixture(scope="session")
def _namespaces() -> None:
    """Skips where no container can be made."""
    if reason := missing():
        pytest.skip(reason)
