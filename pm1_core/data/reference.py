"""The study's lists that all sites share: reference variants and relatives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv as arrow_csv

from pm1_core.data.alleles import base_codes
from pm1_core.data.documents import read_text
from pm1_core.data.tables import whole_numbers
from pm1_core.errors import ManifestError
from pm1_core.validate import refusal

BASES = ("A", "C", "G", "T")


def _rows(path: Path, header: tuple[str, ...]) -> pd.DataFrame:
    """All rows as text: by arrow, which takes a tenth of the time, and line by line if anything is wrong."""
    try:
        table = arrow_csv.read_csv(
            path,
            arrow_csv.ReadOptions(use_threads=False),
            arrow_csv.ParseOptions(delimiter="\t", quote_char=False),
            arrow_csv.ConvertOptions(
                column_types=dict.fromkeys(header, pa.string()), strings_can_be_null=False
            ),
        )
        named = tuple(table.column_names)
    except (pa.ArrowException, OSError, UnicodeDecodeError):
        return _rows_singly(path, header)
    return table.to_pandas() if named == header else _rows_singly(path, header)


def _rows_singly(path: Path, header: tuple[str, ...]) -> pd.DataFrame:
    lines = read_text(path).splitlines()
    if not lines or tuple(lines[0].split("\t")) != header:
        found = lines[0] if lines else "an empty file"
        raise ManifestError(
            refusal(
                f"{path}, row 1", f"found {found!r}", f"write the columns {' '.join(header)}, tab-separated"
            )
        )
    rows = [line.split("\t") for line in lines[1:] if line]
    for number, row in enumerate(rows, 2):
        if len(row) != len(header):
            raise ManifestError(
                refusal(f"{path}, row {number}", f"found {len(row)} columns", f"write {len(header)}")
            )
    return pd.DataFrame(rows, columns=list(header), dtype=str)


def read_variants(path: Path) -> pd.DataFrame:
    """The study's reference list: chrom int 1-22, pos int, id, ref, alt; sorted by chrom, then pos.

    Raises ManifestError naming file and row if a row is no biallelic autosomal SNP, out of order or
    listed twice.
    """
    table = _rows(path, ("chrom", "pos", "id", "ref", "alt"))
    for name in ("chrom", "pos"):
        number, whole = whole_numbers(table[name])
        bad = ~whole | (number <= 0)
        if name == "chrom":
            bad |= number > 22
        if bad.any():
            at = int(np.argmax(bad))
            accepted = "an autosome, 1 to 22" if name == "chrom" else "a position in base pairs from 1"
            raise ManifestError(
                refusal(
                    f"{path}, row {at + 2}, {name}", f"found {table[name].iloc[at]!r}", f"write {accepted}"
                )
            )
        table[name] = number
    for name in ("ref", "alt"):
        wrong = (~table[name].isin(BASES) | (table["ref"] == table["alt"])).to_numpy(bool)
        if wrong.any():
            at = int(np.argmax(wrong))
            found = f"found {table['ref'].iloc[at]}/{table['alt'].iloc[at]}"
            raise ManifestError(
                refusal(f"{path}, row {at + 2}", found, "write two different bases A, C, G, T")
            )
    key = (table["chrom"].to_numpy(np.int64) << 32) | table["pos"].to_numpy(np.int64)
    backwards = np.flatnonzero(np.diff(key) < 0)
    if len(backwards):
        raise ManifestError(
            refusal(
                f"{path}, row {backwards[0] + 3}",
                "found a position before the row above",
                "sort by chrom, pos",
            )
        )
    ref, alt = base_codes(table["ref"]).astype(np.int64), base_codes(table["alt"]).astype(np.int64)
    again = pd.Series(key * 16 + np.minimum(ref, alt) * 4 + np.maximum(ref, alt)).duplicated()
    if again.any():
        at = int(np.argmax(again.to_numpy()))
        raise ManifestError(refusal(f"{path}, row {at + 2}", "found a variant listed twice", "remove one"))
    return table


def read_families(path: Path) -> dict[str, str]:
    """Subject -> family of the study-wide relatives list. Raises ManifestError if a subject has two families."""
    families: dict[str, str] = {}
    table = _rows(path, ("subject", "family"))
    for number, (subject, family) in enumerate(zip(table["subject"], table["family"], strict=True), 2):
        subject, family = subject.strip(), family.strip()
        if not subject or not family:
            raise ManifestError(refusal(f"{path}, row {number}", "found an empty cell", "fill it in"))
        if families.setdefault(subject, family) != family:
            raise ManifestError(
                refusal(
                    f"{path}, row {number}",
                    f"found subject {subject!r} in families {families[subject]!r} and {family!r}",
                    "merge the two families",
                )
            )
    return families
