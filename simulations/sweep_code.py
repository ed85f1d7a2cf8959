"""A digest of the code that a cell's figures depend on: part of a cell's hash."""

from __future__ import annotations

import hashlib
import os
from functools import lru_cache
from pathlib import Path

VARIABLE = "PM1_SWEEP_CODE"
"""Carries the digest from a sweep to its jobs: the hash of a cell stays, whatever is edited while it runs."""
PACKAGES = ("pm1_core", "strategies", "client", "server", "configs", "simulations")
_APART = ("report", "sweep_page", "sweep_plots", "sweep_table", "cli", "learning/")
"""Beginnings of paths in `simulations` that no cell's figures depend on."""


@lru_cache(maxsize=1)
def code_digest() -> str:
    """SHA-256 of every module and configuration of PM1 but what no cell runs; computed once.

    A sweep's job takes what its sweep found.
    """
    return os.environ.get(VARIABLE) or digest_of(Path(__file__).parents[1])


def digest_of(root: Path) -> str:
    """The digest of the packages below `root`."""
    found = hashlib.sha256()
    for package in PACKAGES:
        folder = root / package
        for file in sorted([*folder.rglob("*.py"), *folder.rglob("*.yaml")]):
            if package == "simulations" and file.relative_to(folder).as_posix().startswith(_APART):
                continue
            found.update(f"{file.relative_to(root).as_posix()}\0".encode())
            found.update(hashlib.sha256(file.read_bytes()).digest())
    return found.hexdigest()
