"""Global checkpoints: content-addressed tensors, part by part, under a signed manifest with a parent.

    checkpoints/objects/<sha256>.safetensors     tensors of one part ("genotype.22", "fusion", ...), or a shard
    checkpoints/000017.json                      a manifest: which objects each part is, and how it came about
    checkpoints/origin.json                      the manifest of another lineage that this one starts from, if any

A manifest names every part of the model so far, so each checkpoint is whole, and a part that a phase did not
touch costs nothing. The hash of a manifest covers its content, its parent's hash among it: a lineage. Nothing
under that hash depends on the clock or the machine; the same study and seed give the same bytes. What was
measured (seconds, energy) stands beside it; the coordinator's signature covers both.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from pm1_core import atomic
from pm1_core.errors import CheckpointError
from pm1_core.objects import ObjectStore, Reader, is_digest
from pm1_core.signing import Signer, Trust
from pm1_core.validate import refusal

FORMAT = 2

_Check = Callable[[Any], bool]


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_count(value: Any) -> bool:
    return _is_number(value) and isinstance(value, int) and value >= 0


def _all(holds: _Check, kind: type = dict) -> _Check:
    """Of every value of a mapping, or of a list, `holds`."""

    def every(value: Any) -> bool:
        items: Any = value.values() if isinstance(value, dict) else value
        return isinstance(value, kind) and all(holds(one) for one in items)

    return every


_KINDS: Mapping[str, _Check] = {
    **dict.fromkeys(("sequence", "round", "rounds", "format"), _is_count),
    "parts": _all(_all(is_digest, list)),
    "trained": _all(_is_text, list),
    "sites": _all(_is_number),
    "metrics": _all(_all(_is_number)),
    "areas": _all(_all(_is_number)),
    "measured": _all(_is_number),
}
"""What JSON has to hold under a key of a manifest; text under all others."""


def part_of(name: str) -> str:
    """The part that a tensor belongs to.

    >>> part_of("genotype.22.encoder.weight"), part_of("fusion.cls"), part_of("statistics.phenotype.mean")
    ('genotype.22', 'fusion', 'statistics')
    """
    pieces = name.split(".")
    return ".".join(pieces[:2]) if pieces[0] == "genotype" else pieces[0]


class State(Mapping[str, np.ndarray]):
    """The global tensors by name, each read from its object when it is asked for.

    parts: part -> digests of its objects
    """

    def __init__(self, objects: ObjectStore, parts: Mapping[str, Sequence[str]]) -> None:
        self.objects = objects
        self.parts = {part: tuple(digests) for part, digests in parts.items()}
        self._readers: dict[str, Reader] = {}

    def part(self, part: str) -> Reader:
        """All tensors of one part, with their whole names."""
        if part not in self._readers:
            self._readers[part] = Reader(self.objects, self.parts[part])
        return self._readers[part]

    def selected(self, prefixes: Sequence[str]) -> dict[str, tuple[str, ...]]:
        """Part -> digests of the parts that `prefixes` touch ("genotype." touches all 22)."""
        return {
            part: digests
            for part, digests in sorted(self.parts.items())
            if any((part + ".").startswith(prefix) or prefix.startswith(part + ".") for prefix in prefixes)
        }

    def below(self, prefix: str) -> list[str]:
        """Names that begin with `prefix`, without looking into parts that have none."""
        return [n for part in self.selected([prefix]) for n in self.part(part) if n.startswith(prefix)]

    def fingerprint(self, prefixes: Sequence[str]) -> str:
        """A digest of the parts that `prefixes` touch: a key for whatever was computed from them."""
        return hashlib.sha256(json.dumps(self.selected(prefixes)).encode()).hexdigest()[:16]

    def __getitem__(self, name: str) -> np.ndarray:
        if part_of(name) not in self.parts:
            raise KeyError(name)
        return self.part(part_of(name))[name]

    def __iter__(self) -> Iterator[str]:
        for part in sorted(self.parts):
            yield from self.part(part)

    def __len__(self) -> int:
        return sum(len(self.part(part)) for part in self.parts)


@dataclass(frozen=True)
class Checkpoint:
    """What a manifest says.

    sequence: from 1, one more than the parent's
    parent: hash of the parent's manifest; at the root "", or the hash of the origin in another lineage
    study, config, code: name of the study, SHA-256 of its resolved configuration and of the programme's sources
    phase, round, rounds: what made it; round 0 holds what the phase starts from
    parts: part -> SHA-256 of its objects
    trained: the parts that this phase changes
    sites: who is in this round: site -> its number of examples, as it declared them
    metrics: "all" or a site's name -> figure -> value, of the last round of a phase; sites in the clear only
    areas: "TARGET.GROUP" -> {"auc", "cases", "controls"} of held-out people over all sites, likewise
    privacy: the guarantee in words; "no differential privacy" where no budget was paid
    measured: seconds and energy of the round: outside the hash, under the signature
    signer, signature: fingerprint of the coordinator's key and its signature over hash and measured, in hex
    """

    sequence: int
    parent: str
    study: str
    config: str
    phase: str
    round: int
    rounds: int
    parts: Mapping[str, Sequence[str]]
    trained: Sequence[str] = ()
    code: str = ""
    sites: Mapping[str, float] = field(default_factory=dict)
    metrics: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    areas: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    privacy: str = "no differential privacy"
    format: int = FORMAT
    measured: Mapping[str, float] = field(default_factory=dict)
    signer: str = ""
    signature: str = ""

    @cached_property
    def hash(self) -> str:
        """SHA-256 over the canonical JSON of everything that does not depend on the machine."""
        content = asdict(self)
        for name in ("measured", "signer", "signature"):
            del content[name]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    @property
    def signed_bytes(self) -> bytes:
        """What the coordinator signs."""
        return json.dumps({"hash": self.hash, "measured": dict(self.measured)}, sort_keys=True).encode()

    def signed(self, signer: Signer) -> Checkpoint:
        """The same checkpoint under the signature of `signer`."""
        return replace(self, signer=signer.fingerprint, signature=signer.sign(self.signed_bytes))

    def to_json(self) -> str:
        """The manifest as text."""
        return json.dumps({**asdict(self), "hash": self.hash}, indent=1, sort_keys=True)

    @staticmethod
    def from_json(text: str, where: object = "manifest") -> Checkpoint:
        """Read a manifest. Raises CheckpointError if it is damaged, of another format or of other types."""
        try:
            content = json.loads(text)
            stated = content.pop("hash")
            if content["format"] != FORMAT:
                raise CheckpointError(
                    refusal(where, f"format {content['format']!r}", f"use a checkpoint of format {FORMAT}")
                )
            unknown = set(content) - {item.name for item in fields(Checkpoint)}
            if unknown:
                raise ValueError(f"unknown key {sorted(unknown)[0]!r}")
            for name, value in content.items():
                if not _KINDS.get(name, _is_text)(value):
                    raise ValueError(f"key {name!r}")
            parts = {part: tuple(digests) for part, digests in content.pop("parts").items()}
            content["trained"] = tuple(content["trained"])
            checkpoint = Checkpoint(**content, parts=parts)
            own = checkpoint.hash
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise CheckpointError(
                refusal(where, f"cannot be read ({error})", "restore it from a copy")
            ) from None
        if own != stated:
            raise CheckpointError(
                refusal(where, "its hash does not match its content", "restore it from a copy")
            )
        return checkpoint


class CheckpointFolder:
    """All checkpoints of one run, in order.

    signer: signs what `save` writes; without one, checkpoints are unsigned and no site loads them
    """

    def __init__(self, folder: Path, signer: Signer | None = None) -> None:
        self.folder = folder
        self.objects = ObjectStore(folder / "objects")
        self.signer = signer

    def save(
        self,
        previous: Checkpoint | None,
        tensors: Mapping[str, np.ndarray] | Iterable[tuple[str, np.ndarray]],
        **manifest: Any,
    ) -> Checkpoint:
        """`draft` and `commit` at once."""
        return self.commit(self.draft(previous, tensors, **manifest))

    def draft(
        self,
        previous: Checkpoint | None,
        tensors: Mapping[str, np.ndarray] | Iterable[tuple[str, np.ndarray]],
        *,
        without: Sequence[str] = (),
        **manifest: Any,
    ) -> Checkpoint:
        """Write `tensors` over what `previous` holds and return a signed checkpoint that is not in force yet.

        tensors: by name, or pairs in the order of their names, of which no more than a shard is held
        without: parts that are left out from here on
        manifest: further fields of Checkpoint
        """
        pairs = sorted(tensors.items()) if isinstance(tensors, Mapping) else tensors
        origin = self.origin()
        before = previous or origin
        parts = {part: tuple(held) for part, held in before.parts.items()} if before else {}
        written: dict[str, tuple[str, ...]] = {}
        for part, group in groupby(pairs, key=lambda pair: part_of(pair[0])):
            written[part] = (*written.get(part, ()), *self.objects.put_all(group))
        checkpoint = Checkpoint(
            sequence=previous.sequence + 1 if previous else 1,
            parent=before.hash if before else "",
            parts={part: held for part, held in {**parts, **written}.items() if part not in without},
            **manifest,
        )
        return checkpoint.signed(self.signer) if self.signer else checkpoint

    def commit(self, checkpoint: Checkpoint, **figures: Any) -> Checkpoint:
        """Put a draft in force, with `figures` (further fields of Checkpoint) that are known only now.

        The manifest is written after the objects that it names, so it never dangles.
        """
        checkpoint = replace(checkpoint, **figures)
        if self.signer is not None:
            checkpoint = checkpoint.signed(self.signer)
        atomic.write_text(self._manifest(checkpoint.sequence), checkpoint.to_json() + "\n")
        return checkpoint

    def sequences(self) -> list[int]:
        """Numbers of the checkpoints that are there, in order."""
        return sorted(int(file.stem) for file in self.folder.glob("[0-9]*.json"))

    def load(self, sequence: int) -> Checkpoint:
        """Read a manifest. Raises CheckpointError if it is absent, damaged or of another format."""
        file = self._manifest(sequence)
        try:
            text = file.read_text(errors="replace")
        except FileNotFoundError:
            raise CheckpointError(
                refusal(file, "found no such checkpoint", f"choose from {self.folder}")
            ) from None
        return Checkpoint.from_json(text, file)

    def latest(self) -> Checkpoint | None:
        """The newest checkpoint, or None in a fresh run."""
        sequences = self.sequences()
        return self.load(sequences[-1]) if sequences else None

    def origin(self) -> Checkpoint | None:
        """The checkpoint of another lineage that this one starts from, if there is one."""
        file = self.folder / "origin.json"
        return Checkpoint.from_json(file.read_text(errors="replace"), file) if file.exists() else None

    def state(self, checkpoint: Checkpoint | None) -> State:
        """The global tensors as of `checkpoint`."""
        return State(self.objects, checkpoint.parts if checkpoint else {})

    def verify(
        self, trust: Trust | None = None, origins: Trust | None = None, *, objects: bool = True
    ) -> list[Checkpoint]:
        """Walk the lineage from the root and return it; raises CheckpointError at the first broken link.

        trust: if given, every manifest has to carry the signature of one of its keys
        origins: keys for the manifest of the origin, which another coordinator may have signed; default: `trust`
        objects: whether the bytes of all tensors are hashed as well
        """
        lineage: list[Checkpoint] = []
        origin = self.origin()
        origins = origins or trust
        if origin and origins:
            origins.require(self.folder / "origin.json", origin.signed_bytes, origin.signature)
        for sequence in range(1, (self.sequences() or [0])[-1] + 1):
            checkpoint = self.load(sequence)
            expected = lineage[-1].hash if lineage else origin.hash if origin else ""
            if checkpoint.parent != expected:
                raise CheckpointError(
                    refusal(
                        self._manifest(sequence),
                        f"its parent is {checkpoint.parent[:12]!r}, not {expected[:12]!r}",
                        "the lineage is broken here; restore the missing checkpoint",
                    )
                )
            if trust:
                trust.require(self._manifest(sequence), checkpoint.signed_bytes, checkpoint.signature)
            for digest in (d for held in checkpoint.parts.values() for d in held if objects):
                self.objects.check(digest)
            lineage.append(checkpoint)
        return lineage

    def _manifest(self, sequence: int) -> Path:
        return self.folder / f"{sequence:06d}.json"
