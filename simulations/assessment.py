"""From a finished federation to results.json: every figure of the report, computed on held-out people.

The people are the test split of all members and, in simulations, the test-only people of the evaluation store.
"""

from __future__ import annotations

import importlib.metadata
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd

from pm1_core import atomic
from pm1_core.checkpoint import CheckpointFolder, State
from pm1_core.data.definition import load_definition
from pm1_core.data.store import Store
from pm1_core.evaluation.association import association_scan, recovery
from pm1_core.evaluation.cross_modal import cross_modal_table
from pm1_core.evaluation.embedding import genotype_components, principal_components, tsne
from pm1_core.evaluation.probe import linear_probe
from pm1_core.fields import TOKENS, Modality, Split
from pm1_core.training.pm1 import PM1
from server.configure import fusion_model
from server.study import Study
from simulations.comparison import fusion_beside_pooled_and_alone
from simulations.genotype_reconstruction import reconstruction
from simulations.participation import located_photographs, participants
from simulations.pooled import PooledStore
from simulations.prediction import complete_people, disease_scores, genotype_accuracies, pooled_embedding
from simulations.progress import Stages
from simulations.real import NOTES, real_figures
from simulations.real_cohort import REAL
from simulations.report import write_participants, write_results
from simulations.report_schema import Participants, Results
from simulations.workspace import Workspace

_SHOWN_PEOPLE, _TOKENS_SHOWN = 600, 80
_ANCESTRY_COMPONENTS = 4


def assess(
    run: Path, config: Mapping[str, Any], study: Study, workspace: Workspace, stages: Stages, began: float
) -> None:
    """Write results.json, participants.json and the arrays of the report into `run`."""
    members = workspace.open()
    evaluation = Store.open(workspace.evaluation) if workspace.evaluation else None
    pooled = PooledStore(list(members.values()))
    everybody = PooledStore([*members.values(), *([evaluation] if evaluation else [])])
    state = CheckpointFolder(run / "checkpoints").state(CheckpointFolder(run / "checkpoints").latest())
    encoders = {part: config["model"][part] for part in ("genotype", "phenotype", "fundus")}
    model = PM1(state, pooled.study, encoders, fusion_model(config))
    results: dict[str, Any] = {}
    real = config["study"]["scenario"] == REAL
    baselines = config["baselines"] and not real
    with stages.stage("genotype reconstruction") as step:
        if model.genotype:
            results["genotype"] = reconstruction(
                study, state, pooled, everybody, run / "baselines", step, baselines
            )
    if real:
        results |= real_figures(run, config, study, state, model, workspace, stages)
    else:
        results |= _simulated_figures(run, config, study, state, model, members, everybody, workspace, stages)
        results["photographs"] = located_photographs(run, workspace)
    results["notes"] = [*_notes(config, workspace), *(NOTES if real else ())]
    results["run"] = _header(run, config, study, began)
    write_participants(run, cast(Participants, participants(run, workspace)))
    write_results(run, cast(Results, results))


def _simulated_figures(
    run: Path,
    config: Mapping[str, Any],
    study: Study,
    state: State,
    model: PM1,
    members: Mapping[str, Store],
    everybody: PooledStore,
    workspace: Workspace,
    stages: Stages,
) -> dict[str, Any]:
    """What takes people with all three modalities, and planted truths."""
    results: dict[str, Any] = {}
    if model.fusion is None or model.phenotype is None:
        return results  # a study that leaves these phases out has no such figures
    people = complete_people(everybody, Split.TEST)
    with stages.stage("diseases and cross-modal inference") as step:
        step("diseases", 0, 2)
        scores = disease_scores(model, everybody, people)
        table = cross_modal_table(scores)
        results["diseases"] = {"split": "test", **table.to_json(), **_raised(workspace)}
        step("genotypes from the others", 1, 2)
        rows = genotype_accuracies(model, everybody, people)
        results["genotype_inference"] = {
            "split": "test",
            "people": len(people),
            "rows": [{"inputs": i, "chromosome": c, "weighted_accuracy": w} for i, c, w in rows],
        }
    if config["compare"]:
        results["methods"] = fusion_beside_pooled_and_alone(
            config, study, state, members, everybody, people, scores, run / "comparison", stages
        )
    with stages.stage("embeddings") as step:
        results["ancestry"] = _ancestry(model, everybody, step)
        _pictures(run, model, everybody, people, config["seed"])
        results |= _pigmentation(run, model, everybody, people, workspace)
    return results


