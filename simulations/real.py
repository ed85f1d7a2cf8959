"""Figures of the real study: one modality a site, so what can be asked is asked of each modality alone.

Super-populations from genotype embeddings and heart disease from tables come with the bounds that they have to
keep; `verdicts` holds the figures against them, and a run that misses one ends with exit code 1.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd

from pm1_core.checkpoint import State
from pm1_core.data.fundus import decode
from pm1_core.data.manifest import load_manifest
from pm1_core.data.photographs import png_name
from pm1_core.data.store import Store
from pm1_core.errors import BoundError, StateError
from pm1_core.evaluation.embedding import principal_components, tsne
from pm1_core.fields import Modality
from pm1_core.training.pm1 import PM1
from pm1_core.validate import refusal
from server.study import Study
from simulations.pooled import PooledStore
from simulations.prediction import pooled_embedding
from simulations.progress import Stages
from simulations.real_cohort import DIAGNOSIS, SUPERPOPULATION
from simulations.real_keys import (
    COMPONENTS,
    FEDERATED,
    LOGISTIC,
    TRAINED,
    UNTRAINED,
    KeyFigures,
    KeyJob,
    all_figures,
    encoders_only,
    held_out,
    measure,
)
from simulations.report_findings import meets
from simulations.report_schema import RepeatEntry, Repeats, Results
from simulations.workspace import Workspace, real_data, real_folder, split_keys

NOTES = (
    "Nobody here has two modalities: each is shown on people of its own, and nothing can be said of one modality"
    " predicting another.",
    "Split keys 1, 2, ... are fixed and public, so that the figures can be checked. A study of one's own keeps its"
    " key secret.",
    "The eye clinic's collection does not say which eye a photograph shows; all were entered as left.",
    "Figures over several split keys come from encoders that were trained anew under each key. The people of the"
    " keys overlap, so the spread is no confidence interval.",
)
MARGIN = 0.02
"""How far below the reference a mean may stay: the noise of a mean over ten splits of these sizes."""
UNRECORDED = "unrecorded"
"""What the report says of the eye: the collection does not say which one a photograph shows."""
_ORIGINAL_WIDTH, _CROP_WIDTH = 480, 224


def real_figures(
    run: Path,
    config: Mapping[str, Any],
    study: Study,
    state: State,
    model: PM1,
    workspace: Workspace,
    stages: Stages,
) -> dict[str, Any]:
    """The sections `superpopulation`, `heart_disease` and `photographs` of results.json, and the maps' arrays."""
    stores = workspace.open()
    keys = split_keys(config)
    encoders = {part: config["model"][part] for part in ("genotype", "phenotype", "fundus")}
    jobs = [
        KeyJob(
            key, real_data(config), study, encoders, (real_folder(config) / key).resolve(), run / "keys" / key
        )
        for key in keys[1:]
    ]
    with stages.stage(f"encoders under {len(keys)} split keys") as step:
        figures = {keys[0]: measure(encoders_only(study), state, list(stores.values()), encoders)}
        figures |= all_figures(jobs, config["workers"], step)
    with stages.stage("pictures") as step:
        _people_map(run, model, PooledStore(list(stores.values())), config["seed"])
        step("photographs", 1, 2)
        photographs = gallery(run, workspace)
    inside = [figures[key] for key in keys]
    return {
        "superpopulation": superpopulation(keys, inside),
        "heart_disease": heart_disease(keys, inside),
        "photographs": photographs,
    }


def superpopulation(keys: list[str], figures: list[KeyFigures]) -> Repeats:
    """Balanced accuracy per representation and key."""
    rows: list[RepeatEntry] = [
        {
            "name": name,
            "values": [found.superpopulation[name] for found in figures],
            "dimensions": figures[0].dimensions[name],
        }
        for name in (TRAINED, UNTRAINED, COMPONENTS)
    ]
    return {"keys": keys, "rows": rows, "reference": COMPONENTS, "margin": MARGIN}


def heart_disease(keys: list[str], figures: list[KeyFigures]) -> Repeats:
    """ROC-AUC per hospital, method and key, for hospitals with cases and controls under every key."""
    hospitals = [site for site in figures[0].heart if all(site in found.heart for found in figures)]
    rows: list[RepeatEntry] = [
        {"name": name, "site": site, "values": [found.heart[site][name] for found in figures]}
        for site in hospitals
        for name in (FEDERATED, LOGISTIC)
    ]
    everywhere = {site for found in figures for site in found.heart}
    absent = sorted(everywhere - set(hospitals))
    outcome: Repeats = {"keys": keys, "rows": rows, "reference": LOGISTIC, "margin": MARGIN}
    return {**outcome, "absent": absent} if absent else outcome


