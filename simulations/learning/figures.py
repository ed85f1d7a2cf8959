"""The figures of one seed, measured by the researcher on test people: name -> number.

Of the encoders:

    genotype.METHOD.CHROMOSOME  weighted accuracy of rebuilt genotypes; METHOD pm1, linear, shallow, which are all
                                federated alike and have tokens of one width, or majority
    imputation.METHOD.KIND      share that is explained of hidden entries, see evaluation.imputation; column means
                                explain 0; METHOD pm1, federated, or soft_impute, on pooled data; KIND
                                continuous, in standard deviations, or binary, as probabilities

Of a variant of the fusion phase:

    auc.INPUTS.TARGET           area under the ROC curve of people with all modalities
    eyes.own, .others, .area, .ratio    distances of fused tokens of the two eyes, see evaluation.pairs
    eyes.before.own, ...        the same of the standardised tokens that go into the transformer
    inference.INPUTS.CHROMOSOME weighted accuracy of genotypes from other modalities; INPUTS mean: the mean token
    token.INPUTS                mean squared error of standardised genotype tokens, which their mean leaves near 1
    bare.inference..., bare.token...    the same with the genetic principal components hidden at the input
    validation.NAME             of the last round, over all sites: mask, recon, mask.MODALITY, cross.MODALITY ...
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pm1_core.checkpoint import State
from pm1_core.data.store import Store
from pm1_core.evaluation.cross_modal import cross_modal_table
from pm1_core.evaluation.genotype import dosage_confusion, weighted_accuracy
from pm1_core.evaluation.imputation import explained, soft_impute_path
from pm1_core.evaluation.pairs import pair_distances
from pm1_core.fields import TOKENS_OF, Modality, Split
from pm1_core.model.phenotype_autoencoder import copy_mask
from pm1_core.training.order import generator
from pm1_core.training.pm1 import PM1, TokenArrays
from pm1_core.training.prediction import keep, target_scores
from pm1_core.training.tasks.genotype import GenotypeTask
from pm1_core.training.token_set import TokenSet
from server.configure import fusion_model
from server.study import Study
from simulations.genotype_reconstruction import accuracy, majority_accuracy
from simulations.halves import FUSION, last_state
from simulations.pooled import PooledStore
from simulations.prediction import complete_people
from simulations.workspace import Workspace

Figures = dict[str, float]
INFERENCE = ("G+P+I", "P+I", "P", "I")
MEAN = "mean"
_HELD_ROWS = 0.2
"""Share of the training rows that lose entries by which SoftImpute's penalty is chosen."""


@dataclass(frozen=True)
class People:
    """Training people of all sites together, and everybody, those of the evaluation store included."""

    pooled: PooledStore
    everybody: PooledStore

    @staticmethod
    def of(workspace: Workspace) -> People:
        """Open the stores."""
        members = list(workspace.open().values())
        outside = [Store.open(workspace.evaluation)] if workspace.evaluation else []
        return People(PooledStore(members), PooledStore([*members, *outside]))


def encoder_figures(
    run: Path,
    study: Study,
    baselines: Mapping[str, tuple[Path, Study]],
    config: Mapping[str, Any],
    people: People,
) -> Figures:
    """Figures of the encoders of `run`, beside the baselines' runs."""
    state = last_state(run)
    figures = dict(_reconstructions("pm1", state, study, people.everybody))
    for name, (folder, own) in baselines.items():
        figures |= _reconstructions(name, last_state(folder), own, people.everybody)
    everyone = people.everybody.people(Split.TEST, Modality.GENOTYPE)
    for phase in study.phases:
        if phase.task == "genotype":
            chromosome = phase.parameters["chromosome"]
            dosages = people.everybody.dosages(chromosome, everyone)
            figures[f"genotype.majority.{chromosome}"] = majority_accuracy(dosages, state, phase)
    return figures | _imputations(_model(state, config, people), people, study.seed)


def fusion_figures(run: Path, config: Mapping[str, Any], people: People) -> Figures:
    """Figures of the fusion transformer of `run`."""
    model, store = _model(last_state(run), config, people), people.everybody
    chosen = complete_people(store, Split.TEST)
    raw = TokenSet(chosen, *model.raw_tokens(store, chosen))
    areas = cross_modal_table(target_scores(model, store, raw)).rows
    return {
        **{f"auc.{row.inputs}.{row.target}": row.auc for row in areas},
        **_eyes(model, raw),
        **_inferences(model, store, raw),
        **_validation(run),
    }


def _model(state: State, config: Mapping[str, Any], people: People) -> PM1:
    encoders = {part: config["model"][part] for part in ("genotype", "phenotype", "fundus")}
    return PM1(state, people.everybody.study, encoders, fusion_model(config))


# ---- encoders -------------------------------------------------------------------------------------------------


def _reconstructions(
    method: str, state: State, study: Study, store: PooledStore
) -> Iterator[tuple[str, float]]:
    chosen = store.people(Split.TEST, Modality.GENOTYPE)
    for phase in study.phases:
        if phase.task == "genotype":
            task = GenotypeTask(phase.parameters, store.study)
            yield f"genotype.{method}.{task.chromosome}", accuracy(task, store, chosen, state)


