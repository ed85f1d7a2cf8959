"""A site at work: what a phase finds here, one round of training, and figures of a model."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from flwr.app import RecordDict

from client import sealing
from client.enrolment import identity, public_hex, require_aggregation
from client.guarantee import statement
from client.outbox import Release
from client.secure import SecureSite
from client.site import LackingError
from pm1_core import encoding
from pm1_core.energy import Meter
from pm1_core.errors import PM1Error, PrivacyError
from pm1_core.fields import Modality, Split
from pm1_core.privacy.terms import SiteTerms, record_terms, terms_of
from pm1_core.training import launch, methods
from pm1_core.training.machine import Machine
from pm1_core.training.memory import Memory
from pm1_core.training.order import Order, derived_seed
from pm1_core.training.tasks import Task, allowed_tasks, build_task
from pm1_core.update import Tensors, Update
from pm1_core.validate import refusal
from strategies import records


@dataclass(frozen=True)
class Request:
    """An order whose tensors are on this disk. kind: "train" or "evaluate"; digest: what both ends know it by."""

    kind: str
    digest: str
    order: Order


class Work(SecureSite):
    """One request at one site that needs the model."""

    def ready(self) -> RecordDict:
        """Examples by phase and split, or why a phase is not for this site, and the objects that are not here."""
        self._remember()
        phases: dict[str, dict[str, int | str]] = {}
        for text in records.list_of(self.facts, "orders"):
            order = Order.from_json(text)
            try:
                own = self._machine().own(order)
                phases[order.phase] = self._counts(self._task(own), own, text)
            except PM1Error as error:
                phases[order.phase] = {"refused": str(error)}
        facts: dict[str, records.Fact] = {
            "phases": json.dumps(phases, sort_keys=True),
            "lacking": self.lacking([*self.checkpoint.parts]),
            "study": self.store.study.hash,
        }
        if self.paths.identity:
            facts["identity"] = public_hex(identity(self.paths.identity))
        return self.outbox.tell("ready", facts)

    def train(self) -> RecordDict:
        """Train one round and release the update, with figures of the received model on validation people.

        Under terms of privacy the update is all that leaves, with the numbers that are public.
        """
        request, task = self._request("train")
        if (before := self._given(request)) is not None:
            return before
        order, received = request.order, self.received()
        if self.paths.threads:
            torch.set_num_threads(self.paths.threads)
        self._take_back(order)
        figured = self.facts.get("validate") and not order.privacy
        received_figures = self._figures(task, request, [Split.VALIDATION]) if figured else {}
        with Meter() as meter:
            processes = self._machine().together(order)
            update = launch.train(processes, task, self.store, order, self.state(), received, self.memory())
        if order.privacy:
            update = self._as_agreed(task, order, update, received)
        self.counter.permit(records.text_of(self.facts, "order"), tensors=sorted(update.tensors))
        figures = {**update.metrics, **received_figures}
        if meter.joules is not None and self.paths.alone and not order.privacy:
            figures[sealing.ENERGY] = meter.joules
        if isinstance(terms_of(order.privacy), SiteTerms):
            figures = {}  # a number of steps tells of a site as a whole
        if order.secure:
            kept = sealing.trained(task, self.store, order, update, received, figures)
            return self.seal(self._release(request, task, {}), *kept)
        figures |= {"weight": update.weight}
        figures |= {f"weight.{modality}": count for modality, count in update.examples.items()}
        tensors = self._encoded(task, order, update.tensors, received)
        return self.outbox.answer(
            self.outbox.keep(self._release(request, task, figures), tensors), again=False
        )

    def evaluate(self) -> RecordDict:
        """Figures of the sent model on validation and test people, and sums from which areas are computed."""
        request, task = self._request("evaluate")
        if (before := self._given(request)) is not None:
            return before
        order, state, received, memory = request.order, self.state(), self.received(), self.memory()
        figures = self._figures(task, request, [Split.VALIDATION, Split.TEST], after=True)
        scores: Tensors = {}
        if task.examples(self.store, Split.TEST):
            scores = methods.scores(task, self.store, order, state, received, memory, Split.TEST, after=True)
        if order.secure:
            return self.seal(self._release(request, task, {}), *sealing.evaluated(figures, scores))
        figures["weight"] = float(task.examples(self.store))
        release = self._release(request, task, figures)
        return self.outbox.answer(self.outbox.keep(release, sorted(scores.items())), again=False)

    def _given(self, request: Request) -> RecordDict | None:
        """The answer that was made before, if there is one."""
        if request.order.secure:
            held = self.vault.held(request.digest)
            return self.sealed_answer(held, again=True) if held else None
        held = self.outbox.held(request.digest)
        return self.outbox.answer(held, again=True) if held else None

    def _release(self, request: Request, task: Task, figures: Mapping[str, float]) -> Release:
        """What answers a request, but for its tensors, with what it costs."""
        order = request.order
        return Release(
            request=request.digest,
            kind=request.kind,
            phase=order.phase,
            round=order.round,
            objects=[],
            figures=figures,
            mechanisms=[item.to_json() for item in task.mechanisms(order)],
            protected=bool(order.privacy),
            statement=statement(order, request.kind),
        )

    def _as_agreed(self, task: Task, order: Order, update: Update, received: Tensors) -> Update:
        """The update with the weights that the site declared, the number of steps, and every tensor of its part.

        Which tensors were trained, and on how many people, would tell of people here.
        """
        said = self.guarantee.counts(task, order, self.store, self.folder)
        weighed: dict[str, float] = {m: float(said[m]) for m in Modality if m in task.modalities}
        stays = methods.Method.of(order).stays
        tensors = dict(update.tensors)
        lacking = [name for name in received if name not in tensors and not stays(name)]
        if lacking and record_terms(order.privacy):
            # What came back as it was sent would say that nobody here trained it.
            found = f"task {task.name!r} left out {lacking[0]!r}"
            raise PrivacyError(refusal(f"phase {order.phase!r}", found, "send every tensor, with its noise"))
        for name in lacking:
            # Of a control variate the change is sent.
            array = received[name]
            tensors[name] = np.zeros_like(array) if name.startswith(methods.CONTROL) else array
        summed = task.aggregation == "sum"
        return Update(
            tensors,
            1.0 if summed else float(said[Split.TRAIN]),
            {name: value for name, value in update.metrics.items() if name == "steps"},
            {} if summed else weighed,
        )

    def _request(self, kind: str) -> tuple[Request, Task]:
        """The order at this site and its task. Raises LackingError if objects that it needs are not here."""
        text = records.text_of(self.facts, "order")
        order = self._machine().own(Order.from_json(text))
        task = self._task(order)
        needed = [*self.state().selected(task.needs), *(self.trained() if self._came_along is None else ())]
        lacking = self.lacking(needed)
        if lacking:
            raise LackingError(
                refusal(f"phase {order.phase!r}", f"{len(lacking)} objects are not here", "send them first")
            )
        digest = records.request_digest(kind, text, self.checkpoint.hash)
        require_aggregation(self, order)
        self.guarantee.require(task, order, kind)
        self._permit(task, order, text, kind)
        return Request(kind, digest, order.at(self.store.site)), task

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

    def _machine(self) -> Machine:
        paths = self.paths
        return Machine.of(paths.batch_size, paths.precision, paths.processes, paths.cache)

    def _counts(self, task: Task, order: Order, text: str) -> dict[str, int | str]:
        """How many people there are for a phase, if an answer to its orders could be given."""
        require_aggregation(self, order)
        self.guarantee.require(task, order)
        self._permit(task, order, text, "train")
        return {**self.guarantee.counts(task, order, self.store, self.folder)}

    def _permit(self, task: Task, order: Order, text: str, kind: str) -> None:
        """Raise PrivacyError unless the site's door lets work begin on an order, whose JSON is `text`."""
        splits = [Split.TRAIN] if kind == "train" else [Split.VALIDATION, Split.TEST]
        people = None
        if not order.privacy:  # noise hides how many there are
            counted = [task.examples(self.store, split) for split in splits]
            people = min((count for count in counted if count), default=0)
        self.counter.permit(text, people, sites=None if order.secure else 0)
