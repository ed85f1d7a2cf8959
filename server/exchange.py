"""One exchange with the sites: push, take answers one by one as they come, wait with a bound, say for whom.

No answer is kept here: each is handed over and forgotten, so that memory does not grow with the number of sites.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from pm1_core.errors import PM1Error

log = logging.getLogger("pm1.coordinator")

T = TypeVar("T")

_POLL_SECONDS = 0.2
_SAY_SECONDS = 30.0
_PULLED_AT_ONCE = 4


@dataclass(frozen=True)
class Participant:
    """A site as the coordinator sees it."""

    site: str
    node: int


Receive = Callable[[Participant, Message], None]
"""Takes one answer. What it raises as PM1Error is the site's failure."""


class Exchange:
    """Exchanges of one run over a grid. Remembers what is still out, to know a late answer when it comes.

    late: called with a site and a sentence for each answer that nobody waits for any more
    """

    def __init__(self, grid: Grid, late: Callable[[str, str], None] = lambda site, what: None) -> None:
        self.grid = grid
        self._late = late
        self._overdue: dict[str, tuple[str, str]] = {}

    def __call__(
        self,
        requests: Mapping[Participant, RecordDict],
        kind: str,
        group: str,
        timeout: float,
        receive: Receive,
        enough: Callable[[], bool] = lambda: False,
        grace: float | None = None,
    ) -> dict[str, str]:
        """Send each participant its request, hand every answer to `receive`, and return who failed and why.

        timeout: seconds until the exchange ends at the latest
        enough, grace: once `enough()` holds it ends after `grace` more seconds, if a grace is given
        """
        waiting: dict[str, Participant] = {}
        failures: dict[str, str] = {}
        for participant, content in requests.items():
            message = self.grid.create_message(content, kind, participant.node, group, ttl=timeout)
            (identifier,) = self.grid.push_messages([message])
            if identifier:
                waiting[identifier] = participant
            else:
                failures[participant.site] = "is not connected"
        answered: dict[str, Participant] = {}
        began = said = time.monotonic()
        deadline = began + timeout
        while waiting:
            idle = True
            for few in batched([*waiting], _PULLED_AT_ONCE):
                for reply in self.grid.pull_messages(few):
                    idle = False
                    self._take(reply, waiting, answered, failures, receive)
                now = time.monotonic()
                if grace is not None and enough():
                    deadline, grace = min(deadline, now + grace), None
                if now > deadline:
                    break
            if waiting and now > deadline:
                for identifier, participant in waiting.items():
                    failures[participant.site] = f"no answer in {now - began:.0f} s"
                    self._overdue[identifier] = (participant.site, group)
                break
            if waiting and now - said > _SAY_SECONDS:
                said = now
                names = ", ".join(sorted(participant.site for participant in waiting.values()))
                log.info("%s: waiting for %s (%.0f of %.0f s)", group, names, now - began, deadline - began)
            if waiting and idle:
                time.sleep(_POLL_SECONDS)
        self._sweep()
        return failures

    def _take(
        self,
        reply: Message,
        waiting: dict[str, Participant],
        answered: dict[str, Participant],
        failures: dict[str, str],
        receive: Receive,
    ) -> None:
        identifier = reply.metadata.reply_to_message_id
        participant = waiting.pop(identifier, None)
        if participant is None:
            again = answered.get(identifier)
            self._late(again.site if again else f"node {reply.metadata.src_node_id}", "answered twice")
            return
        answered[identifier] = participant
        if reply.has_error():
            failures[participant.site] = reply.error.reason or f"error {reply.error.code}"
            return
        try:
            receive(participant, reply)
        except PM1Error as error:
            failures[participant.site] = str(error)

    def _sweep(self) -> None:
        """Take what came too late off the grid, one by one, and say so."""
        for identifier, (site, group) in list(self._overdue.items()):
            for reply in self.grid.pull_messages([identifier]):
                self._overdue.pop(identifier, None)
                if not reply.has_error():
                    self._late(site, f"answered {group} too late")


def batched(items: list[T], size: int) -> list[list[T]]:
    """`items` in lists of `size`; the last may be shorter."""
    return [items[start : start + size] for start in range(0, len(items), size)]
