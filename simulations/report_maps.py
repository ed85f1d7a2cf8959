"""Figures of the report that show embeddings, the genome, and photographs."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from matplotlib.axes import Axes

from pm1_core.errors import StateError
from pm1_core.evaluation.association import GENOME_WIDE
from pm1_core.validate import refusal
from simulations.report_schema import Pigmentation, SamplePhotograph
from simulations.report_style import (
    FEDERATED,
    INK,
    MODALITY,
    MUTED,
    UNKNOWN,
    dress,
    entitle,
    figure,
    group_colours,
    svg,
)

Arrays = Mapping[str, np.ndarray]


def token_map(arrays: Arrays) -> str:
    """Tokens as PCA and t-SNE (columns), by modality and by ancestry (rows)."""
    kinds = np.array([str(kind).split(".")[0] for kind in arrays["tokens.kind"]])
    views = [(n, arrays[f"tokens.{n}"]) for n in ("pca", "tsne") if f"tokens.{n}" in arrays]
    rows = 2 if "tokens.ancestry" in arrays else 1
    drawn = figure(3.35 * rows if len(views) == 2 else 4.2 * rows)
    grid = drawn.subplots(rows, len(views), squeeze=False)
    for column, (name, points) in enumerate(views):
        title = {"pca": "PCA", "tsne": "t-SNE"}[name]
        axes = _plane(grid[0, column], f"{title} of tokens, by modality")
        _scatter(axes, points, kinds, MODALITY)
        if rows == 2:
            groups = arrays["tokens.ancestry"].astype(str)
            axes = _plane(grid[1, column], f"{title} of tokens, by ancestry")
            _scatter(axes, points, groups, _groups(groups))
    return svg(drawn, "Tokens")


def people_map(arrays: Arrays) -> str:
    """Pooled fusion embeddings of people as PCA and t-SNE, by ancestry."""
    groups = arrays["people.ancestry"].astype(str)
    views = [(n, arrays[f"people.{n}"]) for n in ("pca", "tsne") if f"people.{n}" in arrays]
    drawn = figure(3.35)
    for axes, (name, points) in zip(drawn.subplots(1, len(views), squeeze=False)[0], views, strict=True):
        title = {"pca": "PCA", "tsne": "t-SNE"}[name]
        _scatter(_plane(axes, f"{title} of people, by ancestry"), points, groups, _groups(groups), 9)
    return svg(drawn, "People")


def _groups(groups: np.ndarray) -> dict[str, str]:
    return group_colours(sorted({str(g) for g in groups} - {""}))


def _plane(axes: Axes, title: str) -> Axes:
    dress(axes, None)
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set_visible(False)
    entitle(axes, title)
    return axes


def _scatter(
    axes: Axes, points: np.ndarray, groups: np.ndarray, colours: Mapping[str, str], size: float = 4
) -> None:
    """All points in one layer and a random order, so that no group hides another; then a key."""
    order = np.random.default_rng(0).permutation(len(points))
    every = np.array([colours.get(str(group), UNKNOWN) for group in groups])
    x, y = points[order].T
    axes.scatter(x, y, s=size, c=every[order], linewidths=0, alpha=0.65, rasterized=True)
    for name, colour in colours.items():
        if (groups == name).any():
            axes.plot([], [], "o", color=colour, markersize=4.5, label=name)
    if np.isin(groups, list(colours), invert=True).any():
        axes.plot([], [], "o", color=UNKNOWN, markersize=4.5, label="unknown")
    axes.legend(
        loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=6, frameon=False, fontsize=8, labelcolor=INK,
        handletextpad=0.0, columnspacing=1.0,
    )  # fmt: skip


def manhattan(arrays: Arrays, planted: Pigmentation) -> str:
    """-log10 p along chromosomes 1-22, the planted SNP ringed."""
    chrom, pos, strength = (np.asarray(arrays[name]) for name in ("chrom", "pos", "log10_p"))
    offsets, ticks, start = {}, {}, 0.0
    for chromosome in np.unique(chrom):
        length = float(pos[chrom == chromosome].max())
        offsets[int(chromosome)] = start
        ticks[int(chromosome)] = start + length / 2
        start += length * 1.02
    place = pos + np.array([offsets[int(c)] for c in chrom])
    drawn = figure(2.9)
    axes = dress(drawn.add_subplot())
    for parity, colour in ((0, "#5b6b7d"), (1, "#9aa8b5")):
        mine = chrom % 2 == parity
        axes.scatter(place[mine], strength[mine], s=5, c=colour, linewidths=0, rasterized=True)
    threshold = -np.log10(GENOME_WIDE)
    axes.axhline(threshold, color=MUTED, linewidth=0.8, linestyle=(0, (3, 2)))
    here = offsets[planted["chrom"]] + planted["pos"]
    axes.plot(
        here,
        planted["log10_p"],
        "o",
        markersize=8,
        color=FEDERATED,
        markerfacecolor="none",
        markeredgewidth=1.6,
    )
    beside = here > 0.6 * start
    axes.annotate(
        f"{planted['name']} (planted)", (here, planted["log10_p"]), xytext=(-9 if beside else 9, 0),
        textcoords="offset points", ha="right" if beside else "left", va="center", fontsize=8.5,
        color=FEDERATED, weight="bold",
    )  # fmt: skip
    axes.set_xlim(-0.01 * start, 1.005 * start)
    axes.set_ylim(0, max(float(np.nanmax(strength)), threshold) * 1.1)
    axes.text(0, threshold, "5 × 10⁻⁸", ha="left", va="bottom", fontsize=7.5, color=MUTED)
    axes.set_xticks(list(ticks.values()), [str(c) if c < 18 or c % 2 == 0 else "" for c in ticks])
    axes.set_xlabel("chromosome")
    axes.set_ylabel("−log10 p")
    return svg(drawn, "Manhattan plot")


@dataclass(frozen=True)
class Picture:
    """A photograph as the page shows it: data addresses of the crop and of the whole with its box."""

    crop: str
    original: str | None
    caption: str


def pictures(folder: Path, entries: list[SamplePhotograph], side: int) -> list[Picture]:
    """Thumbnails `side` pixels wide. Subject identifiers are not shown.

    Raises StateError if a file of the index is missing or is no picture.
    """
    shown = []
    for entry in entries:
        crop = _read(folder / entry["crop"])
        words = [entry["site"], f"{entry['eye']} eye", *([entry["label"]] if entry.get("label") else [])]
        original = None
        if "original" in entry:
            whole = _read(folder / entry["original"])
            if "box" in entry:
                left, top, width, height = (round(v) for v in entry["box"])
                corner, far = (left, top), (left + width, top + height)
                cv2.rectangle(whole, corner, far, (255, 220, 90), max(2, whole.shape[1] // 90))
            original = _thumbnail(whole, side)
        shown.append(Picture(_thumbnail(crop, side), original, ", ".join(words)))
    return shown


def _read(path: Path) -> np.ndarray:
    image = cv2.imread(str(path), cv2.IMREAD_COLOR) if path.is_file() else None
    if image is None:
        raise StateError(refusal(path, "missing or no picture", "write the sample photographs again"))
    return image


def _thumbnail(image: np.ndarray, side: int) -> str:
    height = max(1, round(image.shape[0] * side / image.shape[1]))
    small = cv2.resize(image, (side, height), interpolation=cv2.INTER_AREA)
    _, content = cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, 82])
    return "data:image/jpeg;base64," + base64.b64encode(content.tobytes()).decode()