def _header(run: Path, config: Mapping[str, Any], study: Study, began: float) -> dict[str, Any]:
    names = {"in_process": "in process", "ray": "ray"}
    return {
        "name": run.name,
        "study": study.name,
        "data": "real" if config["study"]["scenario"] == REAL else "simulated",
        "size": config["model"]["size"],
        "engine": names[config["engine"]],
        "strategy": study.strategy["name"],
        "seed": study.seed,
        "started": datetime.fromtimestamp(began, UTC).isoformat(timespec="seconds"),
        "seconds": round(time.time() - began, 1),
        "privacy": _protection(study),
        "config_hash": study.hash[:12],
        "versions": {name: importlib.metadata.version(name) for name in ("pm1", "flwr", "torch")},
    }


def _protection(study: Study) -> dict[str, Any]:
    """What protects the updates: the figure is that of the study's own releases at each site."""
    secure = bool(study.secure)
    unit = next((phase.privacy["unit"] for phase in study.phases if phase.privacy), None)
    if unit is None:
        return {"mechanism": "none", "secure_aggregation": secure}
    mechanism = {"record": "clipped and noised training at the sites", "site": "noise in the secure sum"}[
        unit
    ]
    figures = {name: value for name, value in study.guarantee.items() if name != "budget"}
    return {"mechanism": mechanism, "secure_aggregation": secure, **figures}


def _raised(workspace: Workspace) -> dict[str, Any]:
    """Prevalences that the scenario raised, for the disease table."""
    file = workspace.folder / "cohort.json"
    if not file.exists():
        return {}
    summary = atomic.read_json(file)
    labels = {target.name: target.label for target in load_definition(workspace.definition).summary.targets}
    return {
        "raised": {
            labels[name]: {"population": entry["paper"], "cohort": entry["cohort"]}
            for name, entry in summary["prevalences"].items()
            if entry["cohort"] > entry["paper"]
        }
    }


def _ancestry(model: PM1, store: PooledStore, step: Any) -> dict[str, Any]:
    """Linear probes for the label "ancestry", fitted on training people (appendix C)."""
    labelled = {}
    for split in (Split.TRAIN, Split.TEST):
        people = store.people(split, Modality.GENOTYPE)
        ancestry = store.labels(people)["ancestry"].to_numpy()
        known = ~pd.isna(ancestry)
        labelled[split] = people[known], ancestry[known].astype(str)
    tokens = {}
    for done, (split, (people, _)) in enumerate(labelled.items()):
        step("ancestry probe", done, 3)
        raw, present = model.raw_tokens(store, people)
        tokens[split] = model.standardised(raw, present), present
    features = {
        "fusion embedding": [pooled_embedding(model, *tokens[split]) for split in labelled],
        "genotype tokens": [
            tokens[split][0][Modality.GENOTYPE].reshape(len(p), -1) for split, (p, _) in labelled.items()
        ],
    }
    dosages = [
        np.concatenate([store.dosages(c, people) for c in model.genotype], axis=1)
        for people, _ in labelled.values()
    ]
    components = genotype_components(dosages[0], 10)
    features["10 principal components"] = [components.transform(array) for array in dosages]
    rows = []
    for name, (train, test) in features.items():
        probe = linear_probe(train, labelled[Split.TRAIN][1], test, labelled[Split.TEST][1], strength=1.0)
        rows.append({"representation": name, **probe.to_json()})
    return {"rows": rows}


