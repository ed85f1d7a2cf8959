"""Curves of training: metrics by phase, site and split over the rounds, and their figures."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
from matplotlib.axes import Axes

from simulations.report_schema import MetricsLine
from simulations.report_style import ALONE, INK, MODALITY, dress, entitle, figure, svg, whole_rounds

Curve = tuple[list[int], list[float]]
Curves = dict[tuple[str, str | None, str], Curve]


def curves(metrics: list[MetricsLine], name: str) -> Curves:
    """(phase, site, split) -> rounds and values of the metric `name`, in the order of the rounds."""
    points: dict[tuple[str, str | None, str], dict[int, float]] = defaultdict(dict)
    for line in metrics:
        if name in line["metrics"]:
            points[line["phase"], line["site"], line["split"]][line["round"]] = line["metrics"][name]
    return {key: (sorted(values), [values[r] for r in sorted(values)]) for key, values in points.items()}


def phases_of(metrics: list[MetricsLine]) -> list[str]:
    """Phases in the order in which they ran."""
    return list(dict.fromkeys(line["phase"] for line in metrics))


def phase_colour(phase: str) -> str:
    """Colour of a phase: its modality's, or ink for what joins modalities."""
    return next((colour for name, colour in MODALITY.items() if phase.startswith(name)), INK)


def loss_curves(metrics: list[MetricsLine]) -> str:
    """Small multiples of the loss, one panel a phase; the 22 genotype phases share one."""
    losses = {key: curve for key, curve in curves(metrics, "loss").items() if len(curve[0]) > 1}
    phases = [p for p in phases_of(metrics) if any(key[0] == p for key in losses)]
    panels: dict[str, list[str]] = defaultdict(list)
    for phase in phases:
        panels["genotype" if phase.startswith("genotype.") else phase].append(phase)
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    drawn = figure(0.35 + 2.05 * rows)
    for index, (name, members) in enumerate(panels.items()):
        axes = dress(drawn.add_subplot(rows, columns, index + 1))
        colour = phase_colour(name)
        if len(members) > 1:
            _many_phases(axes, losses, members, colour)
            entitle(axes, f"{name}, {len(members)} chromosomes")
        else:
            _one_phase(axes, losses, members[0], colour)
            entitle(axes, name.replace("_", " "))
        axes.set_xlabel("round")
        axes.set_ylabel("loss")
        whole_rounds(axes)
    return svg(drawn, "Loss curves")


def _many_phases(axes: Axes, losses: Curves, members: list[str], colour: str) -> None:
    shown: dict[str, list[Curve]] = defaultdict(list)
    for phase in members:
        for split in ("train", "validation"):
            if curve := losses.get((phase, None, split)):
                shown[split].append(curve)
    for curve in shown["train"] or shown["validation"]:
        axes.plot(*curve, color=colour, linewidth=0.6, alpha=0.35)
    for split, dashes in (("train", "-"), ("validation", (0, (3, 2)))):
        same = [c for c in shown[split] if c[0] == shown[split][0][0]]
        if same:
            mean = np.mean([values for _, values in same], axis=0)
            axes.plot(same[0][0], mean, color=colour, linewidth=2, linestyle=dashes)


def _one_phase(axes: Axes, losses: Curves, phase: str, colour: str) -> None:
    for (name, site, split), own in losses.items():
        if name == phase and site is not None and split == "train":
            axes.plot(*own, color=ALONE, linewidth=0.7, alpha=0.7)
    for split, dashes in (("train", "-"), ("validation", (0, (3, 2)))):
        if curve := losses.get((phase, None, split)):
            axes.plot(*curve, color=colour, linewidth=2, linestyle=dashes)


def loss_parts(metrics: list[MetricsLine], phase: str) -> str | None:
    """What the loss of `phase` is made of: one panel per other metric; None if it has no others."""
    names = dict.fromkeys(
        name
        for line in metrics
        if line["phase"] == phase and line["site"] is None
        for name in line["metrics"]
    )
    drawable = []
    for name in names:
        mine = {k[2]: c for k, c in curves(metrics, name).items() if k[:2] == (phase, None) and len(c[0]) > 1}
        if mine and name not in ("loss", "examples", "seconds"):
            drawable.append((name, mine))
    if not drawable:
        return None
    drawable = drawable[:8]
    columns = min(4, len(drawable))
    rows = -(-len(drawable) // columns)
    drawn = figure(0.3 + 1.6 * rows)
    for index, (name, by_split) in enumerate(drawable):
        axes = dress(drawn.add_subplot(rows, columns, index + 1))
        for split, dashes in (("train", "-"), ("validation", (0, (3, 2)))):
            if curve := by_split.get(split):
                axes.plot(*curve, color=phase_colour(phase), linewidth=1.6, linestyle=dashes)
        entitle(axes, name.removeprefix("loss.").replace("_", " "))
        whole_rounds(axes)
    return svg(drawn, f"Parts of the loss of {phase}")
