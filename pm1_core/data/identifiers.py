"""rs-numbers of a file beside the study's: not to match by, but to tell another genome build."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from pm1_core.errors import DataError
from pm1_core.validate import refusal

_ENOUGH = 10


class Identifiers:
    """The study's rs-numbers with their places, and how many of a file lie elsewhere.

    A place is chromosome << 32 | position.
    """

    def __init__(self, names: pd.Series, keys: np.ndarray) -> None:
        """names: text [n], of which those that begin with "rs" count; keys: int64 [n]."""
        self._names, self._keys = names, keys
        self._same = self._moved = 0
        self._example = ""

    @cached_property
    def _known(self) -> pd.Series:
        known = pd.Series(self._keys, index=pd.Index(self._names))
        known = known[known.index.str.startswith("rs")]
        return known[~known.index.duplicated(keep="last")]

    @cached_property
    def _by_name(self) -> dict[str, int]:
        return dict(zip(self._known.index, self._known.tolist(), strict=True))

    def note(self, name: str, chromosome: int, position: int, where: str) -> None:
        """Compare the place of one variant with the study's."""
        known = self._by_name.get(name)
        if known is not None:
            self._same += 1
            if known != (chromosome << 32) | position:
                self._moved += 1
                self._show(name, known, chromosome, position, where)

    def note_rows(self, rows: pd.DataFrame, file: object) -> None:
        """`note` for all rows of a file: row, chrom, pos, id."""
        known = pa.array(self._known.index, pa.string())
        place = pc.fill_null(pc.index_in(pa.array(rows["id"], pa.string()), value_set=known), -1)
        place = np.asarray(place.to_numpy(zero_copy_only=False), np.int64)
        shared = np.flatnonzero(place >= 0)
        theirs = self._known.to_numpy(np.int64)[place[shared]]
        ours = ((rows["chrom"].to_numpy(np.int64) << 32) | rows["pos"].to_numpy(np.int64))[shared]
        moved = np.flatnonzero(theirs != ours)
        self._same += len(shared)
        self._moved += len(moved)
        if len(moved):
            row = rows.iloc[int(shared[moved[0]])]
            where = f"{file}, row {row['row']}"
            self._show(row["id"], int(theirs[moved[0]]), row["chrom"], row["pos"], where)

    def _show(self, name: str, known: int, chromosome: int, position: int, where: str) -> None:
        self._example = self._example or (
            f"{where}: found {name} at {chromosome}:{position}, where the study has it at"
            f" {known >> 32}:{known & 0xFFFFFFFF}"
        )

    def check_build(self, file: object, build: str) -> None:
        """Raise DataError if most identifiers shared with the study lie elsewhere: another genome build."""
        if self._same >= _ENOUGH and 2 * self._moved > self._same:
            raise DataError(
                refusal(
                    self._example,
                    f"and {self._moved} of {self._same} shared identifiers lie elsewhere",
                    f"{file} is not on {build}: lift it over, or correct genotype.build",
                )
            )
