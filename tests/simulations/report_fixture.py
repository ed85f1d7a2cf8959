"""A run's folder with plausible made-up results, in the shape that a run writes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd

from pm1_core.evaluation.association import Scan, association_scan, recovery
from pm1_core.evaluation.cross_modal import TargetScores, cross_modal_table
from pm1_core.evaluation.embedding import principal_components
from pm1_core.evaluation.intervals import roc_auc
from pm1_core.evaluation.probe import linear_probe
from pm1_core.fields import CHROMOSOMES, TOKENS

SITES = ("leeds", "bristol", "cardiff", "glasgow", "london", "oxford", "eyepacs")
DISEASES = {
    "macular_degeneration": ("Macular degeneration", 0.8, 0.1),
    "diabetic_eye_disease": ("Diabetic eye disease", 1.0, 0.9),
    "glaucoma": ("Glaucoma", 0.6, 0.6),
    "cataract": ("Cataract", 0.5, 0.1),
    "heart_failure": ("Heart failure", 0.9, 0.0),
    "ischaemic_stroke": ("Ischaemic stroke", 1.0, 0.0),
    "heart_attack": ("Heart attack", 0.7, 0.0),
    "dementia": ("Dementia", 1.2, 0.0),
}
MEMBERS = 240
ALL_PHASES = [*(f"genotype.{c}" for c in CHROMOSOMES), "phenotype", "fundus", "fusion"]


def site_entries(rng: np.random.Generator) -> list[dict[str, Any]]:
    entries = []
    for index, name in enumerate((*SITES, "biobank test people")):
        evaluation = index == len(SITES)
        n = 900 if evaluation else MEMBERS + 30 * index

        def split(count: int, test_only: bool = evaluation) -> dict[str, int]:
            held = count // 10
            return (
                {"test": count}
                if test_only
                else {"train": count - 2 * held, "validation": held, "test": held}
            )

        fundus_only = name == "eyepacs"
        modalities = {"fundus": split(n if fundus_only else n // 4)}
        if not fundus_only:
            modalities |= {"genotype": split(int(n * 0.84)), "phenotype": split(int(n * 0.91))}
        entry: dict[str, Any] = {
            "site": name,
            "role": "evaluation" if evaluation else "member",
            "people": split(n),
            "modalities": modalities,
            "photographs": 2 * modalities["fundus"]["test"],
            "phases": [] if evaluation else ["fundus", "fusion"] if fundus_only else ALL_PHASES,
        }
        if not fundus_only:
            entry["ancestry"] = {
                "EUR": int(n * 0.8),
                "AFR": int(n * 0.12),
                "ASN": n - int(n * 0.8) - int(n * 0.12),
            }
            entry["preparation"] = [
                {"code": "palindromic_snp", "count": int(rng.integers(200, 400)), "action": "handled",
                 "remedy": "set missing; vouch for the strand with palindromic: keep"},
                {"code": "flipped_alleles", "count": int(rng.integers(5, 90)), "action": "handled"},
                {"code": "missing_code", "count": int(rng.integers(1000, 3000)), "action": "handled"},
            ]  # fmt: skip
            if index % 2:
                entry["preparation"].append({"code": "black_photograph", "count": 2, "action": "refused",
                                             "remedy": "take the file out of the index"})  # fmt: skip
        entries.append(entry)
    return entries


def metrics_lines(rng: np.random.Generator) -> list[dict[str, Any]]:
    lines = []
    phases = [f"genotype.{c}" for c in CHROMOSOMES] + ["phenotype", "fundus", "fusion"]
    for phase in ["phenotype_statistics", *phases]:
        rounds = 1 if phase.endswith("statistics") else 12 if phase == "fusion" else 6
        level, floor = rng.uniform(0.8, 1.2), rng.uniform(0.25, 0.4)
        for number in range(1, rounds + 1):
            decay = floor + level * np.exp(-number / (rounds / 3))
            for site in (None, *SITES):
                shift = 0 if site is None else 0.05 * (SITES.index(site) - 3)
                for part, extra in (("train", 0.0), ("validation", 0.04)):
                    if rounds == 1 and part == "validation":
                        continue
                    loss = float(decay + extra + shift + rng.normal(0, 0.01))
                    metrics = {} if rounds == 1 else {"loss": loss}
                    if phase == "fusion":
                        metrics |= {
                            "loss.masked": loss * 0.5,
                            "loss.contrastive": loss * 2,
                            "loss.reconstruction": loss / 3,
                        }
                    lines.append({
                        "phase": phase, "round": number, "site": site, "split": part, "examples": 120,
                        "seconds": 0.7, "metrics": metrics,
                    })  # fmt: skip
    return lines


def disease_table(rng: np.random.Generator) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    targets, methods = [], []
    for target, (label, signal, image) in DISEASES.items():
        labels = (rng.random(1500) < rng.uniform(0.08, 0.2)).astype(float)
        noise = rng.standard_normal(1500)
        scores = {
            "P": signal * labels + noise,
            "P+I": (signal + image * 0.5) * labels + noise + 0.2 * rng.standard_normal(1500),
            "P+G": (signal + 0.05) * labels + noise + 0.2 * rng.standard_normal(1500),
            "P+I+G": (signal + image * 0.55) * labels + noise + 0.2 * rng.standard_normal(1500),
        }
        targets.append(TargetScores(target, label, labels, scores))
        for name, loss in (("federated", 0.0), ("pooled", -0.04), *((site, 0.35) for site in SITES[:6])):
            area = roc_auc(labels, scores["P+I+G"] - labels * loss * rng.uniform(0.6, 1.2))
            methods.append({
                "target": target, "label": label, "inputs": "P+I+G", "auc": area.auc, "low": area.low,
                "high": area.high, "cases": area.cases, "controls": area.controls,
                "method": name if name in ("federated", "pooled") else "alone",
                **({} if name in ("federated", "pooled") else {"site": name}),
            })  # fmt: skip
    rare = TargetScores("alzheimers", "Alzheimer's disease", np.repeat([1.0, 0.0], [3, 1497]), {"P": noise})
    return cross_modal_table([*targets, rare]).to_json(), methods


def scan_of(rng: np.random.Generator) -> tuple[Scan, dict[str, Any]]:
    """A real scan of random genomes with one SNP of chromosome 15 in the embeddings."""
    n = 700
    dosages, rows = {}, []
    for chromosome in CHROMOSOMES:
        snps = 500 - 18 * chromosome
        values = rng.binomial(2, rng.uniform(0.1, 0.5, snps), (n, snps)).astype(np.uint8)
        for snp in range(1, snps):
            copied = rng.random(n) < 0.6
            values[copied, snp] = values[copied, snp - 1]
        dosages[chromosome] = values
        rows += [(chromosome, 400_000 * (snp + 1)) for snp in range(snps)]
    outcomes = rng.standard_normal((n, 5))
    outcomes[:, 1] += 0.75 * dosages[15][:, 100]
    scan = association_scan(dosages, pd.DataFrame(rows, columns=["chrom", "pos"]), outcomes, np.empty((n, 0)))
    found = recovery(scan, dosages[15], 15, 400_000 * 101, window=1_000_000).to_json()
    return scan, {
        **found, "name": "sim15_101", "inflation": scan.inflation, "people": n, "components": 5,
        "covariates": ["10 genotype components", "site"],
    }  # fmt: skip


def embeddings(rng: np.random.Generator) -> tuple[dict[str, np.ndarray], list[dict[str, Any]]]:
    people = 240
    groups = rng.choice(["EUR", "AFR", "ASN"], people, p=[0.8, 0.12, 0.08])
    centre = {"EUR": (0, 0), "AFR": (7, 2), "ASN": (3, 6)}
    pooled = (
        np.array([centre[g] for g in groups]) @ rng.standard_normal((2, 16))
        + rng.standard_normal((people, 16)) * 3
    )
    owner = np.repeat(np.arange(people), len(TOKENS))
    kinds = np.tile(np.array(TOKENS), people)
    present = (~np.char.startswith(kinds, "fundus")) | (owner % 4 == 0)
    owner, kinds = owner[present], kinds[present]
    offset = np.array([{"g": 0.0, "p": 14.0, "f": -12.0}[k[0]] for k in kinds])
    tokens = (
        pooled[owner, :2] * 0.7
        + np.column_stack([offset, np.abs(offset) / 2])
        + rng.standard_normal((len(owner), 2)) * 1.8
    )
    arrays = {
        "tokens.pca": tokens, "tokens.tsne": tokens @ np.array([[0.4, 1], [-1, 0.5]]) + np.sin(tokens),
        "tokens.kind": kinds, "tokens.ancestry": groups[owner], "people.ancestry": groups,
        "people.pca": principal_components(pooled, 2).transform(pooled),
        "people.tsne": principal_components(np.tanh(pooled), 2).transform(pooled),
    }  # fmt: skip
    half = people // 2
    rows = [
        {"representation": name, **linear_probe(x[:half], groups[:half], x[half:], groups[half:]).to_json()}
        for name, x in (
            ("fusion embeddings", pooled),
            ("genotype components", pooled[:, :10] + rng.normal(0, 2, (people, 10))),
        )
    ]
    return arrays, rows


def photographs(folder: Path, count: int, rng: np.random.Generator) -> None:
    folder.mkdir(parents=True)
    index = []
    for number in range(count):
        height, width, radius = 292, 438, 130
        image = np.zeros((height, width, 3), np.uint8)
        colour = tuple(int(v) for v in rng.integers((20, 60, 150), (60, 110, 220)))
        cv2.circle(image, (width // 2, height // 2), radius, colour, -1)
        cv2.circle(image, (width // 2 + 60, height // 2), 20, (140, 220, 250), -1)
        for _ in range(8):
            end = (int(rng.integers(130, 300)), int(rng.integers(40, 250)))
            cv2.line(image, (width // 2 + 60, height // 2), end, (30, 30, 120), 2)
        left, top = width // 2 - radius, height // 2 - radius
        crop = cv2.resize(image[top : top + 2 * radius, left : left + 2 * radius], (587, 587))
        cv2.imwrite(str(folder / f"{number}.jpg"), image)
        cv2.imwrite(str(folder / f"{number}_crop.png"), crop)
        index.append({
            "crop": f"{number}_crop.png", "original": f"{number}.jpg", "site": SITES[number % 7],
            "eye": ("left", "right")[number % 2], "box": [left, top, 2 * radius, 2 * radius],
            "label": ("healthy", "diabetic retinopathy", "glaucoma")[number % 3],
        })  # fmt: skip
    (folder / "index.json").write_text(json.dumps(index))


def repeats(rng: np.random.Generator) -> tuple[dict[str, Any], dict[str, Any]]:
    keys = [str(key) for key in range(42, 52)]

    def values(mean: float, spread: float) -> list[float]:
        return [float(v) for v in np.clip(rng.normal(mean, spread, 10), 0, 1)]

    people = {"keys": keys, "reference": "principal components", "margin": 0.02, "rows": [
        {"name": "trained", "values": values(0.978, 0.008), "dimensions": 352},
        {"name": "principal components", "values": values(0.983, 0.006), "dimensions": 20},
        {"name": "untrained", "values": values(0.94, 0.01), "dimensions": 352},
    ]}  # fmt: skip
    heart = {"keys": keys, "reference": "pooled logistic regression", "margin": 0.02, "rows": [
        {"site": site, "name": name, "values": values(mean, 0.04)}
        for site in ("cleveland", "hungarian")
        for name, mean in (("federated", 0.88), ("pooled logistic regression", 0.885))
    ]}  # fmt: skip
    return people, heart


def write_run(folder: Path, real: bool = False, photograph_count: int = 8) -> dict[str, Any]:
    """Write a whole run to `folder`; `real` adds the sections of the real-data run. Returns results.json."""
    rng = np.random.default_rng(7)
    folder.mkdir(parents=True, exist_ok=True)
    table, methods = disease_table(rng)
    scan, pigmentation = scan_of(rng)
    arrays, probes = embeddings(rng)
    genotype = [
        {"chromosome": c, "snps": 500 - 18 * c, "weighted_accuracy": {
            "pm1": float(0.86 - 0.002 * c + rng.normal(0, 0.01)), "shallow_vae": float(0.78 + rng.normal(0, 0.012)),
            "linear": float(0.72 + rng.normal(0, 0.012)), "majority": 1 / 3}}
        for c in CHROMOSOMES
    ]  # fmt: skip
    results: dict[str, Any] = {
        "run": {
            "name": "ukb-eyepacs-small", "study": "ukb_eyepacs", "data": "real" if real else "simulated",
            "size": "small", "engine": "in process", "strategy": "fedavg", "seed": 42,
            "started": "2026-11-21T08:15:00+00:00", "seconds": 412.3, "commit": "0123456789abcdef0123",
            "privacy": {"mechanism": "none", "secure_aggregation": False},
            "versions": {"pm1": "0.1.0", "flwr": "1.41.0", "torch": "2.14.0"},
        },
        "genotype": {"split": "test", "people": 640, "rows": genotype},
        "genotype_inference": {"split": "test", "people": 640, "rows": [
            {"inputs": i, "chromosome": c, "weighted_accuracy": float(v + rng.normal(0, 0.005))}
            for i, v in (("G+P+I", 0.82), ("P+I", 0.37), ("P", 0.36), ("I", 0.345)) for c in CHROMOSOMES]},
        "diseases": {"split": "test", "raised": {"Dementia": {"population": 0.008, "cohort": 0.06}}, **table},
        "methods": {"phase": "fusion", "rows": methods},
        "ancestry": {"rows": probes},
        "pigmentation": pigmentation,
        "photographs": {"sites": [{"site": "eyepacs", "located": 410, "total": 412},
                                  {"site": "leeds", "located": 96, "total": 96}]},
    }  # fmt: skip
    if real:
        results["superpopulation"], results["heart_disease"] = repeats(rng)
    (folder / "results.json").write_text(json.dumps(results))
    entries = {
        "sites": site_entries(rng),
        "excluded": [{"site": "york", "reason": "store of another study (ukb_v1)"},
                     {"site": "leeds", "people": 3, "reason": "withdrew consent"}],
    }  # fmt: skip
    (folder / "participants.json").write_text(json.dumps(entries))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in metrics_lines(rng)))
    (folder / "config.yaml").write_text(
        "study:\n  name: ukb_eyepacs\n  split_key: '42'\nsize: small\nrounds: 12\n"
    )
    np.savez(folder / "embeddings.npz", **arrays)  # type: ignore[arg-type]
    np.savez(folder / "association.npz", chrom=scan.chrom, pos=scan.pos, log10_p=scan.log10_p)
    photographs(folder / "sample_photographs", photograph_count, rng)
    return results
