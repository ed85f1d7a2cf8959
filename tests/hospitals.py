"""Three small hospitals with real files, prepared by the real preparation: seconds instead of a cohort's minute.

`north` has everything, `south` genotypes and phenotypes, `clinic` photographs only. Genotypes follow a person's
position on one axis, and so do the phenotypes, so that there is something to learn.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pgenlib
import yaml

from pm1_core.data.manifest import load_manifest
from pm1_core.data.preparation import prepare

SNPS = 12
PEOPLE = {"north": 60, "south": 40, "clinic": 24}
MODALITIES = {"north": "GPI", "south": "GP", "clinic": "I"}


def write_hospitals(folder: Path, seed: int = 7) -> dict[str, Path]:
    """Write study.yaml and the sites' files below `folder`; return site -> manifest."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    variants = pd.DataFrame(
        [(c, 1000 * (i + 1), f"rs{c}_{i}", "A", "G") for c in range(1, 23) for i in range(SNPS)],
        columns=["chrom", "pos", "id", "ref", "alt"],
    )
    variants.to_csv(folder / "variants.tsv", sep="\t", index=False)
    study = {
        "study": "three_hospitals",
        "build": "GRCh38",
        "split_key": "42",
        "variants": "variants.tsv",
        "columns": [
            {"name": "age", "kind": "continuous", "unit": "years", "range": [0, 120]},
            {"name": "pressure", "kind": "continuous", "unit": "mmHg", "range": [50, 250]},
            {"name": "sex", "kind": "binary"},
            {"name": "smoking", "kind": "categorical", "categories": ["never", "previous", "current"]},
            {"name": "disease", "kind": "binary"},
        ],
        "targets": [{"name": "disease", "label": "Disease", "masked": ["disease"]}],
        "labels": [{"name": "ancestry", "kind": "categorical", "categories": ["X", "Y"]}],
    }
    (folder / "study.yaml").write_text(yaml.safe_dump(study))
    return {site: _write_site(folder, site, rng) for site in PEOPLE}


def prepare_hospitals(folder: Path) -> dict[str, Path]:
    """Write and prepare; return site -> store."""
    stores = {}
    for site, manifest in write_hospitals(folder).items():
        prepare(load_manifest(manifest), folder / "stores" / site)
        stores[site] = folder / "stores" / site
    return stores


def _write_site(folder: Path, site: str, rng: np.random.Generator) -> Path:
    here = folder / site
    here.mkdir()
    subjects = [f"{site}{i:04d}" for i in range(PEOPLE[site])]
    axis = rng.normal(size=len(subjects))
    manifest: dict[str, object] = {"site": site, "study": "../study.yaml"}
    if "G" in MODALITIES[site]:
        manifest["genotype"] = {"format": "pgen", "path": "people", "build": "GRCh38"}
        _write_genotypes(here, subjects, axis, rng)
    if "P" in MODALITIES[site]:
        manifest["phenotype"] = _write_phenotypes(here, subjects, axis, rng)
        manifest["labels"] = {"path": "labels.csv", "subject": "id", "columns": {"ancestry": "ancestry"}}
        labels = pd.DataFrame({"id": subjects, "ancestry": np.where(axis > 0, "X", "Y")})
        labels.to_csv(here / "labels.csv", index=False)
    if "I" in MODALITIES[site]:
        manifest["fundus"] = {"index": "fundus.csv", "folder": "photos"}
        _write_photographs(here, subjects, axis, rng)
    (here / "site.yaml").write_text(yaml.safe_dump(manifest))
    return here / "site.yaml"


def _write_genotypes(here: Path, subjects: list[str], axis: np.ndarray, rng: np.random.Generator) -> None:
    lines = ["#CHROM\tPOS\tID\tREF\tALT"]
    with pgenlib.PgenWriter(
        str(here / "people.pgen").encode(), len(subjects), variant_ct=22 * SNPS, nonref_flags=False
    ) as writer:
        for chromosome in range(1, 23):
            frequency = 1 / (1 + np.exp(-axis[:, None] * rng.normal(size=SNPS)))
            calls = rng.binomial(2, frequency).astype(np.int8)
            calls[rng.random(calls.shape) < 0.01] = -9
            writer.append_biallelic_batch(np.ascontiguousarray(calls.T))
            lines += [f"{chromosome}\t{1000 * (i + 1)}\trs{chromosome}_{i}\tA\tG" for i in range(SNPS)]
    (here / "people.pvar").write_text("\n".join(lines) + "\n")
    (here / "people.psam").write_text("\n".join(["#IID\tSEX", *(f"{s}\t1" for s in subjects)]) + "\n")


def _write_phenotypes(
    here: Path, subjects: list[str], axis: np.ndarray, rng: np.random.Generator
) -> dict[str, object]:
    n = len(subjects)
    table = pd.DataFrame(
        {
            "id": subjects,
            "age": np.round(55 + 8 * axis + rng.normal(size=n), 1),
            "bp": np.round(130 + 15 * axis + rng.normal(size=n), 0),
            "sex": rng.integers(0, 2, n),
            "smoking": rng.choice(["0", "1", "2", "-3"], n),
            "disease": (axis + rng.normal(size=n) > 0.5).astype(int),
        }
    )
    table.to_csv(here / "table.csv", index=False)
    return {
        "path": "table.csv",
        "subject": "id",
        "columns": [
            {"column": "age", "to": "age", "unit": "years"},
            {"column": "bp", "to": "pressure", "unit": "mmHg"},
            {"column": "sex", "to": "sex"},
            {
                "column": "smoking",
                "to": "smoking",
                "missing": [-3],
                "values": {0: "never", 1: "previous", 2: "current"},
            },
            {"column": "disease", "to": "disease"},
        ],
    }


def _write_photographs(here: Path, subjects: list[str], axis: np.ndarray, rng: np.random.Generator) -> None:
    (here / "photos").mkdir()
    rows = []
    for subject, place in zip(subjects, axis, strict=True):
        for eye in ("left", "right"):
            picture = np.zeros((240, 320, 3), np.uint8)
            tone = int(np.clip(120 + 40 * place, 60, 220))
            cv2.circle(picture, (160, 120), 100, (tone // 2, tone // 2, tone), -1)
            cv2.circle(picture, (130 if eye == "left" else 190, 120), 18, (150, 220, 250), -1)
            noise = rng.integers(0, 12, picture.shape, dtype=np.uint8)
            picture = np.where(picture > 0, cv2.add(picture, noise), picture)
            cv2.imwrite(str(here / "photos" / f"{subject}_{eye}.jpg"), picture)
            rows.append((subject, eye, f"{subject}_{eye}.jpg"))
    pd.DataFrame(rows, columns=["subject", "eye", "file"]).to_csv(here / "fundus.csv", index=False)
