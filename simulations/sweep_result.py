"""Where the result of a cell of a sweep lies, and whether it is there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pm1_core import atomic
from simulations.sweep_grid import Cell


def result_file(folder: Path, cell: Cell) -> Path:
    """Where the result of `cell` is, or will be, in a sweep's folder."""
    return folder / "cells" / f"{cell.hash[:16]}.json"


def error_file(folder: Path, cell: Cell) -> Path:
    """Where it says why `cell` could not be run, if it could not."""
    return result_file(folder, cell).with_suffix(".error")


def read_result(folder: Path, cell: Cell) -> dict[str, Any] | None:
    """What was written for `cell`; None if nothing was, or for another configuration."""
    file = result_file(folder, cell)
    found: dict[str, Any] | None = atomic.read_json(file) if file.exists() else None
    return found if found and found["hash"] == cell.hash else None
