"""Gradient inversion: a person's record from the update that was trained on it.

The attacker is the coordinator, or whoever sees one round: the tensors that were sent, and those that came back.

A phenotype row comes in closed form. The first layer's gradient for one person is g x^T, its bias' g: their
quotient is the row that the layer saw, x (Aono et al. 2017, "Privacy-preserving deep learning via additively
homomorphic encryption"). Of several people it is a mixture of their rows. A photograph is sought by
optimisation, see `photographs`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pm1_core.data.store import Store
from pm1_core.fields import Modality
from pm1_core.training.order import Order
from pm1_core.training.tasks import build_task
from pm1_core.update import Tensors
from simulations.attacks.membership import Candidates, candidates_of, record_privacy, statistics_of
from simulations.attacks.outcome import Cell, Outcome, Setting
from simulations.attacks.photographs import RATE, STEPS, SUMMED, drawn, photograph_rows

LAYER = "phenotype.encoder.0"
_WITHIN = 0.1
"""Standard deviations within which a field counts as recovered."""


def recovered_row(sent: Tensors, came: Tensors, layer: str = LAYER) -> np.ndarray:
    """The row that the first layer saw, float64 [K], from the bias that moved most; zeros if none moved."""
    weight, bias = (
        came[f"{layer}.{part}"].astype(np.float64) - sent[f"{layer}.{part}"] for part in ("weight", "bias")
    )
    place = int(np.abs(bias).argmax())
    return weight[place] / bias[place] if bias[place] else np.zeros(weight.shape[1])


def row_figures(found: np.ndarray, true: np.ndarray) -> dict[str, float]:
    """How near a recovered row is to the true one, in standard deviations; the guess of the mean is all zeros.

    fields: share of fields within a tenth; correlation: 0 if one of them is constant; error: root mean square
    """
    varies = found.std() > 0 and true.std() > 0
    return {
        "fields": float(np.mean(np.abs(found - true) <= _WITHIN)),
        "correlation": float(np.corrcoef(found, true)[0, 1]) if varies else 0.0,
        "error": float(np.sqrt(np.mean((found - true) ** 2))),
    }


@dataclass(frozen=True)
class Told:
    """What one round tells: the tensors that were sent, and those that came back, of one site or of a sum."""

    sent: Tensors
    came: Tensors


def phenotype_round(
    stores: Sequence[Store],
    groups: Sequence[np.ndarray],
    state: Tensors,
    parameters: Mapping[str, Any],
    folder: Path,
    privacy: Mapping[str, Any] | None = None,
) -> Told:
    """One round of the phenotype phase at sites of these people, averaged.

    One site is what a coordinator sees in the clear; several, what a secure sum opens.
    """
    order = Order("phenotype", "phenotype", 1, 1, 7, parameters, privacy=privacy or {})
    task = build_task(order, stores[0].study)
    sent = dict(task.initial(state, 7))
    came: list[Tensors] = []
    for number, people in enumerate(groups):
        site = Candidates(stores, people)
        at_site = order.at(f"site {number}") if len(groups) > 1 else order
        came.append(task.train(site, at_site, state, sent, _made(folder / str(number))).tensors)
    return Told(sent, {name: np.mean([one[name] for one in came], axis=0) for name in sent})


def phenotype_rows(setting: Setting, stores: Sequence[Store], people: np.ndarray) -> list[dict[str, Cell]]:
    """A row for each thing that a coordinator may see of a person's table."""
    everybody = Candidates(stores, people)
    state = statistics_of(everybody, setting.folder / "statistics")
    values, known = everybody.phenotypes(people)
    mean, std, kept = (state[f"statistics.phenotype.{name}"] for name in ("mean", "std", "kept"))
    seen_first = (known & (kept > 0))[0]
    true = ((values[0] - mean) / std)[seen_first].astype(np.float64)
    model = {**setting.config["model"]["phenotype"], "copy_mask": 0.0, "hide_targets": 0.0}
    loop = {
        "optimiser": {"name": "sgd", "learning_rate": RATE},
        "epochs": 1,
        "batch_size": 0,
        "device": "cpu",
    }
    parameters = {"model": model, "loop": loop}
    order = Order("phenotype", "phenotype", 1, 1, 7, parameters)
    privacy = {**setting.config["privacy"], "sample_rate": 1.0}
    one = [people[:1]]
    eight = [people[:8]]
    apart = [people[k : k + 1] for k in range(SUMMED)]
    seen: list[tuple[str, Sequence[np.ndarray], Mapping[str, Any] | None]] = [
        ("one person, averaging in the clear", one, None),
        ("eight people, averaging in the clear", eight, None),
        (f"one person at each of {SUMMED} sites, their sum", apart, None),
    ]
    for epsilon in setting.options["epsilons"]:
        seen.append((f"one person, epsilon {epsilon:g}", one, record_privacy(order, 1, epsilon, privacy)))
    found: list[dict[str, Cell]] = [
        {
            "what": "phenotype row",
            "seen": "nothing: the mean",
            **row_figures(np.zeros(len(true)), true),
        }
    ]
    for number, (words, groups, terms) in enumerate(seen):
        told = phenotype_round(stores, groups, state, parameters, setting.folder / f"row {number}", terms)
        figures = row_figures(recovered_row(told.sent, told.came)[seen_first], true)
        found.append({"what": "phenotype row", "seen": words, **figures})
    return found


