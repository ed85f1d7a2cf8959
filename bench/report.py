"""Where results go: bench/results.json, and the machine that they were measured on."""

from __future__ import annotations

import json
import os
import platform
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pm1_core import atomic

RESULTS = Path(__file__).parent / "results.json"


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A folder that is gone afterwards."""
    machine()
    with tempfile.TemporaryDirectory(prefix="pm1-bench-") as place:
        yield Path(place)


@cache
def machine() -> dict[str, Any]:
    """What a ratio has to be read with; the load is that at the first call."""
    memory = int(Path("/proc/meminfo").read_text().split()[1]) / 2**20
    models = [line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    return {
        "processor": models[0] if models else platform.processor(),
        "cores": len(models),
        "memory_gib": round(memory, 1),
        "load": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("torch", "flwr", "numpy")},
    }


def keep(name: str, result: dict[str, Any]) -> None:
    """Put a result under `name` into results.json, beside what is there."""
    held = atomic.read_json(RESULTS) if RESULTS.exists() else {}
    atomic.write_json(RESULTS, {**held, name: {"machine": machine(), **result}})


def show(result: dict[str, Any]) -> None:
    """Print a result."""
    print(json.dumps(result, indent=1))


def _lines(file: str) -> list[str]:
    path = Path(file)
    return path.read_text().splitlines() if path.exists() else []
