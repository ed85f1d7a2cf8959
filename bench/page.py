"""docs/benchmarks.md, written from bench/results.json: every figure on the page is one that was measured."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from bench.report import RESULTS
from pm1_core import atomic

PAGE = RESULTS.parent.parent / "docs" / "benchmarks.md"


def write_page() -> Path:
    """Write the page and return where it lies; what has not been measured is left out."""
    templates = Environment(loader=FileSystemLoader(RESULTS.parent), undefined=StrictUndefined)
    results = dict.fromkeys(_NAMES) | atomic.read_json(RESULTS)
    atomic.write_text(PAGE, templates.get_template("benchmarks.md.j2").render(results=results).strip() + "\n")
    return PAGE


_NAMES = (
    "simulation.logistic",
    "simulation.small",
    "simulation.many",
    "encodings",
    "large_model",
    "private_step.fusion",
    "private_step.blocks",
    "secure_sum.flower",
    "secure_sum.paper",
    "unpacking",
    "preparation",
    "token_loader",
    "part_steps",
    "gpu",
)
