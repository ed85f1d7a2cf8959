"""The figures of one cell of a sweep, measured by the researcher on people who are at no site.

    auc.TARGET                  area under the ROC curve from all modalities
    auc                         mean over the targets that have one
    genotype.BIN                weighted accuracy of reconstructed genotypes, by frequency of the rarer allele
    chance.genotype.BIN         the same of whoever says one dosage of everybody
    kept.genotype.BIN           how far the accuracy is from that, 0, to perfect, 1
    ancestry.auc.GROUP          mean area over targets, in each ancestry that has enough cases and controls
    ancestry.genotype.GROUP     as kept.genotype, over SNPs that vary in each ancestry
    gap.auc, gap.genotype       highest minus lowest of these
    attack.genotype, .phenotype success of an attacker who guesses from a person's loss who was in training: area
                                under the ROC curve, 0.5 for a guess; `attack` is the higher of the two

A figure that cannot be computed is left out. Held-out are the test people of the sites and the
evaluation store; for the attack the validation and test people of the sites.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pm1_core.checkpoint import State
from pm1_core.data.store import Store
from pm1_core.evaluation.cross_modal import TargetScores
from pm1_core.evaluation.genotype import (
    FREQUENCIES,
    accuracy_by_frequency,
    adjusted_accuracy,
    balanced_accuracy,
    chance_accuracy,
    dosage_confusion,
    rarer_allele,
)
from pm1_core.evaluation.intervals import roc_auc
from pm1_core.fields import Modality, Split
from pm1_core.training.pm1 import PM1
from pm1_core.training.prediction import EVERYTHING
from pm1_core.training.tasks.genotype import GenotypeTask
from server.configure import fusion_model
from server.study import Phase, Study
from simulations.attacks.membership import Target, genotype_target, phenotype_target
from simulations.pooled import PooledStore
from simulations.prediction import complete_people, disease_scores
from simulations.workspace import Workspace

_FEWEST = 8  # cases and controls of a group whose area is averaged


def figures_of(
    state: State, study: Study, config: Mapping[str, Any], workspace: Workspace
) -> dict[str, float]:
    """Every figure of the model in `state`; `study` holds the phases that trained its auto-encoders."""
    members = list(workspace.open().values())
    outside = [Store.open(workspace.evaluation)] if workspace.evaluation else []
    everybody = PooledStore([*members, *outside])
    encoders = {part: config["model"][part] for part in ("genotype", "phenotype", "fundus")}
    model = PM1(state, everybody.study, encoders, fusion_model(config))
    phases = {phase.name: phase for phase in study.phases}
    genotype = [phase for phase in phases.values() if phase.task == "genotype"]
    return {
        **_areas(model, everybody),
        **_genotypes(genotype, state, everybody),
        **_attacks(study, state, PooledStore(members)),
    }


# ---- diseases -------------------------------------------------------------------------------------------------


def _areas(model: PM1, store: PooledStore) -> dict[str, float]:
    if model.fusion is None or model.phenotype is None:
        return {}
    people = complete_people(store, Split.TEST)
    scored = disease_scores(model, store, people, [EVERYTHING])
    found = {f"auc.{target.target}": area(target) for target in scored}
    figures = {name: value for name, value in found.items() if value is not None}
    if figures:
        figures["auc"] = float(np.mean(list(figures.values())))
    groups = ancestries(store, people)
    # Every group is averaged over the same targets: those that all groups can be judged by.
    each = {name: [area(target, members) for target in scored] for name, members in groups.items()}
    each = {name: areas for name, areas in each.items() if any(value is not None for value in areas)}
    shared = [i for i in range(len(scored)) if all(areas[i] is not None for areas in each.values())]
    if len(each) > 1 and shared:
        means = {name: float(np.mean([areas[i] for i in shared])) for name, areas in each.items()}
        figures |= _gap("auc", means)
    return figures


def area(target: TargetScores, members: np.ndarray | None = None) -> float | None:
    """Area of a target among `members` (bool [n], default all); None with too few cases or controls."""
    scores = target.scores[EVERYTHING]
    known = np.isfinite(target.labels) & np.isfinite(scores)
    if members is not None:
        known &= members
    labels = target.labels[known]
    if min((labels == 1).sum(), (labels == 0).sum()) < _FEWEST:
        return None
    return roc_auc(labels, scores[known]).auc


def ancestries(store: PooledStore, people: np.ndarray) -> dict[str, np.ndarray]:
    """Which of `people` are of each ancestry that the study's labels name, bool [n]."""
    table = store.labels(people)
    if "ancestry" not in table:
        return {}
    label = table["ancestry"].fillna("").to_numpy(str)
    return {name: label == name for name in sorted(set(label)) if name}


