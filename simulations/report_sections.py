"""From a run's files to what the template shows: one function per section, None where data are absent."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
from markupsafe import Markup

from pm1_core.fields import Modality, Split
from simulations import report_curves, report_maps, report_plots
from simulations.report_findings import findings, listed, meets, power
from simulations.report_notes import duration, notes, privacy
from simulations.report_run import Run
from simulations.report_schema import Repeats
from simulations.report_style import INPUTS

Section = dict[str, Any]


def sections(run: Run) -> dict[str, Any]:
    """Everything that report.html.j2 needs."""
    results = run.results
    shown: dict[str, Section | None] = {
        "participants": _participants(run),
        "preparation": _preparation(run),
        "training": _training(run),
        "genotype": _genotype(run),
        "diseases": _diseases(run),
        "methods": _methods(run),
        "ancestry": _ancestry(run),
        "superpopulation": _repeats(results.get("superpopulation"), "balanced accuracy"),
        "heart_disease": _repeats(results.get("heart_disease"), "ROC-AUC"),
        "embeddings": _embeddings(run),
        "pigmentation": _pigmentation(run),
        "photographs": _photographs(run),
    }
    return {
        "run": results["run"],
        "config": run.config,
        "config_hash": run.results["run"].get("config_hash", run.config_hash),
        "privacy": privacy(run),
        "duration": duration(results["run"]["seconds"]),
        "findings": [
            Markup(sentence) for sentence in findings(_escaped(results), _escaped(run.participants))
        ],
        "notes": notes(run),
        "section": shown,
    }


def _escaped(value: Any) -> Any:
    """`value` with every string made safe for HTML: names of sites and SNPs come from files."""
    if isinstance(value, dict):
        return {key: _escaped(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_escaped(item) for item in value]
    return str(Markup.escape(value)) if isinstance(value, str) else value


def _participants(run: Run) -> Section | None:
    if run.participants is None:
        return None
    sites = run.participants["sites"]
    largest = {
        m.value: max((sum(s["modalities"].get(m, {}).values()) for s in sites), default=0) for m in Modality
    }
    rows: list[dict[str, Any]] = []
    for site in sites:
        cells = []
        for modality in Modality:
            counts = [site["modalities"].get(modality.value, {}).get(split.value, 0) for split in Split]
            total = sum(counts)
            cells.append(
                {
                    "modality": modality.value,
                    "counts": counts,
                    "total": total,
                    "share": 100 * total / max(largest[modality.value], 1),
                }
            )
        took_part = dict.fromkeys(phase.split(".")[0].replace("_", " ") for phase in site.get("phases", []))
        rows.append(
            {**site, "took_part": ", ".join(took_part), "total": sum(site["people"].values()), "cells": cells}
        )
    totals = [sum(row["cells"][i]["total"] for row in rows) for i in range(len(Modality))]
    return {
        "rows": rows,
        "totals": totals,
        "people": sum(row["total"] for row in rows),
        "excluded": run.participants.get("excluded", []),
        "ancestries": sorted({name for site in sites for name in site.get("ancestry", {})}),
        "photographs": any("photographs" in site for site in sites),
    }


def _preparation(run: Run) -> Section | None:
    sites = [s for s in (run.participants or {"sites": []})["sites"] if s.get("preparation")]
    if not sites:
        return None
    table: dict[tuple[str, str], dict[str, int]] = defaultdict(dict)
    remedies: dict[tuple[str, str], str] = {}
    for site in sites:
        for finding in site["preparation"]:
            key = (finding["code"], finding["action"])
            table[key][site["site"]] = table[key].get(site["site"], 0) + finding["count"]
            remedies.setdefault(key, finding.get("remedy", ""))
    order = {"refused": 0, "handled": 1, "noted": 2}
    rows = [
        {"code": code, "action": action, "remedy": remedies[code, action], "counts": counts}
        for (code, action), counts in sorted(table.items(), key=lambda item: (order[item[0][1]], item[0][0]))
    ]
    return {"sites": [site["site"] for site in sites], "rows": rows}


def _training(run: Run) -> Section | None:
    phases = report_curves.phases_of(run.metrics)
    if not phases:
        return None
    losses = report_curves.curves(run.metrics, "loss")
    rows = []
    groups: dict[str, list[str]] = defaultdict(list)
    for phase in phases:
        groups["genotype (each of 22)" if phase.startswith("genotype.") else phase].append(phase)
    for name, members in groups.items():
        lines = [line for line in run.metrics if line["phase"] in members]
        row = {
            "phase": name.replace("each of 22", f"mean of {len(members)}"),
            "rounds": max(line["round"] for line in lines),
            "sites": len({line["site"] for line in lines} - {None}),
            "seconds": duration(
                sum(x["seconds"] for x in lines if x["site"] is None and x["split"] == "train")
            ),
        }
        for split in ("train", "validation"):
            mine = [losses[p, None, split][1] for p in members if (p, None, split) in losses]
            row[split] = (np.mean([v[0] for v in mine]), np.mean([v[-1] for v in mine])) if mine else None
        rows.append(row)
    drawable = any(len(curve[0]) > 1 for curve in losses.values())
    last = next((p for p in reversed(phases) if (p, None, "train") in losses), None)
    parts = report_curves.loss_parts(run.metrics, last) if last else None
    return {
        "rows": rows,
        "figure": Markup(report_curves.loss_curves(run.metrics)) if drawable else None,
        "parts": Markup(parts) if parts else None,
        "parts_of": last,
        "per_site": any(line["site"] is not None for line in run.metrics),
    }


def _genotype(run: Run) -> Section | None:
    data = run.results.get("genotype")
    if not data or not data["rows"]:
        return None
    methods = [
        m for m in report_plots.RECONSTRUCTION if any(m in r["weighted_accuracy"] for r in data["rows"])
    ]
    rows = []
    for method in methods:
        values = [r["weighted_accuracy"][method] for r in data["rows"] if method in r["weighted_accuracy"]]
        rows.append(
            {
                "name": report_plots.RECONSTRUCTION[method][0],
                "ours": method == "pm1",
                "mean": np.mean(values),
                "low": min(values),
                "high": max(values),
            }
        )
    other = run.results.get("genotype_inference")
    return {
        "data": data,
        "rows": rows,
        "figure": Markup(report_plots.reconstruction(data)),
        "inference": other,
        "inference_figure": Markup(report_plots.inference(other)) if other and other["rows"] else None,
    }


def _diseases(run: Run) -> Section | None:
    data = run.results.get("diseases")
    if not data or not data["rows"]:
        return None
    names = [name for name in INPUTS if any(row["inputs"] == name for row in data["rows"])]
    clear = {(d["target"], d["inputs"]) for d in data["differences"] if d["p_holm"] < 0.05}
    rows = []
    for target in dict.fromkeys(row["target"] for row in data["rows"]):
        mine = {row["inputs"]: row for row in data["rows"] if row["target"] == target}
        first = next(iter(mine.values()))
        best = max(row["auc"] for row in mine.values())
        cells = [
            {**mine[n], "best": mine[n]["auc"] == best, "stands": (target, n) in clear} if n in mine else None
            for n in names
        ]
        rows.append(
            {"label": first["label"], "cases": first["cases"], "controls": first["controls"], "cells": cells}
        )
    return {
        "data": data,
        "names": names,
        "rows": rows,
        "differences": data["differences"],
        "figure": Markup(report_plots.diseases(data)),
        "wide": sorted({r["label"] for r in data["rows"] if (r["high"] - r["low"]) / 2 > 0.05}),
    }


def _methods(run: Run) -> Section | None:
    data = run.results.get("methods")
    if not data or not data["rows"]:
        return None
    sites = list(dict.fromkeys(row["site"] for row in data["rows"] if "site" in row))
    rows = []
    for target in dict.fromkeys(row["target"] for row in data["rows"]):
        mine = {row.get("site", row["method"]): row for row in data["rows"] if row["target"] == target}
        cells = [mine.get(name) for name in ("federated", "pooled", *sites)]
        rows.append({"label": next(iter(mine.values()))["label"], "cells": cells})
    inputs = list(dict.fromkeys(row["inputs"] for row in data["rows"]))
    return {
        "data": data,
        "sites": sites,
        "rows": rows,
        "inputs": inputs,
        "figure": Markup(report_plots.methods(data)),
    }


def _ancestry(run: Run) -> Section | None:
    data = run.results.get("ancestry")
    if not data or not data["rows"]:
        return None
    return {
        "rows": data["rows"],
        "classes": list(dict.fromkeys(c for row in data["rows"] for c in row["recalls"])),
    }


def _repeats(data: Repeats | None, quantity: str) -> Section | None:
    if not data or not data["rows"]:
        return None
    rows = [
        {
            "label": report_plots.row_label(row),
            "mean": np.mean(row["values"]),
            "low": min(row["values"]),
            "high": max(row["values"]),
            "dimensions": row.get("dimensions"),
        }
        for row in data["rows"]
    ]
    return {
        "data": data,
        "rows": rows,
        "dimensions": any(row["dimensions"] for row in rows),
        "figure": Markup(report_plots.repeats(data, quantity)),
        "verdicts": meets(data),
    }


def _embeddings(run: Run) -> Section | None:
    tokens = "tokens.kind" in run.embeddings and {"tokens.pca", "tokens.tsne"} & set(run.embeddings)
    people = "people.ancestry" in run.embeddings and {"people.pca", "people.tsne"} & set(run.embeddings)
    if not tokens and not people:
        return None
    return {
        "tokens": Markup(report_maps.token_map(run.embeddings)) if tokens else None,
        "people": Markup(report_maps.people_map(run.embeddings)) if people else None,
        "n_tokens": len(run.embeddings["tokens.kind"]) if tokens else 0,
        "n_people": len(run.embeddings["people.ancestry"]) if people else 0,
        "ancestry": "tokens.ancestry" in run.embeddings,
    }


def _pigmentation(run: Run) -> Section | None:
    data = run.results.get("pigmentation")
    if not data:
        return None
    return {
        "data": data,
        "covariates": listed(data["covariates"]) or "no covariates",
        "p": Markup(power(data["log10_p"])),
        "lead_p": Markup(power(data["lead"]["log10_p"])),
        "figure": Markup(report_maps.manhattan(run.association, data)) if run.association else None,
    }


def _photographs(run: Run) -> Section | None:
    data = run.results.get("photographs")
    if not data and not run.photographs:
        return None
    folder = run.folder / "sample_photographs"
    side = 150 if len(run.photographs) > 16 else 220
    return {
        "sites": data["sites"] if data else [],
        "located": sum(s["located"] for s in data["sites"]) if data else 0,
        "total": sum(s["total"] for s in data["sites"]) if data else 0,
        "pictures": report_maps.pictures(folder, run.photographs, side),
        "side": side,
    }
