"""The page of a sweep: self-contained, a pure function of the cells' results.

Sections whose figures no cell has are left out. Sentences state what the bands show, in numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from pm1_core import atomic
from pm1_core.errors import StateError
from pm1_core.evaluation.genotype import FREQUENCIES
from pm1_core.page import page
from pm1_core.validate import refusal
from simulations import sweep_plots
from simulations.sweep_table import (
    NONE,
    Band,
    Result,
    change,
    curve,
    epsilons,
    figure_names,
    label,
    series_of,
)

PAGE = "sweep.html"
_MEAN = "mean of all"
_ATTACKS = {
    "attack.frequencies": "released allele frequencies",
    "attack.genotype": "genotype auto-encoders' loss",
    "attack.phenotype": "phenotype auto-encoder's loss",
}


def write_page(results: Sequence[Result], arguments: Sequence[str], folder: Path, whole: int) -> Path:
    """Write `folder`/sweep.html and return its path.

    arguments: KEY=VALUE of the sweep; whole: cells that it has, of which `results` may be a part
    Raises StateError if there is no result yet.
    """
    if not results:
        raise StateError(refusal(folder, "no cell of this sweep is finished", "run pm1-sim sweep first"))
    facts = {
        "name": folder.name,
        "arguments": arguments,
        "done": len(results),
        "whole": whole,
        "seeds": sorted({str(result["values"]["seed"]) for result in results}),
        "findings": findings(results),
        "sections": sections(results),
        "budgets": budgets(results),
        "bins": _bins(),
        "delta": next((f"{result['delta']:g}" for result in results if result.get("delta")), None),
        "seconds": sum(result["seconds"] for result in results),
    }
    path = folder / PAGE
    atomic.write_text(path, page("simulations", "sweep.html.j2", facts))
    return path


def sections(results: Sequence[Result]) -> list[dict[str, Any]]:
    """{"id", "title", "figure", "text"} of what the cells have figures for."""
    names = figure_names(results)
    found = []
    areas = {name: _words(name) for name in names if name.startswith("auc.")}
    if "auc" in names:
        areas["auc"] = _MEAN
    if areas:
        text = (
            "Held-out people with all three modalities; every modality is shown to the model, the disease's own "
            "columns are not."
        )
        found.append(_section("diseases", "Diseases", sweep_plots.diseases(results, areas), text))
    if any(name.startswith("genotype.") for name in names):
        text = (
            "Balanced accuracy of dosages rebuilt from a chromosome's token, by frequency of the rarer allele "
            "among held-out people. Dotted: who gives everybody the commonest dosage. Right: the share of "
            "what lies above that which privacy leaves, on the same people and from the same start."
        )
        found.append(
            _section("genotypes", "Genotypes by allele frequency", sweep_plots.genotypes(results), text)
        )
    gaps = _gaps(names)
    if gaps:
        drawn = sweep_plots.panels(results, "Ancestry gap against epsilon", gaps, "figure in each group")
        text = (
            "Mean ROC-AUC over diseases, and genotype accuracy from chance (0) to perfect (1), in each ancestry; "
            "the gap is the highest minus the lowest. Groups are small, so bands are wide."
        )
        found.append(_section("ancestries", "Ancestries", drawn, text))
    attacks = {name: _ATTACKS.get(name, _words(name)) for name in names if name.startswith("attack.")}
    if attacks:
        drawn = sweep_plots.panels(
            results, "Attack success against epsilon", {"membership": attacks}, "ROC-AUC of the attacker", 0.5
        )
        text = (
            "The attacker holds what was released and a person's record, and says whether the person was in "
            "training. 0.5 is a coin. A low figure is no proof: it is what this attacker reaches, the guarantee "
            "is epsilon."
        )
        found.append(_section("attacks", "Attack success", drawn, text))
    return found


def findings(results: Sequence[Result]) -> list[str]:
    """What changes from no privacy to the strictest epsilon, paired by seed, a sentence each."""
    spoken = {
        "auc": "mean ROC-AUC over diseases",
        "kept.genotype.rarest": "accuracy of genotypes with the rarest alleles, from chance (0) to perfect (1)",
        "kept.genotype.commonest": "accuracy of those with the commonest, from chance (0) to perfect (1)",
        "gap.auc": "gap of ROC-AUC between ancestries",
        "attack": "the best attacker's ROC-AUC",
    }
    among, sentences = series_of(results), []
    for series in among:
        which = label(series, among)
        for name, words in list(spoken.items())[: None if len(among) == 1 else 1]:
            changes, free = change(results, series, name), curve(results, series, name).get(NONE)
            if not changes or free is None:
                continue
            strictest = next(iter(changes))
            sentences.append(
                f"{which + ': ' if which else ''}{words}: {free.mean:.3f} without privacy, "
                f"{free.mean + changes[strictest].mean:.3f} at epsilon {strictest} "
                f"(change {_interval(changes[strictest])})."
            )
    return sentences


def budgets(results: Sequence[Result]) -> list[dict[str, Any]]:
    """{"epsilon", "spent", "cells"}: the most that any ledger of a cell holds, beside what was asked for."""
    rows = []
    for epsilon in epsilons(results):
        cells = [result for result in results if result["values"]["epsilon"] == epsilon]
        spent = [float(cell["spent"]) for cell in cells if cell.get("spent") is not None]
        most = f"{max(spent):.4f}" if spent else "no differential privacy"
        rows.append({"epsilon": epsilon, "spent": most, "cells": len(cells)})
    return rows


def _gaps(names: Sequence[str]) -> dict[str, dict[str, str]]:
    panels = {}
    for kind, heading in (("auc", "ROC-AUC"), ("genotype", "genotypes")):
        start = f"ancestry.{kind}."
        groups = {name: name.removeprefix(start) for name in names if name.startswith(start)}
        if f"gap.{kind}" in names:
            panels[f"{heading}: gap"] = {f"gap.{kind}": "highest − lowest"}
            panels[heading] = groups
    return panels


def _bins() -> list[dict[str, str]]:
    return [
        {"name": name, "low": f"{low:g}", "high": f"{min(high, 0.5):g}"}
        for name, (low, high) in FREQUENCIES.items()
    ]


def _interval(found: Band) -> str:
    text = f"{found.mean:+.3f}"
    if len(found.values) > 1:
        text += f", 95% interval {found.low:+.3f} to {found.high:+.3f} over {len(found.values)} seeds"
    return text.replace("-", "−")


def _section(key: str, title: str, drawn: str, text: str) -> dict[str, Any]:
    return {"id": key, "title": title, "figure": Markup(drawn), "text": text}


def _words(name: str) -> str:
    return name.partition(".")[2].replace("_", " ")
