"""What preparation saw: every finding with its code, count, action, file, first rows and remedy."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from typing import Any

from pm1_core.data.finding_codes import CODES

ROWS_KEPT = 20


@dataclass(frozen=True)
class Finding:
    """One kind of thing in one file.

    rows: the first 20 places, e.g. "row 12 (1:838555 A/C)"; rows are lines of the file counted from 1
    """

    code: str
    file: str
    count: int
    action: str
    meaning: str
    remedy: str
    rows: tuple[str, ...] = ()


class Findings:
    """Collects findings while files are read; one entry per code and file."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, str], Finding] = {}

    def add(self, code: str, file: object, row: str | None = None, count: int = 1) -> None:
        """Count `count` more of `code` in `file`, at `row`. Does nothing for count 0."""
        if count == 0:
            return
        key = (code, str(file))
        found = self._found.get(key)
        if found is None:
            action, meaning, remedy = CODES[code]
            found = Finding(code, str(file), 0, action, meaning, remedy)
        rows = found.rows
        if row is not None and len(rows) < ROWS_KEPT:
            rows = (*rows, row)
        self._found[key] = replace(found, count=found.count + count, rows=rows)

    def add_all(self, code: str, file: object, rows: Iterable[str]) -> None:
        """`add` for every row."""
        for row in rows:
            self.add(code, file, row)

    def add_some(self, code: str, file: object, count: int, rows: Iterable[str]) -> None:
        """Count `count` of `code`; `rows` gives places, of which no more are asked for than kept."""
        first = list(islice(rows, ROWS_KEPT))
        self.add_all(code, file, first)
        self.add(code, file, count=count - len(first))

    def sorted(self) -> tuple[Finding, ...]:
        """All findings by code and file."""
        return tuple(self._found[key] for key in sorted(self._found))


@dataclass(frozen=True)
class PreparationReport:
    """The outcome of one preparation or check.

    counts: e.g. {"subjects": 303, "genotype.people": 0, "split.train": 241}
    skipped: True if the store was there already and nothing was read again
    """

    site: str
    study: str
    counts: Mapping[str, int]
    findings: tuple[Finding, ...]
    skipped: bool = field(default=False, compare=False)

    def count(self, code: str) -> int:
        """How often `code` was found over all files; 0 if never. Raises KeyError for an unknown code."""
        if code not in CODES:
            raise KeyError(code)
        return sum(finding.count for finding in self.findings if finding.code == code)

    def to_json(self) -> dict[str, Any]:
        """JSON-able content."""
        content = asdict(self)
        del content["skipped"]
        return content

    @staticmethod
    def from_json(content: Mapping[str, Any]) -> PreparationReport:
        """What `to_json` gave."""
        findings = tuple(Finding(**{**f, "rows": tuple(f["rows"])}) for f in content["findings"])
        return PreparationReport(content["site"], content["study"], dict(content["counts"]), findings)

    def to_markdown(self) -> str:
        """The report as a person reads it."""
        lines = [
            f"# Preparation of site {self.site} for study {self.study}",
            "",
            "| what | number |",
            "|---|---:|",
        ]
        lines += [f"| {name} | {number:,} |" for name, number in self.counts.items()]
        for action, title in (("handled", "Handled"), ("noted", "Noted")):
            lines += ["", f"## {title}", ""]
            chosen = [finding for finding in self.findings if finding.action == action]
            lines += [] if chosen else ["Nothing."]
            for finding in chosen:
                lines.append(
                    f"- **{finding.count:,}** {finding.meaning}. `{finding.code}`, {finding.file}."
                    f" To do: {finding.remedy}."
                )
                lines += [f"  - {row}" for row in finding.rows]
                if finding.rows and finding.count > len(finding.rows):
                    lines.append(f"  - and {finding.count - len(finding.rows):,} more")
        return "\n".join(lines) + "\n"

    def to_text(self) -> str:
        """`to_json` as indented text, for a file."""
        return json.dumps(self.to_json(), indent=1) + "\n"
