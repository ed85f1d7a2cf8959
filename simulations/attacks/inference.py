"""Genotypes from the other modalities: what the fusion model says of a person's genome from table and photographs.

The paper's appendix D.1 fears this of its own model. Held against the population's frequencies, which need no
model: the commonest dosage of each SNP, and the commonest among people of the same ancestry.
Balanced accuracy gives the first a third where three dosages occur; what counts is what is above chance.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pm1_core.checkpoint import CheckpointFolder
from pm1_core.data.store import Store
from pm1_core.evaluation.genotype import (
    FREQUENCIES,
    accuracy_by_frequency,
    adjusted_accuracy,
    balanced_accuracy,
    dosage_confusion,
    rarer_allele,
)
from pm1_core.fields import MISSING_DOSAGE, Modality, Split
from pm1_core.training.pm1 import PM1
from pm1_core.training.prediction import keep
from server.configure import build_study, fusion_model
from simulations.attacks.outcome import Cell, Column, Outcome, Setting
from simulations.pooled import PooledStore
from simulations.prediction import complete_people
from simulations.run import federate, run_folder, with_public

_REPEATS = 100
CONTROL = "P+I+G"
"""With the person's own genotypes: if the model rebuilds nothing from these, its failures elsewhere say nothing."""
_INPUTS = ("P+I", "P", "I", CONTROL)
_ANCESTRY = "ancestry"


def trained_model(setting: Setting) -> tuple[PM1, PooledStore, PooledStore]:
    """The model of the run if it is finished, else one that is trained here; training people, and everybody."""
    workspace = setting.workspace
    config = with_public(dict(setting.config), workspace)
    run = run_folder(config)
    if not (run / "assessed.json").exists():
        run = setting.folder / "study"
        run.mkdir(parents=True, exist_ok=True)
        federate(build_study(config), workspace, run, "in_process", setting.stages, config["workers"])
    members = workspace.open()
    held_out = [Store.open(workspace.evaluation)] if workspace.evaluation else []
    checkpoints = CheckpointFolder(run / "checkpoints")
    train, everybody = PooledStore([*members.values()]), PooledStore([*members.values(), *held_out])
    encoders = {part: config["model"][part] for part in ("genotype", "phenotype", "fundus")}
    model = PM1(checkpoints.state(checkpoints.latest()), train.study, encoders, fusion_model(config))
    return model, train, everybody


def commonest(dosages: np.ndarray) -> np.ndarray:
    """The commonest dosage of each SNP, int64 [S], of uint8 [n, S]."""
    counts = np.stack([(dosages == dosage).sum(0) for dosage in range(MISSING_DOSAGE)])
    found: np.ndarray = counts.argmax(0)
    return found


