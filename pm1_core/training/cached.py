"""Caches of a study on a site's disk, told and removed without torch."""

from __future__ import annotations

import shutil
from pathlib import Path

from pm1_core import atomic

FACTS = "cache.json"
"""In every cache of tokens: {"kind": "bfloat16", "bytes": of its arrays, "people": n}."""
TOKEN_CACHES, PHOTOGRAPH_CACHES = "tokens", "photographs"
"""Folders of a study's memory that hold what is made from the store and the frozen encoders alone."""


def cached_bytes(folder: Path) -> dict[str, int]:
    """Bytes of all caches of tokens below `folder`, by kind."""
    found: dict[str, int] = {}
    for file in sorted(folder.rglob(f"{TOKEN_CACHES}/*/{FACTS}")):
        facts = atomic.read_json(file)
        found[facts["kind"]] = found.get(facts["kind"], 0) + facts["bytes"]
    return found


def drop_caches(memory: Path) -> None:
    """Remove the caches of a study; a round that is asked for all the same makes them anew, the same bytes."""
    for name in (TOKEN_CACHES, PHOTOGRAPH_CACHES):
        shutil.rmtree(memory / name, ignore_errors=True)
