"""A site at work: what a phase finds here, one round of training, and figures of a model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from flwr.app import RecordDict

from client.site import LackingError, Site
from pm1_core import encoding
from pm1_core.energy import Meter
from pm1_core.errors import PM1Error
from pm1_core.fields import Modality, Split
from pm1_core.training import methods
from pm1_core.training.memory import Memory
from pm1_core.training.order import Order, derived_seed
from pm1_core.training.tasks import Task, allowed_tasks, build_task
from pm1_core.update import Tensors
from pm1_core.validate import refusal
from strategies import records


@dataclass(frozen=True)
class Request:
    """An order whose tensors are on this disk; `digest` is what both ends know it by."""

    digest: str
    order: Order


class Work(Site):
    """One request at one site that needs the model."""

    def ready(self) -> RecordDict:
        """Examples by phase and split, or why a phase is not for this site, and the objects that are not here."""
        self._remember()
        phases: dict[str, dict[str, int | str]] = {}
        for text in records.list_of(self.facts, "orders"):
            order = Order.from_json(text)
            try:
                phases[order.phase] = self._counts(self._task(order))
            except PM1Error as error:
                phases[order.phase] = {"refused": str(error)}
        facts: dict[str, records.Fact] = {
            "phases": json.dumps(phases, sort_keys=True),
            "lacking": self.lacking([*self.checkpoint.parts]),
            "study": self.store.study.hash,
        }
        return self.outbox.tell("ready", facts)

    def train(self) -> RecordDict:
        """Train one round and release the update, with figures of the received model on validation people."""
        request, task = self._request("train")
        held = self.outbox.held(request.digest)
        if held is not None:
            return self.outbox.answer(held, again=True)
        order, received = request.order, self.received()
        if self.paths.threads:
            torch.set_num_threads(self.paths.threads)
        self._take_back(order)
        before = self._figures(task, request, [Split.VALIDATION]) if self.facts.get("validate") else {}
        with Meter() as meter:
            update = methods.train(task, self.store, order, self.state(), received, self.memory())
        figures = {"weight": update.weight, **update.metrics, **before}
        figures |= {f"weight.{modality}": count for modality, count in update.examples.items()}
        if meter.joules is not None and self.paths.alone:
            figures["energy_joules"] = meter.joules
        release = self.outbox.keep(
            request.digest,
            "train",
            order.phase,
            order.round,
            self._encoded(task, order, update.tensors, received),
            figures,
        )
        return self.outbox.answer(release, again=False)

    def evaluate(self) -> RecordDict:
        """Figures of the sent model on validation and test people, and sums from which areas are computed."""
        request, task = self._request("evaluate")
        held = self.outbox.held(request.digest)
        if held is not None:
            return self.outbox.answer(held, again=True)
        order, state, received, memory = request.order, self.state(), self.received(), self.memory()
        figures = self._figures(task, request, [Split.VALIDATION, Split.TEST], after=True)
        figures["weight"] = float(task.examples(self.store))
        scores: Tensors = {}
        if task.examples(self.store, Split.TEST):
            scores = methods.scores(task, self.store, order, state, received, memory, Split.TEST, after=True)
        release = self.outbox.keep(
            request.digest, "evaluate", order.phase, order.round, sorted(scores.items()), figures
        )
        return self.outbox.answer(release, again=False)

    def _request(self, kind: str) -> tuple[Request, Task]:
        """The order at this site and its task. Raises LackingError if objects that it needs are not here."""
        text = records.text_of(self.facts, "order")
        order = Order.from_json(text)
        task = self._task(order)
        needed = [*self.state().selected(task.needs), *(self.trained() if self._came_along is None else ())]
        lacking = self.lacking(needed)
        if lacking:
            raise LackingError(
                refusal(f"phase {order.phase!r}", f"{len(lacking)} objects are not here", "send them first")
            )
        digest = records.request_digest(kind, text, self.checkpoint.hash)
        return Request(digest, order.at(self.store.site)), task

    def _figures(
        self, task: Task, request: Request, splits: list[Split], after: bool = False
    ) -> dict[str, float]:
        """Figures of the received model by "SPLIT.name", for the splits that have people here."""
        order, state, received = request.order, self.state(), self.received()
        return {
            f"{split}.{name}": value
            for split in splits
            if task.examples(self.store, split)
            for name, value in methods.evaluate(
                task, self.store, order, state, received, self.memory(), split, after
            ).items()
        }

    def _take_back(self, order: Order) -> None:
        """What was remembered together with an update is forgotten if that update was refused or came too late.

        The checkpoint tells, in the clear, whose updates it holds: a control variate that the others never heard
        of, or a residual of something that was not said, must not be gone on with.
        """
        counted = self.checkpoint.sites
        if self.checkpoint.round and counted and self.store.site not in counted:
            for kind in ("control", "residual"):
                Memory(self.memory(), order).drop(kind)

    def _encoded(
        self, task: Task, order: Order, tensors: Tensors, received: Tensors
    ) -> Iterator[tuple[str, np.ndarray]]:
        """The update as it travels, in the order of names. What a lossy encoding leaves out is fed back later."""
        if task.aggregation == "sum" or order.encoding == "full":
            yield from ((name, tensors[name]) for name in sorted(tensors))
            return
        memory = Memory(self.memory(), order)
        draws = np.random.default_rng(derived_seed(order.seed, order.phase, "encoding", order.round))
        residual = memory.load("residual") or {}
        changes = {name: tensors[name] for name in tensors if name.startswith(methods.CONTROL)}
        model = {name: tensors[name] for name in tensors if name not in changes}
        encoded, left = encoding.encode(order.encoding, model, received, residual, draws)
        more, rest = encoding.encode(order.encoding, changes, {}, residual, draws)
        memory.save("residual", {**left, **rest})
        yield from sorted({**encoded, **more}.items())

    def _task(self, order: Order) -> Task:
        return build_task(order, self.store.study, allowed_tasks(self.paths.tasks))

    def _counts(self, task: Task) -> dict[str, int | str]:
        """People by split, and training people by modality."""
        counts: dict[str, int | str] = {split: task.examples(self.store, split) for split in Split}
        for modality in Modality:
            if modality in task.modalities:
                counts[modality] = len(self.store.people(Split.TRAIN, modality))
        return counts
