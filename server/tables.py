"""Tables and figures as the coordinator's commands print them."""

from __future__ import annotations

import json
from collections.abc import Sequence


def number(value: float | None, sign: str = "") -> str:
    """Four digits, "-" for what is not there; sign "+" shows the sign of a difference."""
    return "-" if value is None else f"{value:{sign}.4g}"


def print_json(content: object) -> None:
    """One document on standard output."""
    print(json.dumps(content, indent=1, sort_keys=True))


def print_table(head: Sequence[str] | None, rows: Sequence[Sequence[str]], sides: str) -> None:
    """Columns as wide as their widest entry; sides: a letter per column, l for left or r for right."""
    lines = [*([head] if head else []), *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(sides))]
    for line in lines:
        cells = (
            text.rjust(width) if side == "r" else text.ljust(width)
            for text, width, side in zip(line, widths, sides, strict=True)
        )
        print("  ".join(cells).rstrip())
