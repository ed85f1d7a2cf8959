"""One evaluation of the real study per split key: the encoders are trained anew under every key.

An encoder that was trained under one key has seen the people whom another key keeps for testing. So each key
gets its own preparation, its own federation of statistics, genotypes and phenotypes, and its own baselines.
"""

from __future__ import annotations

import multiprocessing
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from pm1_core import atomic
from pm1_core.checkpoint import CheckpointFolder
from pm1_core.data.definition import load_definition
from pm1_core.data.manifest import load_manifest
from pm1_core.data.preparation import prepare
from pm1_core.data.store import Store
from pm1_core.evaluation.embedding import genotype_components
from pm1_core.evaluation.intervals import roc_auc
from pm1_core.evaluation.probe import linear_probe
from pm1_core.fields import Modality, Split
from pm1_core.model.baselines import fit_logistic
from pm1_core.model.phenotype_autoencoder import predict_target
from pm1_core.signing import Signer, public_file
from pm1_core.training.parts import State
from pm1_core.training.pm1 import PM1
from pm1_core.training.tasks import build_task
from pm1_core.update import Tensors
from server.coordinator import Coordinator
from server.study import Study
from simulations.grid import run_in_process
from simulations.pooled import PooledStore
from simulations.progress import Step
from simulations.real_cohort import SUPERPOPULATION, TARGET, RealData, write_real_cohort
from simulations.workspace import members_of

TRAINED, UNTRAINED, COMPONENTS = "trained", "untrained", "principal components"
FEDERATED, LOGISTIC = "federated", "pooled logistic regression"
RETRAINED = ("statistics", "genotype", "phenotype")
_COMPONENTS = 20


@dataclass(frozen=True)
class KeyFigures:
    """What one split key gives, on its validation and test people.

    superpopulation: representation -> balanced accuracy of the linear probe
    dimensions: representation -> its width
    heart: hospital -> method -> ROC-AUC; a hospital is absent if fewer than two cases or controls are held out
    """

    superpopulation: Mapping[str, float]
    dimensions: Mapping[str, int]
    heart: Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class KeyJob:
    """Everything that a process of its own needs to train and measure under one key.

    cohort: folder of this key's manifests and stores; run: folder of its federation
    """

    key: str
    data: RealData
    study: Study
    encoders: Mapping[str, Any]
    cohort: Path
    run: Path

    def figures(self) -> KeyFigures:
        """Train and measure, or read what was measured before. Only the figures are left in `run`."""
        manifests = write_real_cohort(self.data, self.cohort, self.key, photographs=False)
        stores = {site: self.cohort / "stores" / site for site in manifests}
        for site, manifest in manifests.items():
            prepare(load_manifest(manifest), stores[site])
        study = encoders_only(self.study)
        opened = [Store.open(path) for path in stores.values()]
        measured_on = {"study": study.hash, "stores": [store.fingerprint for store in opened]}
        file = self.run / "figures.json"
        if file.exists():
            content = atomic.read_json(file)
            if content["measured_on"] == measured_on:
                return KeyFigures(**content["figures"])
        summary = load_definition(self.cohort / "study.yaml").summary
        key = self.run / "keys" / "coordinator.pem"
        signer = Signer.at(key)
        trust = str(public_file(key))
        sites = members_of(study, stores, self.run, trust)
        torch.set_num_threads(1)
        with atomic.without_sync():  # what power loss takes can be run again
            run_in_process(lambda grid: Coordinator(study, summary, self.run, grid, signer), sites)
        checkpoints = CheckpointFolder(self.run / "checkpoints")
        found = measure(study, checkpoints.state(checkpoints.latest()), opened, self.encoders)
        atomic.write_json(file, {"measured_on": measured_on, "figures": asdict(found)})
        for name in ("sites", "checkpoints", "tensorboard"):
            shutil.rmtree(self.run / name, ignore_errors=True)
        return found


def encoders_only(study: Study) -> Study:
    """The study without the phases that no repeated figure depends on."""
    return replace(study, phases=tuple(phase for phase in study.phases if phase.task in RETRAINED))


def all_figures(jobs: Sequence[KeyJob], workers: int, step: Step) -> dict[str, KeyFigures]:
    """Figures of every key, `workers` keys at a time. Keys share nothing, so that changes no figure."""
    found: dict[str, KeyFigures] = {}
    for done, (key, figures) in enumerate(_answers(jobs, workers), 1):
        found[key] = figures
        step(f"split key {key}", done, len(jobs))
    return found


