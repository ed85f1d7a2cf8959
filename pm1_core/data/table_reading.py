"""Tables into study values, subject by subject: what phenotype and label tables have in common."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator

import numpy as np

from pm1_core.data.harmonise import Harmoniser
from pm1_core.data.manifest import TableSource
from pm1_core.data.preparation_report import Findings
from pm1_core.data.subjects import subject_text
from pm1_core.data.tables import Batch, column_names, read_batches
from pm1_core.errors import DataError
from pm1_core.validate import refusal, require_choice

# values of one batch: subjects [n], study column -> float64 [n] (NaN missing)
Part = tuple[list[str], dict[str, np.ndarray]]


class TableReader:
    """Reads one table of a manifest and counts what it meets under `area`, "phenotype" or "labels".

    A subject that is there twice with the same values is kept once; with other values it is refused.
    Rows without identifiers are named "<site>-row-000001" by their row among the data rows.
    """

    def __init__(self, source: TableSource, site: str, area: str, findings: Findings) -> None:
        self._source, self._site, self._area, self._findings = source, site, area, findings
        self._file = source.table.path
        self._names = column_names(source.table)
        if source.subject is not None:
            require_choice(f"{self._file}, subject column", source.subject, self._names, DataError)
        for rule in source.rules:
            require_choice(f"{rule.where}, column of {self._file}", rule.column, self._names, DataError)
        self._harmonisers = [Harmoniser(rule, self._file) for rule in source.rules]
        self._seen: dict[bytes | str, tuple[int, bytes]] = {}
        self._ranges: dict[str, tuple[float, float]] = {}
        self._first_row = 1 if source.table.is_parquet or source.table.names is not None else 2

    def read(self, progress: Callable[[int, int], None]) -> Iterator[Part]:
        """All rows in order. Raises DataError naming file, row and column."""
        done = 0
        for batch in read_batches(self._source.table):
            subjects = self._subjects(batch)
            merged: dict[str, np.ndarray] = {}
            for harmoniser in self._harmonisers:
                values = harmoniser.convert(batch.cells[harmoniser.rule.column], batch.rows)
                for index, column in enumerate(harmoniser.rule.to):
                    have, new = merged.get(column.name), values[:, index]
                    # Several sources of one binary column: a 1 of any of them counts, NaN only if all are.
                    merged[column.name] = new if have is None else np.fmax(have, new)
            kept = self._kept(batch, subjects, merged)
            self._note_range(merged, kept)
            done += len(batch)
            progress(done, 0)
            yield [subjects[i] for i in kept], {name: values[kept] for name, values in merged.items()}
        if done == 0:
            raise DataError(refusal(self._file, "found no rows", "give a table with at least one row"))
        self._finish()

    def _subjects(self, batch: Batch) -> list[str]:
        if self._source.subject is None:
            return [f"{self._site}-row-{row - self._first_row + 1:06d}" for row in batch.rows.tolist()]
        cells = batch.cells[self._source.subject]
        return [
            subject_text(f"{self._file}, row {row}, column {self._source.subject!r}", cell)
            for row, cell in zip(batch.rows.tolist(), cells, strict=True)
        ]

    def _kept(self, batch: Batch, subjects: list[str], merged: dict[str, np.ndarray]) -> np.ndarray:
        if self._source.subject is None and self._source.identical_rows == "keep":
            return np.arange(len(batch))
        by_row = self._source.subject is None
        if by_row:
            texts = ["\x1f".join(cells) for cells in zip(*batch.cells.values(), strict=True)]
            digests = [hashlib.blake2b(text.encode(), digest_size=16).digest() for text in texts]
        else:
            matrix = np.stack(list(merged.values()), axis=1)
            digests = [hashlib.blake2b(row.tobytes(), digest_size=16).digest() for row in matrix]
        kept = []
        for index, (subject, digest, row) in enumerate(
            zip(subjects, digests, batch.rows.tolist(), strict=True)
        ):
            first = self._seen.setdefault(digest if by_row else subject, (row, digest))
            if first[0] == row:
                kept.append(index)
            elif first[1] == digest:
                code = "phenotype.identical-row" if by_row else f"{self._area}.duplicate-subject"
                self._findings.add(code, self._file, f"row {row} (as row {first[0]})")
            else:
                raise DataError(
                    refusal(
                        f"{self._file}, rows {first[0]} and {row}",
                        f"found subject {subject!r} twice with different values",
                        "keep one row per subject",
                    )
                )
        return np.array(kept, np.int64)

    def _note_range(self, merged: dict[str, np.ndarray], kept: np.ndarray) -> None:
        for name, values in merged.items():
            observed = values[kept][~np.isnan(values[kept])]
            if len(observed):
                low, high = self._ranges.get(name, (np.inf, -np.inf))
                self._ranges[name] = (min(low, observed.min()), max(high, observed.max()))

    def _finish(self) -> None:
        for rule in self._source.rules:
            for column in rule.to:
                low, high = self._ranges.get(column.name, (np.nan, np.nan))
                place = f"column {rule.column!r} (to {column.name})"
                if np.isnan(low) and self._area == "phenotype":
                    self._findings.add("phenotype.no-value", self._file, place)
                elif low == high:
                    self._findings.add(f"{self._area}.one-value", self._file, place)
            if rule.unit_assumed:
                self._findings.add(
                    f"{self._area}.unit-assumed", self._file, f"column {rule.column!r} ({rule.to[0].unit})"
                )
        if self._area != "phenotype":
            return
        named = {rule.column for rule in self._source.rules} | {self._source.subject}
        self._findings.add_all(
            "phenotype.not-in-dictionary",
            self._file,
            (f"column {n!r}" for n in self._names if n not in named),
        )
        for harmoniser in self._harmonisers:
            self._findings.add_all(
                "phenotype.unused-code", self._file,
                (f"column {harmoniser.rule.column!r}, value {cell!r}" for cell in harmoniser.unused()),
            )  # fmt: skip
