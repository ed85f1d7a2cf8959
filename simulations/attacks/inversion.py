"""Gradient inversion: people's records from the updates that were trained on them.

The attacker is the coordinator, or whoever sees one round: the tensors that were sent, and those that came back.

Phenotype rows come out of the first layer's update. For one person its gradient is g x^T, its bias' g: their
quotient is the row that the layer saw, x (Aono et al. 2017, "Privacy-preserving deep learning via additively
homomorphic encryption"). Of several people, in a batch or in a sum over sites, rows are read out of its row space,
see `row_space`. A photograph is sought by optimisation, see `photographs`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pm1_core.data.store import Store
from pm1_core.fields import Modality
from pm1_core.training.order import Order
from simulations.attacks.figures import average, proportion
from simulations.attacks.membership import Candidates, candidates_of, record_privacy, statistics_of
from simulations.attacks.outcome import Cell, Outcome, Setting
from simulations.attacks.photographs import PICTURED, STEPS, drawn, photograph_rows
from simulations.attacks.row_space import SITES, plain_descent, rows_read, rows_seen, updates_of
from simulations.attacks.secure import opened

MANY, REPETITIONS = 8, 5
"""People of a batch, and of a larger sum; how often each attack is made, every time on others."""
_NARROW = 0.1
"""A range of secure sums near what one step changes: words of 16 bits then say more."""
_WITHIN, _READ = 0.1, 0.99
"""Standard deviations within which a field counts as recovered; share of fields at which a row counts as read."""


@dataclass(frozen=True)
class Seen:
    """What the attacker sees of one round of one step.

    sites, at_each: how many sites, people at each
    bits, limit: of the secure sum, in place of the study's range; None for averaging in the clear
    """

    words: str
    sites: int
    at_each: int = 1
    bits: int | None = None
    limit: float | None = None
    epsilon: float | None = None


def seen_of(epsilons: Sequence[float]) -> list[Seen]:
    """In the clear, in secure sums, and under record-level privacy."""
    found = [
        Seen("one person, in the clear", 1),
        Seen(f"a batch of {MANY}, in the clear", 1, MANY),
        *(
            Seen(f"a secure sum of {count}, {bits} bits", count, bits=bits)
            for bits in (32, 16)
            for count in (SITES, MANY)
        ),
        Seen(f"a secure sum of {MANY}, 16 bits, range {_NARROW:g}", MANY, bits=16, limit=_NARROW),
    ]
    for epsilon in epsilons:
        found.append(Seen(f"one person, epsilon {epsilon:g}", 1, epsilon=epsilon))
        found.append(
            Seen(f"a secure sum of {SITES}, 32 bits, epsilon {epsilon:g}", SITES, bits=32, epsilon=epsilon)
        )
    return found


def matched(rows: np.ndarray, true: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Share of each person's known fields that the best of `rows` has within a tenth of a deviation, float64 [n].

    rows: float64 [m, K], among which the mean is always one: who reads nothing guesses it
    true, known: float64 and bool [n, K]
    """
    guesses = np.concatenate([rows, np.zeros((1, true.shape[1]))])
    near = (np.abs(guesses[:, None] - true) <= _WITHIN) & known
    share: np.ndarray = (near.sum(2) / known.sum(1)).max(0)
    return share


def phenotype_rows(setting: Setting, stores: Sequence[Store]) -> list[dict[str, Cell]]:
    """A row for each thing that a coordinator may see of people's tables."""
    people = candidates_of(stores, 2 * MANY * REPETITIONS, setting.config["seed"])
    people = np.random.default_rng(setting.config["seed"]).permutation(people)
    everybody = Candidates(stores, people)
    state = statistics_of(everybody, setting.folder / "statistics")
    true = rows_seen(everybody, people, state)
    known = everybody.phenotypes(people)[1] & (state["statistics.phenotype.kept"] > 0)
    binary = np.array([feature.kind == "binary" for feature in everybody.study.features])
    parameters = plain_descent(setting.config["model"]["phenotype"])
    order = Order("phenotype", "phenotype", 1, 1, 7, parameters)
    privacy = {**setting.config["privacy"], "sample_rate": 1.0}
    halves = np.split(np.arange(len(people)), 2)
    inside, outside = (half.reshape(REPETITIONS, MANY) for half in halves)

    def read(seen: Seen, members: np.ndarray) -> np.ndarray:
        terms = None if seen.epsilon is None else record_privacy(order, seen.at_each, seen.epsilon, privacy)
        groups = np.split(people[members], seen.sites)
        updates = updates_of(stores, groups, state, parameters, setting.folder / "rows", terms)
        limit = seen.limit or setting.config["aggregation"]["range"]
        told = updates[0] if seen.bits is None else opened(updates, seen.bits, limit)
        return rows_read(told, len(members), binary)

    found: list[dict[str, Cell]] = []
    for seen in seen_of(setting.options["epsilons"]):
        hits, absent = [], []
        for members, others in zip(inside[:, : seen.sites * seen.at_each], outside, strict=True):
            rows = read(seen, members)
            hits.append(matched(rows, true[members], known[members]))
            absent.append(matched(rows, true[others], known[others]))
        whole = np.concatenate(hits) >= _READ
        found.append(
            {
                "what": "phenotype rows",
                "seen": seen.words,
                "read": proportion(int(whole.sum()), whole.size),
                "fields": _mean_share(hits),
                "absent": _mean_share(absent),
            }
        )
    return found


