"""Data-codings: which codes of a field stand for "not observed", and which for a number.

UK Biobank codes a refusal, "do not know" or "less than one" with numbers that differ from field to field
(appendix E.3), so that none of them may be told by its sign. A table says it: one row for each special code.

    coding    number of the data-coding
    fields    numbers of the fields that use it, separated by blanks; on any of its rows
    code      the cell
    as        what it stands for: empty for "not observed", or a number
    meaning   for people
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pm1_core.data.documents import is_there, read_text
from pm1_core.errors import ManifestError
from pm1_core.validate import refusal, require_choice

PACKAGED: dict[str, Path] = {"ukb": Path(__file__).with_name("ukb_codings.csv")}
"""Tables that come with this package; a site's own are named by their file."""

_HEADER = ["coding", "fields", "code", "as", "meaning"]
# 20116-0.0, 20116_0_0, f.20116.0.0, p20116_i0, p20116_i0_a3, p31
_FIELD = re.compile(r"(?:f\.|p)?([0-9]+)(?:[-._]i?[0-9]+(?:[._]a?[0-9]+)?)?")


@dataclass
class Codings:
    """Special codes by coding, and codings by field.

    special: coding -> code -> number as text, None for "not observed"
    """

    special: dict[str, dict[str, str | None]] = field(default_factory=dict)
    of_field: dict[str, str] = field(default_factory=dict)

    def of(self, where: str, column: str, coding: str | None = None) -> Mapping[str, str | None]:
        """Special codes of a file's column: by `coding`, or by the field number in the column's name.

        Raises ManifestError for a coding that no table has.
        """
        if coding is not None:
            return self.special[require_choice(where, coding, self.special, ManifestError)]
        named = _FIELD.fullmatch(column)
        return self.special.get(self.of_field.get(named[1], ""), {}) if named else {}


def read_codings(where: str, names: Iterable[str], folder: Path) -> tuple[Codings, tuple[Path, ...]]:
    """The tables `names`, keys of PACKAGED or files beside the dictionary, and their files.

    A later table replaces codings of an earlier one, each as a whole. Raises ManifestError naming file and row.
    """
    codings, files = Codings(), []
    for name in names:
        path = PACKAGED.get(name, folder / name)
        if not is_there(path):
            known = ", ".join(PACKAGED)
            remedy = f"name a file that is there, or one of: {known}"
            raise ManifestError(refusal(where, f"found {name!r}", remedy))
        _add(codings, path)
        files.append(path)
    return codings, tuple(files)


def _add(codings: Codings, path: Path) -> None:
    try:
        rows = list(csv.reader(read_text(path).splitlines()))
    except csv.Error as problem:  # a cell of more than 128 KiB
        raise ManifestError(refusal(path, f"could not be read ({problem})", "correct the table")) from None
    if not rows or rows[0] != _HEADER:
        found = rows[0] if rows else "an empty file"
        raise ManifestError(
            refusal(f"{path}, row 1", f"found {found}", f"write the columns {','.join(_HEADER)}")
        )
    met: set[str] = set()
    for number, row in enumerate(rows[1:], 2):
        if not row:
            continue
        if len(row) != len(_HEADER):
            raise ManifestError(
                refusal(f"{path}, row {number}", f"found {len(row)} cells", f"write {len(_HEADER)}")
            )
        coding, fields, code, stands_for, _ = (cell.strip() for cell in row)
        _check(f"{path}, row {number}", coding, fields, code, stands_for)
        if coding not in met:
            met.add(coding)
            codings.special[coding] = {}
        if code in codings.special[coding]:
            raise ManifestError(
                refusal(f"{path}, row {number}", f"found code {code!r} of {coding} twice", "remove one")
            )
        codings.special[coding][code] = stands_for or None
        codings.of_field.update(dict.fromkeys(fields.split(), coding))


def _check(where: str, coding: str, fields: str, code: str, stands_for: str) -> None:
    for name, cell in (("coding", coding), ("code", code)):
        if not cell:
            raise ManifestError(refusal(f"{where}, {name}", "found an empty cell", "fill it in"))
    for cell in fields.split():
        if not cell.isdecimal():
            raise ManifestError(refusal(f"{where}, fields", f"found {cell!r}", "write numbers of fields"))
    try:
        float(stands_for or 0)
    except ValueError:
        raise ManifestError(
            refusal(f"{where}, as", f"found {stands_for!r}", "write a number, or nothing for not observed")
        ) from None
