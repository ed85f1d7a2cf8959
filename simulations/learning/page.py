"""What came of the claims, as files: a pure function of the figures of all seeds.

learning.json    run, reasons, claims, and every figure by seed and part
learning.csv     a row for each claim and seed
learning.html    the page; learning.md the same for docs/
reasons.json     read if it lies there: claim -> why it does not appear
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from pm1_core import atomic
from pm1_core.page import page
from simulations.diseases import DISEASES
from simulations.learning.claims import Seed, figures_of, interval
from simulations.learning.paper import MARGIN, held
from simulations.learning.variants import BASELINES, FULL, VARIANTS
from simulations.sweep_table import band

NAME = "learning"
Table = dict[str, Any]


def write_outcome(folder: Path, run: Mapping[str, Any], measured: Mapping[str, Seed]) -> dict[str, Any]:
    """Write all files into `folder` and return the content of learning.json. run: what a reader must know of it."""
    reasons = folder / "reasons.json"
    results = outcome(run, measured, atomic.read_json(reasons) if reasons.exists() else {})
    atomic.write_json(folder / f"{NAME}.json", results)
    atomic.write_text(folder / f"{NAME}.csv", table_of(results["claims"]))
    atomic.write_text(folder / f"{NAME}.html", page("simulations", "learning.html.j2", facts(results)))
    atomic.write_text(folder / f"{NAME}.md", document(results))
    return results


def write_document(file: Path) -> Path:
    """Hold the figures of a learning.json against the claims anew; write it, and the document beside it."""
    before = atomic.read_json(file)
    results = outcome(before["run"], before["figures"], before["reasons"])
    atomic.write_json(file, results)
    path = file.with_suffix(".md")
    atomic.write_text(path, document(results))
    return path


def outcome(
    run: Mapping[str, Any], measured: Mapping[str, Seed], reasons: Mapping[str, str]
) -> dict[str, Any]:
    """The content of learning.json."""
    claims = held(measured, reasons)
    return {"run": dict(run), "reasons": dict(reasons), "claims": claims, "figures": measured}


def document(results: Mapping[str, Any]) -> str:
    """The page in Markdown."""
    templates = Environment(
        loader=PackageLoader("simulations"), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return templates.get_template("learning.md.j2").render(facts(results)).strip() + "\n"


def table_of(claims: Sequence[Mapping[str, Any]]) -> str:
    """Claims as CSV, a row for each seed: differences are positive where the claim is right."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(
        ["claim", "seed", "first", "second", "difference", "mean", "low", "high", "margin", "verdict"]
    )
    for row in claims:
        over = row["difference"]
        for seed, gain in over["seeds"].items():
            sides = [row[side]["seeds"][seed] for side in ("first", "second")]
            numbers = [*sides, gain, over["mean"], over["low"], over["high"]]
            shown = ["" if number is None else f"{number:.6g}" for number in numbers]
            writer.writerow([row["name"], seed, *shown, f"{row['margin']:g}", row["verdict"]])
    return stream.getvalue()


def facts(results: Mapping[str, Any]) -> dict[str, Any]:
    """What the templates show: the run, claims by place, tables of the figures behind them."""
    places: dict[str, list[dict[str, str]]] = {}
    for row in results["claims"]:
        over = row["difference"]
        shown = {
            **{key: str(row[key]) for key in ("claim", "verdict", "reason")},
            "first": f"{row['first']['what']} {number(row['first']['mean'])}",
            "second": f"{row['second']['what']} {number(row['second']['mean'])}",
            "difference": _with_interval(over) + (", the smallest" if row["smallest"] else ""),
        }
        places.setdefault(row["place"], []).append(shown)
    verdicts = [row["verdict"] for row in results["claims"]]
    counts = {verdict: verdicts.count(verdict) for verdict in dict.fromkeys(verdicts)}
    return {
        "run": results["run"],
        "margin": f"{MARGIN:g}",
        "places": places,
        "counts": counts,
        "tables": _tables(results["figures"]),
    }


def number(value: float | None) -> str:
    """Three places, with a minus sign."""
    return "–" if value is None else f"{value:.3f}".replace("-", "−")


def _tables(seeds: Mapping[str, Seed]) -> list[Table]:
    return [_chromosomes(seeds), _imputations(seeds), _variants(seeds), _diseases(seeds), _inferences(seeds)]


def _chromosomes(seeds: Mapping[str, Seed]) -> Table:
    methods = {"pm1": "VAE", **BASELINES, "majority": "commonest dosage"}
    names = {method: f"encoders/genotype.{method}.*" for method in methods}
    keys = _keys(seeds, names["pm1"])
    rows = [
        [
            key,
            *(_mean(seeds, names[method], key) for method in methods),
            *(_gain(seeds, names["pm1"], names[method], key) for method in BASELINES),
        ]
        for key in keys
    ]
    return {
        "title": "Genotype reconstruction",
        "text": "Weighted accuracy on test people. VAE and baselines are trained alike: by the same sites, in as "
        "many rounds, on the same loss, with tokens of the same width.",
        "head": ["chromosome", *methods.values(), *(f"VAE − {words}" for words in BASELINES.values())],
        "rows": rows,
    }