def _mean_share(repetitions: Sequence[np.ndarray]) -> dict[str, float]:
    """Of shares by repetition, float64 [n] each."""
    found = average([float(shares.mean()) for shares in repetitions])
    return {name: min(max(value, 0.0), 1.0) for name, value in found.items()}


def attack(setting: Setting) -> Outcome:
    """Phenotype rows and photographs, each in the clear, in a sum, and under record-level privacy."""
    stores = list(setting.workspace.open().values())
    with setting.stages.stage("phenotype rows") as step:
        step("", 0, 1)
        rows = phenotype_rows(setting, stores)
    clinic = max(stores, key=lambda store: len(store.people(None, Modality.FUNDUS)))
    more, shown = photograph_rows(setting, clinic)
    return {
        "title": "Gradient inversion",
        "attacker": "The coordinator: knows the model that it sent, the order with its seed, which columns are "
        "binary, and what came back in one round of one step, or the sum that was opened.",
        "sets": f"Every figure of {REPETITIONS} repetitions on other people each, and of {PICTURED} people's "
        f"photographs, {STEPS} steps each.",
        "columns": [
            {"key": "what", "label": "Sought", "kind": "text"},
            {"key": "seen", "label": "What is seen", "kind": "text"},
            {"key": "read", "label": "People read whole", "kind": "figure"},
            {"key": "fields", "label": "Fields within 0.1 sd", "kind": "figure"},
            {"key": "absent", "label": "The same, of people not there", "kind": "figure"},
            {"key": "psnr", "label": "PSNR, dB", "kind": "figure"},
            {"key": "ssim", "label": "SSIM", "kind": "figure"},
            {"key": "correlation", "label": "Correlation", "kind": "figure"},
        ],
        "rows": [*rows, *more],
        "plot": {"kind": "picture", "svg": drawn(shown)},
        "findings": [_sentence(row) for row in [*rows, *more]],
        "notes": [
            "One step of plain gradient descent is the attacker's best case: more steps, more people, and "
            "optimisers with moments blur what an update says.",
            "A person is held against the best of the rows that were read and of the mean, which an attacker has "
            "anyway; so are people who were not there. Read whole: at least 99% of the fields that are known.",
            "Sums pass through the protocol itself, the tensors that are attacked alone: words are masked one by "
            "one. Rounding to 16 bits is no protection: it gets finer with a smaller aggregation.range.",
            "Intervals are 95%: of people read whole by Clopper and Pearson, of other figures by Student's t over "
            "repetitions or people.",
            "A photograph's correlation is of what differs from the mean of other people's photographs, which an "
            "attacker has anyway.",
        ],
    }


def _sentence(row: Mapping[str, Cell]) -> str:
    def figure(key: str, digits: int = 2) -> str:
        found: Any = row[key]
        return f"{found['value']:.{digits}f} ({found['low']:.{digits}f}–{found['high']:.{digits}f})"

    where = f"{str(row['what']).capitalize()}, {row['seen']}"
    if "psnr" in row:
        return f"{where}: PSNR {figure('psnr', 1)} dB, SSIM {figure('ssim')}, correlation {figure('correlation')}."
    whole: Any = row["read"]
    return f"{where}: {100 * whole['value']:.0f}% of people read whole, {figure('fields')} of their fields."
