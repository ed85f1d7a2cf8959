"""Which programme made a checkpoint."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

_PACKAGES = ("pm1_core", "strategies", "client", "server")


@cache
def code_hash() -> str:
    """SHA-256 over the names and bytes of the Python sources that a study's result depends on."""
    root = Path(__file__).parent.parent
    digest = hashlib.sha256()
    for package in _PACKAGES:
        for file in sorted((root / package).rglob("*.py")):
            digest.update(file.relative_to(root).as_posix().encode() + b"\0")
            digest.update(file.read_bytes() + b"\0")
    return digest.hexdigest()
