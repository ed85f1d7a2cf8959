"""Is this person in a sum of updates? A secure sum hides which site a row came from, not that it is in it.

The first layer's gradient is a sum over people of g x^T, so that whatever plain descent does to that layer lies in
the span of the rows x of everybody who was trained on, at all sites together, in any number of steps. While there
are fewer people than hidden units, a row that was in the sum lies in the update's row space, and one that was not
does not. Adam and weight decay, and more people than units, blur this. (Kariyappa et al. 2023, "Cocktail party
attack", start from the same span and go on to take the rows apart.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pm1_core.data.store import Store
from pm1_core.privacy.fixed_point import FixedPoint
from pm1_core.training.order import Order
from pm1_core.update import Tensors
from simulations.attacks.figures import curve, separation
from simulations.attacks.inversion import LAYER, phenotype_round
from simulations.attacks.membership import Candidates, candidates_of, record_privacy, statistics_of
from simulations.attacks.outcome import Cell, Outcome, Setting
from simulations.attacks.photographs import RATE

SITES = 3
"""The fewest sites that a secure sum is opened for."""
PER_SITE = (1, 8, 16, 32)
_FULL = 0.8
"""Share of the layer's units that the row space takes up at most."""


def rows_seen(store: Store, people: np.ndarray, state: Tensors) -> np.ndarray:
    """The rows that the first layer sees of people, float64 [n, K]: standardised, 0 where nothing is observed."""
    values, observed = store.phenotypes(people)
    mean, std, kept = (state[f"statistics.phenotype.{name}"] for name in ("mean", "std", "kept"))
    found: np.ndarray = np.where(observed & (kept > 0), (values - mean) / std, 0.0).astype(np.float64)
    return found


def first_layer(sent: Tensors, came: Tensors) -> np.ndarray:
    """What became of the first layer's weight and bias, float64 [H, K + 1]."""
    weight, bias = (
        came[f"{LAYER}.{part}"].astype(np.float64) - sent[f"{LAYER}.{part}"] for part in ("weight", "bias")
    )
    return np.concatenate([weight, bias[:, None]], axis=1)


def opened(updates: Sequence[np.ndarray], bits: int = 32) -> np.ndarray:
    """The mean of the sites' updates as a secure sum opens it: encoded, added modulo 2^bits, decoded."""
    limit = max(float(np.abs(update).max()) for update in updates)
    encoding = FixedPoint.fitting(bits, max(limit, 1e-12), [1.0] * len(updates))
    words = [encoding.encode(update.ravel(), 1.0) for update in updates]
    total = words[0].copy()
    for more in words[1:]:
        total += more
    return encoding.decode(total, float(len(updates))).reshape(updates[0].shape)


def in_span(update: np.ndarray, rows: np.ndarray, people: int) -> np.ndarray:
    """Score of each row, float64 [n], larger is a member: minus the share of it that the row space leaves over.

    update: float64 [H, K + 1]; rows: float64 [n, K]; people: how many were trained on, of whom the strongest
    directions are kept, at most 80% of the units
    """
    rank = min(people, int(_FULL * len(update)))
    directions = np.linalg.svd(update, full_matrices=False)[2][:rank]
    extended = np.concatenate([rows, np.ones((len(rows), 1))], axis=1)
    left = extended - extended @ directions.T @ directions
    share: np.ndarray = -np.linalg.norm(left, axis=1) / np.linalg.norm(extended, axis=1)
    return share


