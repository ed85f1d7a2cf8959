"""What a site runs in a round: the task, trained in the way that the strategy asks for in `Order.method`.

    {}                     the task as it is
    {"proximal": mu}      FedProx: the training is pulled towards the received model (guide.Proximal)
    {"control": true}     SCAFFOLD: gradients are corrected by control variates (guide.Control). The common one is
                          received, "control.X" for every tensor X; the site's own stays here, and its change goes
                          back as "control.X" beside every X that is sent
    {"local": [globs]}    FedBN (Li et al. 2021, "FedBN: federated learning on non-IID features via local batch
                          normalization", algorithm 1), for tensors of any kind: those whose names match stay at
                          the site. Its own values take the place of received ones in training and in figures, and
                          are not sent; a site that has none yet starts from the received ones
    {"personal": lambda}  Ditto (Li et al. 2021, "Ditto: fair and robust federated learning through
                          personalization", algorithm 1): the received model is trained and sent as usual; beside
                          it a model of the site's own is trained that is pulled towards the received one. It never
                          leaves the site, its figures are called "personal.X"

Several keys may stand together. Tasks that add up ("sum") train nothing, and no method applies to them. What a site
has of its own is in its `Memory`, in `folder`.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np

from pm1_core.data.store import Store
from pm1_core.errors import ConfigError, InputError, StateError
from pm1_core.fields import Split
from pm1_core.training.guide import Control, Guide, Proximal, Together
from pm1_core.training.memory import Memory
from pm1_core.training.order import Order
from pm1_core.training.parts import State
from pm1_core.training.tasks.base import Metrics, Task
from pm1_core.update import Tensors, Update
from pm1_core.validate import refusal, require_keys, require_range

CONTROL = "control."
PERSONAL = "personal."
KEYS = ("proximal", "control", "local", "personal")


@dataclass(frozen=True)
class Method:
    """A checked `Order.method`; the defaults ask for nothing."""

    proximal: float = 0.0
    control: bool = False
    local: tuple[str, ...] = ()
    personal: float | None = None

    @staticmethod
    def of(order: Order) -> Method:
        """Read an order's method. Raises ConfigError naming an unknown key or a wrong value."""
        where = f"order for {order.phase!r}, method"
        given: Mapping[str, Any] = require_keys(where, order.method, (), KEYS, ConfigError)
        for key in ("proximal", "personal"):
            if key in given:
                require_range(f"{where}, {key}", given[key], 0.0, sys.float_info.max, ConfigError)
        if not isinstance(given.get("control", False), bool):
            raise ConfigError(
                refusal(f"{where}, control", f"found {given['control']!r}", "use true or false")
            )
        local = given.get("local", ())
        if not isinstance(local, (list, tuple)) or not all(isinstance(glob, str) for glob in local):
            raise ConfigError(
                refusal(f"{where}, local", f"found {local!r}", 'list patterns of names, say ["*.norm*"]')
            )
        return Method(**{**given, "local": tuple(local)})

    def stays(self, name: str) -> bool:
        """Whether a tensor never leaves the site."""
        return any(fnmatchcase(name, glob) for glob in self.local)


def train(task: Task, store: Store, order: Order, state: State, tensors: Tensors, folder: Path) -> Update:
    """One round of `task` at one site.

    tensors: the model's, and with {"control": true} "control.X" as well; any mapping, read when it is needed
    folder: the site's own disk for the study; asked for the same round again, it gives the same bytes

    Raises ConfigError on a method that is unknown or that the task cannot follow, InputError if tensors that the
    method needs did not come, and StateError if what the site remembers does not fit the model.
    """
    if task.aggregation == "sum":
        return task.train(store, order, state, tensors, folder)
    method, memory = Method.of(order), Memory(folder, order)
    received, common = _apart(tensors)
    kept = _remembered(memory, "local", received) if method.local else {}
    guides: list[Guide] = []
    if method.proximal:
        guides.append(Proximal(method.proximal, _sendable(received, method)))
    own = _remembered(memory, "control", received) if method.control else {}
    control = Control(_required(common, received, method), own)
    if method.control:
        guides.append(control)
    update = _trained(task, store, order, state, _merged(received, kept), folder, guides)
    if method.local:
        memory.save("local", {**kept, **{n: a for n, a in update.tensors.items() if method.stays(n)}})
    sent = _sendable(update.tensors, method)
    if method.control:
        renewed = control.renewed()
        memory.save("control", {**own, **renewed})
        sent = {
            **sent,
            **{CONTROL + name: _change(name, array, own, renewed) for name, array in sent.items()},
        }
    if method.personal is not None:
        mine = _remembered(memory, "personal", received)
        # A phase of its own: its moments and its random numbers are not those of the model that is sent.
        aside = replace(order, phase=f"{order.phase}/personal")
        start, pull = _merged(received, {**kept, **mine}), Proximal(method.personal, received)
        personal = _trained(task, store, aside, state, start, folder, [pull])
        memory.save("personal", {**mine, **personal.tensors})
    return replace(update, tensors=sent)


