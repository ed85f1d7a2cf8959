"""The Flower ClientApp of a site: four requests, each answered through the outbox.

    query.ready      does this site take part in a phase, with how many examples, and which parts does it lack?
    query.parts      frozen parts of the global model, kept on the site's own disk by their hash
    train            one round of a phase
    evaluate         figures on the site's validation and test people

A site is a prepared store (read only) and a folder of its own. In a deployment both come from the SuperNode's
`--node-config 'store="/data/store" folder="/state"'`; simulations build an app for their sites with `make_app`.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp

from client.outbox import Outbox
from pm1_core.checkpoint import ObjectStore, State, by_part
from pm1_core.data.store import Store
from pm1_core.errors import ConfigError, PM1Error
from pm1_core.fields import Split
from pm1_core.training.order import Order
from pm1_core.training.tasks import build_task
from pm1_core.update import Update
from pm1_core.validate import refusal
from strategies import records

# Flower reserves error codes below 200 for itself.
REFUSED = 210
FAILED = 220


@dataclass(frozen=True)
class SitePaths:
    """Where a site keeps its prepared store and its own state."""

    store: str
    folder: str


def from_node_config(context: Context) -> SitePaths:
    """The paths that the SuperNode was started with."""
    for key in ("store", "folder"):
        if key not in context.node_config:
            raise ConfigError(
                refusal(
                    "--node-config",
                    f"key {key!r} is missing",
                    'start with store="/data/store" folder="/state"',
                )
            )
    return SitePaths(str(context.node_config["store"]), str(context.node_config["folder"]))


@lru_cache(maxsize=64)
def _open(store: str) -> Store:
    return Store.open(Path(store))


class Site:
    """What a request works on: the store, the folder, the frozen parts and the way out."""

    def __init__(self, paths: SitePaths) -> None:
        self.store = _open(paths.store)
        self.folder = Path(paths.folder)
        self.objects = ObjectStore(self.folder / "parts")
        self.outbox = Outbox(self.store.site, self.folder)

    def ready(self, message: Message) -> Message:
        """Facts: examples in training and evaluation splits, and the needed parts that are not here."""
        order, facts = _request(message)
        task = build_task(order, self.store.study)
        needed = _parts(facts)
        counts = {f"examples.{split}": task.examples(self.store, split) for split in Split}
        lacking = [part for part, digest in needed.items() if digest not in self.objects]
        about: dict[str, str | int | float | list[str]] = {
            **counts,
            "lacking": lacking,
            "study": self.store.study.hash,
        }
        reply = self.outbox.release("ready", order, about)
        return Message(reply, reply_to=message)

    def parts(self, message: Message) -> Message:
        """Keep frozen parts. Bytes that do not hash to what the request names are refused."""
        order, facts = _request(message)
        needed = _parts(facts)
        for part, tensors in by_part(records.tensors_of(message.content)).items():
            digest = self.objects.put(tensors)
            if needed.get(part) != digest:
                self.objects.path(digest).unlink()
                raise ConfigError(
                    refusal(
                        f"frozen part {part!r}",
                        f"hash {digest[:12]} was not announced",
                        "send the announced part",
                    )
                )
        lacking = [part for part, digest in needed.items() if digest not in self.objects]
        return Message(self.outbox.release("ready", order, {"lacking": lacking}), reply_to=message)

    def train(self, message: Message) -> Message:
        """Train one round and release the update, with figures of the received model on validation people."""
        order, facts = _request(message)
        order = order.at(self.store.site)
        task = build_task(order, self.store.study)
        state = State(self.objects, _parts(facts))
        tensors = records.tensors_of(message.content)
        before = self._figures(message, [Split.VALIDATION]) if facts.get("validate") else {}
        update = task.train(self.store, order, state, tensors, self._scratch())
        update = Update(update.tensors, update.weight, {**update.metrics, **before})
        reply = self.outbox.release("train", order, {}, update)
        return Message(reply, reply_to=message)

    def evaluate(self, message: Message) -> Message:
        """Figures of the sent model on validation and test people, no tensors."""
        order, _ = _request(message)
        metrics = self._figures(message, [Split.VALIDATION, Split.TEST])
        weight = build_task(order, self.store.study).examples(self.store)
        reply = self.outbox.release("evaluate", order, {}, Update({}, weight, metrics))
        return Message(reply, reply_to=message)

    def _figures(self, message: Message, splits: list[Split]) -> dict[str, float]:
        """Figures of the model in `message` by "SPLIT.name", for the splits that have people here."""
        order, facts = _request(message)
        order = order.at(self.store.site)
        task = build_task(order, self.store.study)
        state, tensors = State(self.objects, _parts(facts)), records.tensors_of(message.content)
        return {
            f"{split}.{name}": value
            for split in splits
            if task.examples(self.store, split)
            for name, value in task.evaluate(
                self.store, order, state, tensors, self._scratch(), split
            ).items()
        }

    def _scratch(self) -> Path:
        """The site's own disk for moments and caches."""
        scratch = self.folder / "phases"
        scratch.mkdir(parents=True, exist_ok=True)
        return scratch


def make_app(locate: Callable[[Context], SitePaths]) -> ClientApp:
    """A ClientApp whose sites are found by `locate`."""
    app = ClientApp()

    def answer(message: Message, context: Context, action: Callable[[Site, Message], Message]) -> Message:
        try:
            return action(Site(locate(context)), message)
        except PM1Error as error:
            return Message(Error(REFUSED, str(error)), reply_to=message)
        except Exception as error:  # a site that fails must say so, not disappear
            site = locate(context)
            log = Path(site.folder) / "failures.log"
            log.parent.mkdir(parents=True, exist_ok=True)
            with log.open("a") as stream:
                stream.write(traceback.format_exc() + "\n")
            return Message(
                Error(FAILED, f"{type(error).__name__} (details stay at the site)"), reply_to=message
            )

    @app.query("ready")
    def ready(message: Message, context: Context) -> Message:
        return answer(message, context, Site.ready)

    @app.query("parts")
    def parts(message: Message, context: Context) -> Message:
        return answer(message, context, Site.parts)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return answer(message, context, Site.train)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        return answer(message, context, Site.evaluate)

    return app


app = make_app(from_node_config)


def _request(message: Message) -> tuple[Order, dict[str, str | int | float | list[str]]]:
    facts = records.facts_of(message.content, "order")
    return Order.from_json(str(facts.pop("order"))), facts


def _parts(facts: dict[str, str | int | float | list[str]]) -> dict[str, str]:
    """Part -> digest, which travel as "part=digest"."""
    listed = facts.get("parts", [])
    return dict(item.split("=", 1) for item in listed) if isinstance(listed, list) else {}
