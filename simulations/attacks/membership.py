"""Membership inference: was this person among those on whom a part of PM1 was trained?

Two attacks on the loss that a trained part has on a person whom the attacker holds in full:

- *threshold*: a person with a low loss is a member (Yeom et al. 2018, "Privacy risk in machine learning").
- *LiRA* (Carlini et al. 2022, "Membership inference attacks from first principles", algorithm 1): the attacker
  trains shadow models of his own on random halves of the candidates; the loss of the model under attack is held
  against what a person's loss is in shadows that saw him and in those that did not. With few shadows the spread
  is taken over all people together (section 6), the mean is everybody's own. Its offline variant knows only
  shadows that did not see the person.

Every model is trained by the part's own task, as at a site, and is attacked with all others as its shadows. Under
record-level terms the shadows are trained under the same terms: the attacker knows everything but who is in.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pm1_core.data.store import Store
from pm1_core.errors import ConfigError
from pm1_core.fields import Modality, Split
from pm1_core.model.baselines import build_genotype_model
from pm1_core.model.genotype_vae import GenotypeVAEConfig
from pm1_core.model.objectives import dosage_weights, genotype_losses, phenotype_losses
from pm1_core.model.phenotype_autoencoder import PhenotypeAutoencoder, PhenotypeAutoencoderConfig, standardise
from pm1_core.privacy.calibration import Plan, calibrate
from pm1_core.privacy.terms import RecordTerms, to_order
from pm1_core.training.local import train_locally
from pm1_core.training.order import Order
from pm1_core.training.parts import State, load_part, part
from pm1_core.training.tasks import build_task
from pm1_core.training.tasks.phenotype import expected_entries
from pm1_core.update import Tensors
from pm1_core.validate import refusal
from server.configure import build_study
from simulations.attacks.figures import curve, separation
from simulations.attacks.outcome import Cell, Outcome, Setting
from simulations.pooled import PooledStore
from simulations.progress import Step

_TINY = 1e-12
ATTACKS = ("threshold", "offline LiRA", "LiRA")


class Candidates(PooledStore):
    """People of several stores, of whom those `chosen` (int64 indices of the pooled store) are in training."""

    def __init__(self, stores: Sequence[Store], chosen: np.ndarray) -> None:
        super().__init__(stores, site="candidates")
        self.chosen = np.sort(np.asarray(chosen, np.int64))

    def __reduce__(self) -> tuple[Any, ...]:
        return Candidates, (self.stores, self.chosen)

    def people(self, split: Split | None, modality: Modality | None = None) -> np.ndarray:
        """Those chosen who have the modality, whatever the study's own split says of them."""
        return np.intersect1d(super().people(None, modality), self.chosen)


@dataclass(frozen=True)
class Models:
    """Models of one part under one protection, each trained on a random half of the candidates.

    losses: float [M, n], of each candidate in each model; member: bool [M, n]
    """

    losses: np.ndarray
    member: np.ndarray

    @property
    def scores(self) -> dict[str, np.ndarray]:
        """Of each attack of `ATTACKS` float [M, n], larger is a member."""
        offline, online = likelihood_ratios(self.losses, self.member)
        return {"threshold": -self.losses, "offline LiRA": offline, "LiRA": online}