def verdicts(results: Results) -> list[tuple[bool, str]]:
    """Whether each bound of the real study is kept, and the sentence that says so."""
    said: list[tuple[bool, str]] = []
    if "superpopulation" in results:
        data = results["superpopulation"]
        means = {row["name"]: float(np.mean(row["values"])) for row in data["rows"]}
        what = f"super-population, mean balanced accuracy over {len(data['keys'])} split keys"
        ours, random = means[TRAINED], means[UNTRAINED]
        said.append((ours > random, f"{what}: trained {ours:.3f} > untrained {random:.3f}"))
        bound = means[COMPONENTS] - data["margin"]
        said.append(
            (
                ours >= bound,
                f"{what}: trained {ours:.3f} >= {bound:.3f}"
                f" (principal components {means[COMPONENTS]:.3f} - {data['margin']:g})",
            )
        )
    if "heart_disease" in results:
        data = results["heart_disease"]
        for site, ours, reference, within in meets(data):
            said.append(
                (
                    within,
                    f"heart disease at {site}, mean ROC-AUC over {len(data['keys'])} split keys: federated"
                    f" {ours:.3f} >= {reference - data['margin']:.3f} ({data['reference']} {reference:.3f}"
                    f" - {data['margin']:g})",
                )
            )
        for site in data.get("absent", []):
            said.append(
                (False, f"heart disease at {site}: nobody with or nobody without it held out under some key")
            )
    if "photographs" in results:
        located = sum(site["located"] for site in results["photographs"]["sites"])
        total = sum(site["total"] for site in results["photographs"]["sites"])
        said.append((located == total, f"photographs located and cropped: {located} of {total}"))
    return said


def require_bounds(results: Results) -> None:
    """Raise BoundError naming how many bounds were missed, if any was."""
    missed = [sentence for kept, sentence in verdicts(results) if not kept]
    if missed:
        raise BoundError(
            refusal(
                "real study", f"{len(missed)} of its bounds are missed: {'; '.join(missed)}", "see the report"
            )
        )


def _people_map(run: Path, model: PM1, store: PooledStore, seed: int) -> None:
    """Projections of the held-out people's fused genotype tokens, for the report."""
    people = np.intersect1d(held_out(store), store.people(None, Modality.GENOTYPE))
    raw, present = model.raw_tokens(store, people)
    embedding = pooled_embedding(model, model.standardised(raw, present), present, [Modality.GENOTYPE])
    arrays: dict[str, Any] = {
        "people.pca": principal_components(embedding, 2).transform(embedding).astype(np.float32),
        "people.tsne": tsne(embedding, seed),
        "people.ancestry": store.labels(people)[SUPERPOPULATION].fillna("").to_numpy(str),
    }
    np.savez_compressed(run / "embeddings.npz", **arrays)


def gallery(run: Path, workspace: Workspace) -> dict[str, Any]:
    """The section `photographs`, and every photograph with the box that was found, its crop and its diagnosis."""
    folder = run / "sample_photographs"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    shown: list[dict[str, Any]] = []
    sites = []
    for site, path in workspace.stores.items():
        manifest = load_manifest(workspace.folder / "sites" / site / "site.yaml")
        if manifest.fundus is None:
            continue
        store = Store.open(path)
        diagnoses = store.labels(store.people(None))[DIAGNOSIS]
        index = pd.read_csv(path / "fundus" / "index.tsv", sep="\t", dtype=str, keep_default_na=False)
        sites.append(
            {"site": site, "located": len(index), "total": len(pd.read_csv(manifest.fundus.index.path))}
        )
        for number, row in enumerate(index.to_dict("records")):
            whole = _picture(manifest.fundus.folder / str(row["file"]))
            crop = _picture(path / "fundus" / "png" / png_name(str(row["subject"]), str(row["eye"])))
            scale = _ORIGINAL_WIDTH / whole.shape[1]
            names = {part: f"{site}_{number:03d}_{part}.jpg" for part in ("crop", "original")}
            _thumbnail(folder / names["crop"], crop, (_CROP_WIDTH, _CROP_WIDTH))
            _thumbnail(folder / names["original"], whole, (_ORIGINAL_WIDTH, round(whole.shape[0] * scale)))
            label = diagnoses.get(str(row["subject"]))
            shown.append(
                {
                    **names,
                    "site": site,
                    "eye": UNRECORDED,
                    "box": [float(part) * scale for part in str(row["box"]).split(",")],
                    **({"label": label.replace("_", " ")} if isinstance(label, str) else {}),
                }
            )
    (folder / "index.json").write_text(json.dumps(shown, indent=1))
    return {"sites": sites}


def _picture(path: Path) -> np.ndarray:
    """uint8 [height, width, 3], RGB. Raises StateError if it is gone since its preparation."""
    image = decode(path.read_bytes()) if path.is_file() else None
    if image is None:
        raise StateError(refusal(path, "missing or no picture", "put it back, or prepare the site again"))
    return image


def _thumbnail(path: Path, image: np.ndarray, size: tuple[int, int]) -> None:
    cv2.imwrite(str(path), cv2.resize(image[..., ::-1], size, interpolation=cv2.INTER_AREA))
