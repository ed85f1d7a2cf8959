"""A task whose training can be done by hand: every person pulls two tensors towards values of their own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from pm1_core.data.store import Store
from pm1_core.data.summary import StudySummary
from pm1_core.fields import Modality, Split
from pm1_core.training import methods
from pm1_core.training.guide import UNGUIDED, Guide
from pm1_core.training.loop import Losses, train_epochs
from pm1_core.training.order import Order
from pm1_core.training.parts import State, dump_part, load_part, named_part
from pm1_core.training.tasks.base import Task
from pm1_core.update import Tensors, Update

STUDY = StudySummary("tiny", "GRCh38", (), (), (), {})
W, NORM = "quadratic.w", "quadratic.norm"
START: dict[str, np.ndarray] = {W: np.zeros(3, np.float32), NORM: np.ones(2, np.float32)}


@dataclass(frozen=True)
class Points:
    """The part of a store that the task reads: what each person wants, [n, 3] and [n, 2]."""

    wanted: np.ndarray
    norms: np.ndarray
    site: str = "north"

    @staticmethod
    def of(people: int, seed: int = 0) -> Points:
        draws = np.random.default_rng(seed)
        wanted, norms = draws.normal(seed, 1, (people, 3)), draws.normal(-seed, 1, (people, 2))
        return Points(wanted.astype(np.float32), norms.astype(np.float32))

    def people(self, split: Split | None, modality: Modality | None = None) -> np.ndarray:
        return np.arange(len(self.wanted))

    @property
    def store(self) -> Store:
        return cast(Store, self)


class _Module(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = torch.nn.Parameter(torch.zeros(3))
        self.norm = torch.nn.Parameter(torch.zeros(2))


class QuadraticTask(Task):
    """Mean over people of 1/2 |w - wanted|^2 + 1/2 |norm - norms|^2, whose gradient is (w, norm) - mean."""

    name = "quadratic"
    modalities = frozenset({Modality.PHENOTYPE})

    def initial(self, state: State, seed: int) -> Tensors:
        return START

    def train(
        self,
        store: Store,
        order: Order,
        state: State,
        tensors: Tensors,
        folder: Path,
        guide: Guide = UNGUIDED,
    ) -> Update:
        points = cast(Points, store)
        module = self._load(tensors)

        def loss_of(indices: np.ndarray, draws: torch.Generator, step: int) -> Losses:
            return Losses(self._loss(module, points, indices))

        trained, people = named_part(module, "quadratic."), len(points.wanted)
        metrics = train_epochs(module, trained, order, folder, people, loss_of, guide)
        return Update(dump_part(module, "quadratic."), float(people), metrics, {"phenotype": float(people)})

    @torch.no_grad()
    def evaluate(
        self, store: Store, order: Order, state: State, tensors: Tensors, folder: Path, split: Split
    ) -> dict[str, float]:
        points = cast(Points, store)
        everybody = np.arange(len(points.wanted))
        loss = float(self._loss(self._load(tensors), points, everybody))
        return {"loss": loss, "examples": float(len(everybody))}

    def scores(
        self, store: Store, order: Order, state: State, tensors: Tensors, folder: Path, split: Split
    ) -> Tensors:
        return {"scores.norm": np.array(tensors[NORM])}

    def _load(self, tensors: Tensors) -> _Module:
        module = _Module()
        load_part(module, tensors, "quadratic.")
        return module

    def _loss(self, module: _Module, points: Points, indices: np.ndarray) -> torch.Tensor:
        wanted, norms = (torch.from_numpy(array[indices]) for array in (points.wanted, points.norms))
        return ((module.w - wanted).square().sum(1) / 2 + (module.norm - norms).square().sum(1) / 2).mean()


def order(
    method: Mapping[str, Any] | None = None,
    round_number: int = 1,
    rounds: int = 5,
    *,
    batch_size: int = 0,
    epochs: int = 4,
    keep_moments: bool = True,
    **optimiser: Any,
) -> Order:
    """Full-batch gradient descent of four steps, unless said otherwise."""
    loop = {
        "batch_size": batch_size,
        "epochs": epochs,
        "keep_moments": keep_moments,
        "device": "cpu",
        "optimiser": {"name": "sgd", "learning_rate": 0.1, **optimiser},
    }
    return Order("quadratic", "quadratic", round_number, rounds, 3, {"loop": loop}, method or {})


def task() -> QuadraticTask:
    return QuadraticTask({}, STUDY)


RATE, STEPS = 0.1, 4
PEOPLE = Points.of(10, seed=2)
MEAN = {W: PEOPLE.wanted.mean(0), NORM: PEOPLE.norms.mean(0)}
ZERO = {"control." + name: np.zeros_like(array) for name, array in START.items()}


def train(asked: Order, tensors: Tensors, folder: Path, people: Points = PEOPLE) -> Update:
    return methods.train(task(), people.store, asked, {}, tensors, folder)


def evaluate(asked: Order, tensors: Tensors, folder: Path, *, after: bool = False) -> dict[str, float]:
    return methods.evaluate(task(), PEOPLE.store, asked, {}, tensors, folder, Split.TEST, after)


def loss_of(tensors: Tensors) -> float:
    return task().evaluate(PEOPLE.store, order(), {}, tensors, Path(), Split.TEST)["loss"]


def content(update: Update) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in update.tensors.items()}


def files(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*.safetensors")}


def close(found: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(found, expected, atol=1e-6, rtol=1e-6)