def likelihood_ratios(losses: np.ndarray, member: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Offline and online LiRA of every model with the others as shadows, float [M, n] each.

    losses: float [M, n], at least 0; member: bool [M, n]. Logarithms of losses, less each model's mean, are taken
    as normal. A candidate whom all shadows saw, or none, gets the mean of everybody's on the side that lacks him.
    """
    confidence = -np.log(np.maximum(losses, _TINY))
    # How good a model is at all says nothing of who was in it, and differs much under noise.
    confidence -= confidence.mean(1, keepdims=True)
    offline, online = np.empty_like(confidence), np.empty_like(confidence)
    for target in range(len(losses)):
        rest = np.arange(len(losses)) != target
        seen, unseen = (_normal(confidence[rest], side) for side in (member[rest], ~member[rest]))
        z_in, z_out = ((confidence[target] - mean) / spread for mean, spread in (seen, unseen))
        offline[target] = z_out
        online[target] = (z_out**2 - z_in**2) / 2 + math.log(unseen[1] / seen[1])
    return offline, online


def _normal(values: np.ndarray, side: np.ndarray) -> tuple[np.ndarray, float]:
    """Mean [n] of each candidate over the models on one side, and the spread that all share."""
    count = side.sum(0)
    mean = np.where(side, values, 0).sum(0) / np.maximum(count, 1)
    squares = np.where(side, (values - mean) ** 2, 0).sum()
    freedom = max(1, int(np.maximum(count - 1, 0).sum()))
    mean = np.where(count > 0, mean, values[side].mean())
    return mean, max(_TINY, math.sqrt(squares / freedom))


@dataclass(frozen=True)
class Target:
    """A part of PM1 under attack.

    orders: of an unprotected training; losses: (tensors, people) -> loss of each, float [n]
    """

    title: str
    orders: tuple[Order, ...]
    losses: Callable[[Tensors, np.ndarray], np.ndarray]


def train_models(
    target: Target,
    stores: Sequence[Store],
    people: np.ndarray,
    state: State,
    count: int,
    seed: int,
    folder: Path,
    privacy: Mapping[str, Any] | None = None,
    step: Step = lambda what, done, whole: None,
) -> Models:
    """`count` models of `target`, each trained on its own random half of `people` by the part's task.

    privacy: record-level terms as an order carries them
    """
    rng = np.random.default_rng(seed)
    member = np.zeros((count, len(people)), bool)
    losses = np.empty((count, len(people)))
    for number in range(count):
        step(target.title, number, count)
        member[number, rng.permutation(len(people))[: len(people) // 2]] = True
        store = Candidates(stores, people[member[number]])
        orders = [
            Order(o.phase, o.task, o.round, o.rounds, seed + number, o.parameters, privacy=privacy or {})
            for o in target.orders
        ]
        tensors = train_locally(
            build_task(orders[0], store.study), store, orders, state, folder / str(number)
        )
        losses[number] = target.losses(tensors, people)
    step(target.title, count, count)
    return Models(losses, member)


def statistics_of(store: Store, folder: Path) -> Tensors:
    """The statistics phase on `store`, without privacy."""
    orders = [Order("statistics", "statistics", number, 2, 0) for number in (1, 2)]
    return train_locally(build_task(orders[0], store.study), store, orders, {}, folder)


def phenotype_target(store: Store, state: State, order: Order) -> Target:
    """The phenotype auto-encoder; a person's loss is over all that is known of him, nothing hidden."""
    config = PhenotypeAutoencoderConfig(**order.parameters["model"])
    found = part(state, "statistics.phenotype.")
    kinds = np.array([feature.kind == "binary" for feature in store.study.features], dtype=bool)
    expected = expected_entries(found["count"], found["kept"], kinds)
    mean, std, kept = (torch.from_numpy(np.array(found[name])) for name in ("mean", "std", "kept"))

    @torch.no_grad()
    def losses(tensors: Tensors, people: np.ndarray) -> np.ndarray:
        module = PhenotypeAutoencoder(config, len(store.study.features)).eval()
        load_part(module, tensors, "phenotype.")
        given, observed = (torch.from_numpy(array) for array in store.phenotypes(people))
        values, known = standardise(given, observed, mean, std, kept)
        output, binary = module(torch.where(known, values, 0.0)), torch.from_numpy(kinds)
        each = phenotype_losses(output, values, known, binary, config.reduction, expected)
        return each.double().numpy()

    return Target("phenotype auto-encoder", (order,), losses)


def genotype_target(store: Store, state: State, order: Order) -> Target:
    """The auto-encoder of a chromosome; a person's loss is the cross-entropy from the latent's mean."""
    config, chromosome = GenotypeVAEConfig(**order.parameters["model"]), int(order.parameters["chromosome"])
    counts = torch.from_numpy(np.array(part(state, f"statistics.genotype.{chromosome}.")["counts"]))
    weights = dosage_weights(counts, config.weight_cap, config.weights)

    @torch.no_grad()
    def losses(tensors: Tensors, people: np.ndarray) -> np.ndarray:
        module = build_genotype_model(
            "convolutional", config, store.study.chromosome_sizes[chromosome]
        ).eval()
        load_part(module, tensors, f"genotype.{chromosome}.")
        dosages = torch.from_numpy(store.dosages(chromosome, people))
        logits, mean, log_variance = module(dosages, None)
        scales = (config.beta, config.reconstruction, config.kl_scale)
        found = genotype_losses(logits, mean, log_variance, dosages, weights, *scales)
        return found.cross_entropy.double().numpy()

    return Target(f"genotype auto-encoder, chromosome {chromosome}", (order,), losses)


def record_privacy(order: Order, people: int, epsilon: float, privacy: Mapping[str, Any]) -> dict[str, Any]:
    """Terms under which `order` alone is (epsilon, privacy["delta"])-private for one person added or removed."""
    rate = float(privacy["sample_rate"])
    steps = int(order.parameters["loop"]["epochs"]) * math.ceil(1 / rate - 1e-9)
    plan = Plan(order.phase, 1.0, "sampled", rate, steps * order.rounds)
    noise = calibrate([plan], epsilon, float(privacy["delta"])).noise[order.phase]
    return to_order(RecordTerms(noise, float(privacy["clip"]), rate, steps, people=people))


def candidates_of(stores: Sequence[Store], count: int, seed: int) -> np.ndarray:
    """`count` people with genotype and phenotype, drawn from all stores. Raises ConfigError if there are fewer."""
    everybody = PooledStore(stores)
    both = np.intersect1d(
        everybody.people(None, Modality.GENOTYPE), everybody.people(None, Modality.PHENOTYPE)
    )
    if len(both) < count:
        found, remedy = f"{count} of {len(both)} people", "use fewer, or more people=..."
        raise ConfigError(refusal("key 'attack.candidates'", found, remedy))
    return np.sort(np.random.default_rng(seed).choice(both, count, replace=False)).astype(np.int64)


def targets_of(setting: Setting, store: Store, state: State) -> list[Target]:
    """Both auto-encoders with the study's training, for the attack's epochs."""
    config, options = setting.config, setting.options
    unprotected = {**config["privacy"], "unit": "none", "epsilon": None}
    study = build_study(
        {**config, "privacy": unprotected, "aggregation": {**config["aggregation"], "mode": "clear"}}
    )
    orders = {}
    for phase in study.phases:
        if "loop" in phase.parameters:
            loop = {**phase.parameters["loop"], "epochs": options["epochs"], "device": "cpu"}
            orders[phase.name] = Order(
                phase.name, phase.task, 1, 1, study.seed, {**phase.parameters, "loop": loop}
            )
    return [
        phenotype_target(store, state, orders["phenotype"]),
        genotype_target(store, state, orders[f"genotype.{options['chromosome']}"]),
    ]


def attack(setting: Setting) -> Outcome:
    """Both attacks on both auto-encoders, without protection and under each of `attack.epsilons`."""
    options, privacy = setting.options, setting.config["privacy"]
    stores = list(setting.workspace.open().values())
    people = candidates_of(stores, options["candidates"], setting.config["seed"])
    everybody = Candidates(stores, people)
    state = statistics_of(everybody, setting.folder / "statistics")
    rows: list[dict[str, Cell]] = []
    curves, findings = [], []
    for target in targets_of(setting, everybody, state):
        for epsilon in (None, *options["epsilons"]):
            words = "no protection" if epsilon is None else f"epsilon {epsilon:g}"
            terms = None
            if epsilon is not None:
                terms = record_privacy(target.orders[0], len(people) // 2, epsilon, privacy)
            with setting.stages.stage(f"membership: {words}") as step:
                folder = (
                    setting.folder / target.title.replace(" ", "_").replace(",", "") / words.replace(" ", "_")
                )
                seed = setting.config["seed"]
                models = train_models(
                    target, stores, people, state, options["models"], seed, folder, terms, step
                )
            found = rows_of(models)
            rows += [{"target": f"{target.title}, {words}", **row} for row in found]
            curves.append(
                {
                    "label": f"{target.title.split()[0]}, {words}",
                    **curve(models.scores["LiRA"].ravel(), models.member.ravel()),
                }
            )
            best: Any = max(found, key=lambda row: row["auc"]["value"])  # type: ignore[index]
            findings.append(
                f"{target.title[0].upper()}{target.title[1:]}, {words}: the strongest of three attacks "
                f"({best['attack']}) reaches AUC {best['auc']['value']:.3f} ({best['auc']['low']:.3f}–"
                f"{best['auc']['high']:.3f}) and finds {100 * best['tpr_0.01']['value']:.1f}% of members at 1% "
                "false positives."
            )
    half = len(people) // 2
    return {
        "title": "Membership inference",
        "attacker": "Holds a candidate's complete record, sees the released model, and knows how it was trained: "
        "task, hyperparameters, terms of privacy, and the statistics. Trains shadow models on random "
        "halves of the candidates. Does not know who was in.",
        "sets": f"{len(people)} candidates; {options['models']} models per row, each trained for "
        f"{options['epochs']} epochs on a random half ({half} members, {half} others) and attacked with the "
        f"{options['models'] - 1} others as shadows: {options['models'] * len(people):,} scores.",
        "columns": [
            {"key": "target", "label": "Model", "kind": "text"},
            {"key": "attack", "label": "Attack", "kind": "text"},
            {"key": "auc", "label": "ROC-AUC", "kind": "figure"},
            {"key": "tpr_0.001", "label": "TPR at 0.1% FPR", "kind": "figure"},
            {"key": "tpr_0.01", "label": "TPR at 1% FPR", "kind": "figure"},
            {"key": "loss_in", "label": "Loss, members", "kind": "figure"},
            {"key": "loss_out", "label": "Loss, others", "kind": "figure"},
        ],
        "rows": rows,
        "plot": {
            "kind": "roc",
            "curves": curves,
            "caption": "LiRA, both axes logarithmic: what lies above the diagonal on the left are people named "
            "with few false alarms.",
        },
        "findings": findings,
        "notes": [
            "Intervals are 95%: of areas by a bootstrap over people and models, of rates by Clopper and Pearson "
            "with everybody counted once.",
            "Epsilon is of the one part alone, for one person added or removed, at delta "
            f"{privacy['delta']:g}. Statistics come from all candidates, members or not, so that they give nobody "
            "away here; a study pays for its statistics.",
            "Few people and many epochs are chosen for the attacker: what is shown without protection is not what "
            "a study of many people gives away, but what one of few may.",
        ],
    }


def rows_of(models: Models) -> list[dict[str, Cell]]:
    """One row per attack, in the order of `ATTACKS`."""
    number, people = (places.ravel() for places in np.indices(models.member.shape))
    member = models.member.ravel()
    losses = models.losses.ravel()
    means = {"loss_in": float(losses[member].mean()), "loss_out": float(losses[~member].mean())}
    return [
        {"attack": name, **separation(scores.ravel(), member, people, number), **means}
        for name, scores in models.scores.items()
    ]
