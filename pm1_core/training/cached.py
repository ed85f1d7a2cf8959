"""What caches of tokens take on a site's disk, told without torch."""

from __future__ import annotations

from pathlib import Path

from pm1_core import atomic

FACTS = "cache.json"
"""In every cache: {"kind": "bfloat16", "bytes": of its arrays, "people": n}."""


def cached_bytes(folder: Path) -> dict[str, int]:
    """Bytes of all caches of tokens below `folder`, by kind."""
    found: dict[str, int] = {}
    for file in sorted(folder.rglob(f"tokens/*/{FACTS}")):
        facts = atomic.read_json(file)
        found[facts["kind"]] = found.get(facts["kind"], 0) + facts["bytes"]
    return found