def evaluate(
    task: Task,
    store: Store,
    order: Order,
    state: State,
    tensors: Tensors,
    folder: Path,
    split: Split,
    after: bool = False,
) -> Metrics:
    """The task's figures on a split, for the model as this site uses it, and "personal.X" for its own model.

    after: with what the site remembers from the order's round itself, for figures at the end of a phase. Otherwise
        with what it had before that round, so that figures taken before training are the same if it is repeated.
    """
    if task.aggregation == "sum":
        return task.evaluate(store, order, state, tensors, folder, split)
    method, memory = Method.of(order), Memory(folder, order)
    model = _as_used(tensors, method, memory, after)
    metrics = task.evaluate(store, order, state, model, folder, split)
    if method.personal is None:
        return metrics
    mine = _remembered(memory, "personal", model, after)
    own = task.evaluate(store, order, state, _merged(model, mine), folder, split) if mine else metrics
    return {**metrics, **{PERSONAL + name: own[name] for name in own if name != "examples"}}


def scores(
    task: Task,
    store: Store,
    order: Order,
    state: State,
    tensors: Tensors,
    folder: Path,
    split: Split,
    after: bool = False,
) -> Tensors:
    """`Task.scores` for the model as this site uses it; `after` as for `evaluate`."""
    if task.aggregation == "sum":
        return {}
    model = _as_used(tensors, Method.of(order), Memory(folder, order), after)
    return task.scores(store, order, state, model, folder, split)


def _trained(
    task: Task,
    store: Store,
    order: Order,
    state: State,
    tensors: Tensors,
    folder: Path,
    guides: list[Guide],
) -> Update:
    """The task's own training under guides. Raises ConfigError if it takes no notice of them."""
    if not guides:
        return task.train(store, order, state, tensors, folder)
    guide = Together(guides)
    update = task.train(store, order, state, tensors, folder, guide) if task.guided else None
    if update is None or not guide.begun:
        found = "its training loop takes no guide, which the strategy needs"
        remedy = "use a strategy that only aggregates, such as fedavg, or hand `guide` on to train_epochs"
        raise ConfigError(refusal(f"task {task.name!r}, method {dict(order.method)}", found, remedy))
    return update


def _apart(tensors: Tensors) -> tuple[Tensors, Tensors]:
    """The model's tensors, and the strategy's by the names of the tensors that they belong to."""
    common = {name.removeprefix(CONTROL): tensors[name] for name in tensors if name.startswith(CONTROL)}
    if not common:
        return tensors, {}
    return {name: tensors[name] for name in tensors if not name.startswith(CONTROL)}, common


def _sendable(tensors: Tensors, method: Method) -> Tensors:
    if not method.local:
        return tensors
    return {name: array for name, array in tensors.items() if not method.stays(name)}


def _merged(tensors: Tensors, own: Tensors) -> Tensors:
    return {**tensors, **own} if own else tensors


def _as_used(tensors: Tensors, method: Method, memory: Memory, after: bool) -> Tensors:
    """The received model with the site's own values where the strategy leaves tensors at sites."""
    received, _ = _apart(tensors)
    return _merged(received, _remembered(memory, "local", received, after) if method.local else {})


def _remembered(memory: Memory, kind: str, received: Tensors, after: bool = False) -> dict[str, np.ndarray]:
    """What the site has of `kind`, {} at first. Raises StateError if it belongs to another model."""
    held = memory.load(kind, after) or {}
    for name, array in held.items():
        wanted = received[name].shape if name in received else None
        if wanted != array.shape:
            found = f"{name!r} has shape {array.shape}, the received model {wanted or 'no such tensor'}"
            remedy = "use the model of the study, or a fresh folder for another study"
            raise StateError(refusal(f"{kind} tensors on the site's disk", found, remedy))
    return held


def _required(common: Tensors, received: Tensors, method: Method) -> Tensors:
    """The common variate of each tensor that is sent. Raises InputError naming the first that is missing."""
    if not method.control:
        return {}
    for name in received:
        if name not in common and not method.stays(name):
            remedy = 'a strategy that asks for {"control": true} sends one for every tensor'
            raise InputError(refusal(f"tensor {CONTROL + name!r}", "did not come", remedy))
    return {name: array for name, array in common.items() if not method.stays(name)}


def _change(name: str, array: np.ndarray, own: Tensors, renewed: Tensors) -> np.ndarray:
    """c_i+ - c_i, float32; zero for a tensor that no gradient reaches (a running mean, say)."""
    if name not in renewed:
        return np.zeros(array.shape, np.float32)
    return renewed[name] - own[name] if name in own else renewed[name]
