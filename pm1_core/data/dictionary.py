"""The dictionary of a table: which column of a file fills which column of the study, and how."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pm1_core.data.codes import SYSTEMS
from pm1_core.data.codings import Codings
from pm1_core.data.definition import Column
from pm1_core.data.documents import list_of, mapping_of, scalar_text, text_of
from pm1_core.data.units import Conversion, conversion
from pm1_core.errors import ManifestError
from pm1_core.validate import refusal, require_choice, require_keys, require_range

_OPTIONAL = ("to", "unit", "factor", "offset", "missing", "values", "coding", "system", "separator", "empty")


@dataclass(frozen=True)
class Rule:
    """How one column of a file is read.

    to: the study column that it fills; a coded list (`system`) may fill several
    missing: cells that mean "not observed", besides the empty cell
    recoded: cell -> number that it stands for, in the file's unit; of the column's data-coding
    values: cell -> what it stands for, None for missing; empty if cells are taken as they are
    conversion: to the study's unit, for continuous columns
    system, separator: a list of codes of this system; empty_is_missing: an empty list says nothing
    unit_assumed: the study has a unit and the dictionary gave none
    where: the dictionary's file and entry, for messages
    """

    column: str
    to: tuple[Column, ...]
    where: str
    missing: tuple[str, ...] = ()
    recoded: Mapping[str, str] = field(default_factory=dict)
    values: Mapping[str, str | None] = field(default_factory=dict)
    conversion: Conversion = field(default_factory=Conversion)
    system: str | None = None
    separator: str = "|"
    empty_is_missing: bool = False
    unit_assumed: bool = False


def _conversion(where: str, entry: Mapping[str, Any], column: Column) -> tuple[Conversion, bool]:
    by_hand = "factor" in entry or "offset" in entry
    if (by_hand or "unit" in entry) and column.kind != "continuous":
        raise ManifestError(
            refusal(
                where,
                f"found a unit for the {column.kind} column {column.name!r}",
                "use it on continuous ones",
            )
        )
    if by_hand and "unit" in entry:
        raise ManifestError(refusal(where, "found both unit and factor or offset", "write one of them"))
    if by_hand:
        factor = float(
            require_range(
                f"{where}, key factor", entry.get("factor", 1.0), error=ManifestError, low=-1e12, high=1e12
            )
        )
        offset = float(
            require_range(
                f"{where}, key offset", entry.get("offset", 0.0), error=ManifestError, low=-1e12, high=1e12
            )
        )
        if factor == 0:
            raise ManifestError(refusal(f"{where}, key factor", "found 0", "use another factor"))
        return Conversion(factor, offset), False
    if "unit" not in entry:
        return Conversion(), column.unit is not None
    unit = text_of(f"{where}, key unit", entry["unit"])
    found = conversion(unit, column.unit or "", column.analyte)
    if found is None:
        raise ManifestError(
            refusal(
                f"{where}, key unit",
                f"found {unit!r}, which cannot be converted to the study's {column.unit!r} of {column.name!r}",
                "write factor and offset instead",
            )
        )
    return found, False


def _values(where: str, entry: Mapping[str, Any], column: Column) -> dict[str, str | None]:
    values: dict[str, str | None] = {}
    for cell, meaning in mapping_of(f"{where}, key values", entry.get("values", {})).items():
        text = None if meaning is None else scalar_text(meaning)
        if text is not None and column.kind == "binary":
            text = {"true": "1", "false": "0"}.get(text, text)
            require_choice(f"{where}, values of {cell!r}", text, ("0", "1"), ManifestError)
        elif text is not None and column.kind == "categorical":
            require_choice(f"{where}, values of {cell!r}", text, column.categories, ManifestError)
        elif text is not None:
            try:
                float(text)
            except ValueError:
                raise ManifestError(
                    refusal(f"{where}, values of {cell!r}", f"found {text!r}", "write a number")
                ) from None
        values[scalar_text(cell)] = text
    return values


def _coded(
    where: str, entry: Mapping[str, Any], name: str, study: Sequence[Column], missing: tuple[str, ...]
) -> Rule:
    system = require_choice(f"{where}, key system", entry["system"], SYSTEMS, ManifestError)
    for key in ("unit", "factor", "offset", "values", "coding"):
        if key in entry:
            raise ManifestError(refusal(f"{where}, key {key}", "found it beside system", "remove it"))
    able = {column.name: column for column in study if system in column.codes}
    if not able:
        raise ManifestError(
            refusal(f"{where}, key system", f"found {system!r}", "give codes of it to a study column")
        )
    chosen = tuple(able.values())
    if "to" in entry:
        chosen = (able[require_choice(f"{where}, key to", entry["to"], able, ManifestError)],)
    empty = require_choice(
        f"{where}, key empty", entry.get("empty", "absent"), ("absent", "missing"), ManifestError
    )
    separator = entry.get("separator", "|")
    if not isinstance(separator, str) or not separator:
        raise ManifestError(
            refusal(f"{where}, key separator", f"found {separator!r}", "write a text such as '|'")
        )
    return Rule(
        name, chosen, where, missing, system=system, separator=separator, empty_is_missing=empty == "missing"
    )  # fmt: skip


def _rule(
    where: str, entry: Any, study: Sequence[Column], missing_everywhere: tuple[str, ...], codings: Codings
) -> Rule:
    require_keys(where, entry, ("column",), _OPTIONAL, ManifestError)
    name = text_of(f"{where}, key column", entry["column"])
    where = f"{where} (column {name!r})"
    listed = [scalar_text(code) for code in list_of(f"{where}, key missing", entry.get("missing", []))]
    missing = (*listed, *missing_everywhere)
    if "system" in entry:
        return _coded(where, entry, name, study, missing)
    for key in ("separator", "empty"):
        if key in entry:
            raise ManifestError(refusal(f"{where}, key {key}", "found it without system", "remove it"))
    if "to" not in entry:
        raise ManifestError(refusal(where, "key 'to' is missing", "name the study column that it fills"))
    columns = {column.name: column for column in study}
    column = columns[require_choice(f"{where}, key to", entry["to"], columns, ManifestError)]
    converted, assumed = _conversion(where, entry, column)
    values = _values(where, entry, column)
    coding = scalar_text(entry["coding"]) if "coding" in entry else None
    # What the site writes itself comes before its tables.
    special = {
        code: meaning
        for code, meaning in codings.of(f"{where}, key coding", name, coding).items()
        if code not in values
    }
    missing = (*missing, *(code for code, meaning in special.items() if meaning is None))
    recoded = {
        code: meaning
        for code, meaning in special.items()
        if meaning is not None and column.kind == "continuous" and code not in missing
    }
    return Rule(name, (column,), where, missing, recoded, values, converted, unit_assumed=assumed)


def read_rules(
    where: str, entries: Any, study: Sequence[Column], missing: Any = None, codings: Codings | None = None
) -> tuple[Rule, ...]:
    """The rules of a dictionary, `entries` being its list of columns.

    missing: codes that mean "not observed" in every column, besides each column's own
    codings: special codes of columns, by an entry's `coding` or the field in the column's name
    Raises ManifestError naming the entry if it is wrong, or if two entries fill one study column that
    cannot be merged (binary ones can: any source that says 1 gives 1).
    """
    everywhere = tuple(scalar_text(code) for code in list_of(f"{where}, key missing", missing or []))
    rules = [
        _rule(f"{where}, columns entry {i}", e, study, everywhere, codings or Codings())
        for i, e in enumerate(list_of(f"{where}, key columns", entries), 1)
    ]
    filled: dict[str, str] = {}
    for rule in rules:
        for column in rule.to:
            if column.name in filled and column.kind != "binary":
                raise ManifestError(
                    refusal(
                        rule.where,
                        f"fills {column.name!r}, which {filled[column.name]} fills too",
                        "keep one of them",
                    )
                )
            filled[column.name] = f"column {rule.column!r}"
    if not rules:
        raise ManifestError(
            refusal(f"{where}, key columns", "found no entries", "describe at least one column")
        )
    return tuple(rules)
