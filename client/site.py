"""A site's side of a request: check who sent it, keep what came, hand out what was announced. No torch.

    store/                        the prepared data, read only
    folder/outbox.jsonl           what left, see client.outbox
    folder/ledger.jsonl           what it cost, see pm1_core.privacy.ledger
    folder/studies/<hash>/        everything of one study:
        checkpoint.json           the newest checkpoint that the coordinator handed out, with its signature
        parts/                    its tensors, by SHA-256
        memory/                   moments, control variates, personal models ... between rounds, and caches
                                  until the study is over
        releases/                 what left in the last two rounds, to be sent again unchanged

Flower starts a process for each message. What takes part in training is in client.work, which imports torch;
moving objects does not wait for that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from flwr.app import RecordDict

from client.counter import Counter
from client.outbox import Outbox, Release
from pm1_core import atomic
from pm1_core.checkpoint import Checkpoint, State
from pm1_core.data.store import Store
from pm1_core.errors import CheckpointError, PM1Error
from pm1_core.objects import ObjectStore, Reader, is_digest, unpacked
from pm1_core.signing import Trust
from pm1_core.training.cached import drop_caches
from pm1_core.update import Tensors
from pm1_core.validate import refusal
from strategies import records

if TYPE_CHECKING:
    from client.guarantee import Guarantee


@dataclass(frozen=True)
class SitePaths:
    """Where a site keeps its prepared store and its own state, and whom it trusts.

    trust: file of the coordinator's public key; a site loads no checkpoint that it did not sign
    tasks: names of tasks of installed packages that this site agrees to run, beside PM1's own
    alone: no other site works on this machine, so that its energy is this site's
    threads: cores that training uses; 0 leaves it to torch
    ledger: file of the site's ledger; "" for `ledger.jsonl` in its folder
    unprotected: answer studies without differential privacy although the site has a ledger
    identity: file of the site's own private key, for secure aggregation; "" without one
    peers: folder with the public key of every site as NAME.pub, this one's among them
    unsecured: answer studies in the clear although the site has peers
    door: HOST:PORT where the site's door takes tickets, see client.door; "" without one
    door_secret: file of what is shown there, see client.tickets; "" without a door
    batch_size, precision: the site's own, see pm1_core.training.machine; "" takes the study's
    processes: that share every batch, one on each GPU; "" is one
    cache: how tokens of the frozen encoders are kept; "" is in float32
    """

    store: str
    folder: str
    trust: str
    tasks: tuple[str, ...] = ()
    alone: bool = False
    threads: int = 0
    ledger: str = ""
    unprotected: bool = False
    identity: str = ""
    peers: str = ""
    unsecured: bool = False
    door: str = ""
    door_secret: str = ""
    batch_size: str = ""
    precision: str = ""
    processes: str = ""
    cache: str = ""


class LackingError(PM1Error):
    """A site was asked to work with objects that it has not been sent."""


class Site:
    """One request at one site.

    passing: the round's own tensors are needed for this request only, if they came with it; the coordinator
        knows that they are not kept
    counter: where the site's door is asked about the answer
    """

    def __init__(
        self, paths: SitePaths, content: RecordDict, passing: bool = False, counter: Counter | None = None
    ) -> None:
        self.paths = paths
        self.counter = counter or Counter()
        self.store = _open(paths.store)
        self.facts = records.facts_of(content, "order")
        self._manifest = records.text_of(self.facts, "checkpoint")
        self.checkpoint = _trusted(self._manifest, paths.trust)
        if not is_digest(self.checkpoint.config):  # it names a folder
            found = f"its configuration is {self.checkpoint.config[:16]!r}"
            raise CheckpointError(refusal("checkpoint", found, "name it by a SHA-256 in hex"))
        self.counter.about(self.checkpoint.study, self.checkpoint.config)
        self.folder = Path(paths.folder) / "studies" / self.checkpoint.config[:16]
        self.objects = ObjectStore(self.folder / "parts")
        log = Path(paths.folder) / "outbox.jsonl"
        self.outbox = Outbox(self.store.site, log, self.folder / "releases", self._pay, self.counter)
        self._came_along = self._receive(content, passing)

    @cached_property
    def guarantee(self) -> Guarantee:
        """What this study's answers are held against, with the site's ledger."""
        # Imported here: accountants take a second, and most messages only move objects.
        from client.guarantee import Guarantee
        from pm1_core.privacy.ledger import Ledger

        study = f"{self.checkpoint.study}-{self.checkpoint.config[:8]}"
        return Guarantee(Ledger(self._ledger), study, self.paths.unprotected, self.counter.charged)

    def receive(self) -> RecordDict:
        """Objects were kept: say which of the checkpoint's are still not here. After the end no caches stay."""
        self._remember()
        if self.facts.get("over"):
            drop_caches(self.memory())
        return self.outbox.tell("objects", {"lacking": self.lacking([*self.checkpoint.parts])})

    def release(self) -> RecordDict:
        """A large object of an update that was announced."""
        return self.outbox.piece(
            records.text_of(self.facts, "request"), records.text_of(self.facts, "object")
        )

    def trained(self) -> list[str]:
        """Parts that the phase's round starts from and that travel."""
        return [part for part in self.checkpoint.trained if part in self.checkpoint.parts]

    def state(self) -> State:
        """The frozen global tensors: all but what the phase trains."""
        parts = {part: d for part, d in self.checkpoint.parts.items() if part not in self.checkpoint.trained}
        return State(self.objects, parts)

    def received(self) -> Tensors:
        """The tensors of the round; read one by one where they are too large to have come with the request."""
        if self._came_along is not None:
            return self._came_along
        return Reader(self.objects, self._round_digests())

    def memory(self) -> Path:
        """The site's own disk for the study."""
        folder = self.folder / "memory"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def lacking(self, parts: Sequence[str]) -> list[str]:
        """Digests of objects of `parts` that are not on this disk."""
        wanted = {digest for part in parts for digest in self.checkpoint.parts[part]}
        return sorted(digest for digest in wanted if digest not in self.objects)

    @property
    def _ledger(self) -> Path:
        return Path(self.paths.ledger or Path(self.paths.folder) / "ledger.jsonl")

    def _pay(self, release: Release) -> None:
        if release.mechanisms or self._ledger.exists():
            self.guarantee.pay(release)

    def _receive(self, content: RecordDict, passing: bool) -> dict[str, np.ndarray] | None:
        """Keep the objects that came along, but for the round's own if `passing` and all of them did."""
        named = {digest for held in self.checkpoint.parts.values() for digest in held}
        came = dict(records.objects_of(content))
        for digest in came:
            if digest not in named:
                found = "the signed checkpoint does not name it"
                raise CheckpointError(refusal(f"object {digest[:12]}", found, "do not send it"))
        own = set(self._round_digests())
        passing = passing and bool(own) and own <= set(came)
        for digest, data in came.items():
            if not (passing and digest in own):
                self.objects.put_bytes(digest, data)
        if not passing:
            return None
        return {n: a for digest in sorted(own) for n, a in unpacked(digest, came[digest]).items()}

    def _round_digests(self) -> list[str]:
        return [digest for part in self.trained() for digest in self.checkpoint.parts[part]]

    def _remember(self) -> None:
        """Keep the manifest, and of older objects only what it names."""
        named = {digest for held in self.checkpoint.parts.values() for digest in held}
        manifest = self.folder / "checkpoint.json"
        if not manifest.exists() or manifest.read_text() != self._manifest:
            atomic.write_text(manifest, self._manifest)
            for file in self.objects.folder.glob("*.safetensors"):
                if file.stem not in named:
                    file.unlink(missing_ok=True)
            for folder in (self.folder, self.objects.folder):
                atomic.sweep(folder)


@lru_cache(maxsize=64)
def _open(store: str) -> Store:
    return Store.open(Path(store))


@lru_cache(maxsize=4)
def _trusted(text: str, trust: str) -> Checkpoint:
    """The checkpoint of a request. Raises CheckpointError unless the coordinator signed it.

    Cached for simulations, where thousands of sites in one process get the same text.
    """
    checkpoint = Checkpoint.from_json(text, "request")
    where = f"checkpoint {checkpoint.sequence} of study {checkpoint.study!r}"
    _trust(trust).require(where, checkpoint.signed_bytes, checkpoint.signature)
    return checkpoint


@lru_cache(maxsize=8)
def _trust(file: str) -> Trust:
    return Trust.load(Path(file))
