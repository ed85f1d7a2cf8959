"""One round's updates on disk: kept as they arrive, checked, and read back tensor by tensor for folding.

    spool/<request>/<site>/reply.json + objects/     one folder a site; reply.json is written when it is whole

A coordinator that dies in a round finds there what had arrived. Nothing here grows in memory with the sites.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from flwr.app import Message

from pm1_core import atomic, encoding
from pm1_core.errors import FederationError, InputError
from pm1_core.fields import Modality
from pm1_core.objects import ObjectStore, Reader
from pm1_core.validate import refusal
from strategies import records
from strategies.base import CONTROL

WEIGHT = "weight"


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


class Spool:
    """The updates to one request."""

    def __init__(self, folder: Path, request: str) -> None:
        self.request = request
        self.folder = folder / request[:32]
        for other in folder.glob("*"):
            if other != self.folder:
                shutil.rmtree(other, ignore_errors=True)  # of rounds that are over
        self.replies: dict[str, Reply] = {}
        for file in sorted(self.folder.glob("*/reply.json")):
            reply = Reply(**atomic.read_json(file))
            self.replies[reply.site] = reply

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
        if WEIGHT not in figures:
            raise FederationError(refusal("update", "it has no weight", "run the same version at both ends"))
        prefix = WEIGHT + "."
        reply = Reply(
            site=site,
            weight=figures.pop(WEIGHT),
            weights={n.removeprefix(prefix): figures[n] for n in figures if n.startswith(prefix)},
            # What is no number has no place in a manifest.
            metrics={n: v for n, v in figures.items() if not n.startswith(prefix) and np.isfinite(v)},
            objects=records.list_of(facts, "objects"),
        )
        for number in (reply.weight, *reply.weights.values()):
            if not (np.isfinite(number) and number >= 0):
                raise InputError(refusal("update weight", f"found {number}", "use a finite count >= 0"))
        self.keep(site, message, reply.objects)
        self._announced(reply)
        return [digest for digest in reply.objects if digest not in self.objects(site)]

    def keep(self, site: str, message: Message, announced: list[str]) -> None:
        """Keep the objects of a message. Raises FederationError on one that was not announced."""
        store = self.objects(site)
        for digest, data in records.objects_of(message.content):
            if digest not in announced:
                raise FederationError(refusal(f"object {digest[:12]}", "it was not announced", "refuse it"))
            store.put_bytes(digest, data)

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


@dataclass(frozen=True)
class Expected:
    """What every update of a round has to be.

    tensors: what was sent, name -> float32 array, lazy
    modality_of: tensor -> the modality whose examples train it, or None
    stays: tensors that never leave a site
    encoding: how updates travel; summed: sums carry weight 1 and are not looked at for their norm
    declared: site -> examples in all and by modality, as the site said before the round
    """

    tensors: Reader
    modality_of: Callable[[str], Modality | None]
    stays: Callable[[str], bool]
    encoding: str
    summed: bool
    declared: Mapping[str, Mapping[str, int]]


class Spooled:
    """strategies.Updates over a spool: every tensor is read from disk when it is asked for.

    Site by site, `check` refuses an update that is not what was asked for; it reads each tensor once, and
    measures how far the update moves the model.
    """

    def __init__(self, spool: Spool, expected: Expected) -> None:
        self.spool = spool
        self.expected = expected
        self.population = len(expected.declared)
        self.names = tuple(name for name in expected.tensors if not expected.stays(name))
        self._readers: dict[str, Reader] = {}

    @property
    def sites(self) -> tuple[str, ...]:
        """Sites whose updates are there, in the order in which they are folded."""
        return tuple(sorted(self.spool.replies))

    def weight(self, site: str, name: str) -> float:
        """Examples behind a tensor at a site: of its modality where it belongs to one."""
        reply = self.spool.replies[site]
        modality = self.expected.modality_of(name.removeprefix(CONTROL))
        return float(reply.weights.get(modality, 0.0)) if modality else float(reply.weight)

    def tensor(self, site: str, name: str) -> np.ndarray:
        """A site's tensor, float32, as if it had sent all of it."""
        return self._decoded(self._reader(site), name)

    def check(self, site: str) -> float:
        """The L2 norm of what `site` changes of the model. Raises InputError naming the first thing that is wrong."""
        self._check_weights(site)
        reader = self._reader(site)
        carried = set(encoding.names_of(self._encoding, list(reader)))
        needed = {name for name in self.names if self.weight(site, name) > 0}
        for name in sorted(needed - carried):
            raise InputError(refusal(f"tensor {name!r}", "it is missing", "send what the order names"))
        for name in sorted(carried - set(self.names)):
            raise InputError(refusal(f"tensor {name!r}", "it was not asked for", "send what the order names"))
        squares = 0.0
        for name in sorted(carried):
            wanted = self.expected.tensors.shape(name)
            if reader.shape(name) != wanted:
                raise InputError(refusal(f"tensor {name!r}", f"shape {reader.shape(name)}", f"send {wanted}"))
            encoding.check_tensor(self._encoding, reader, name)
            if not name.startswith(CONTROL):
                change = self._decoded(reader, name).astype(np.float64) - self.expected.tensors[name]
                squares += float(np.vdot(change, change))
        return float(np.sqrt(squares))

    @property
    def _encoding(self) -> str:
        return "full" if self.expected.summed else self.expected.encoding

    def _decoded(self, reader: Reader, name: str) -> np.ndarray:
        whole = self._encoding == "full" or name.startswith(CONTROL)  # of the latter changes are sent
        received = None if whole else self.expected.tensors[name]
        return encoding.decode(self._encoding, reader, name, received)

    def _reader(self, site: str) -> Reader:
        if site not in self._readers:
            self._readers[site] = self.spool.tensors(site)
        return self._readers[site]

    def _check_weights(self, site: str) -> None:
        """A site's weight is what it declared before it saw the round: nobody gains a say by claiming more."""
        reply, declared = self.spool.replies[site], self.expected.declared[site]
        found = {"train": reply.weight, **reply.weights}
        wanted = {"train": 1 if self.expected.summed else declared["train"]}
        wanted |= {modality: declared.get(modality, 0) for modality in reply.weights}
        for name, count in found.items():
            if count != wanted[name]:
                raise InputError(
                    refusal(
                        f"weight {name!r}",
                        f"found {count:g}, declared {wanted[name]}",
                        "weigh by the examples that were declared before the round",
                    )
                )


def far_beyond(norms: Mapping[str, float], people: Mapping[str, float], limit: float) -> dict[str, str]:
    """Sites whose update moves the model far beyond the others', with a sentence each.

    A site is refused if its norm exceeds `limit` times the median norm of the others, times the ratio of its
    people to theirs where it has more: a site takes steps in proportion to its people, so an honest one cannot
    move further than that. Two sites cannot judge each other; it takes three.
    """
    if limit <= 0 or len(norms) < 3:
        return {}
    refused = {}
    for site in sorted(norms):
        others = [other for other in sorted(norms) if other != site]
        usual = float(np.median([norms[other] for other in others]))
        crowd = float(np.median([people[other] for other in others]))
        bound = limit * usual * max(1.0, people[site] / crowd if crowd else 1.0)
        if norms[site] > bound and usual > 0:
            refused[site] = refusal(
                "update",
                f"its norm is {norms[site]:.3g}",
                f"at most {bound:.3g} is accepted beside the others",
            )
    return refused