def attack(setting: Setting) -> Outcome:
    """Sums over three sites: plain descent, the study's own loop, and record-level privacy."""
    stores = list(setting.workspace.open().values())
    seed = setting.config["seed"]
    candidates = candidates_of(stores, 2 * SITES * max(PER_SITE), seed)
    candidates = np.random.default_rng(seed).permutation(candidates)
    everybody = Candidates(stores, candidates)
    state = statistics_of(everybody, setting.folder / "statistics")
    rows_of_all = rows_seen(everybody, candidates, state)
    configured = setting.config["model"]["phenotype"]
    plain_loop = {
        "optimiser": {"name": "sgd", "learning_rate": RATE},
        "epochs": 1,
        "batch_size": 0,
        "device": "cpu",
    }
    plain = {"model": {**configured, "copy_mask": 0.0, "hide_targets": 0.0}, "loop": plain_loop}
    own = {
        "model": configured,
        "loop": {**setting.config["study"]["phases"]["phenotype"]["loop"], "device": "cpu"},
    }
    order = Order("phenotype", "phenotype", 1, 1, 7, plain)
    privacy = {**setting.config["privacy"], "sample_rate": 1.0}
    rows: list[dict[str, Cell]] = []
    curves: list[dict[str, Any]] = []
    sizes = [size for size in PER_SITE if 2 * SITES * size <= len(candidates)]

    def sought(words: str, size: int, parameters: Mapping[str, Any], terms: Mapping[str, Any] | None) -> None:
        groups = [candidates[k * size : (k + 1) * size] for k in range(SITES)]
        folder = setting.folder / str(len(rows))
        scores = in_span(
            sum_seen(stores, groups, state, parameters, folder, terms), rows_of_all, SITES * size
        )
        member = np.arange(len(candidates)) < SITES * size
        found = separation(scores, member, seed=seed)
        figures = {key: found[key] for key in ("auc", "tpr_0.001", "tpr_0.01")}
        rows.append({"told": words, "people": SITES * size, **figures})
        curves.append({"label": f"{words}, {SITES * size} people", **curve(scores, member)})

    with setting.stages.stage("people in sums") as step:
        for done, size in enumerate(sizes):
            step(f"{SITES} sites of {size}", done, len(sizes))
            sought("one step of plain descent", size, plain, None)
            sought("the study's own loop", size, own, None)
            for epsilon in setting.options["epsilons"]:
                sought(
                    f"one step, epsilon {epsilon:g}",
                    size,
                    plain,
                    record_privacy(order, size, epsilon, privacy),
                )
        step("", len(sizes), len(sizes))
    return {
        "title": "People in a secure sum",
        "attacker": f"Sees only the sum of {SITES} sites' updates of one round, and holds a person's table.",
        "sets": f"{len(candidates)} people, shuffled over hospitals; those trained on against all others.",
        "columns": [
            {"key": "told", "label": "What the sites did", "kind": "text"},
            {"key": "people", "label": "People in the sum", "kind": "count"},
            {"key": "auc", "label": "ROC-AUC", "kind": "figure"},
            {"key": "tpr_0.001", "label": "TPR at 0.1% FPR", "kind": "figure"},
            {"key": "tpr_0.01", "label": "TPR at 1% FPR", "kind": "figure"},
        ],
        "rows": rows,
        "plot": {"kind": "roc", "curves": [one for one in curves if "epsilon" not in one["label"]]},
        "findings": [_sentence(row) for row in rows],
        "notes": [
            "A secure sum hides whose update is whose. It is no protection of a person who is in it: that takes "
            "noise (privacy=record).",
            "The sum is encoded and added as the protocol does; tests pass the same updates through the protocol.",
        ],
    }


def sum_seen(
    stores: Sequence[Store],
    groups: Sequence[np.ndarray],
    state: Tensors,
    parameters: Mapping[str, Any],
    folder: Path,
    privacy: Mapping[str, Any] | None = None,
) -> np.ndarray:
    """The first layer's update, float64 [H, K + 1], that a secure sum over one round of these sites opens."""
    updates = []
    for number, people in enumerate(groups):
        told = phenotype_round(stores, [people], state, parameters, folder / str(number), privacy)
        updates.append(first_layer(told.sent, told.came))
    return opened(updates)


def _sentence(row: Mapping[str, Cell]) -> str:
    area: Any = row["auc"]
    rate: Any = row["tpr_0.01"]
    words = str(row["told"])
    return (
        f"{words[0].upper()}{words[1:]}, {row['people']} people in the sum: AUC {area['value']:.3f} "
        f"({area['low']:.3f}–{area['high']:.3f}), {100 * rate['value']:.0f}% found at 1% false positives."
    )