def guesses(
    model: PM1, train: PooledStore, everybody: PooledStore, people: np.ndarray
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """True dosages [n, S] of `people`, and what each attacker says of them."""
    tokens, present = model.raw_tokens(everybody, people)
    standard = model.standardised(tokens, present)
    said: dict[str, list[np.ndarray]] = {}
    true: list[np.ndarray] = []
    known = train.people(Split.TRAIN, Modality.GENOTYPE)
    labels = _ancestries(train, known), _ancestries(everybody, people)
    rebuilt = {inputs: model.fuse(standard, keep(present, inputs))[1] for inputs in _INPUTS}
    for chromosome in model.genotype:
        true.append(everybody.dosages(chromosome, people))
        learnt = train.dosages(chromosome, known)
        usual = commonest(learnt)
        said.setdefault("population's commonest", []).append(np.tile(usual, (len(people), 1)))
        own = np.tile(usual, (len(people), 1))
        for name in set(labels[1]) & set(labels[0]) - {""}:
            own[labels[1] == name] = commonest(learnt[labels[0] == name])
        said.setdefault("commonest of the same ancestry", []).append(own)
        for inputs, found in rebuilt.items():
            words = (
                "model, given the genotypes too (control)" if inputs == CONTROL else f"model, from {inputs}"
            )
            logits = model.decode_genotype(chromosome, found[Modality.GENOTYPE][:, chromosome - 1])
            said.setdefault(words, []).append(np.asarray(logits).argmax(-1))
    return np.concatenate(true, 1), {name: np.concatenate(parts, 1) for name, parts in said.items()}


def accuracies(true: np.ndarray, said: np.ndarray, seed: int = 0) -> dict[str, Cell]:
    """Balanced accuracy, and above chance in all and by frequency, with intervals by a bootstrap over people."""
    rng, samples = np.random.default_rng(seed), []
    for number in range(_REPEATS + 1):
        chosen = np.arange(len(true)) if number == 0 else rng.integers(0, len(true), len(true))
        confusion = dosage_confusion(true[chosen], said[chosen])
        adjusted = adjusted_accuracy(confusion)
        bins = accuracy_by_frequency(adjusted, rarer_allele(true[chosen]))
        figures = {"balanced": float(np.nanmean(balanced_accuracy(confusion)))}
        figures["above"] = float(np.nanmean(adjusted))
        samples.append(figures | {name: value for name, (value, _) in bins.items()})
    found: dict[str, Cell] = {}
    for name, value in samples[0].items():
        drawn = [sample[name] for sample in samples[1:] if name in sample]
        # About the figure itself: a resample sees fewer dosages at a SNP, and lies lower as a whole.
        spread = np.array(drawn) - np.mean(drawn) if drawn else np.zeros(1)
        low, high = value + np.quantile(spread, (0.025, 0.975))
        found[name] = {"value": value, "low": float(low), "high": float(high)}
    return found


def attack(setting: Setting) -> Outcome:
    """All attackers on the held-out people who have everything."""
    model, train, everybody = trained_model(setting)
    people = complete_people(everybody, Split.TEST)
    with setting.stages.stage("genotypes from the other modalities") as step:
        true, said = guesses(model, train, everybody, people)
        rows: list[dict[str, Cell]] = []
        for done, (name, dosages) in enumerate(said.items()):
            step(name, done, len(said))
            rows.append({"attacker": name, **accuracies(true, dosages, setting.config["seed"])})
        step("", len(said), len(said))
    bins = {name: f"{100 * low:.0f}–{100 * min(high, 0.5):.0f}%" for name, (low, high) in FREQUENCIES.items()}
    columns: list[Column] = [
        {"key": "attacker", "label": "Attacker", "kind": "text"},
        {"key": "balanced", "label": "Balanced accuracy", "kind": "figure"},
        {"key": "above", "label": "Above chance", "kind": "figure"},
    ]
    for name, words in bins.items():
        columns.append({"key": name, "label": f"Above chance, rarer allele {words}", "kind": "figure"})
    return {
        "title": "Genotypes from phenotype and photographs",
        "attacker": "Holds a person's table, photographs or both, and the released model; the other two know the "
        "population's frequencies, or those of the person's ancestry, and no model.",
        "sets": f"{len(people)} people in nobody's training who have all modalities, {true.shape[1]:,} SNPs.",
        "columns": columns,
        "rows": rows,
        "plot": {
            "kind": "intervals",
            "axis": "accuracy above chance: 0 the population's frequencies, 1 every genotype",
            "rows": [{"label": str(row["attacker"]), **_interval(row["above"])} for row in rows],
            "lines": [{"label": "chance", "value": 0.0}],
        },
        "findings": [
            f"{str(row['attacker'])[0].upper()}{str(row['attacker'])[1:]}: "
            f"{_interval(row['above'])['value']:.3f} above chance "
            f"({_interval(row['above'])['low']:.3f}–{_interval(row['above'])['high']:.3f})."
            for row in rows
        ]
        + powerless(rows),
        "notes": [
            "Above chance: balanced accuracy from chance, 0, to perfect, 1, as a mean over SNPs. Intervals are "
            "95% of a bootstrap over people, about the figure.",
            "What a table tells of ancestry is in the second attacker's reach without any model.",
        ],
    }


def powerless(rows: Sequence[Mapping[str, Cell]]) -> list[str]:
    """What has to be said if the model rebuilds no genotypes even from the genotypes, else nothing."""
    control = [row for row in rows if "control" in str(row["attacker"])]
    if not control or _interval(control[0]["above"])["low"] > 0:
        return []
    return [
        "The model rebuilds no genotypes even when it is given them: it has learnt too little for its failure to "
        "say that genotypes are safe. Train longer, or on more people, and attack again."
    ]


def _interval(cell: Cell) -> dict[str, Any]:
    assert isinstance(cell, dict)
    return dict(cell)


def _ancestries(store: PooledStore, people: np.ndarray) -> np.ndarray:
    """Label of each person, "" where there is none."""
    labels = store.labels(people)
    if _ANCESTRY not in labels:
        return np.full(len(people), "")
    return labels[_ANCESTRY].fillna("").to_numpy(str)
