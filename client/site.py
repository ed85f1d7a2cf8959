"""What a site does with a request: check who sent it, work on its own disk, answer through the outbox.

store/                        the prepared data, read only
folder/outbox.jsonl           what left, see client.outbox
folder/studies/<hash>/        everything of one study:
    checkpoint.json           the newest checkpoint of the coordinator that was loaded, with its signature
    parts/                    its tensors, by SHA-256
    memory/                   moments, control variates, personal models ... between rounds, and caches
    releases/                 what left in the last two rounds, to be sent again unchanged
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from flwr.app import RecordDict

from client.outbox import Outbox
from pm1_core import atomic, encoding
from pm1_core.checkpoint import Checkpoint, State
from pm1_core.data.store import Store
from pm1_core.errors import CheckpointError, PM1Error
from pm1_core.fields import Modality, Split
from pm1_core.objects import ObjectStore, Reader
from pm1_core.signing import Trust
from pm1_core.training import methods
from pm1_core.training.memory import Memory
from pm1_core.training.order import Order, derived_seed
from pm1_core.training.tasks import Task, build_task
from pm1_core.update import Tensors
from pm1_core.validate import refusal
from strategies import records


@dataclass(frozen=True)
class SitePaths:
    """Where a site keeps its prepared store and its own state, and whom it trusts.

    trust: file of the coordinator's public key; a site loads no checkpoint that it did not sign
    tasks: names of tasks of installed packages that this site agrees to run, beside PM1's own
    """

    store: str
    folder: str
    trust: str
    tasks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Request:
    """A checked request: an order on a checkpoint of the coordinator, whose tensors are on this disk."""

    digest: str
    order: Order
    checkpoint: Checkpoint
    facts: Mapping[str, records.Fact]


class LackingError(PM1Error):
    """A site was asked to work with objects that it has not been sent."""


class Site:
    """One request at one site."""

    def __init__(self, paths: SitePaths, content: RecordDict) -> None:
        self.paths = paths
        self.store = _open(paths.store)
        self.facts = records.facts_of(content, "order")
        self.checkpoint = self._trusted(records.text_of(self.facts, "checkpoint"))
        self.folder = Path(paths.folder) / "studies" / self.checkpoint.config[:16]
        self.objects = ObjectStore(self.folder / "parts")
        self.outbox = Outbox(self.store.site, Path(paths.folder) / "outbox.jsonl", self.folder / "releases")
        self._receive(content)

    def ready(self) -> RecordDict:
        """Examples by phase and split, or why a phase is not for this site, and the objects that are not here."""
        phases: dict[str, dict[str, int | str]] = {}
        for text in records.list_of(self.facts, "orders"):
            order = Order.from_json(text)
            try:
                phases[order.phase] = self._counts(self._task(order))
            except PM1Error as error:
                phases[order.phase] = {"refused": str(error)}
        facts: dict[str, records.Fact] = {
            "phases": json.dumps(phases, sort_keys=True),
            "lacking": self._lacking(list(self.checkpoint.parts)),
            "study": self.store.study.hash,
        }
        return self.outbox.tell("ready", facts)

    def receive(self) -> RecordDict:
        """Objects were kept: say which of the checkpoint's are still not here."""
        return self.outbox.tell("objects", {"lacking": self._lacking(list(self.checkpoint.parts))})

    def release(self) -> RecordDict:
        """A large object of an update that was announced."""
        return self.outbox.object(
            records.text_of(self.facts, "request"), records.text_of(self.facts, "object")
        )

    def train(self) -> RecordDict:
        """Train one round and release the update, with figures of the received model on validation people."""
        request, task = self._request("train")
        held = self.outbox.held(request.digest)
        if held is not None:
            return self.outbox.answer(held, again=True)
        order, received = request.order, self._received()
        before = self._figures(task, request, [Split.VALIDATION]) if self.facts.get("validate") else {}
        update = methods.train(task, self.store, order, self._state(), received, self._memory())
        figures = {"weight": update.weight, **update.metrics, **before}
        figures |= {f"weight.{modality}": count for modality, count in update.examples.items()}
        release = self.outbox.keep(
            request.digest, "train", order, self._encoded(task, order, update.tensors, received), figures
        )
        return self.outbox.answer(release, again=False)

    def evaluate(self) -> RecordDict:
        """Figures of the sent model on validation and test people, and sums from which areas are computed."""
        request, task = self._request("evaluate")
        held = self.outbox.held(request.digest)
        if held is not None:
            return self.outbox.answer(held, again=True)
        figures = self._figures(task, request, [Split.VALIDATION, Split.TEST], after=True)
        figures["weight"] = float(task.examples(self.store))
        scores: Tensors = {}
        if task.examples(self.store, Split.TEST):
            order, state, received, memory = request.order, self._state(), self._received(), self._memory()
            scores = methods.scores(task, self.store, order, state, received, memory, Split.TEST, after=True)
        release = self.outbox.keep(request.digest, "evaluate", request.order, sorted(scores.items()), figures)
        return self.outbox.answer(release, again=False)

    def _request(self, kind: str) -> tuple[Request, Task]:
        """The order at this site and its task. Raises LackingError if objects that it needs are not here."""
        text = records.text_of(self.facts, "order")
        order = Order.from_json(text)
        task = self._task(order)
        needed = [*State(self.objects, self.checkpoint.parts).selected(task.needs), *self._trained()]
        lacking = self._lacking(needed)
        if lacking:
            raise LackingError(
                refusal(f"phase {order.phase!r}", f"{len(lacking)} objects are not here", "send them first")
            )
        digest = records.request_digest(kind, text, self.checkpoint.hash)
        return Request(digest, order.at(self.store.site), self.checkpoint, self.facts), task

    def _figures(
        self, task: Task, request: Request, splits: list[Split], after: bool = False
    ) -> dict[str, float]:
        """Figures of the received model by "SPLIT.name", for the splits that have people here."""
        order, state, received = request.order, self._state(), self._received()
        return {
            f"{split}.{name}": value
            for split in splits
            if task.examples(self.store, split)
            for name, value in methods.evaluate(
                task, self.store, order, state, received, self._memory(), split, after
            ).items()
        }

    def _encoded(
        self, task: Task, order: Order, tensors: Tensors, received: Tensors
    ) -> list[tuple[str, np.ndarray]]:
        """The update as it travels, in the order of names. What a lossy encoding left out is fed back next time."""
        if task.aggregation == "sum" or order.encoding == "full":
            return sorted(tensors.items())
        memory = Memory(self._memory(), order)
        draws = np.random.default_rng(derived_seed(order.seed, order.phase, "encoding", order.round))
        residual = memory.load("residual") or {}
        encoded, left = encoding.encode(order.encoding, tensors, received, residual, draws)
        memory.save("residual", left)
        return sorted(encoded.items())

    def _task(self, order: Order) -> Task:
        return build_task(order, self.store.study, self.paths.tasks)

    def _counts(self, task: Task) -> dict[str, int | str]:
        """People by split, and training people by modality."""
        counts: dict[str, int | str] = {split: task.examples(self.store, split) for split in Split}
        for modality in Modality:
            if modality in task.modalities:
                counts[modality] = len(self.store.people(Split.TRAIN, modality))
        return counts

    def _trained(self) -> list[str]:
        """Parts that the phase's round starts from and that travel."""
        return [part for part in self.checkpoint.trained if part in self.checkpoint.parts]

    def _state(self) -> State:
        return State(self.objects, self.checkpoint.parts)

    def _received(self) -> Reader:
        """The tensors of the round, read one by one."""
        digests = [digest for part in self._trained() for digest in self.checkpoint.parts[part]]
        return Reader(self.objects, digests)

    def _memory(self) -> Path:
        folder = self.folder / "memory"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _lacking(self, parts: list[str]) -> list[str]:
        wanted = {digest for part in parts for digest in self.checkpoint.parts[part]}
        return sorted(digest for digest in wanted if digest not in self.objects)

    def _trusted(self, text: str) -> Checkpoint:
        """The checkpoint of a request. Raises CheckpointError unless the coordinator signed it."""
        checkpoint = Checkpoint.from_json(text, "request")
        where = f"checkpoint {checkpoint.sequence} of study {checkpoint.study!r}"
        _trust(self.paths.trust).require(where, checkpoint.signed_bytes, checkpoint.signature)
        return checkpoint

    def _receive(self, content: RecordDict) -> None:
        """Keep the objects that came along, and of older ones only what this checkpoint still names."""
        named = {digest for held in self.checkpoint.parts.values() for digest in held}
        for digest, data in records.objects_of(content):
            if digest not in named:
                raise CheckpointError(
                    refusal(
                        f"object {digest[:12]}", "the signed checkpoint does not name it", "do not send it"
                    )
                )
            self.objects.put_bytes(digest, data)
        manifest = self.folder / "checkpoint.json"
        text = self.checkpoint.to_json() + "\n"
        if not manifest.exists() or manifest.read_text() != text:
            atomic.write_text(manifest, text)
            for file in self.objects.folder.glob("*.safetensors"):
                if file.stem not in named:
                    file.unlink()


@lru_cache(maxsize=64)
def _open(store: str) -> Store:
    return Store.open(Path(store))


@lru_cache(maxsize=8)
def _trust(file: str) -> Trust:
    return Trust.load(Path(file))
