"""Who is in a sum of updates, and with what row. A secure sum hides whose row it is, not the row.

The first layer's gradient is a sum over people of g [x, 1]^T, so whatever plain descent does to that layer lies
in the span of the rows [x, 1] of everybody who was trained on, at all sites together, in any number of steps. While
there are fewer people than hidden units, two things follow. A row that was in the sum lies in the update's row
space, and one that was not does not. And rows come out of it one by one: a direction is almost certainly somebody's
row if it has a 1 at its end and 0 or 1 wherever a column is binary, which the study says. (Kariyappa et al. 2023,
"Cocktail party attack", start from the same span and take the rows apart by their independence.) Adam and weight
decay, and more people than units, blur this.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pm1_core.data.store import Store
from pm1_core.training.order import Order
from pm1_core.training.tasks import build_task
from pm1_core.update import Tensors
from simulations.attacks.figures import curve, separation
from simulations.attacks.membership import Candidates, candidates_of, record_privacy, statistics_of
from simulations.attacks.outcome import Cell, Outcome, Setting
from simulations.attacks.photographs import RATE
from simulations.attacks.secure import opened

LAYER = "phenotype.encoder.0"
SITES = 3
"""The fewest sites that a secure sum is opened for."""
PER_SITE = (1, 8, 16, 32)
_FULL = 0.8
"""Share of the layer's units that the row space takes up at most."""
_DRAWS, _BINARY, _MOST, _APART = 20_000, 0.03, 0.9, 0.5
"""Directions tried; how near 0 or 1 is binary, and at what share of the columns; how far apart two rows lie."""


def rows_seen(store: Store, people: np.ndarray, state: Tensors) -> np.ndarray:
    """The rows that the first layer sees of people, float64 [n, K]: standardised, 0 where nothing is observed."""
    values, observed = store.phenotypes(people)
    mean, std, kept = (state[f"statistics.phenotype.{name}"] for name in ("mean", "std", "kept"))
    found: np.ndarray = np.where(observed & (kept > 0), (values - mean) / std, 0.0).astype(np.float64)
    return found


def plain_descent(model: Mapping[str, Any]) -> dict[str, Any]:
    """An order's parameters for one step of plain descent on everybody at once, nothing hidden."""
    loop = {
        "optimiser": {"name": "sgd", "learning_rate": RATE},
        "epochs": 1,
        "batch_size": 0,
        "device": "cpu",
    }
    return {"model": {**model, "copy_mask": 0.0, "hide_targets": 0.0}, "loop": loop}


def updates_of(
    stores: Sequence[Store],
    groups: Sequence[np.ndarray],
    state: Tensors,
    parameters: Mapping[str, Any],
    folder: Path,
    privacy: Mapping[str, Any] | None = None,
) -> list[np.ndarray]:
    """What one round of the phenotype phase makes of the first layer at sites of these people.

    groups: int64 indices of people, of each site. Returns the change of [weight | bias] at each, float64 [H, K + 1]
    """
    order = Order("phenotype", "phenotype", 1, 1, 7, parameters, privacy=privacy or {})
    task = build_task(order, stores[0].study)
    sent = dict(task.initial(state, 7))
    found = []
    for number, people in enumerate(groups):
        own = folder / str(number)
        own.mkdir(parents=True, exist_ok=True)
        came = task.train(Candidates(stores, people), order.at(f"site {number}"), state, sent, own).tensors
        weight, bias = (
            came[f"{LAYER}.{part}"].astype(np.float64) - sent[f"{LAYER}.{part}"]
            for part in ("weight", "bias")
        )
        found.append(np.concatenate([weight, bias[:, None]], axis=1))
    return found


def row_space(update: np.ndarray, people: int) -> np.ndarray:
    """The strongest directions of an update [H, K + 1] on so many people, orthonormal float64 [r, K + 1]."""
    found: np.ndarray = np.linalg.svd(update, full_matrices=False)[2][: min(people, int(_FULL * len(update)))]
    return found


def in_span(update: np.ndarray, rows: np.ndarray, people: int) -> np.ndarray:
    """Score of each row, float64 [n], larger is a member: minus the share of it that the row space leaves over.

    update: float64 [H, K + 1]; rows: float64 [n, K]; people: how many were trained on
    """
    directions = row_space(update, people)
    extended = np.concatenate([rows, np.ones((len(rows), 1))], axis=1)
    left = extended - extended @ directions.T @ directions
    share: np.ndarray = -np.linalg.norm(left, axis=1) / np.linalg.norm(extended, axis=1)
    return share


def rows_read(update: np.ndarray, people: int, binary: np.ndarray, seed: int = 0) -> np.ndarray:
    """Rows [m, K], m <= people, that the row space holds and whose binary columns are 0 or 1; there may be none.

    update: float64 [H, K + 1]; people: how many were trained on; binary: bool [K]

    A row space of n directions has one row [x, 1] that is 0 at n - 1 chosen columns. Chosen at random among those
    that are binary, they are often 0 in somebody's row and in nobody else's, and that row is it.
    """
    rng, directions = np.random.default_rng(seed), row_space(update, people)
    places = np.flatnonzero(binary & (np.abs(directions[:, :-1]).max(0) > 1e-3))
    if len(places) < len(directions):
        return np.empty((0, len(binary)))
    drawn = rng.permuted(np.tile(places, (_DRAWS, 1)), axis=1)[:, : len(directions) - 1]
    mixtures = np.linalg.svd(directions.T[drawn])[2][:, -1] @ directions
    mixtures = mixtures[np.abs(mixtures[:, -1]) > 1e-4]
    rows = mixtures[:, :-1] / mixtures[:, -1:]
    off = np.minimum(np.abs(rows), np.abs(rows - 1))[:, places]
    share = (off < _BINARY).mean(1)
    found: list[np.ndarray] = []
    for row in rows[np.lexsort((off.mean(1), -share))][: (share > _MOST).sum()]:
        if len(found) < people and all(np.abs(row - other).max() > _APART for other in found):
            found.append(row)
    return np.array(found).reshape(-1, len(binary))


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
    plain = plain_descent(configured)
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
        updates = updates_of(stores, groups, state, parameters, folder, terms)
        total = opened(updates, 32, setting.config["aggregation"]["range"])
        scores = in_span(total, rows_of_all, SITES * size)
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
            "The first layer's updates pass through the protocol itself, in 32 bits: encoded, masked, opened.",
        ],
    }


def _sentence(row: Mapping[str, Cell]) -> str:
    area: Any = row["auc"]
    rate: Any = row["tpr_0.01"]
    words = str(row["told"])
    return (
        f"{words[0].upper()}{words[1:]}, {row['people']} people in the sum: AUC {area['value']:.3f} "
        f"({area['low']:.3f}–{area['high']:.3f}), {100 * rate['value']:.0f}% found at 1% false positives."
    )
