"""Tables as text cells, batch by batch, with the row of the file that each cell came from."""

from __future__ import annotations

import csv
import gzip
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as arrow_csv
import pyarrow.parquet as parquet

from pm1_core.errors import DataError, ManifestError
from pm1_core.validate import refusal

_SEPARATORS = {".csv": ",", ".tsv": "\t", ".txt": "\t", ".tab": "\t"}
# Bytes of text, and cells of parquet, that are held at once, however many rows there are.
_BLOCK = 16 << 20
_CELLS = 1 << 21


@dataclass(frozen=True)
class TableFile:
    """A csv, tsv (either may be gzipped) or parquet file.

    names: the columns of a file without a header row; separator: of a text file, by suffix if None
    """

    path: Path
    separator: str | None = None
    names: tuple[str, ...] | None = None

    @property
    def is_parquet(self) -> bool:
        """Whether the suffix is .parquet."""
        return self.path.suffix.lower() in (".parquet", ".pq")

    @property
    def delimiter(self) -> str:
        """The separator of a text file. Raises ManifestError if the suffix does not tell."""
        plain = self.path.with_suffix("") if self.path.suffix == ".gz" else self.path
        separator = self.separator or _SEPARATORS.get(plain.suffix.lower())
        if separator is None:
            raise ManifestError(
                refusal(
                    self.path,
                    f"found suffix {plain.suffix!r}",
                    "write `separator`, or use .csv, .tsv, .parquet",
                )
            )
        return separator


@dataclass(frozen=True)
class Batch:
    """Some rows of a table.

    rows: int64 [n], line of the file counted from 1 (a header is line 1; parquet rows count from 1)
    cells: column -> object [n] of str; "" where empty
    """

    rows: np.ndarray
    cells: dict[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.rows)


def column_names(table: TableFile) -> tuple[str, ...]:
    """The columns of `table`. Raises DataError if it is absent, empty or names a column twice."""
    if not table.path.is_file():
        raise DataError(refusal(table.path, "found no such file", "correct the path or add the file"))
    if table.is_parquet:
        try:
            names: tuple[str, ...] = tuple(parquet.read_schema(table.path).names)
        except (pa.ArrowException, OSError) as problem:
            raise DataError(refusal(table.path, f"could not be read ({problem})", "write it again")) from None
    elif table.names is not None:
        names = table.names
    else:
        names = _header(table)
    for name in names:
        if names.count(name) > 1:
            raise DataError(
                refusal(f"{table.path}, row 1", f"found column {name!r} twice", "name every column once")
            )
    return names


def _header(table: TableFile) -> tuple[str, ...]:
    opener = gzip.open if table.path.suffix == ".gz" else open
    try:
        with opener(table.path, "rb") as raw:
            # Line by line: a wrong byte further down must not be blamed on the header.
            row = next(
                csv.reader((line.decode("utf-8-sig") for line in raw), delimiter=table.delimiter), None
            )
    except UnicodeDecodeError:
        raise DataError(
            refusal(f"{table.path}, row 1", "found text that is not UTF-8", "save it as UTF-8")
        ) from None
    except (OSError, csv.Error) as problem:
        raise DataError(refusal(table.path, f"could not be read ({problem})", "write it again")) from None
    if not row:
        raise DataError(refusal(f"{table.path}, row 1", "found no header", "write the names of the columns"))
    return tuple(row)


