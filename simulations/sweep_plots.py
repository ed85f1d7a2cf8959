"""Plots of a sweep: figures against epsilon, with bands over seeds, as SVG for one page.

Epsilon is on a logarithmic axis; "none" has a place of its own behind a gap, because no epsilon leads there. A line
is the mean over seeds, a dot is one seed, a band the 95% interval of the mean.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pm1_core.evaluation.genotype import FREQUENCIES
from simulations.report_style import (
    ALONE,
    FEDERATED,
    FUNDUS,
    GENOTYPE,
    INK,
    MUTED,
    PHENOTYPE,
    dress,
    entitle,
    figure,
    group_colours,
    svg,
)
from simulations.sweep_table import NONE, Band, Result, curve, epsilons, label, retained, series_of

COLOURS = (FEDERATED, INK, GENOTYPE, PHENOTYPE, FUNDUS, ALONE)
BINS = {"rarest": FEDERATED, "middle": GENOTYPE, "commonest": INK}
_MARKERS = ("o", "s", "D", "^", "v", "P")
_GAP, _ALONE = 1.6, 1.0
_COLUMNS = 3


def places(names: Sequence[str]) -> dict[str, float]:
    """Where each epsilon lies on the axis: its binary logarithm, and "none" behind a gap.

    >>> places(["0.5", "1", "8", "none"])
    {'0.5': -1.0, '1': 0.0, '8': 3.0, 'none': 4.6}
    """
    found = {name: math.log2(float(name)) for name in names if name != NONE}
    if NONE in names:
        found[NONE] = max(found.values()) + _GAP if found else _ALONE
    return found


def diseases(results: Sequence[Result], names: Mapping[str, str]) -> str:
    """A panel for each figure of `names` (figure -> heading): areas of the diseases, and their mean."""
    all_series = series_of(results)
    rows = -(-len(names) // _COLUMNS)
    page = figure(0.5 + 1.75 * rows)
    grid = page.subplots(rows, min(_COLUMNS, len(names)), sharex=True, sharey=True, squeeze=False)
    panels = list(grid.flat)
    for axes, (name, heading) in zip(panels, names.items(), strict=False):
        _dress(axes, results)
        axes.axhline(0.5, color=MUTED, linewidth=0.7, linestyle="--")
        for number, series in enumerate(all_series):
            _line(axes, results, curve(results, series, name), _style(number), label(series, all_series))
        entitle(axes, heading)
    for axes in panels[len(names) :]:
        axes.set_visible(False)
    _outer(grid, "ROC-AUC")
    _key(page, panels[0], len(all_series))
    return svg(page, "ROC-AUC of each disease against epsilon")


def genotypes(results: Sequence[Result]) -> str:
    """Weighted accuracy by allele frequency, and beside it what each bin loses to privacy, for every series."""
    all_series = series_of(results)
    page = figure(0.6 + 2.3 * len(all_series))
    grid = page.subplots(len(all_series), 2, sharex="col", sharey="col", squeeze=False)
    for (left, right), series in zip(grid, all_series, strict=True):
        for number, (bin_name, colour) in enumerate(BINS.items()):
            name, style = f"genotype.{bin_name}", (colour, _MARKERS[number])
            _line(left, results, curve(results, series, name), style, _range(bin_name))
            chance = curve(results, series, f"chance.{name}")
            if chance:
                mean = sum(found.mean for found in chance.values()) / len(chance)
                left.axhline(mean, color=colour, linewidth=0.7, linestyle=(0, (2, 3)))
            _line(right, results, retained(results, series, f"kept.{name}"), style, "")
        _dress(left, results)
        _dress(right, results)
        right.axhline(1, color=MUTED, linewidth=0.7, linestyle="--")
        entitle(left, label(series, all_series) or "weighted accuracy")
        entitle(right, "part above chance that privacy leaves")
    _outer(grid, "weighted accuracy")
    for axes in grid[:, 1]:
        axes.set_ylabel("share of no privacy")
    _key(page, grid[0, 0], 2)
    return svg(page, "Genotype accuracy by allele frequency against epsilon")


def panels(results: Sequence[Result], title: str, names: Mapping[str, Mapping[str, str]], axis: str,
           line: float | None = None) -> str:  # fmt: skip
    """A row of panels for every series; `names`: heading of a panel -> {figure -> its name in the key}."""
    all_series = series_of(results)
    page = figure(0.6 + 2.2 * len(all_series))
    grid = page.subplots(len(all_series), len(names), sharex=True, squeeze=False)
    for row, series in zip(grid, all_series, strict=True):
        for axes, (heading, shown) in zip(row, names.items(), strict=True):
            colours = group_colours(list(shown.values())) if "ancestry" in title.lower() else {}
            for number, (name, text) in enumerate(shown.items()):
                colour, marker = _style(number)
                style = (colours.get(text, colour), marker)
                _line(axes, results, curve(results, series, name), style, text)
            _dress(axes, results)
            if line is not None:
                axes.axhline(line, color=MUTED, linewidth=0.7, linestyle="--")
            which = label(series, all_series)
            entitle(axes, f"{heading} ({which})" if which else heading)
            axes.legend(fontsize=7.5, frameon=False, labelcolor=INK, handlelength=1.6)
    _outer(grid, axis)
    return svg(page, title)


def _line(
    axes: Axes, results: Sequence[Result], points: Mapping[str, Band], style: tuple[str, str], text: str
) -> None:
    """One figure: a line over the epsilons, and "none" apart from it."""
    where = places(epsilons(results))
    colour, marker = style
    numbered = [name for name in points if name != NONE]
    middle = [points[name].mean for name in numbered]
    axes.plot([where[n] for n in numbered], middle, color=colour, linewidth=1.4, marker=marker,
              markersize=4, label=text or None)  # fmt: skip
    banded = [name for name in numbered if not math.isnan(points[name].low)]
    if banded:
        low, high = [points[n].low for n in banded], [points[n].high for n in banded]
        axes.fill_between([where[n] for n in banded], low, high, color=colour, alpha=0.14, linewidth=0)
    if NONE in points:
        free, place = points[NONE], where[NONE]
        axes.plot(place, free.mean, color=colour, marker=marker, markersize=5)
        if not math.isnan(free.low):
            axes.fill_between([place - 0.18, place + 0.18], free.low, free.high, color=colour, alpha=0.14,
                              linewidth=0)  # fmt: skip
    for name, found in points.items():
        if len(found.values) > 1:
            axes.plot([where[name]] * len(found.values), found.values, linestyle="none", marker=".",
                      markersize=2.6, color=colour, alpha=0.6)  # fmt: skip


def _dress(axes: Axes, results: Sequence[Result]) -> None:
    dress(axes)
    where = places(epsilons(results))
    axes.set_xticks(list(where.values()), list(where))
    if NONE in where and len(where) > 1:
        axes.axvline(where[NONE] - _GAP / 2, color=MUTED, linewidth=0.6, linestyle=(0, (1, 3)))
    axes.set_xlim(min(where.values()) - 0.35, max(where.values()) + 0.35)


def _range(bin_name: str) -> str:
    low, high = FREQUENCIES[bin_name]
    return f"rarer allele {100 * low:g} to {min(50, 100 * high):g} %"


def _style(number: int) -> tuple[str, str]:
    return COLOURS[number % len(COLOURS)], _MARKERS[number % len(_MARKERS)]


def _outer(grid: Any, axis: str) -> None:
    """Labels at the outer panels only."""
    for row in grid:
        row[0].set_ylabel(axis)
    for axes in grid[-1]:
        axes.set_xlabel("epsilon")


def _key(page: Figure, axes: Axes, entries: int) -> None:
    handles, texts = axes.get_legend_handles_labels()
    if entries > 1 and texts:
        page.legend(handles, texts, loc="outside upper left", ncols=4, frameon=False, fontsize=8.5,
                    labelcolor=INK, columnspacing=1.4)  # fmt: skip
