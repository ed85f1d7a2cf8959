"""One exchange with the sites: push, pull as answers come, bounded waiting, and who did not answer."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from pm1_core.errors import FederationError, InputError, PM1Error
from pm1_core.update import Tensors, Update
from pm1_core.validate import refusal
from strategies import records

_POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Participant:
    """A site as the coordinator sees it."""

    site: str
    node: int


@dataclass(frozen=True)
class Answers:
    """What came back: replies by site in the order of names, and a sentence about everybody else."""

    replies: dict[str, Message]
    failures: dict[str, str]


def exchange(
    grid: Grid, requests: Mapping[Participant, RecordDict], kind: str, group: str, timeout: float
) -> Answers:
    """Send each participant its request and collect answers until all are there or `timeout` seconds passed."""
    participants = list(requests)
    messages = [
        grid.create_message(requests[participant], kind, participant.node, group, ttl=timeout)
        for participant in participants
    ]
    waiting = dict(zip(grid.push_messages(messages), participants, strict=True))
    replies: dict[str, Message] = {}
    failures: dict[str, str] = {}
    deadline = time.monotonic() + timeout
    while waiting:
        for reply in grid.pull_messages(list(waiting)):
            participant = waiting.pop(reply.metadata.reply_to_message_id, None)
            if participant is None:
                continue  # answers a request that is already answered
            if reply.has_error():
                failures[participant.site] = reply.error.reason or f"error {reply.error.code}"
            else:
                replies[participant.site] = reply
        if waiting and time.monotonic() > deadline:
            failures.update(
                {participant.site: f"no answer in {timeout:.0f} s" for participant in waiting.values()}
            )
            break
        if waiting:
            time.sleep(_POLL_SECONDS)
    return Answers({site: replies[site] for site in sorted(replies)}, failures)


def refuse_unfit(answers: Answers, tensors: Tensors) -> tuple[dict[str, Message], dict[str, str]]:
    """Keep replies whose update has exactly the tensors that were sent; name the others with the reason."""
    kept, refused = {}, dict(answers.failures)
    for site, reply in answers.replies.items():
        try:
            update = records.update_of(reply.content)
            _check_like(update, tensors)
            kept[site] = reply
        except PM1Error as error:
            refused[site] = str(error)
    return kept, refused


def require_quorum(
    phase: str, round_number: int, count: int, needed: int, failures: Mapping[str, str]
) -> None:
    """Raise FederationError naming who is absent and why, if fewer than `needed` answered."""
    if count < needed:
        why = (
            "; ".join(f"{site}: {reason}" for site, reason in sorted(failures.items()))
            or "nobody else is connected"
        )
        raise FederationError(
            refusal(
                f"phase {phase!r}, round {round_number}",
                f"{count} of at least {needed} sites answered ({why})",
                "mend the sites and resume; the last checkpoint stays in force",
            )
        )


def _check_like(update: Update, tensors: Tensors) -> None:
    for name in sorted(set(update.tensors).symmetric_difference(tensors)):
        raise InputError(
            refusal(f"tensor {name!r}", "missing or not asked for", "send exactly what the order names")
        )
    for name, array in update.tensors.items():
        if array.shape != tensors[name].shape:
            raise InputError(
                refusal(f"tensor {name!r}", f"shape {array.shape}", f"send {tensors[name].shape}")
            )
