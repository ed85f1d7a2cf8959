"""One exchange with the sites: push, take answers one by one as they come, wait with a bound, say for whom.

No answer is kept here: each is handed over and forgotten, so that memory does not grow with the number of sites.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from pm1_core.errors import PM1Error
from server.pulse import Pulse

log = logging.getLogger("pm1.coordinator")

T = TypeVar("T")

_POLL_SECONDS = 0.2
_SAY_SECONDS = 30.0
_LOOK_SECONDS = 5.0
_PULLED_AT_ONCE = 4
_REMEMBERED = 10_000
_REASON_LENGTH = 500


@dataclass(frozen=True)
class Participant:
    """A site as the coordinator sees it."""

    site: str
    node: int


Receive = Callable[[Participant, Message], None]
"""Takes one answer. What it raises as PM1Error is the site's failure."""

Moved = Callable[[set[str]], Mapping[Participant, RecordDict]]
"""Of sites that are waited for, those that came back as another node, with the request to send there."""


class Exchange:
    """Exchanges of one run over a grid. Remembers what is still out, to know a late answer when it comes.

    late: called with a site and a sentence for each answer that nobody waits for any more
    pulse: is told of every message, and who is waited for
    awake: nodes that answered too late, and so are there after all; whoever uses it removes them
    """

    def __init__(
        self,
        grid: Grid,
        late: Callable[[str, str], None] = lambda site, what: None,
        pulse: Pulse | None = None,
    ) -> None:
        self.grid = grid
        self.pulse = pulse or Pulse()
        self.awake: set[int] = set()
        self._late = late
        self._overdue: dict[str, tuple[Participant, str]] = {}
        self._answered: dict[str, tuple[Participant, str]] = {}

    def __call__(
        self,
        requests: Mapping[Participant, RecordDict],
        kind: str,
        group: str,
        timeout: float,
        receive: Receive,
        enough: Callable[[], bool] = lambda: False,
        grace: float | None = None,
        moved: Moved | None = None,
        at_once: int = _PULLED_AT_ONCE,
    ) -> dict[str, str]:
        """Send each participant its request, hand every answer to `receive`, and return who failed and why.

        timeout: seconds until the exchange ends at the latest; an answer that is there by then is taken
        enough, grace: once `enough()` holds it ends after `grace` more seconds, if a grace is given
        moved: asked now and then, while sites are waited for, which of them came back under another node
        at_once: answers that may be in memory at a time
        """
        waiting: dict[str, Participant] = {}
        failures: dict[str, str] = {}

        def send(participant: Participant, content: RecordDict) -> None:
            message = self.grid.create_message(content, kind, participant.node, group, ttl=timeout)
            (identifier,) = self.grid.push_messages([message])
            if identifier:
                waiting[identifier] = participant
                self.pulse.asked(participant.site, content)
            else:
                failures[participant.site] = "is not connected"

        for participant, content in requests.items():
            send(participant, content)
        began = said = looked = time.monotonic()
        deadline = began + timeout
        if waiting:
            self.pulse.doing(group, {participant.site for participant in waiting.values()})
        while waiting:
            idle = True
            self.pulse.beat({participant.site for participant in waiting.values()})
            for few in batched([*waiting], at_once):
                for reply in self.grid.pull_messages(few):
                    idle = False
                    self._take(reply, group, waiting, failures, receive)
                now = time.monotonic()
                if grace is not None and enough():
                    deadline, grace = min(deadline, now + grace), None
            if waiting and now > deadline:
                for identifier, participant in waiting.items():
                    failures[participant.site] = f"no answer in {now - began:.0f} s"
                    self._overdue[identifier] = (participant, group)
                break
            if waiting and now - said > _SAY_SECONDS:
                said = now
                names = ", ".join(sorted(participant.site for participant in waiting.values()))
                log.info("%s: waiting for %s (%.0f of %.0f s)", group, names, now - began, deadline - began)
            if waiting and moved is not None and now - looked > _LOOK_SECONDS:
                for participant, content in moved({p.site for p in waiting.values()}).items():
                    for identifier in [i for i, p in waiting.items() if p.site == participant.site]:
                        self._overdue[identifier] = (waiting.pop(identifier), group)
                    send(participant, content)
                looked = time.monotonic()
            if waiting and idle:
                time.sleep(_POLL_SECONDS)
        self._sweep()
        return failures

    def _take(
        self,
        reply: Message,
        group: str,
        waiting: dict[str, Participant],
        failures: dict[str, str],
        receive: Receive,
    ) -> None:
        identifier = reply.metadata.reply_to_message_id
        participant = waiting.pop(identifier, None)
        if participant is None:
            self._stray(reply)
            return
        self._answered[identifier] = (participant, group)
        if reply.has_error():
            # Flower answers in the place of a site that is gone: no sign of life of it.
            failures[participant.site] = shortened(reply.error.reason or "") or f"error {reply.error.code}"
            return
        self.pulse.answered(participant.site, reply.content)
        with blaming(participant.site, failures):
            receive(participant, reply)

    def _stray(self, reply: Message) -> None:
        """Say whose answer nobody waits for."""
        identifier = reply.metadata.reply_to_message_id
        if identifier in self._overdue:
            self._came_late(identifier, reply)
        elif identifier in self._answered:
            participant, group = self._answered[identifier]
            self._late(participant.site, f"answered {group} twice")
        else:
            self._late(f"node {reply.metadata.src_node_id}", "answered what nobody asked")

    def _sweep(self) -> None:
        """Take what came too late off the grid, one by one, and say so."""
        for identifier in list(self._overdue):
            for reply in self.grid.pull_messages([identifier]):
                self._stray(reply)
        while len(self._answered) > _REMEMBERED:
            del self._answered[next(iter(self._answered))]

    def _came_late(self, identifier: str, reply: Message) -> None:
        participant, group = self._answered[identifier] = self._overdue.pop(identifier)
        if not reply.has_error():  # Flower's own word that the request is void is none of the site's
            self.awake.add(participant.node)
            self._late(participant.site, f"answered {group} too late")


@contextmanager
def blaming(site: str, failures: dict[str, str]) -> Iterator[None]:
    """Whatever an answer does to the block that reads it is the failure of `site`, and not the study's end.

    OSError goes on: it is about the disk of this machine.
    """
    try:
        yield
    except PM1Error as error:
        failures[site] = shortened(str(error))
    except OSError:
        raise
    except Exception as error:
        log.warning("the answer of %s cannot be used", site, exc_info=True)
        failures[site] = shortened(f"its answer cannot be used ({error!r})")


def shortened(reason: str) -> str:
    """What somebody else wrote, as one line of bounded length: it goes into logs and sentences.

    >>> shortened("no   such file  ")
    'no such file'
    """
    line = " ".join(reason[: 2 * _REASON_LENGTH].split())
    return line if len(line) <= _REASON_LENGTH else line[:_REASON_LENGTH] + " ..."


def batched(items: list[T], size: int) -> list[list[T]]:
    """`items` in lists of `size`; the last may be shorter."""
    return [items[start : start + size] for start in range(0, len(items), size)]
