"""A reader of Prometheus' text format that takes nothing else, by the format's own description."""

from __future__ import annotations

import re

_NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
_LABEL = r'[a-zA-Z_][a-zA-Z0-9_]*="(?:[^"\\\n]|\\["\\n])*"'
_SAMPLE = re.compile(
    rf"({_NAME})(?:\{{({_LABEL}(?:,{_LABEL})*)\}})? (NaN|[+-]Inf|-?[0-9.]+(?:e[+-]?[0-9]+)?)"
)
_HEAD = re.compile(rf"# (HELP|TYPE) ({_NAME}) (.*)")

Samples = dict[tuple[str, str], float]


def parsed(text: str) -> Samples:
    """(name, labels) -> value. Raises AssertionError at the first line that a scraper would refuse."""
    assert text.endswith("\n")
    found: Samples = {}
    kinds: dict[str, str] = {}
    open_family, helped = "", set[str]()
    for line in text.removesuffix("\n").split("\n"):
        if head := _HEAD.fullmatch(line):
            what, name, rest = head.groups()
            if what == "HELP":
                assert name not in helped, f"{name} comes in two groups"
                helped.add(name)
            else:
                assert name not in kinds
                assert rest in ("counter", "gauge", "histogram", "summary", "untyped")
                kinds[name] = rest
            open_family = name
            continue
        sample = _SAMPLE.fullmatch(line)
        assert sample, f"no sample: {line!r}"
        name, labels, value = sample.group(1), sample.group(2) or "", sample.group(3)
        assert name == open_family, f"{name} lies among {open_family}"
        assert kinds[name] != "counter" or name.endswith("_total")
        assert (name, labels) not in found, f"{name}{labels} stands twice"
        found[name, labels] = float(value.replace("Inf", "inf"))
    return found
