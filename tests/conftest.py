"""Fixtures that several areas share."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hospitals import prepare_hospitals
from hypothesis import settings

# How long an example takes is up to what else the machine does. The suite tries the same examples everywhere, so
# that a change passes or fails for what it is; `pytest --hypothesis-profile explore` looks for new ones.
settings.register_profile("suite", deadline=None, derandomize=True)
settings.register_profile("explore", deadline=None)
settings.load_profile("suite")


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """The suite runs in as many processes as there are cores."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def hospitals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """site -> prepared store, see hospitals.py."""
    return prepare_hospitals(tmp_path_factory.mktemp("hospitals"))
