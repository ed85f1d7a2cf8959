"""status.json of a run: what it is doing now, for whoever watches. Nothing is ever read from it to go on.

    state, why      "running", "finished" or "ended", and the reason
    started, time   when this coordinator began, and its last sign of life; every: seconds between signs
    phase, round, doing, since, waiting     what is under way, and who has yet to answer
    contact         site -> its last answer
    sent, received  site -> bytes of messages over the whole run, also of coordinators before this one; "" is for
                    nodes that had not said yet whose they are

Written beside and renamed, without fsync: a power cut may lose it, and the next sign of life brings it back.
"""

from __future__ import annotations

import json
import time
from collections.abc import Collection
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from flwr.app import RecordDict

NAME = "status.json"
EVERY = 5.0
"""Seconds between signs of life while sites are waited for."""
RUNNING, FINISHED, ENDED = "running", "finished", "ended"


class Pulse:
    """What a run says of itself. file: None says nothing, and only counts."""

    def __init__(self, file: Path | None = None) -> None:
        self.file = file
        self.sent: dict[str, int] = {}
        self.received: dict[str, int] = {}
        self._contact: dict[str, str] = {}
        now = _now()
        self._facts: dict[str, Any] = {"state": RUNNING, "why": "", "started": now, "every": EVERY}
        self._facts |= {"phase": "", "round": 0, "doing": "", "since": now, "waiting": []}
        self._marked = 0, 0
        self._written = 0.0
        self._recall()

    def round(self, phase: str, number: int) -> None:
        """A round begins; `bytes_of_round` counts from here."""
        self._facts |= {"phase": phase, "round": number}
        self._marked = sum(self.sent.values()), sum(self.received.values())
        self.doing(f"{phase}, round {number}")

    def bytes_of_round(self) -> dict[str, float]:
        """What was sent and received since the round began, evaluation and deliveries with it."""
        sent, received = self._marked
        return {
            "bytes_sent": float(sum(self.sent.values()) - sent),
            "bytes_received": float(sum(self.received.values()) - received),
        }

    def doing(self, what: str, waiting: Collection[str] = ()) -> None:
        """What is under way from now on."""
        self._facts |= {"doing": what, "since": _now(), "waiting": sorted(waiting)}
        self._write()

    def beat(self, waiting: Collection[str]) -> None:
        """A sign of life while `waiting` have yet to answer."""
        if time.monotonic() - self._written > EVERY:
            self._facts["waiting"] = sorted(waiting)
            self._write()

    def asked(self, site: str, content: RecordDict) -> None:
        """A message to a site."""
        name = _name(site)
        self.sent[name] = self.sent.get(name, 0) + size(content)

    def answered(self, site: str, content: RecordDict | None = None) -> None:
        """An answer of a site; None if what it says is counted elsewhere, or it is an error."""
        if name := _name(site):
            self._contact[name] = _now()
        if content is not None:
            self.received[name] = self.received.get(name, 0) + size(content)

    def ended(self, error: BaseException | None) -> None:
        """The run is over, or ends here."""
        why = "" if error is None else str(error) or type(error).__name__
        self._facts |= {"state": ENDED if error else FINISHED, "why": why[:2000]}
        self.doing("")

    def _write(self) -> None:
        self._written = time.monotonic()
        if self.file is None:
            return
        counted = {"contact": self._contact, "sent": self.sent, "received": self.received}
        text = json.dumps({**self._facts, "time": _now(), **counted}, indent=1, sort_keys=True)
        with suppress(OSError):  # where it cannot be written, the study's own files will tell why
            beside = self.file.with_name(f".{self.file.name}.part")
            beside.write_text(text + "\n")
            beside.replace(self.file)

    def _recall(self) -> None:
        """What a coordinator before this one counted."""
        if self.file is None:
            return
        with suppress(OSError, ValueError, TypeError, KeyError, AttributeError):
            held = json.loads(self.file.read_text())
            sent, received = ({s: int(n) for s, n in held[key].items()} for key in ("sent", "received"))
            self.sent, self.received = sent, received
            self._contact = {str(site): str(when) for site, when in held["contact"].items()}


def size(content: RecordDict) -> int:
    """Bytes of tensors and texts in a message, without Flower's frame around them."""
    tensors = sum(len(array.data) for record in content.array_records.values() for array in record.values())
    facts = [value for record in content.config_records.values() for value in record.values()]
    texts = [text for value in facts for text in (value if isinstance(value, list) else [value])]
    figures = sum(len(record) for record in content.metric_records.values())
    return tensors + sum(len(t) if isinstance(t, (str, bytes)) else 8 for t in texts) + 8 * figures


def _name(site: str) -> str:
    """A site's name; "" for a node that was asked for its own ("node 4417")."""
    return "" if " " in site else site


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
