"""How figures of the report look: one palette, one grid, SVG that takes its colours from the page.

Colours that mean something are the same in every figure, table and key: a modality, or a way of
training. They are told apart without colour vision (after Okabe and Ito, 2008) and by marker shape.
Figures are drawn with stand-in colours that `svg` turns into the page's CSS variables, so one figure
serves light, dark and paper.
"""

from __future__ import annotations

import io
import re
from typing import Any, Literal

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

INK, MUTED, RULE, PAPER = "#010203", "#040506", "#070809", "#0a0b0c"
GENOTYPE, PHENOTYPE, FUNDUS = "#2a6fb8", "#d17f00", "#12946f"
FEDERATED, POOLED, ALONE, BASELINE = "#b3327d", INK, "#7d858e", "#7d858e"

VARIABLES = {
    INK: "currentColor",
    MUTED: "var(--muted)",
    RULE: "var(--rule)",
    PAPER: "var(--paper)",
    GENOTYPE: "var(--genotype)",
    PHENOTYPE: "var(--phenotype)",
    FUNDUS: "var(--fundus)",
    FEDERATED: "var(--federated)",
    ALONE: "var(--alone)",
}
MODALITY = {"genotype": GENOTYPE, "phenotype": PHENOTYPE, "fundus": FUNDUS}
# A combination takes the colour of the modality that it adds to the phenotypes; all three are ink.
INPUTS = {"P": PHENOTYPE, "P+I": FUNDUS, "P+G": GENOTYPE, "P+I+G": INK}
# Groups of people: Tol's "bright", in the order of first use, fixed for the labels in use.
GROUPS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#aa3377", "#66ccee")
_FIXED = {"EUR": 0, "AFR": 1, "ASN": 2, "EAS": 2, "AMR": 3, "SAS": 4}
UNKNOWN = "#9aa0a6"

WIDTH = 8.6  # inches; the page shows 72 units an inch at its full measure


def group_colours(names: list[str]) -> dict[str, str]:
    """Colour of each group of people; known ancestries keep theirs in every run."""
    free = iter(sorted(set(range(len(GROUPS))) - {_FIXED[n] for n in names if n in _FIXED}) * 9)
    return {name: GROUPS[_FIXED[name] if name in _FIXED else next(free, 0)] for name in names}


def figure(height: float) -> Figure:
    """An empty figure of the page's width and `height` inches."""
    return Figure(figsize=(WIDTH, height), layout="constrained")


def dress(axes: Axes, grid: Literal["x", "y"] | None = "y") -> Axes:
    """Thin axes, hairline grid along `grid` ("x", "y", None) behind the data."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set(color=RULE, linewidth=0.8)
    axes.tick_params(colors=MUTED, length=2.5, width=0.6, labelsize=8)
    axes.xaxis.label.set(color=MUTED, size=8.5)
    axes.yaxis.label.set(color=MUTED, size=8.5)
    axes.patch.set_visible(False)
    axes.set_axisbelow(True)
    if grid:
        axes.grid(axis=grid, color=RULE, linewidth=0.6)
    return axes


def whole_rounds(axes: Axes) -> None:
    """Ticks at whole numbers only, along x."""
    axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True))


def entitle(axes: Axes, text: str) -> None:
    """Name a panel, flush left."""
    axes.set_title(text, loc="left", color=INK, fontsize=9, fontweight="bold")


def svg(drawn: Figure, title: str) -> str:
    """`drawn` as inline SVG with an accessible `title`, the page's fonts and colours, and no addresses.

    Dense layers that were marked as rasterised are embedded as PNG at 200 dpi.
    """
    drawn.patch.set_visible(False)
    stream = io.StringIO()
    settings: Any = {"svg.fonttype": "none", "svg.hashsalt": title, "font.family": "DejaVu Sans"}
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with mpl.rc_context(settings):
        drawn.savefig(stream, format="svg", dpi=200, metadata=nothing)
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", text)
    text = re.sub(r'(<svg\s[^>]*?)\sheight="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg\s[^>]*?)\swidth="[^"]*"', r"\1", text, count=1)
    text = re.sub(r"font: ([^;\"]*?)'DejaVu Sans'[^;\"]*", r"font: \1var(--sans)", text)
    text = re.sub(r"font-family: [^;\"]*", "font-family: var(--sans)", text)
    # Identifiers of several figures share one page.
    prefix = re.sub(r"\W+", "-", title.lower()).strip("-")
    text = re.sub(r'\bid="', f'id="{prefix}-', text)
    text = re.sub(r"url\(#", f"url(#{prefix}-", text)
    text = re.sub(r'href="#', f'href="#{prefix}-', text)
    for stand_in, variable in VARIABLES.items():
        text = text.replace(stand_in, variable)
    return text.replace("<svg ", f'<svg role="img" aria-label="{title}" ', 1)
