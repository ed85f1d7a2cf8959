"""Releases: signed records of who put which checkpoint into the world, and why. Records are only ever added.

    checkpoints/releases/000001.json      the first release, then 000002.json, ...

A record names its checkpoint by hash, and the record before it by hash: taking one out of the middle, or changing
one, breaks the chain. Taking away the newest cannot be seen in the folder alone; whoever holds an export, or has
written down a release's hash, can see it (`Registry.verify`, `expected`).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from pm1_core import atomic
from pm1_core.errors import CheckpointError
from pm1_core.signing import Signer, Trust
from pm1_core.validate import refusal

FORMAT = 1
_TEXTS = ("checkpoint", "study", "config", "by", "because", "parent", "time", "signer", "signature")
_KINDS: Mapping[str, type] = {
    **dict.fromkeys(_TEXTS, str),
    "number": int,
    "sequence": int,
    "gates": dict,
    "figures": list,
}


@dataclass(frozen=True)
class Release:
    """One record.

    number: from 1; parent: hash of the record before, "" for the first
    checkpoint, sequence: which checkpoint; study, config: as its manifest says
    by, because: who released it, and why, in their words
    gates: the study's bounds; figures: what each was held against, see pm1_core.gates.Verdict
    time: UTC, ISO 8601, of the coordinator's clock
    signer, signature: fingerprint of the coordinator's key and its signature over the hash, in hex
    """

    number: int
    checkpoint: str
    sequence: int
    study: str
    config: str
    by: str
    because: str
    gates: Mapping[str, float | None]
    figures: Sequence[Mapping[str, Any]]
    parent: str
    time: str
    format: int = FORMAT
    signer: str = ""
    signature: str = ""

    @property
    def hash(self) -> str:
        """SHA-256 over the canonical JSON of everything but the signature."""
        content = asdict(self)
        for name in ("signer", "signature"):
            del content[name]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    @property
    def signed_bytes(self) -> bytes:
        """What the coordinator signs; never the bytes of a checkpoint's signature."""
        return json.dumps({"release": self.hash}).encode()

    def signed(self, signer: Signer) -> Release:
        """The same record under the signature of `signer`."""
        return replace(self, signer=signer.fingerprint, signature=signer.sign(self.signed_bytes))

    def to_json(self) -> str:
        """The record as text."""
        return json.dumps({**asdict(self), "hash": self.hash}, indent=1, sort_keys=True) + "\n"

    @staticmethod
    def from_json(text: str, where: object = "release") -> Release:
        """Read a record. Raises CheckpointError if it is damaged or of another format."""
        try:
            content = json.loads(text)
            stated = content.pop("hash")
            if content["format"] != FORMAT:
                raise ValueError(f"format {content['format']!r}, not {FORMAT}")
            unknown = set(content) - {item.name for item in fields(Release)}
            if unknown:
                raise ValueError(f"unknown key {sorted(unknown)[0]!r}")
            for name, kind in _KINDS.items():
                if name in content and not isinstance(content[name], kind):
                    raise ValueError(f"key {name!r}")
            release = Release(**content)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise CheckpointError(
                refusal(where, f"cannot be read ({error})", "restore it from a copy")
            ) from None
        if release.hash != stated:
            raise CheckpointError(
                refusal(where, "its hash does not match its content", "restore it from a copy")
            )
        return release


class ReleaseFolder:
    """The releases of one run, in order."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def all(self, trust: Trust | None = None) -> list[Release]:
        """Every record from the first on. Raises CheckpointError at the first broken link.

        trust: if given, every record has to carry the signature of one of its keys
        """
        chain: list[Release] = []
        numbers = sorted(int(file.stem) for file in self.folder.glob("[0-9]*.json"))
        for number in range(1, (numbers or [0])[-1] + 1):
            file = self._file(number)
            try:
                release = Release.from_json(file.read_text(errors="replace"), file)
            except FileNotFoundError:
                remedy = f"{self._file(numbers[-1]).name} needs it; restore it from a copy"
                raise CheckpointError(refusal(file, "found no such release", remedy)) from None
            expected = chain[-1].hash if chain else ""
            if release.parent != expected or release.number != number:
                found = f"it follows release {release.parent[:12]!r}, not {expected[:12]!r}"
                raise CheckpointError(
                    refusal(file, found, "the chain of releases is broken here; restore it from a copy")
                )
            if trust:
                trust.require(file, release.signed_bytes, release.signature)
            chain.append(release)
        return chain

    def add(self, release: Release) -> Release:
        """Write one more record. Raises CheckpointError if somebody has written that number in the meantime."""
        file = self._file(release.number)
        beside = file.with_name(f".{file.name}.{os.getpid()}")
        atomic.write_text(beside, release.to_json())
        try:
            os.link(beside, file)  # unlike a rename, never takes the place of a record
        except FileExistsError:
            found = "another release was written at the same time"
            raise CheckpointError(refusal(file, found, "look at it, then promote again")) from None
        finally:
            beside.unlink(missing_ok=True)
        folder = os.open(self.folder, os.O_RDONLY)
        try:
            atomic.sync(folder)
        finally:
            os.close(folder)
        return release

    def _file(self, number: int) -> Path:
        return self.folder / f"{number:06d}.json"
