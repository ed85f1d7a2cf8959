"""What the coordinator makes of the sites' figures: means, and sums over sites."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from pm1_core.errors import InputError
from pm1_core.evaluation.scores import PREFIX, areas
from pm1_core.fields import Split
from pm1_core.update import Tensors
from pm1_core.validate import refusal


def mean_figures(weighted: Mapping[str, tuple[float, Mapping[str, float]]]) -> dict[str, float]:
    """Training figures averaged over the sites that sent them; weighted: site -> (examples, figures)."""
    names = sorted({name for _, figures in weighted.values() for name in figures})
    means = {}
    for name in names:
        carriers = [weighted[site] for site in sorted(weighted) if name in weighted[site][1]]
        weight = sum(examples for examples, _ in carriers)
        if weight > 0:
            means[name] = sum(figures[name] * examples for examples, figures in carriers) / weight
    return means


def pooled(figures: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Evaluations averaged over sites with the number of people behind each figure ("SPLIT.examples")."""
    sums: dict[str, float] = {}
    people: dict[str, float] = {}
    behind: dict[str, float] = {}
    for site in sorted(figures):
        for name, value in figures[site].items():
            split = name.partition(".")[0]
            if name == f"{split}.examples":
                people[name] = people.get(name, 0.0) + value
                continue
            count = figures[site].get(f"{split}.examples", 0.0)
            sums[name] = sums.get(name, 0.0) + value * count
            behind[name] = behind.get(name, 0.0) + count
    return {**{name: total / behind[name] for name, total in sums.items() if behind[name]}, **people}


def summed(sums: Mapping[str, Tensors]) -> dict[str, np.ndarray]:
    """Sums of the sites' arrays by name, float64, in the order of sites."""
    totals: dict[str, np.ndarray] = {}
    for site in sorted(sums):
        for name, array in sums[site].items():
            totals[name] = totals[name] + array if name in totals else array.astype(np.float64)
    return totals


def require_counts(figures: Mapping[str, float], sums: Tensors, people: Mapping[str, int]) -> None:
    """Raise InputError unless a site's evaluation is of no more people than it has: split -> people.

    figures: "SPLIT.examples" among them; sums: histograms of scores of test people, see `Task.scores`
    """
    for split in Split:
        count = figures.get(f"{split}.examples", 0.0)
        if not 0 <= count <= people[split]:
            found, remedy = f"found {count:g}", f"send from 0 to {people[split]}, as declared"
            raise InputError(refusal(f"figure '{split}.examples'", found, remedy))
    for name in sums:
        if not name.startswith(PREFIX) or sums[name].dtype != np.float32:
            raise InputError(refusal(f"tensor {name!r}", "it counts no scores", "send float32 histograms"))
    areas(sums, fewest=1)  # refuses another shape, negative numbers and what is no number
    for name in sums:
        counted = float(sums[name].sum(dtype=np.float64))
        if counted > people[Split.TEST]:
            found = f"it counts {counted:g} people of {people[Split.TEST]}"
            raise InputError(refusal(f"tensor {name!r}", found, "count each test person once"))