def attack(setting: Setting) -> Outcome:
    """A phenotype row and a photograph, each in the clear, in a sum, and under record-level privacy."""
    stores = list(setting.workspace.open().values())
    people = candidates_of(stores, max(8, SUMMED), setting.config["seed"])
    rows = phenotype_rows(setting, stores, people)
    clinic = max(stores, key=lambda store: len(store.people(None, Modality.FUNDUS)))
    pictured = clinic.people(None, Modality.FUNDUS)[:24]
    more, shown = photograph_rows(setting, clinic, pictured)
    texts = [_sentence(row) for row in [*rows, *more]]
    return {
        "title": "Gradient inversion",
        "attacker": "The coordinator: knows the model that it sent, the order with its seed, and what came back in "
        "one round of one step.",
        "sets": f"One person (of eight, where eight were trained on); {len(shown) - 2} pictures sought, "
        f"{STEPS} steps each.",
        "columns": [
            {"key": "what", "label": "Sought", "kind": "text"},
            {"key": "seen", "label": "What is seen", "kind": "text"},
            {"key": "fields", "label": "Fields within 0.1 sd", "kind": "figure"},
            {"key": "correlation", "label": "Correlation", "kind": "figure"},
            {"key": "error", "label": "Error, sd", "kind": "figure"},
            {"key": "psnr", "label": "PSNR, dB", "kind": "figure"},
        ],
        "rows": [*rows, *more],
        "plot": {"kind": "picture", "svg": drawn(shown)},
        "findings": texts,
        "notes": [
            "One step of plain gradient descent on one person is the attacker's best case: more steps, more "
            "people, and optimisers with moments blur what an update says.",
            "Of sums and batches the quotient is a weak attacker: a stronger one separates the rows of a small "
            "sum, whose secrecy is then only whose row it was.",
            "A sum over sites is worked out here in the clear; tests hold what secure sums open to it, and that "
            "they open nothing else.",
            "A quotient is the simplest attack on a sum: that it fails does not make a sum safe. Whether somebody "
            "is in it is told by its row space (the attack row_space).",
            "A photograph's correlation is of what differs from the mean of other people's photographs, which an "
            "attacker has anyway.",
        ],
    }


def _sentence(row: Mapping[str, Cell]) -> str:
    where = f"{str(row['what']).capitalize()}, {row['seen']}"
    if "fields" in row:
        return f"{where}: {100 * float(row['fields']):.0f}% of fields, correlation {row['correlation']:.2f}."  # type: ignore[arg-type]
    return f"{where}: PSNR {row['psnr']:.1f} dB, correlation {row['correlation']:.2f}."


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
