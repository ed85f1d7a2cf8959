"""Figures in Prometheus' text format (exposition format 0.0.4)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"
COUNTER, GAUGE = "counter", "gauge"

Sample = tuple[Mapping[str, str], float | None]


def family(name: str, kind: str, text: str, samples: Iterable[Sample]) -> str:
    r"""Lines of one metric; nothing if it has no sample.

    samples: labels and value; a value that is not known (None) is left out

    >>> print(family("pm1_rounds", GAUGE, "Rounds that are done.", [({"run": 'a"b'}, 3.0), ({}, None)]), end="")
    # HELP pm1_rounds Rounds that are done.
    # TYPE pm1_rounds gauge
    pm1_rounds{run="a\"b"} 3
    """
    lines = [f"{name}{_labels(labels)} {_number(value)}" for labels, value in samples if value is not None]
    if not lines:
        return ""
    head = [f"# HELP {name} {_escaped(text)}", f"# TYPE {name} {kind}"]
    return "\n".join([*head, *lines]) + "\n"


def _labels(labels: Mapping[str, str]) -> str:
    pairs = ",".join(f'{key}="{_escaped(value, quote=True)}"' for key, value in labels.items())
    return f"{{{pairs}}}" if pairs else ""


def _escaped(text: str, quote: bool = False) -> str:
    escaped = text.replace("\\", "\\\\").replace("\n", "\\n")
    return escaped.replace('"', '\\"') if quote else escaped


def _number(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return str(int(value)) if float(value).is_integer() and abs(value) < 2**53 else repr(float(value))
