"""The table of docs/threat-model.md against the tests: each that it names is there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent
PAGE = (REPOSITORY / "docs" / "threat-model.md").read_text()
TABLE = PAGE.partition("## What crosses a boundary")[2].partition("\n## ")[0]
ROWS = [line for line in TABLE.splitlines() if line.startswith("| ")][1:]
NAMED = re.findall(r"`(tests/[^:`]+)::(\w+)`", TABLE)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.split("|")[1].strip())
def test_every_boundary_is_held_by_a_test(row: str) -> None:
    assert [bool(cell.strip()) for cell in row.split("|")] == [False, True, True, True, True, False]
    assert "`tests/" in row.split("|")[4]


@pytest.mark.parametrize(("file", "name"), NAMED, ids=lambda word: word)
def test_what_the_table_names_is_a_test(file: str, name: str) -> None:
    body = ast.parse((REPOSITORY / file).read_text()).body
    assert name in [made.name for made in body if isinstance(made, ast.FunctionDef)]
