"""Hospitals with a table and nothing else, prepared as a site prepares its own: what small benchmarks train on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import yaml

from pm1_core.data.manifest import load_manifest
from pm1_core.data.preparation import prepare

COLUMNS = 12


def prepared(folder: Path, sites: int, rows: int, seed: int = 0) -> dict[str, Path]:
    """Site -> store of `rows` people with COLUMNS continuous columns and a disease that follows from them."""
    rng = np.random.default_rng(seed)
    weights = rng.normal(size=COLUMNS)
    names = [f"value{number}" for number in range(COLUMNS)]
    folder.mkdir(parents=True, exist_ok=True)
    study = {
        "study": "tables",
        "build": "GRCh38",
        "split_key": "42",
        "columns": [
            *({"name": name, "kind": "continuous", "unit": "1"} for name in names),
            {"name": "disease", "kind": "binary"},
        ],
        "targets": [{"name": "disease", "label": "Disease", "masked": ["disease"]}],
    }
    (folder / "study.yaml").write_text(yaml.safe_dump(study))
    stores = {}
    for number in range(sites):
        site = f"site{number:05d}"
        here = folder / site
        here.mkdir(exist_ok=True)
        values = rng.normal(size=(rows, COLUMNS))
        disease = (values @ weights + rng.logistic(size=rows) > 0).astype(int)
        table = pd.DataFrame(values.round(3), columns=names)
        table.insert(0, "id", [f"{site}-{row}" for row in range(rows)])
        table["disease"] = disease
        table.to_csv(here / "table.csv", index=False)
        manifest = {
            "site": site,
            "study": "../study.yaml",
            "phenotype": {
                "path": "table.csv",
                "subject": "id",
                "columns": [{"column": name, "to": name} for name in (*names, "disease")],
            },
        }
        (here / "site.yaml").write_text(yaml.safe_dump(manifest))
        stores[site] = folder / "stores" / site
        prepare(load_manifest(here / "site.yaml"), stores[site])
    return stores
