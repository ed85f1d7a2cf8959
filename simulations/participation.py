"""Who took part with what: people, modalities, photographs and findings of each site, for the report."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import pandas as pd

from pm1_core import atomic
from pm1_core.data.store import Store
from pm1_core.fields import EYES, Modality, Split
from simulations.real_cohort import SUPERPOPULATION
from simulations.workspace import Workspace

LOST_PHOTOGRAPHS = ("fundus.file-absent", "fundus.unreadable", "fundus.black", "fundus.no-retina")
_SHOWN_PHOTOGRAPHS = 6


def located_photographs(run: Path, workspace: Workspace) -> dict[str, Any]:
    """Located photographs per site, and some of them before and after cropping."""
    shown: list[dict[str, Any]] = []
    sites = []
    folder = run / "sample_photographs"
    shutil.rmtree(folder, ignore_errors=True)
    for site, path in workspace.stores.items():
        store = Store.open(path)
        if Modality.FUNDUS not in store.modalities:
            continue
        index = pd.read_csv(path / "fundus" / "index.tsv", sep="\t", dtype=str, keep_default_na=False)
        report = atomic.read_json(path / "preparation.json")
        lost = sum(f["count"] for f in report["findings"] if f["code"] in LOST_PHOTOGRAPHS)
        sites.append({"site": site, "located": len(index), "total": len(index) + lost})
        for _, row in index.head(_SHOWN_PHOTOGRAPHS if len(workspace.stores) < 3 else 2).iterrows():
            folder.mkdir(exist_ok=True)
            name = f"{site}_{row['subject']}_{row['eye']}.jpg"
            picture = cv2.imread(str(path / "fundus" / "png" / f"{row['subject']}_{row['eye']}.png"))
            assert picture is not None, "the store's own file"
            cv2.imwrite(str(folder / name), cv2.resize(picture, (224, 224), interpolation=cv2.INTER_AREA))
            shown.append({"crop": name, "site": site, "eye": row["eye"]})
    if shown:
        (folder / "index.json").write_text(json.dumps(shown, indent=1))
    return {"sites": sites}


def participants(run: Path, workspace: Workspace) -> dict[str, Any]:
    """The report's `Participants`: who is at each site with what, and what preparation found."""
    phases = atomic.read_json(run / "phases.json")
    entries = []
    everybody = dict(workspace.stores) | (
        {"evaluation": workspace.evaluation} if workspace.evaluation else {}
    )
    for site, path in everybody.items():
        store = Store.open(path)
        report = atomic.read_json(path / "preparation.json")
        labels = store.labels(store.people(None))
        named = next((name for name in ("ancestry", SUPERPOPULATION) if name in labels), None)
        ancestry = labels[named].dropna() if named else pd.Series(dtype=str)
        entries.append(
            {
                "site": site,
                "role": store.role,
                "people": {str(split): len(store.people(split)) for split in Split},
                "modalities": {
                    str(m): {str(split): len(store.people(split, m)) for split in Split}
                    for m in sorted(store.modalities)
                },
                "photographs": int(sum(store.photographs(store.people(None), eye)[1].sum() for eye in EYES)),
                "ancestry": dict(Counter(ancestry)),
                "phases": [phase for phase, entry in phases.items() if site in entry["sites"]],
                "preparation": [
                    {key: finding[key] for key in ("code", "count", "action", "remedy") if finding.get(key)}
                    for finding in report["findings"]
                ],
            }
        )
    file = workspace.folder / "cohort.json"
    excluded = atomic.read_json(file).get("excluded", []) if file.exists() else []
    return {"sites": entries, **({"excluded": excluded} if excluded else {})}