def _answers(jobs: Sequence[KeyJob], workers: int) -> Iterator[tuple[str, KeyFigures]]:
    if workers <= 1 or len(jobs) <= 1:
        for job in jobs:
            yield job.key, job.figures()
        return
    # Fresh processes: forking one that runs threads (torch, OpenCV) can deadlock.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(jobs)), mp_context=context) as pool:
        pending = {pool.submit(KeyJob.figures, job): job.key for job in jobs}
        for future in as_completed(pending):
            yield pending[future], future.result()


def measure(study: Study, state: State, stores: Sequence[Store], encoders: Mapping[str, Any]) -> KeyFigures:
    """The figures of trained encoders and of what they are held against, on the same people."""
    with threadpool_limits(1):
        genotyped = PooledStore([store for store in stores if Modality.GENOTYPE in store.modalities])
        tables = PooledStore([store for store in stores if Modality.PHENOTYPE in store.modalities])
        model = PM1(state, genotyped.study, encoders)
        scores, dimensions = _superpopulation(study, model, genotyped, encoders)
        return KeyFigures(scores, dimensions, _heart(model, tables))


def held_out(store: PooledStore) -> np.ndarray:
    """Validation and test people: nothing is chosen on the former here."""
    return np.sort(np.concatenate([store.people(Split.VALIDATION), store.people(Split.TEST)]))


def untrained(study: Study, store: PooledStore, encoders: Mapping[str, Any]) -> PM1:
    """The encoders as they are before the first round: a random projection of each chromosome."""
    tensors: Tensors = {}
    for phase in study.phases:
        if phase.task == "genotype":
            tensors = {**tensors, **build_task(study.order(phase, 1), store.study).initial({}, study.seed)}
    return PM1(tensors, store.study, encoders)


def _superpopulation(
    study: Study, model: PM1, store: PooledStore, encoders: Mapping[str, Any]
) -> tuple[dict[str, float], dict[str, int]]:
    labelled = []
    for people in (store.people(Split.TRAIN), held_out(store)):
        label = store.labels(people)[SUPERPOPULATION]
        known = label.notna().to_numpy()
        labelled.append((people[known], label[known].to_numpy(str)))
    (train, train_labels), (test, test_labels) = labelled
    dosages = [np.concatenate([store.dosages(c, p) for c in model.genotype], axis=1) for p in (train, test)]
    components = genotype_components(dosages[0], min(_COMPONENTS, len(train) - 1))
    features = {
        TRAINED: [_embedding(model, store, people) for people in (train, test)],
        UNTRAINED: [_embedding(untrained(study, store, encoders), store, people) for people in (train, test)],
        COMPONENTS: [components.transform(array) for array in dosages],
    }
    scores = {
        name: linear_probe(fitted, train_labels, scored, test_labels).balanced_accuracy
        for name, (fitted, scored) in features.items()
    }
    return scores, {name: fitted.shape[1] for name, (fitted, _) in features.items()}


def _embedding(model: PM1, store: PooledStore, people: np.ndarray) -> np.ndarray:
    """Tokens of all chromosomes side by side, float32 [n, 22 * latent]."""
    tokens, _ = model.raw_tokens(store, people)
    return tokens[Modality.GENOTYPE].reshape(len(people), -1)


def _heart(model: PM1, store: PooledStore) -> dict[str, dict[str, float]]:
    """The target is hidden from both: from the auto-encoder, and from the regression's inputs."""
    assert model.phenotype is not None
    study = store.study
    (feature,) = study.feature_indices([TARGET]).tolist()
    hidden = next(
        study.feature_indices(target.masked).tolist() for target in study.targets if target.name == TARGET
    )
    everybody = np.arange(len(store.subjects))
    values, known = model.phenotype_inputs(*store.phenotypes(everybody))
    score = predict_target(model.phenotype, values, known, [feature], hidden)[:, 0].numpy()
    visible = known.clone()
    visible[:, hidden] = False
    inputs = torch.where(visible, values, 0.0).numpy()
    graded, ill = known[:, feature].numpy(), values[:, feature].numpy() > 0
    train = store.people(Split.TRAIN)
    train = train[graded[train]]
    scores = {FEDERATED: score, LOGISTIC: fit_logistic(inputs[train], ill[train]).logits(inputs)}
    people = held_out(store)
    people = people[graded[people]]
    site = np.repeat([part.site for part in store.stores], [len(part.subjects) for part in store.stores])
    found: dict[str, dict[str, float]] = {}
    for part in store.stores:
        mine = people[site[people] == part.site]
        if 2 <= ill[mine].sum() <= len(mine) - 2:
            found[part.site] = {name: roc_auc(ill[mine], s[mine]).auc for name, s in scores.items()}
    return found
