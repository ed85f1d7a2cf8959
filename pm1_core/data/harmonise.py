"""From text cells to the study's values: missing codes, value maps, units and code systems."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pandas as pd

from pm1_core.data.codes import is_code, matches
from pm1_core.data.definition import Column
from pm1_core.data.dictionary import Rule
from pm1_core.errors import DataError
from pm1_core.validate import refusal

# float() would also take "1_000", "nan", "infinity" and digits of other scripts.
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_BINARY = {"0": 0.0, "1": 1.0, "true": 1.0, "false": 0.0, "True": 1.0, "False": 0.0}
_LARGEST = float(np.finfo(np.float32).max)


class _CellError(Exception):
    """(what was found, what to do) of one cell."""


class _Codes:
    """Looks cells up by their text, and by their number: the code -1 also stands for "-1.0"."""

    def __init__(self, entries: dict[str, str | None]) -> None:
        self._texts = entries
        self._numbers = {float(text): text for text in entries if _NUMBER.fullmatch(text)}

    def find(self, cell: str) -> str | None:
        """The entry that `cell` is, or None."""
        if cell in self._texts:
            return cell
        return self._numbers.get(float(cell)) if self._numbers and _NUMBER.fullmatch(cell) else None


class Harmoniser:
    """Turns the cells of one column into values of the study columns that its rule names.

    Values are float64: the number in the study's unit, 0 or 1, or the index of the category; NaN where
    not observed.
    """

    def __init__(self, rule: Rule, file: object) -> None:
        self.rule = rule
        self.used: set[str] = set()
        self._file = file
        self._missing = _Codes(dict.fromkeys(rule.missing))
        self._values = _Codes(dict(rule.values))
        self._recoded = _Codes(dict(rule.recoded))

    def convert(self, cells: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """cells: object [n] of str, rows: int64 [n] of the file -> float64 [n, len(rule.to)].

        Raises DataError naming file, row, column, value and what to do for the first unreadable cell.
        """
        codes, uniques = pd.factorize(cells)
        convert: Callable[[str], list[float]] = self._coded if self.rule.system else self._single
        table = np.empty((len(uniques), len(self.rule.to)))
        for index, cell in enumerate(uniques):
            try:
                table[index] = convert(cell.strip())
            except _CellError as problem:
                row = rows[int(np.argmax(codes == index))]
                raise DataError(
                    refusal(
                        f"{self._file}, row {row}, column {self.rule.column!r}",
                        problem.args[0],
                        problem.args[1],
                    )
                ) from None
        result: np.ndarray = table[codes]
        return result

    def unused(self) -> list[str]:
        """Entries of the value map that no cell used so far."""
        return [cell for cell in self.rule.values if cell not in self.used]

    def _single(self, cell: str) -> list[float]:
        if cell == "" or self._missing.find(cell) is not None:
            return [np.nan]
        column = self.rule.to[0]
        entry = self._values.find(cell)
        if entry is not None:
            self.used.add(entry)
            meaning = self.rule.values[entry]
            return [np.nan if meaning is None else self._plain(meaning, column)]
        if self.rule.values and column.kind != "continuous":
            accepted = ", ".join(self.rule.values)
            raise _CellError(
                f"found {cell!r}, which is in no map",
                f"add it to values or missing of the dictionary (known: {accepted})",
            )
        code = self._recoded.find(cell)
        value = self._plain(cell if code is None else self.rule.recoded[code], column)
        if column.kind == "continuous":
            value = value * self.rule.conversion.factor + self.rule.conversion.offset
        return [value]

    def _plain(self, cell: str, column: Column) -> float:
        if column.kind == "categorical":
            if cell not in column.categories:
                raise _CellError(
                    f"found {cell!r}",
                    f"map it by values in the dictionary to one of {', '.join(column.categories)}",
                )
            return float(column.categories.index(cell))
        if column.kind == "binary":
            value = _BINARY.get(cell)
            if value is None and _NUMBER.fullmatch(cell) and float(cell) in (0.0, 1.0):
                value = float(cell)
            if value is None:
                raise _CellError(
                    f"found {cell!r}", "map it by values in the dictionary to 0 or 1, or list it as missing"
                )
            return value
        if not _NUMBER.fullmatch(cell) or abs(float(cell)) > _LARGEST:
            raise _CellError(
                f"found {cell!r}, which is no number",
                "write it with a decimal point and no unit, or list it as missing in the dictionary",
            )
        return float(cell)

    def _coded(self, cell: str) -> list[float]:
        system = self.rule.system or ""
        if self._missing.find(cell) is not None or (cell == "" and self.rule.empty_is_missing):
            return [np.nan] * len(self.rule.to)
        listed = [code.strip() for code in cell.split(self.rule.separator) if code.strip()]
        for code in listed:
            if not is_code(system, code):
                raise _CellError(
                    f"found {code!r}, which is no code of {system}",
                    "correct it, or correct system or separator of the dictionary",
                )
        return [
            float(any(matches(system, code, column.codes[system]) for code in listed))
            for column in self.rule.to
        ]