def _imputations(model: PM1, people: People, seed: int) -> Figures:
    """Every test person loses what a random training person lacks: entries go together as they do in records."""
    assert model.phenotype is not None, "a study of the whole model has a phenotype auto-encoder"
    train = people.pooled.phenotypes(people.pooled.people(Split.TRAIN, Modality.PHENOTYPE))
    test = people.everybody.phenotypes(people.everybody.people(Split.TEST, Modality.PHENOTYPE))
    (past, past_known), (values, known) = model.phenotype_inputs(*train), model.phenotype_inputs(*test)
    draws = generator(seed, "imputation")
    visible = copy_mask(known, draws, 1.0, past_known)
    held = past_known & ~copy_mask(past_known, draws, _HELD_ROWS)
    hidden = (known & ~visible).numpy()
    binary = np.array([feature.kind == "binary" for feature in people.pooled.study.features])
    with torch.inference_mode():
        output = model.phenotype(torch.where(visible, values, 0.0))
    ours = torch.where(torch.from_numpy(binary), output.sigmoid(), output).numpy()
    means = past.sum(0).numpy() / np.maximum(past_known.sum(0).numpy(), 1)
    # SoftImpute sees the training people and what is visible of the test people at once.
    table = np.concatenate([past.numpy(), values.numpy()]).astype(np.float64)
    given = np.concatenate([past_known.numpy(), visible.numpy()])
    chosen_by = np.concatenate([held.numpy(), np.zeros_like(hidden)])
    theirs, _ = soft_impute_path(table - means, given, chosen_by)
    theirs = theirs[len(past) :] + means
    theirs = np.where(binary, theirs.clip(0, 1), theirs)
    figures = {}
    for kind, columns in (("continuous", ~binary), ("binary", binary)):
        for method, imputed in (("pm1", ours), ("soft_impute", theirs)):
            share = explained(values.numpy(), imputed, means, hidden & columns)
            figures[f"imputation.{method}.{kind}"] = share
    return figures


# ---- fusion ---------------------------------------------------------------------------------------------------


def _eyes(model: PM1, raw: TokenSet) -> Figures:
    places = TOKENS_OF[Modality.FUNDUS]
    both = raw.present[:, places].all(1)
    standard = model.standardised(raw.tokens, raw.present)
    hidden, _ = model.fuse(standard, raw.present)
    figures: Figures = {}
    for name, eyes in (
        ("eyes", hidden[:, 1:][both, places]),
        ("eyes.before", standard[Modality.FUNDUS][both]),
    ):
        found = pair_distances(eyes[:, 0], eyes[:, 1])
        shown = {"own": found.own, "others": found.others, "area": found.area, "ratio": found.ratio}
        figures |= {f"{name}.{kind}": value for kind, value in shown.items()}
    return figures


def _inferences(model: PM1, store: PooledStore, raw: TokenSet) -> Figures:
    """Genotypes from the other modalities, from the mean token, and with the principal components hidden."""
    dosages = {chromosome: store.dosages(chromosome, raw.people) for chromosome in model.genotype}
    standard = model.standardised(raw.tokens, raw.present)
    figures = _inferred(model, "", standard, raw.present, dosages, INFERENCE)
    mean = np.zeros_like(standard[Modality.GENOTYPE])
    figures |= _decoded(model, MEAN, mean, standard[Modality.GENOTYPE], dosages)
    names = [column.name for column in store.study.columns]
    components = [name for name in names if name.startswith("genetic_pc_")]
    if components:
        hidden = store.study.feature_indices(components)
        token, has = model.phenotype_tokens(store, raw.people, hidden)
        present = raw.present.copy()
        present[:, TOKENS_OF[Modality.PHENOTYPE].start] = has
        bare = model.standardised({**raw.tokens, Modality.PHENOTYPE: token[:, None]}, present)
        figures |= _inferred(model, "bare.", bare, present, dosages, ("P+I", "P"))
    return figures


def _inferred(
    model: PM1,
    prefix: str,
    standard: TokenArrays,
    present: np.ndarray,
    dosages: Mapping[int, np.ndarray],
    inputs: Sequence[str],
) -> Figures:
    figures: Figures = {}
    for combination in inputs:
        _, rebuilt = model.fuse(standard, keep(present, combination))
        guess, true = rebuilt[Modality.GENOTYPE], standard[Modality.GENOTYPE]
        found = _decoded(model, combination, guess, true, dosages)
        figures |= {f"{prefix}{name}": value for name, value in found.items()}
    return figures


def _decoded(
    model: PM1, inputs: str, guess: np.ndarray, true: np.ndarray, dosages: Mapping[int, np.ndarray]
) -> Figures:
    """How far guessed genotype tokens [n, 22, d] are from the true ones, and the genotypes that they decode to."""
    places = [chromosome - 1 for chromosome in dosages]
    figures = {f"token.{inputs}": float(((guess - true)[:, places] ** 2).mean())}
    for chromosome, own in dosages.items():
        logits = model.decode_genotype(chromosome, guess[:, chromosome - 1])
        figures[f"inference.{inputs}.{chromosome}"] = weighted_accuracy(
            dosage_confusion(own, logits.argmax(-1))
        )
    return figures


def _validation(run: Path) -> Figures:
    """Of the last round of the fusion phase over all sites."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    mine = [
        line
        for line in lines
        if line["phase"].partition(".")[0] == FUSION and not line["site"] and line["split"] == "validation"
    ]
    last = max(mine, key=lambda line: line["round"])
    return {f"validation.{name}": value for name, value in last["metrics"].items()}
