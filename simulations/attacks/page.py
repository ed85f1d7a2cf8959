"""The page of a run's attacks: a pure function of runs/NAME/attacks.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from markupsafe import Markup

from pm1_core import atomic
from pm1_core.errors import StateError
from pm1_core.page import page
from pm1_core.validate import refusal
from simulations.attacks.outcome import Cell
from simulations.report_style import (
    ALONE,
    FEDERATED,
    FUNDUS,
    GENOTYPE,
    INK,
    MUTED,
    PHENOTYPE,
    dress,
    figure,
    svg,
)

_COLOURS = (FEDERATED, INK, GENOTYPE, PHENOTYPE, FUNDUS, ALONE)
_STYLES = ("-", "--", ":", "-.")


def write_page(run: Path) -> Path:
    """Write `run`/attacks.html and return its path. Raises StateError if there is no attacks.json."""
    path = run / "attacks.json"
    if not path.exists():
        raise StateError(refusal(path, "found no such file", "run pm1-sim attack first"))
    found: dict[str, Any] = atomic.read_json(path)
    sections = [
        {**outcome, "name": name, "figure": drawn(outcome), "rows": _rows(outcome)}
        for name, outcome in found.items()
    ]
    out = run / "attacks.html"
    text = page("simulations", "attacks.html.j2", {"run": run.name, "sections": sections})
    atomic.write_text(out, text)
    return out


def _rows(outcome: dict[str, Any]) -> list[list[dict[str, str]]]:
    """The table's cells as text: {"text", "interval"}."""
    columns = outcome["columns"]
    return [[_cell(row.get(column["key"]), column["kind"]) for column in columns] for row in outcome["rows"]]


def _cell(value: Cell, kind: str) -> dict[str, str]:
    if isinstance(value, dict):
        interval = f"{value['low']:.3f}–{value['high']:.3f}".replace("-", "−")
        return {"text": _number(value["value"], kind), "interval": interval}
    if value is None:
        return {"text": "–", "interval": ""}
    return {"text": value if isinstance(value, str) else _number(value, kind), "interval": ""}


def _number(value: float, kind: str) -> str:
    return f"{value:,.0f}" if kind == "count" else f"{value:.3f}".replace("-", "−")


def drawn(outcome: dict[str, Any]) -> Markup | None:
    """The attack's plot as SVG; None if it has none."""
    plot = outcome.get("plot")
    if not plot:
        return None
    kinds = {"roc": _roc, "intervals": _intervals, "bounds": _bounds}
    return Markup(plot["svg"] if plot["kind"] == "picture" else kinds[plot["kind"]](plot, outcome["title"]))


def _roc(plot: dict[str, Any], title: str) -> str:
    """ROC curves on logarithmic axes, where an attack that names people with certainty shows."""
    page = figure(3.6)
    axes = dress(page.subplots(), None)
    smallest = 1e-3
    for number, line in enumerate(plot["curves"]):
        colour, style = _COLOURS[number % len(_COLOURS)], _STYLES[number // len(_COLOURS) % len(_STYLES)]
        axes.step(line["fpr"], line["tpr"], style, where="post", label=line["label"], color=colour)
    axes.plot([smallest, 1], [smallest, 1], color=MUTED, linewidth=0.7, linestyle="--", label="chance")
    axes.set(xscale="log", yscale="log", xlim=(smallest, 1), ylim=(smallest, 1))
    axes.set(xlabel="false-positive rate", ylabel="true-positive rate")
    page.legend(loc="outside right upper", fontsize=8, frameon=False, labelcolor=INK)
    return svg(page, title)


def _intervals(plot: dict[str, Any], title: str) -> str:
    """A value with its interval in every row, and lines to hold them against."""
    rows = plot["rows"]
    page = figure(0.9 + 0.27 * len(rows))
    axes = dress(page.subplots(), "x")
    for place, row in enumerate(rows):
        axes.plot([row["low"], row["high"]], [place, place], color=INK, linewidth=1.1)
        axes.plot(row["value"], place, "o", color=FEDERATED, markersize=5)
    for line in plot.get("lines", []):
        axes.axvline(line["value"], color=MUTED, linewidth=0.8, linestyle="--")
        axes.annotate(
            line["label"],
            (line["value"], 1),
            xycoords=("data", "axes fraction"),
            xytext=(3, 2),
            textcoords="offset points",
            fontsize=8,
            color=MUTED,
        )
    axes.set_yticks(range(len(rows)), [row["label"] for row in rows], color=INK)
    axes.set(xlabel=plot["axis"], ylim=(len(rows) - 0.5, -0.5))
    return svg(page, title)


def _bounds(plot: dict[str, Any], title: str) -> str:
    """What was refuted, beside what is claimed: red beyond the claim."""
    rows = plot["rows"]
    page = figure(0.9 + 0.27 * len(rows))
    axes = dress(page.subplots(), "x")
    for place, row in enumerate(rows):
        axes.plot([0, row["value"]], [place, place], color=MUTED, linewidth=1.1)
        axes.plot(
            row["value"], place, "o", color=FEDERATED if row["value"] > row["claim"] else INK, markersize=5
        )
        axes.plot(row["claim"], place, "|", color=GENOTYPE, markersize=14, markeredgewidth=2.4)
    axes.set_yticks(range(len(rows)), [row["label"] for row in rows], color=INK)
    axes.set(xlabel=plot["axis"], ylim=(len(rows) - 0.5, -0.5))
    axes.set_xlim(left=-0.05)
    return svg(page, title)
