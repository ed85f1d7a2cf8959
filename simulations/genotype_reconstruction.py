"""How well each chromosome is rebuilt from its token, beside a linear projection and a shallow VAE.

The baselines have the same token width, the same loss and as many epochs, and are trained on pooled data: what
PM1's federated encoders are held against had the easier task.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pm1_core.checkpoint import State
from pm1_core.evaluation.genotype import dosage_confusion, weighted_accuracy
from pm1_core.fields import Modality, Split
from pm1_core.training.local import train_locally
from pm1_core.training.tasks.genotype import GenotypeTask
from pm1_core.update import Tensors
from server.study import Phase, Study
from simulations.pooled import PooledStore
from simulations.progress import Step

ARCHITECTURES = {"linear": "linear", "shallow_vae": "shallow"}


def reconstruction(
    study: Study,
    state: State,
    train: PooledStore,
    test: PooledStore,
    folder: Path,
    step: Step,
    baselines: bool,
) -> dict[str, Any]:
    """The report's `Genotype`: weighted accuracy per chromosome and method on test people."""
    phases = [phase for phase in study.phases if phase.task == "genotype"]
    people = test.people(Split.TEST, Modality.GENOTYPE)
    rows = []
    for done, phase in enumerate(phases):
        step(phase.name, done, len(phases))
        task = GenotypeTask(phase.parameters, train.study)
        accuracies = {"pm1": accuracy(task, test, people, state)}
        for name, architecture in ARCHITECTURES.items() if baselines else ():
            parameters = {**phase.parameters, "architecture": architecture}
            baseline = GenotypeTask(parameters, train.study)
            orders = [
                study.unprotected.order(replace(phase, parameters=parameters, privacy={}), number)
                for number in range(1, phase.rounds + 1)
            ]
            tensors = train_locally(baseline, train, orders, state, folder / architecture)
            accuracies[name] = accuracy(baseline, test, people, tensors)
        accuracies["majority"] = majority_accuracy(test.dosages(task.chromosome, people), state, phase)
        rows.append({"chromosome": task.chromosome, "snps": task.snps, "weighted_accuracy": accuracies})
    step("", len(phases), len(phases))
    return {"split": "test", "people": len(people), "rows": rows}


def accuracy(task: GenotypeTask, store: PooledStore, people: np.ndarray, tensors: Tensors) -> float:
    """Weighted accuracy of the genotypes of `people` rebuilt from their tokens."""
    dosages = store.dosages(task.chromosome, people)
    return weighted_accuracy(dosage_confusion(dosages, task.reconstruct(tensors, dosages)))


def majority_accuracy(dosages: np.ndarray, state: State, phase: Phase) -> float:
    """Weighted accuracy of who gives everybody the dosage that is most frequent in the training people."""
    counts = state[f"statistics.genotype.{phase.parameters['chromosome']}.counts"]
    predicted = np.broadcast_to(counts.argmax(1).astype(np.uint8), dosages.shape)
    return weighted_accuracy(dosage_confusion(dosages, predicted))
