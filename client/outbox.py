"""The only way out of a site: every answer to the coordinator passes here and leaves a line.

`outbox.jsonl` in the site's folder has one line per answer: what, study phase, round, bytes, SHA-256 of every
object, facts, and the names of the figures. A trained or evaluated round is a *release*: it is on the site's disk
before it leaves, under the digest of the request, and whoever asks the same again gets the same bytes again. It is
kept, then paid for (client.guarantee), then sent.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import RecordDict

from client.counter import Counter
from pm1_core import atomic
from pm1_core.errors import FederationError
from pm1_core.objects import ObjectStore
from pm1_core.validate import refusal
from strategies import records

_KEPT_ROUNDS = 2


@dataclass(frozen=True)
class Release:
    """A trained or evaluated round as it leaves.

    request: digest of the request that it answers; objects: digests of its tensors, in order
    figures: weight, weights by modality, and metrics
    mechanisms: what it releases of people here, for the ledger; protected: whether its order had terms of privacy
    statement: what it is, in the ledger's words
    """

    request: str
    kind: str
    phase: str
    round: int
    objects: list[str]
    figures: Mapping[str, float] = field(default_factory=dict)
    mechanisms: list[dict[str, Any]] = field(default_factory=list)
    protected: bool = False
    statement: str = ""


class Outbox:
    """Keeps releases of one study, packs a site's answers, and writes down what left.

    log: outbox.jsonl, of all studies; folder: where this study's releases are kept
    pay: charges a release that is on disk to the site's ledger, or raises PrivacyError; before that nothing leaves
    counter: tells the site's door what is written down
    """

    def __init__(
        self,
        site: str,
        log: Path,
        folder: Path,
        pay: Callable[[Release], None],
        counter: Counter | None = None,
    ) -> None:
        self.site = site
        self.pay = pay
        self.counter = counter or Counter()
        self.log = log
        self.folder = folder
        self.objects = ObjectStore(folder / "objects")

    def held(self, request: str) -> Release | None:
        """The release that answers `request`, if it has been made."""
        file = self.folder / f"{request}.json"
        return Release(**atomic.read_json(file)) if file.exists() else None

    def keep(self, release: Release, tensors: Iterable[tuple[str, np.ndarray]]) -> Release:
        """Put a release and its tensors on disk. Once this returns, it is the answer to its request for good."""
        release = replace(release, objects=self.objects.put_all(tensors))
        atomic.write_json(self.folder / f"{release.request}.json", asdict(release))
        self._forget(release)
        return release

    def answer(self, release: Release, again: bool) -> RecordDict:
        """A release as a reply: small objects in it, of large ones the digests. Paid for before it is packed."""
        self.pay(release)
        sizes = [self.objects.size(digest) for digest in release.objects]
        inline = sum(sizes) <= records.INLINE_BYTES
        objects = [(d, self.objects.read(d)) for d in release.objects] if inline else []
        self._write_down(release.kind, release, release.objects, sizes, {"again": again})
        facts: dict[str, records.Fact] = {
            "site": self.site,
            "request": release.request,
            "objects": release.objects,
        }
        return records.pack("site", facts, objects, release.figures)

    def piece(self, request: str, digest: str) -> RecordDict:
        """One large object of a release. Raises FederationError if no release has it."""
        release = self.held(request)
        if release is None or digest not in release.objects:
            raise FederationError(
                refusal(f"object {digest[:12]}", "no release of this site has it", "ask for the round again")
            )
        self.pay(release)
        self._write_down("piece", release, [digest], [self.objects.size(digest)], {})
        facts: dict[str, records.Fact] = {"site": self.site, "request": request}
        return records.pack("site", facts, [(digest, self.objects.read(digest))])

    def tell(
        self,
        kind: str,
        facts: records.Facts,
        logged: Mapping[str, object] | None = None,
        about: Release | None = None,
    ) -> RecordDict:
        """An answer that carries facts only.

        logged: what the log has in place of long facts; about: the release that it belongs to
        """
        release = replace(about, figures={}) if about else None
        self._write_down(kind, release, [], [], dict(facts if logged is None else logged))
        return records.pack("site", {"site": self.site, **facts})

    def _write_down(
        self,
        kind: str,
        release: Release | None,
        objects: list[str],
        sizes: list[int],
        facts: Mapping[str, object],
    ) -> None:
        phase, number = (release.phase, release.round) if release else ("", 0)
        figures = sorted(release.figures) if release else []
        line = {
            "what": kind,
            "phase": phase,
            "round": number,
            "request": release.request if release else "",
            "bytes": sum(sizes),
            "sha256": objects,
            "facts": dict(facts),
            "weight": release.figures.get("weight") if release else None,
            "figures": figures,
        }
        atomic.append_lines(self.log, [json.dumps(line, sort_keys=True)])
        self.counter.note(kind, phase, number, sum(sizes), objects, len(figures))

    def _forget(self, newest: Release) -> None:
        """Remove releases of this kind that nobody can ask for any more: all but the two newest rounds."""
        held = [Release(**atomic.read_json(file)) for file in sorted(self.folder.glob("*.json"))]
        rounds = sorted({r.round for r in held if r.phase == newest.phase and r.round <= newest.round})
        kept = [
            r
            for r in held
            if r.phase == newest.phase and r.round <= newest.round and r.round in rounds[-_KEPT_ROUNDS:]
        ]
        named = {digest for release in kept for digest in release.objects}
        for release in held:
            if release not in kept:
                (self.folder / f"{release.request}.json").unlink(missing_ok=True)
        for file in self.objects.folder.glob("*.safetensors"):
            if file.stem not in named:  # of no release, or of one that was never finished
                file.unlink(missing_ok=True)
        for folder in (self.folder, self.objects.folder):
            atomic.sweep(folder)