def _gap(kind: str, groups: Mapping[str, float]) -> dict[str, float]:
    named = {f"ancestry.{kind}.{name}": value for name, value in groups.items()}
    return {**named, f"gap.{kind}": max(groups.values()) - min(groups.values())}


# ---- genotypes ------------------------------------------------------------------------------------------------


def _genotypes(phases: Sequence[Phase], state: State, store: PooledStore) -> dict[str, float]:
    if not phases:
        return {}
    people = store.people(Split.TEST, Modality.GENOTYPE)
    pairs = []
    for phase in phases:
        task = GenotypeTask(phase.parameters, store.study)
        dosages = store.dosages(task.chromosome, people)
        pairs.append((dosages, task.reconstruct(dict(state), dosages)))
    true, rebuilt = (np.concatenate(arrays, axis=1) for arrays in zip(*pairs, strict=True))
    figures = by_frequency(true, rebuilt)
    groups = {
        name: float(np.nanmean(adjusted_accuracy(dosage_confusion(true[members], rebuilt[members]))))
        for name, members in ancestries(store, people).items()
        if members.sum() >= _FEWEST
    }
    return figures | (_gap("genotype", groups) if len(groups) > 1 else {})


def by_frequency(true: np.ndarray, rebuilt: np.ndarray) -> dict[str, float]:
    """The figures "genotype.BIN" of the bins of `FREQUENCIES` and of "all", with "chance." and "kept." before them.

    true, rebuilt: uint8 [n, S] dosages, 3 = missing
    """
    confusion, rarer = dosage_confusion(true, rebuilt), rarer_allele(true)
    kinds = {"": balanced_accuracy, "chance.": chance_accuracy, "kept.": adjusted_accuracy}
    figures: dict[str, float] = {}
    for kind, measure in kinds.items():
        found = accuracy_by_frequency(measure(confusion), rarer, {"all": (0.0, 1.0), **FREQUENCIES})
        figures |= {f"{kind}genotype.{name}": accuracy for name, (accuracy, _) in found.items()}
    return figures


# ---- attack ---------------------------------------------------------------------------------------------------


def _attacks(study: Study, state: State, store: PooledStore) -> dict[str, float]:
    """Membership by loss: training people of the sites against held-out people of the same sites.

    People of the evaluation store would not do: fewer of their entries are missing, which alone tells them apart.
    """
    targets: dict[str, list[Target]] = {"genotype": [], "phenotype": []}
    for phase in study.phases:
        if phase.task == "genotype":
            targets["genotype"].append(genotype_target(store, state, study.order(phase, phase.rounds)))
        elif phase.task == "phenotype":
            targets["phenotype"].append(phenotype_target(store, state, study.order(phase, phase.rounds)))
    figures: dict[str, float] = {}
    for name, parts in targets.items():
        if not parts:
            continue
        validation, test = (store.people(split, Modality(name)) for split in (Split.VALIDATION, Split.TEST))
        sides = [store.people(Split.TRAIN, Modality(name)), np.concatenate([validation, test])]
        # Chromosomes add up: an attacker has all of them.
        losses = [sum(part.losses(dict(state), people) for part in parts) for people in sides]
        member = np.repeat([1.0, 0.0], [len(side) for side in sides])
        figures[f"attack.{name}"] = roc_auc(member, -np.concatenate(losses)).auc
    return figures | ({"attack": max(figures.values())} if figures else {})