def _text(column: pa.Array, where: str) -> np.ndarray:
    """Cells as text: whole floats without a fraction, so that an identifier 7.0 is "7"; null as ""."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_floating(column.type):
        column = column.cast(pa.float64())
        known = column.drop_null()
        whole = pc.and_(pc.is_finite(known), pc.less(pc.abs(known), pa.scalar(2.0**53)))
        if pc.all(pc.and_(whole, pc.equal(known, pc.floor(known)))).as_py() is not False:
            column = column.cast(pa.int64())
    try:
        text = column.cast(pa.string())
    except (pa.ArrowNotImplementedError, pa.ArrowInvalid):
        raise DataError(
            refusal(where, f"found cells of type {column.type}", "write numbers or text")
        ) from None
    result: np.ndarray = np.asarray(pc.fill_null(text, "").to_numpy(zero_copy_only=False), object)
    return result


def read_batches(table: TableFile) -> Iterator[Batch]:
    """All rows of `table` in order, wholly empty lines left out.

    Raises DataError naming file and row for a row with another number of cells than the header, text
    that is not UTF-8, or a file that breaks off.
    """
    names = column_names(table)
    first = 1 if table.is_parquet or table.names is not None else 2
    try:
        for record in _parquet_batches(table) if table.is_parquet else _text_batches(table, names):
            cells = {n: _text(record.column(i), f"{table.path}, column {n!r}") for i, n in enumerate(names)}
            rows = np.arange(first, first + record.num_rows, dtype=np.int64)
            first += record.num_rows
            if not table.is_parquet and len(names):
                filled = np.logical_or.reduce([column != "" for column in cells.values()])
                if not filled.all():
                    rows, cells = rows[filled], {n: column[filled] for n, column in cells.items()}
            yield Batch(rows, cells)
    except (pa.ArrowException, OSError) as problem:
        text = str(problem).replace("\n", " ")
        raise DataError(
            refusal(
                table.path,
                f"could not be read ({text})",
                "correct the row, quote separators in cells, save as UTF-8",
            )
        ) from None


def _parquet_batches(table: TableFile) -> Iterator[pa.RecordBatch]:
    with parquet.ParquetFile(table.path) as file:
        yield from file.iter_batches(batch_size=max(1, _CELLS // max(1, file.metadata.num_columns)))


def _text_batches(table: TableFile, names: tuple[str, ...]) -> Iterator[pa.RecordBatch]:
    wrong: list[tuple[int, int]] = []

    def refuse(row: arrow_csv.InvalidRow) -> str:
        wrong.append((row.number or 0, row.actual_columns))
        return "error"

    try:
        # One thread, so that arrow knows the number of the row that it refuses.
        with arrow_csv.open_csv(
            table.path,
            read_options=arrow_csv.ReadOptions(
                use_threads=False,
                block_size=_BLOCK,
                column_names=list(names),
                skip_rows=0 if table.names else 1,
            ),
            parse_options=arrow_csv.ParseOptions(
                delimiter=table.delimiter,
                ignore_empty_lines=False,
                newlines_in_values=True,
                invalid_row_handler=refuse,
            ),
            convert_options=arrow_csv.ConvertOptions(
                column_types={name: pa.string() for name in names}, strings_can_be_null=False
            ),
        ) as reader:
            yield from reader
    except pa.ArrowException:
        if not wrong:
            raise
        number, cells = wrong[0]
        raise DataError(
            refusal(
                f"{table.path}, row {number}", f"found {cells} cells, not {len(names)}", "correct the row"
            )
        ) from None


def table_text(table: pd.DataFrame, separator: str) -> bytes:
    """The bytes of `table.to_csv(index=False)`, by arrow, which takes a fifth of the time."""
    sink = io.BytesIO()
    sink.write(separator.join(table.columns).encode() + b"\n")
    options = arrow_csv.WriteOptions(include_header=False, delimiter=separator, quoting_style="none")
    try:
        arrow_csv.write_csv(pa.Table.from_pandas(table, preserve_index=False), sink, options)
    except pa.ArrowInvalid:  # a cell that has to be quoted
        return table.to_csv(index=False, sep=separator, lineterminator="\n").encode()
    return sink.getvalue()


def whole_numbers(cells: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    """int64 [n] of text cells, 0 where one is no whole number, and which are, bool [n]."""
    text = pa.array(cells, pa.string())
    try:
        numbers = text.cast(pa.int64())
    except pa.ArrowInvalid:
        loose = pd.to_numeric(cells, errors="coerce")
        whole = (loose % 1 == 0).to_numpy(bool)
        return np.where(whole, loose, 0).astype(np.int64), whole
    return numbers.to_numpy(), np.ones(len(cells), bool)
