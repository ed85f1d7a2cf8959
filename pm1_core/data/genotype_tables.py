"""People and variants beside a .pgen or .bed: .psam, .fam, .pvar and .bim."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from pm1_core.data.builds import chromosome_number
from pm1_core.data.subjects import Person, subject_text
from pm1_core.data.tables import whole_numbers
from pm1_core.errors import DataError
from pm1_core.validate import refusal


def _read(
    path: Path, names: Sequence[str], optional: Sequence[str] = ()
) -> tuple[pd.DataFrame, dict[int, int]]:
    """Rows as text; the first row's line number is in `.attrs["first"]`. names: columns without a header."""
    contigs: dict[int, int] = {}
    header: list[str] | None = None
    skip = 0
    try:
        with path.open(encoding="utf-8-sig") as stream:
            for line in stream:
                if not line.startswith("#"):
                    separator = "\t" if "\t" in line else r"\s+"
                    width = len(line.split("\t") if separator == "\t" else line.split())
                    break
                skip += 1
                contigs.update(contig_length(line))
                if not line.startswith("##"):
                    header = line[1:].split()
            else:
                raise DataError(refusal(path, "found no rows", "give the whole file"))
        if header is None:
            if width not in (len(names), len(names) - len(optional)):
                raise DataError(
                    refusal(
                        f"{path}, row {skip + 1}",
                        f"found {width} columns",
                        f"write {len(names)}: {' '.join(names)}",
                    )
                )
            header = [name for name in names if width == len(names) or name not in optional]
        table = pd.read_csv(
            path, sep=separator, skiprows=skip, header=None, names=header, dtype=str, keep_default_na=False,
            na_filter=False, index_col=False, comment=None, quoting=3, encoding="utf-8-sig",
            usecols=lambda name: name in {*names, "FID", "IID", "PAT", "MAT", "CHROM", "POS", "ID", "REF", "ALT"},
        )  # fmt: skip
    except (pd.errors.ParserError, UnicodeDecodeError, pd.errors.EmptyDataError) as problem:
        text = str(problem).strip().replace("\n", " ")
        raise DataError(refusal(path, f"could not be read ({text})", "write the file again")) from None
    short = (table == "").to_numpy().any(axis=1)  # pandas fills up rows that break off
    if short.any():
        row = skip + 1 + int(np.argmax(short))
        raise DataError(
            refusal(
                f"{path}, row {row}",
                "found an empty or missing cell",
                "write the whole file again",
            )
        )
    table.attrs["first"] = skip + 1
    return table, contigs


def contig_length(line: str) -> dict[int, int]:
    """{chromosome: length} of a header line ##contig=<ID=1,length=249250621>, else {}.

    >>> contig_length("##contig=<ID=chr22,assembly=b37,length=51304566>")
    {22: 51304566}
    """
    if not line.startswith("##contig=<"):
        return {}
    entries = dict(part.split("=", 1) for part in line.strip()[10:].rstrip(">").split(",") if "=" in part)
    chromosome, length = chromosome_number(entries.get("ID", "")), entries.get("length", "")
    return {chromosome: int(length)} if chromosome and length.isdigit() else {}


def read_people(path: Path) -> list[Person]:
    """The rows of a .psam or .fam. Raises DataError if a person's identifier is empty or there twice."""
    table, _ = _read(path, ("FID", "IID", "PAT", "MAT", "SEX", "PHENO1"), optional=("PHENO1",))
    first = int(table.attrs["first"])
    if "IID" not in table.columns:
        raise DataError(
            refusal(f"{path}, row {first - 1}", "found no column IID", "write a header with #IID or #FID IID")
        )
    blank = ["0"] * len(table)
    parts = [
        table[name].tolist() if name in table.columns else blank for name in ("IID", "FID", "PAT", "MAT")
    ]
    people: list[Person] = []
    seen: dict[str, int] = {}
    for row, (subject, family, father, mother) in enumerate(zip(*parts, strict=True), first):
        subject = subject_text(f"{path}, row {row}", subject)
        if subject in seen:
            raise DataError(
                refusal(
                    f"{path}, rows {seen[subject]} and {row}",
                    f"found subject {subject!r} twice",
                    "give different people different IIDs, or remove one of the two samples",
                )
            )
        seen[subject] = row
        people.append(Person(subject, family, father, mother))
    return people


def read_variant_rows(path: Path) -> tuple[pd.DataFrame, dict[int, int]]:
    """The rows of a .pvar or .bim, and the chromosome lengths of its header.

    Columns: row int (line of the file), chrom int (0 outside 1-22), pos int, id, ref, alt (several
    alternates stand separated by commas). In .bim the second allele is the reference, as in plink2.
    Raises DataError naming the row if a position is no number.
    """
    table, contigs = _read(path, ("CHROM", "ID", "CM", "POS", "ALT", "REF"), optional=("CM",))
    first = int(table.attrs["first"])
    for name in ("CHROM", "POS", "ID", "REF", "ALT"):
        if name not in table.columns:
            raise DataError(refusal(f"{path}, row {first - 1}", f"found no column {name}", "write it"))
    position, whole = whole_numbers(table["POS"])
    bad = ~whole | (position < 0)
    if bad.any():
        at = int(np.argmax(bad))
        raise DataError(
            refusal(
                f"{path}, row {first + at}",
                f"found position {table['POS'].iloc[at]!r}",
                "write a number of base pairs",
            )
        )
    codes, uniques = pd.factorize(table["CHROM"])
    chromosomes = np.array([chromosome_number(text) for text in uniques], np.int64)[codes]
    rows = pd.DataFrame(
        {
            "row": np.arange(first, first + len(table), dtype=np.int64), "chrom": chromosomes,
            "pos": position, "id": table["ID"], "ref": table["REF"], "alt": table["ALT"],
        }
    )  # fmt: skip
    return rows, contigs
