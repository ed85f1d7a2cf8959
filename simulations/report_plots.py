"""Figures of the report that show figures of merit. Each takes plain data and gives SVG."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes

from simulations.report_schema import (
    Diseases,
    Genotype,
    GenotypeInference,
    Methods,
    RepeatEntry,
    Repeats,
)
from simulations.report_style import (
    ALONE,
    BASELINE,
    FEDERATED,
    FUNDUS,
    GENOTYPE,
    INK,
    INPUTS,
    MUTED,
    PAPER,
    PHENOTYPE,
    POOLED,
    RULE,
    dress,
    figure,
    svg,
)

RECONSTRUCTION = {
    "pm1": ("PM1, federated", FEDERATED, "D", 4.5),
    "shallow_vae": ("shallow VAE", BASELINE, "^", 4.0),
    "linear": ("linear projection", BASELINE, "s", 3.6),
    "majority": ("most frequent dosage", BASELINE, "_", 7.0),
}


def reconstruction(genotype: Genotype) -> str:
    """Weighted accuracy per chromosome, PM1 beside its baselines."""
    rows = sorted(genotype["rows"], key=lambda row: row["chromosome"])
    drawn = figure(2.7)
    axes = dress(drawn.add_subplot())
    for method in [m for m in RECONSTRUCTION if any(m in row["weighted_accuracy"] for row in rows)][::-1]:
        label, colour, marker, size = RECONSTRUCTION[method]
        here = [
            (i, r["weighted_accuracy"][method])
            for i, r in enumerate(rows)
            if method in r["weighted_accuracy"]
        ]
        filled = colour if method != "shallow_vae" else PAPER
        axes.plot(
            *zip(*here, strict=True), linestyle="none", marker=marker, markersize=size, color=colour,
            markerfacecolor=filled, markeredgewidth=1.1, label=label,
        )  # fmt: skip
    axes.set_xticks(range(len(rows)), [str(row["chromosome"]) for row in rows])
    axes.set_xlabel("chromosome")
    axes.set_ylabel("weighted accuracy")
    _legend(axes, 4, reverse=True)
    return svg(drawn, "Genotype reconstruction")


def inference(data: GenotypeInference) -> str:
    """Weighted accuracy of genotypes inferred from other modalities, per chromosome."""
    styles = {"G+P+I": (INK, "D"), "P+I": (FUNDUS, "o"), "P": (PHENOTYPE, "o"), "I": (FUNDUS, "x")}
    chromosomes = sorted({row["chromosome"] for row in data["rows"]})
    drawn = figure(2.5)
    axes = dress(drawn.add_subplot())
    names = list(dict.fromkeys(row["inputs"] for row in data["rows"]))
    for inputs, dodge in zip(names, np.linspace(-0.24, 0.24, len(names)), strict=True):
        colour, marker = styles.get(inputs, (GENOTYPE, "s"))
        mine = {r["chromosome"]: r["weighted_accuracy"] for r in data["rows"] if r["inputs"] == inputs}
        place = [i for i, c in enumerate(chromosomes) if c in mine]
        axes.plot(
            np.array(place) + dodge, [mine[chromosomes[i]] for i in place], linestyle="none",
            marker=marker, markersize=4.5, color=colour, label=f"{inputs} → G",
        )  # fmt: skip
    axes.set_xticks(range(len(chromosomes)), [str(c) for c in chromosomes])
    axes.set_xlabel("chromosome")
    axes.set_ylabel("weighted accuracy")
    _legend(axes, 4)
    return svg(drawn, "Genotype inference")


def diseases(data: Diseases) -> str:
    """Areas with whiskers, and beside them what each combination adds to the phenotypes."""
    targets = list(dict.fromkeys(row["target"] for row in data["rows"]))
    labels = {row["target"]: row["label"] for row in data["rows"]}
    names = [n for n in INPUTS if any(row["inputs"] == n for row in data["rows"])]
    offsets = dict(zip(names, np.linspace(-0.27, 0.27, len(names)) if len(names) > 1 else [0.0], strict=True))
    drawn = figure(0.75 + 0.5 * len(targets))
    left, right = drawn.subplots(1, 2, sharey=True, width_ratios=[1.25, 1], gridspec_kw={"wspace": 0.08})
    for axes in (dress(left, "x"), dress(right, "x")):
        for place in range(1, len(targets)):
            axes.axhline(place - 0.5, color=RULE, linewidth=0.5)
    for row in data["rows"]:
        place = targets.index(row["target"]) + offsets[row["inputs"]]
        _whisker(left, row["auc"], row["low"], row["high"], place, INPUTS[row["inputs"]], "o")
    for gain in data["differences"]:
        place = targets.index(gain["target"]) + offsets[gain["inputs"]]
        clear = gain["p_holm"] < 0.05
        colour = INPUTS[gain["inputs"]]
        _whisker(right, gain["difference"], gain["low"], gain["high"], place, colour, "o", clear)
    left.axvline(0.5, color=MUTED, linewidth=0.8, linestyle=(0, (2, 2)))
    right.axvline(0.0, color=MUTED, linewidth=0.8, linestyle=(0, (2, 2)))
    left.set_yticks(range(len(targets)), [labels[t] for t in targets])
    left.set_ylim(len(targets) - 0.5, -0.5)
    left.tick_params(axis="y", length=0, labelcolor=INK, labelsize=8.5)
    right.tick_params(axis="y", length=0)
    left.set_xlabel("ROC-AUC, 95% interval")
    right.set_xlabel("difference from P, 95% interval")
    for name in names:
        left.plot([], [], marker="o", linestyle="none", color=INPUTS[name], markersize=4.5, label=name)
    drawn.legend(
        *left.get_legend_handles_labels(), loc="outside upper left", ncols=4, frameon=False, fontsize=8.5,
        labelcolor=INK, handletextpad=0.1, columnspacing=1.4,
    )  # fmt: skip
    return svg(drawn, "ROC-AUC per disease")


def methods(data: Methods) -> str:
    """Federated beside pooled beside every site alone, per target."""
    rows = data["rows"]
    targets = list(dict.fromkeys(row["target"] for row in rows))
    labels = {row["target"]: row["label"] for row in rows}
    drawn = figure(0.8 + 0.4 * len(targets))
    axes = dress(drawn.add_subplot(), "x")
    for row in rows:
        place = targets.index(row["target"])
        if row["method"] == "alone":
            axes.plot(
                row["auc"], place + 0.22, marker="o", markersize=4.2, color=ALONE, markerfacecolor="none",
                markeredgewidth=1,
            )  # fmt: skip
        elif row["method"] == "pooled":
            _whisker(axes, row["auc"], row["low"], row["high"], place, POOLED, "s")
        else:
            _whisker(axes, row["auc"], row["low"], row["high"], place - 0.22, FEDERATED, "D")
    for name, colour, marker, face in (
        ("federated", FEDERATED, "D", FEDERATED),
        ("pooled", POOLED, "s", POOLED),
        ("one site alone", ALONE, "o", "none"),
    ):
        axes.plot([], [], marker=marker, linestyle="none", color=colour, markerfacecolor=face, label=name)
    axes.axvline(0.5, color=MUTED, linewidth=0.8, linestyle=(0, (2, 2)))
    axes.set_yticks(range(len(targets)), [labels[t] for t in targets])
    axes.set_ylim(len(targets) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0, labelcolor=INK, labelsize=8.5)
    axes.set_xlabel("ROC-AUC on the same test people, 95% interval for federated and pooled")
    _legend(axes, 3)
    return svg(drawn, "Federated, pooled and alone")


def repeats(data: Repeats, quantity: str) -> str:
    """One dot per split key and a bar at the mean, one row per representation or site and method."""
    rows = data["rows"]
    ours = ("trained", "federated")
    drawn = figure(0.6 + 0.36 * len(rows))
    axes = dress(drawn.add_subplot(), "x")
    for place, row in enumerate(rows):
        colour = FEDERATED if row["name"] in ours else (INK if row["name"] == data["reference"] else ALONE)
        spread = np.linspace(-0.16, 0.16, len(row["values"]))
        axes.plot(row["values"], place + spread, "o", color=colour, markersize=3.6, alpha=0.55)
        mean = float(np.mean(row["values"]))
        axes.plot([mean, mean], [place - 0.3, place + 0.3], color=colour, linewidth=2.6)
    axes.set_yticks(range(len(rows)), [row_label(row) for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0, labelcolor=INK, labelsize=8.5)
    axes.set_xlabel(f"{quantity}, one dot per split key")
    return svg(drawn, f"Repeats of {quantity}")


def row_label(row: RepeatEntry) -> str:
    """Name of a row of repeats, with its site in front."""
    return f"{row['site'].capitalize()}: {row['name']}" if "site" in row else row["name"]


def _whisker(
    axes: Axes,
    middle: float,
    low: float,
    high: float,
    place: float,
    colour: str,
    marker: str,
    filled: bool = True,
) -> None:
    axes.plot([low, high], [place, place], color=colour, linewidth=1.1, solid_capstyle="butt")
    face = colour if filled else PAPER
    axes.plot(
        middle, place, marker=marker, markersize=4.6, color=colour, markerfacecolor=face, markeredgewidth=1.1
    )


def _legend(axes: Axes, columns: int, reverse: bool = False) -> None:
    axes.legend(
        reverse=reverse, loc="lower left", bbox_to_anchor=(-0.01, 1.0), ncols=columns, frameon=False,
        fontsize=8.5, labelcolor=INK, handletextpad=0.2, columnspacing=1.4, borderaxespad=0.2,
    )  # fmt: skip
