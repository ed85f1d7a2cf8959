"""Code systems: what a code looks like, and which study columns a list of codes fills."""

from __future__ import annotations

import re
from collections.abc import Sequence

# Written without dots and in capitals, as `bare` gives them.
_PATTERNS: dict[str, re.Pattern[str]] = {
    "ICD-10": re.compile(r"[A-Z][0-9][0-9A-Z][0-9A-Z]{0,4}"),
    "ICD-9": re.compile(r"[0-9]{3}[0-9]{0,2}|V[0-9]{2}[0-9]{0,2}|E[0-9]{3}[0-9]?"),
    "ICD-O-3": re.compile(r"C[0-9]{2}[0-9]?|[0-9]{4}/?[0-9]"),
    "SNOMED-CT": re.compile(r"[0-9]{6,18}"),
    "OPCS-4": re.compile(r"[A-Z][0-9]{2}[0-9]?"),
    "ATC": re.compile(r"[A-Z]([0-9]{2}([A-Z]([A-Z]([0-9]{2})?)?)?)?"),
    "LOCAL": re.compile(r".+"),
}
SYSTEMS: tuple[str, ...] = tuple(_PATTERNS)
# Systems in which a longer code is a finer one; in the others a code stands for itself only.
_HIERARCHICAL = frozenset({"ICD-10", "ICD-9", "ICD-O-3", "OPCS-4", "ATC"})


def bare(code: str) -> str:
    """A code without dots and blanks, in capitals.

    >>> bare("h36.0")
    'H360'
    """
    return code.replace(".", "").replace(" ", "").upper()


def is_code(system: str, code: str) -> bool:
    """Whether `code` can be one of `system` (a key of SYSTEMS).

    >>> is_code("ICD-10", "E11.3"), is_code("ICD-10", "250.50"), is_code("ICD-9", "250.50")
    (True, False, True)
    """
    return _PATTERNS[system].fullmatch(bare(code)) is not None


def matches(system: str, code: str, wanted: Sequence[str]) -> bool:
    """Whether `code` is one of `wanted` or, in a hierarchical system, lies under one of them.

    >>> matches("ICD-10", "E1131", ["H36.0", "E11.3"]), matches("ICD-10", "E11", ["E11.3"])
    (True, False)
    """
    have = bare(code)
    if system in _HIERARCHICAL:
        return any(have.startswith(bare(prefix)) for prefix in wanted)
    return have in {bare(other) for other in wanted}
