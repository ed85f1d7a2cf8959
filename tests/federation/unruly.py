"""A grid of sites that misbehave when told to: they die, hang, answer late, twice, wrongly, come and go."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, Error, Message, MetricRecord, RecordDict
from studies import site_paths

import client.app
from pm1_core.objects import packed, unpacked
from simulations.grid import InProcessGrid
from strategies import records

Deed = Callable[["UnrulyGrid", Message], list[Message]]
"""What a site does with one request instead of answering it: the messages that arrive at once."""


class UnrulyGrid(InProcessGrid):
    """An InProcessGrid with deeds.

    deeds: (site, kind of message, phase, round) -> what it does then; None in a key stands for any
    away: sites whose nodes are not connected
    before: called with (kind, phase, round) of every request that the coordinator makes
    secure: sites have identity keys
    """

    def __init__(
        self,
        stores: Mapping[str, Path],
        folder: Path,
        deeds: Mapping[tuple[str | None, str | None, str | None, int | None], Deed] | None = None,
        before: Callable[[str, str, int], None] = lambda kind, phase, number: None,
        secure: bool = False,
    ) -> None:
        super().__init__(client.app.app, site_paths(dict(stores), folder, secure))
        self.sites = dict(enumerate(stores, start=2))
        self.deeds = dict(deeds or {})
        self.away: set[str] = set()
        self.answered: dict[tuple[str, str, str, int], Message] = {}
        self.asked: list[tuple[str, str, str, int]] = []
        self._before = before
        self._late: dict[str, tuple[int, Message]] = {}
        self._created = 0

    def create_message(self, content: RecordDict, message_type: str, *rest: Any, **options: Any) -> Message:
        self._created += 1
        self._before(*_subject(message_type, content))
        return super().create_message(content, message_type, *rest, **options)

    def get_node_ids(self) -> list[int]:
        return [node for node, site in self.sites.items() if site not in self.away]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        arrived: list[Message] = []
        for identifier in list(message_ids):
            created, late = self._late.get(identifier, (self._created, None))
            if late is not None and created < self._created:
                arrived.append(self._late.pop(identifier)[1])
            message = self._pending.pop(identifier, None)
            if message is not None:
                arrived += self._react(message)
        return arrived

    def honest(self, message: Message) -> Message:
        """The site's own answer."""
        reply = self._answer(message)
        self.answered[self.key(message)] = reply
        return reply

    def key(self, message: Message) -> tuple[str, str, str, int]:
        """Who is asked what."""
        kind, phase, number = _subject(message.metadata.message_type, message.content)
        return self.sites[message.metadata.dst_node_id], kind, phase, number

    def keep_for_later(self, message: Message, reply: Message) -> None:
        """Let `reply` arrive once the coordinator has gone on to its next exchange."""
        self._late[message.metadata.message_id] = (self._created, reply)

    def _react(self, message: Message) -> list[Message]:
        site, kind, phase, number = self.key(message)
        self.asked.append((site, kind, phase, number))
        for (who, what, where, when), deed in self.deeds.items():
            if (who or site, what or kind, where or phase, number if when is None else when) == (
                site, kind, phase, number,
            ):  # fmt: skip
                return deed(self, message)
        return [self.honest(message)]


def _subject(kind: str, content: RecordDict) -> tuple[str, str, int]:
    order = json.loads(str(content.config_records["order"]["order"]))
    return kind, order["phase"], order["round"]


def dies(grid: UnrulyGrid, message: Message) -> list[Message]:
    """What a SuperLink answers for a node that is gone."""
    return [Message(Error(3, "node is\nunavailable"), reply_to=message)]


def hangs(grid: UnrulyGrid, message: Message) -> list[Message]:
    return []


def is_late(grid: UnrulyGrid, message: Message) -> list[Message]:
    grid.keep_for_later(message, grid.honest(message))
    return []


def twice(grid: UnrulyGrid, message: Message) -> list[Message]:
    reply = grid.honest(message)
    return [reply, reply]


def repeats_an_earlier_round(grid: UnrulyGrid, message: Message) -> list[Message]:
    """The content of the round before, in answer to this request."""
    site, kind, phase, number = grid.key(message)
    return [Message(grid.answered[site, kind, phase, number - 1].content, reply_to=message)]


def sends_an_old_message(grid: UnrulyGrid, message: Message) -> list[Message]:
    """The very message of the round before, once more, and the right one."""
    site, kind, phase, number = grid.key(message)
    return [grid.answered[site, kind, phase, number - 1], grid.honest(message)]


def under_the_name_of(other: str) -> Deed:
    def deed(grid: UnrulyGrid, message: Message) -> list[Message]:
        return [Message(altered(grid.honest(message).content, facts={"site": other}), reply_to=message)]

    return deed


def answers(alter: Callable[[RecordDict], RecordDict]) -> Deed:
    """The honest answer, altered."""

    def deed(grid: UnrulyGrid, message: Message) -> list[Message]:
        return [Message(alter(grid.honest(message).content), reply_to=message)]

    return deed


def altered(
    content: RecordDict,
    *,
    facts: Mapping[str, Any] | None = None,
    figures: Mapping[str, Any] | None = None,
    tensors: Callable[[dict[str, np.ndarray]], Mapping[str, np.ndarray]] | None = None,
) -> RecordDict:
    """An answer with other facts, figures or tensors; the latter under a digest that is theirs. None removes."""
    told = {**records.facts_of(content, "site"), **(facts or {})}
    numbers: dict[str, Any] = {**dict(content.metric_records.get("figures", {})), **(figures or {})}
    objects = list(records.objects_of(content))
    if tensors is not None:
        held = {name: array for digest, data in objects for name, array in unpacked(digest, data).items()}
        objects = [packed(tensors(held))]
        told["objects"] = [digest for digest, _ in objects]
    result = records.pack("site", {}, objects)
    result["site"] = ConfigRecord({name: value for name, value in told.items() if value is not None})
    result["figures"] = MetricRecord({name: value for name, value in numbers.items() if value is not None})
    return result


def copied_store(store: Path, target: Path, site: str) -> Path:
    """The same people at another site."""
    shutil.copytree(store, target)
    described = json.loads((target / "store.json").read_text())
    (target / "store.json").write_text(json.dumps({**described, "site": site}))
    return target


def moves(grid: UnrulyGrid, message: Message) -> list[Message]:
    """The node dies with the request, and the site is there at once as another one; both are listed."""
    node = message.metadata.dst_node_id
    if node >= _MOVED:
        return [grid.honest(message)]
    grid.sites[node + _MOVED] = grid.sites[node]
    grid._contexts[node + _MOVED] = grid._contexts[node]
    return []


_MOVED = 1000