def _imputations(seeds: Mapping[str, Seed]) -> Table:
    kinds = [
        (kind, [f"encoders/imputation.{method}.{kind}" for method in ("pm1", "soft_impute")])
        for kind in ("continuous", "binary")
    ]
    return {
        "title": "Imputation",
        "text": "Share that is explained of entries hidden from test people, each of whom loses what a training "
        "person lacks; column means explain 0. The auto-encoder is federated; SoftImpute has the training people "
        "of all sites in one table, and its penalty from entries held out of them.",
        "head": ["phenotypes", "auto-encoder", "SoftImpute", "auto-encoder − SoftImpute"],
        "rows": [
            [kind, *(_mean(seeds, name) for name in names), _gain(seeds, *names)] for kind, names in kinds
        ],
    }


def _variants(seeds: Mapping[str, Seed]) -> Table:
    rows = {
        "masked tokens, validation loss": "validation.mask",
        "denoised tokens, validation loss": "validation.recon",
        **{
            f"{modality} tokens from the other modalities, error": f"validation.cross.{modality}"
            for modality in ("genotype", "phenotype", "fundus")
        },
        "mean ROC-AUC from P": "auc.P.*",
        "mean ROC-AUC from P+I+G": "auc.P+I+G.*",
        "two eyes closer than two people's, how often": "eyes.area",
        "distance of a person's eyes": "eyes.own",
        "distance of two people's eyes": "eyes.others",
        "how many times farther": "eyes.ratio",
        "before the transformer: how often": "eyes.before.area",
        "before the transformer: how many times farther": "eyes.before.ratio",
    }
    return {
        "title": "Ablations side by side",
        "text": "Errors of tokens are in units of their variance. Losses with and without InfoNCE are those of the "
        "reconstruction alone. Distances are cosine distances of fused tokens, the left eye of one and the right "
        "eye of the other.",
        "head": ["figure", *VARIANTS.values()],
        "rows": [
            [words, *(_mean(seeds, f"{variant}/{name}") for variant in VARIANTS)]
            for words, name in rows.items()
        ],
    }


def _diseases(seeds: Mapping[str, Seed]) -> Table:
    inputs = ("P", "P+I", "P+G", "P+I+G")
    names = {combination: f"{FULL}/auc.{combination}.*" for combination in inputs}
    known = set(_keys(seeds, names["P"]))
    return {
        "title": "Diseases",
        "text": "ROC-AUC of test people with all modalities, a disease's own columns hidden.",
        "head": ["disease", *inputs, *(f"{combination} − P" for combination in inputs[1:])],
        "rows": [
            [
                disease.label + (" (eye)" if disease.eye else ""),
                *(_mean(seeds, name, disease.name) for name in names.values()),
                *(_gain(seeds, names[added], names["P"], disease.name) for added in inputs[1:]),
            ]
            for disease in DISEASES
            if disease.name in known
        ],
    }


def _inferences(seeds: Mapping[str, Seed]) -> Table:
    shown = {
        **{inputs: (inputs, "") for inputs in ("G+P+I", "P+I", "P", "I")},
        "the mean token": ("mean", ""),
        "P+I, genetic components hidden": ("P+I", "bare."),
        "P, genetic components hidden": ("P", "bare."),
    }
    mean = partial(_mean, seeds)
    return {
        "title": "Genotypes from other modalities",
        "text": "Weighted accuracy, mean over chromosomes, of genotypes decoded from fused tokens, and the tokens' "
        "error in units of their variance. Ten genetic principal components are columns of the phenotypes.",
        "head": ["from", "weighted accuracy", "error of the tokens"],
        "rows": [
            [words, mean(f"{FULL}/{bare}inference.{name}.*"), mean(f"{FULL}/{bare}token.{name}")]
            for words, (name, bare) in shown.items()
        ],
    }


def _keys(seeds: Mapping[str, Seed], pattern: str) -> list[str]:
    """What the pattern finds in any seed, chromosomes as numbers are sorted."""
    found = {key for seed in seeds.values() for key in figures_of(seed, pattern)}
    return sorted(found, key=lambda key: (len(key), key))


def _values(seeds: Mapping[str, Seed], pattern: str, key: str | None) -> dict[str, float]:
    """Seed -> the figure of `key`, or the mean of all that the pattern finds."""
    found = {name: figures_of(seed, pattern) for name, seed in seeds.items()}
    if key is not None:
        return {name: figures[key] for name, figures in found.items() if key in figures}
    return {name: sum(figures.values()) / len(figures) for name, figures in found.items() if figures}


def _mean(seeds: Mapping[str, Seed], pattern: str, key: str | None = None) -> str:
    values = list(_values(seeds, pattern, key).values())
    return number(band(values).mean) if values else number(None)


def _gain(seeds: Mapping[str, Seed], first: str, second: str, key: str | None = None) -> str:
    one, other = _values(seeds, first, key), _values(seeds, second, key)
    gains = [one[name] - other[name] for name in one if name in other]
    return _with_interval(interval(band(gains))) if gains else number(None)


def _with_interval(over: Mapping[str, Any]) -> str:
    if over["low"] is None:
        return number(over["mean"])
    return f"{number(over['mean'])} ({number(over['low'])} to {number(over['high'])})"
