"""A sweep's results as one table, and as curves against epsilon with confidence bands over seeds.

runs/NAME/sweep.csv has a row for every cell and these columns, empty where a cell has no such figure:

    strategy, unit, sites, epsilon, seed    the cell; epsilon and unit are "none" without differential privacy
    spent, delta                            epsilon that the fullest ledger holds after the cell, and its delta
    seconds, hash                           how long the cell took, and the hash of what it depends on
    auc.TARGET, genotype.BIN, ...           a column for every figure (simulations/sweep_figures.py)
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from pm1_core import atomic
from pm1_core.errors import InputError
from pm1_core.validate import refusal

Result = Mapping[str, Any]
"""What `sweep_cell.run_cell` returns."""

AXES = ("strategy", "unit", "sites", "epsilon", "seed")
BESIDE = ("spent", "delta", "seconds", "hash")
NONE = "none"
CONFIDENCE = 0.95
TABLE = "sweep.csv"


@dataclass(frozen=True)
class Band:
    """Mean over seeds and its interval, by Student's t; one seed has no interval: low and high are NaN."""

    mean: float
    low: float
    high: float
    values: tuple[float, ...]


@dataclass(frozen=True)
class Series:
    """Cells that differ in epsilon and seed alone; those without privacy belong to every unit."""

    strategy: str
    unit: str
    sites: str

    def holds(self, result: Result) -> bool:
        """Whether a cell is one of the series."""
        values = result["values"]
        return (
            values["strategy"] == self.strategy
            and values["sites"] == self.sites
            and values["unit"] in (self.unit, NONE)
        )


def band(values: Sequence[float], confidence: float = CONFIDENCE) -> Band:
    """The band of one figure over seeds. Raises InputError on no values.

    >>> found = band([0.6, 0.7, 0.8])
    >>> round(found.mean, 3), round(found.low, 3), round(found.high, 3)
    (0.7, 0.452, 0.948)
    """
    if not values:
        raise InputError(refusal("values of a figure", "found none", "give one of each seed"))
    array = np.asarray(values, np.float64)
    mean, low, high = float(array.mean()), math.nan, math.nan
    if len(array) > 1:
        factor = float(stats.t.ppf((1 + confidence) / 2, len(array) - 1))
        half = factor * float(array.std(ddof=1)) / math.sqrt(len(array))
        low, high = mean - half, mean + half
    return Band(mean, low, high, tuple(map(float, array)))


def figure_names(results: Iterable[Result]) -> list[str]:
    """All figures that any cell has, sorted."""
    return sorted({name for result in results for name in result["figures"]})


def epsilons(results: Iterable[Result]) -> list[str]:
    """The epsilons of the cells, from the smallest on, "none" last."""
    found = {str(result["values"]["epsilon"]) for result in results}
    return [*sorted(found - {NONE}, key=float), *([NONE] if NONE in found else [])]


def series_of(results: Sequence[Result]) -> list[Series]:
    """Every series of the sweep, in the order of its cells; of a sweep without privacy, unit "none"."""
    private = [result for result in results if result["values"]["unit"] != NONE] or list(results)
    keys = ("strategy", "unit", "sites")
    return list(dict.fromkeys(Series(*(result["values"][key] for key in keys)) for result in private))


def label(series: Series, among: Sequence[Series]) -> str:
    """What tells a series from the others; "" where there is one."""
    words = []
    for key, text in (("strategy", "{}"), ("unit", "unit {}"), ("sites", "{} sites")):
        if len({getattr(other, key) for other in among}) > 1:
            words.append(text.format(getattr(series, key)))
    return ", ".join(words)


def curve(results: Sequence[Result], series: Series, name: str) -> dict[str, Band]:
    """The figure `name` at each epsilon that has it, in the order of `epsilons`."""
    found = {}
    for epsilon in epsilons(results):
        values = [value for _, value in sorted(_by_seed(results, series, name, epsilon).items())]
        if values:
            found[epsilon] = band(values)
    return found


def change(results: Sequence[Result], series: Series, name: str) -> dict[str, Band]:
    """The figure at each epsilon minus the same seed's figure without privacy: people and start are the same."""
    free = _by_seed(results, series, name, NONE)
    found = {}
    for epsilon in epsilons(results):
        here = _by_seed(results, series, name, epsilon)
        pairs = [here[seed] - free[seed] for seed in sorted(here) if seed in free]
        if pairs and epsilon != NONE:
            found[epsilon] = band(pairs)
    return found


def retained(results: Sequence[Result], series: Series, name: str) -> dict[str, Band]:
    """The share of the same seed's figure without privacy; for figures that are 0 where a model knows nothing."""
    free = _by_seed(results, series, name, NONE)
    found = {}
    for epsilon in epsilons(results):
        here = _by_seed(results, series, name, epsilon)
        shares = [here[seed] / free[seed] for seed in sorted(here) if free.get(seed, 0.0) > 0]
        if shares and epsilon != NONE:
            found[epsilon] = band(shares)
    return found


def _by_seed(results: Sequence[Result], series: Series, name: str, epsilon: str) -> dict[str, float]:
    return {
        str(result["values"]["seed"]): float(result["figures"][name])
        for result in results
        if series.holds(result) and result["values"]["epsilon"] == epsilon and name in result["figures"]
    }


def table(results: Sequence[Result]) -> str:
    """The table as text. Raises InputError if a cell stands twice."""
    names = figure_names(results)
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow([*AXES, *BESIDE, *names])
    seen = set()
    for result in results:
        place = tuple(str(result["values"][key]) for key in AXES)
        if place in seen:
            found = "stands twice: " + ", ".join(place)
            raise InputError(refusal("cell of a sweep", found, "give every cell once"))
        seen.add(place)
        beside = [result.get(key) for key in BESIDE]
        figures = [result["figures"].get(name) for name in names]
        writer.writerow([*place, *(_text(value) for value in (*beside, *figures))])
    return stream.getvalue()


def write_table(results: Sequence[Result], folder: Path) -> Path:
    """Write `folder`/sweep.csv and return its path."""
    path = folder / TABLE
    atomic.write_text(path, table(results))
    return path


def _text(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)
