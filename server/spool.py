"""The answers to one request on disk, kept as they arrive.

    spool/<request>/<site>/reply.json + objects/     one folder a site; reply.json is written when it is whole

A coordinator that dies in a round finds there what had arrived. Nothing here grows in memory with the sites.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from flwr.app import Message

from pm1_core import atomic
from pm1_core.errors import FederationError, InputError
from pm1_core.objects import ObjectStore, Reader
from pm1_core.validate import refusal
from strategies import records

WEIGHT = "weight"
_LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Reply:
    """What a site said beside its tensors.

    weight, weights: number of training examples, in all and by modality; objects: digests of its tensors
    """

    site: str
    weight: float
    weights: Mapping[str, float] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    objects: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Bounds:
    """What one site may send at most in answer to one request. Nobody fills the coordinator's disk."""

    objects: int = 64
    size: int = 2**30
    figures: int = 4096


class Spool:
    """The updates to one request."""

    def __init__(self, folder: Path, request: str, bounds: Bounds = Bounds()) -> None:
        self.request = request
        self.bounds = bounds
        self.folder = folder / request[:32]
        for other in folder.glob("*"):
            if other != self.folder:
                shutil.rmtree(other, ignore_errors=True)  # of rounds that are over
        self.replies: dict[str, Reply] = {}
        for file in sorted(self.folder.glob("*/reply.json")):
            reply = Reply(**atomic.read_json(file))
            if all(digest in self.objects(reply.site) for digest in reply.objects):
                self.replies[reply.site] = reply  # the rest was still on its way; its site is asked again

    def objects(self, site: str) -> ObjectStore:
        """Where a site's tensors are kept."""
        return ObjectStore(self.folder / site / "objects")

    def accept(self, site: str, message: Message) -> list[str]:
        """Keep an answer of `site` and return the digests of objects that it announced but did not send.

        Raises FederationError if it answers another request or for another site, or lacks its weight.
        """
        facts = records.facts_of(message.content, "site")
        require_answer(site, self.request, facts)
        figures = records.figures_of(message.content)
        if len(figures) > self.bounds.figures:
            found, remedy = f"it has {len(figures)} figures", f"send at most {self.bounds.figures}"
            raise FederationError(refusal("update", found, remedy))
        if WEIGHT not in figures:
            raise FederationError(refusal("update", "it has no weight", "run the same version at both ends"))
        prefix = WEIGHT + "."
        reply = Reply(
            site=site,
            weight=figures.pop(WEIGHT),
            weights={n.removeprefix(prefix): figures[n] for n in figures if n.startswith(prefix)},
            # What is no number has no place in a manifest, and what float32 cannot say is none.
            metrics={n: v for n, v in figures.items() if not n.startswith(prefix) and abs(v) <= _LARGEST},
            objects=self._digests(records.list_of(facts, "objects")),
        )
        for number in (reply.weight, *reply.weights.values()):
            if not (np.isfinite(number) and number >= 0):
                raise InputError(refusal("update weight", f"found {number}", "use a finite count >= 0"))
        self.keep(site, message, reply.objects)
        self._announced(reply)
        return [digest for digest in reply.objects if digest not in self.objects(site)]

    def keep(self, site: str, message: Message, announced: list[str]) -> None:
        """Keep the objects of a message. Raises FederationError on one that was not announced, or too much."""
        store = self.objects(site)
        there = {file.stem: file.stat().st_size for file in store.folder.glob("*.safetensors")}
        for digest, data in records.objects_of(message.content):
            if digest not in announced:
                raise FederationError(
                    refusal(f"object {digest[:12]!r}", "it was not announced", "send what was")
                )
            there[digest] = len(data)
            if sum(there.values()) > self.bounds.size:
                found = f"its objects have more than {self.bounds.size} bytes"
                raise FederationError(refusal("update", found, "send the tensors that were asked for"))
            store.put_bytes(digest, data)

    @contextmanager
    def kept_if_whole(self, site: str) -> Iterator[None]:
        """Forget the update of `site` if the block raises."""
        try:
            yield
        except BaseException:
            self.refuse(site)
            raise

    def refuse(self, site: str) -> None:
        """Forget the update of a site."""
        self.replies.pop(site, None)
        shutil.rmtree(self.folder / site, ignore_errors=True)

    def tensors(self, site: str) -> Reader:
        """A site's arrays as they travelled."""
        return Reader(self.objects(site), self.replies[site].objects)

    def clear(self) -> None:
        """Remove everything: the round is over."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _digests(self, announced: list[str]) -> list[str]:
        if len(announced) > self.bounds.objects:
            found, remedy = f"it announces {len(announced)} objects", f"send at most {self.bounds.objects}"
            raise FederationError(refusal("update", found, remedy))
        store = self.objects("announced")
        if len({store.path(digest) for digest in announced}) < len(announced):
            raise FederationError(refusal("update", "it announces an object twice", "announce each once"))
        return announced

    def _announced(self, reply: Reply) -> None:
        atomic.write_json(self.folder / reply.site / "reply.json", asdict(reply))
        self.replies[reply.site] = reply


def require_answer(site: str, request: str, facts: records.Facts) -> None:
    """Raise FederationError unless `facts` are of `site` and answer `request`."""
    if facts.get("site") != site:
        raise FederationError(
            refusal("answer", f"it is of site {facts.get('site')!r}, not {site!r}", "refuse it")
        )
    if facts.get("request") != request:
        raise FederationError(
            refusal("answer", "it is to an earlier or another request", "answer the round that is asked")
        )