def _pictures(run: Path, model: PM1, store: PooledStore, people: np.ndarray, seed: int) -> None:
    """Projections of fused tokens and of pooled embeddings of some test people, for the report."""
    rng = np.random.default_rng(seed)
    shown = np.sort(rng.choice(people, min(_SHOWN_PEOPLE, len(people)), replace=False))
    raw, present = model.raw_tokens(store, shown)
    standard = model.standardised(raw, present)
    hidden, _ = model.fuse(standard, present)
    some = np.sort(rng.permutation(len(shown))[:_TOKENS_SHOWN])  # a person has 25 tokens
    points = hidden[some, 1:][present[some]]
    owner, kind = np.nonzero(present[some])
    ancestry = store.labels(shown)["ancestry"].fillna("").to_numpy(str)
    embedding = pooled_embedding(model, standard, present)
    arrays: dict[str, Any] = {
        "tokens.pca": principal_components(points, 2).transform(points).astype(np.float32),
        "tokens.tsne": tsne(points, seed),
        "tokens.kind": np.array(TOKENS)[kind],
        "tokens.ancestry": ancestry[some][owner],
        "people.pca": principal_components(embedding, 2).transform(embedding).astype(np.float32),
        "people.tsne": tsne(embedding, seed),
        "people.ancestry": ancestry,
    }
    np.savez_compressed(run / "embeddings.npz", **arrays)


def _pigmentation(
    run: Path, model: PM1, store: PooledStore, people: np.ndarray, workspace: Workspace
) -> dict[str, Any]:
    """A scan of image-conditioned fusion embeddings for SNPs, held against the planted one (section 5.1).

    Only photographs are shown to the transformer: an embedding that saw the genotype would find every SNP.
    """
    truth = workspace.folder / "truth" / "pigment.json"
    planted = atomic.read_json(truth) if truth.exists() else {}
    if planted.get("chrom") not in model.genotype or model.fundus is None:
        return {}
    raw, present = model.raw_tokens(store, people)
    only = present & (np.array([name.startswith("fundus") for name in TOKENS]))
    embedding = pooled_embedding(model, model.standardised(raw, only), only, [Modality.FUNDUS])
    count = min(10, embedding.shape[1])
    outcomes = principal_components(embedding, count).transform(embedding)
    dosages = {c: store.dosages(c, people) for c in model.genotype}
    whole = np.concatenate(list(dosages.values()), axis=1)
    covariates = genotype_components(whole, _ANCESTRY_COMPONENTS).transform(whole)
    definition = load_definition(workspace.definition)
    variants = definition.variants[definition.variants["chrom"].isin(list(dosages))]
    scan = association_scan(dosages, variants, outcomes, covariates)
    np.savez_compressed(run / "association.npz", chrom=scan.chrom, pos=scan.pos, log10_p=scan.log10_p)
    found = recovery(scan, dosages[planted["chrom"]], planted["chrom"], planted["pos"])
    return {
        "pigmentation": {
            **found.to_json(),
            "name": planted["id"],
            "inflation": scan.inflation,
            "people": scan.people,
            "components": count,
            "covariates": [f"{_ANCESTRY_COMPONENTS} genetic principal components"],
        }
    }


def _notes(config: Mapping[str, Any], workspace: Workspace) -> list[str]:
    notes = [
        "InfoNCE takes its negatives from the batch, hence from one site: with it a federation is not the same "
        "computation as pooled training, whatever the weights.",
        "Lines per site exist because this is a simulation; under secure aggregation a coordinator sees sums only.",
    ]
    if workspace.base is None:
        notes.append("The fundus encoder started from random weights; no pre-trained base was given.")
    elif config["pretrain"]["epochs"]:
        notes.append(
            "The fundus encoder's base was pre-trained on the scenario's public photographs of people who are at "
            "no hospital, as RETFound was on public collections."
        )
    return notes
