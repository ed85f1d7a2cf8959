"""Global checkpoints: content-addressed safetensors, one file per part, under a manifest with a parent.

    checkpoints/objects/<sha256>.safetensors     the tensors of one part ("genotype.22", "fusion", ...)
    checkpoints/000017.json                      a manifest: which object each part is, and how it came about

A manifest names every part of the model so far, so each checkpoint is whole, and a part that a phase did not
touch costs nothing. The hash of a manifest covers its content, its parent's hash among it: a lineage. Nothing
in a manifest depends on the clock or the machine; the same study and seed give the same bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import safetensors.numpy

from pm1_core import atomic
from pm1_core.errors import CheckpointError
from pm1_core.update import Tensors
from pm1_core.validate import refusal

FORMAT = 1


def part_of(name: str) -> str:
    """The part that a tensor belongs to.

    >>> part_of("genotype.22.encoder.weight"), part_of("fusion.cls"), part_of("statistics.phenotype.mean")
    ('genotype.22', 'fusion', 'statistics')
    """
    pieces = name.split(".")
    return ".".join(pieces[:2]) if pieces[0] == "genotype" else pieces[0]


def by_part(tensors: Tensors) -> dict[str, dict[str, np.ndarray]]:
    """Group tensors by the part that they belong to, in the order of names."""
    groups: dict[str, dict[str, np.ndarray]] = {}
    for name in sorted(tensors):
        groups.setdefault(part_of(name), {})[name] = tensors[name]
    return groups


class ObjectStore:
    """Groups of named arrays in files named by their SHA-256. A file is whole or absent."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, digest: str) -> Path:
        """Where the object with this digest lies."""
        return self.folder / f"{digest}.safetensors"

    def put(self, tensors: Tensors) -> str:
        """Write the arrays, unless they are there, and return their SHA-256 in hex."""
        content = safetensors.numpy.save(
            {name: np.ascontiguousarray(tensors[name]) for name in sorted(tensors)}
        )
        digest = hashlib.sha256(content).hexdigest()
        if not self.path(digest).exists():
            atomic.write_bytes(self.path(digest), content)
        return digest

    def get(self, digest: str) -> dict[str, np.ndarray]:
        """Read the arrays back. Raises CheckpointError if the object is absent or its bytes have changed."""
        try:
            content = self.path(digest).read_bytes()
        except FileNotFoundError:
            raise CheckpointError(
                refusal(
                    self.path(digest),
                    "found no such object",
                    "restore the file or start from an older checkpoint",
                )
            ) from None
        if hashlib.sha256(content).hexdigest() != digest:
            raise CheckpointError(
                refusal(self.path(digest), "the bytes do not match the name", "restore the file from a copy")
            )
        return safetensors.numpy.load(content)

    def __contains__(self, digest: str) -> bool:
        return self.path(digest).exists()


class State(Mapping[str, np.ndarray]):
    """The global tensors by name, read from an object store part by part when they are first asked for."""

    def __init__(self, objects: ObjectStore, parts: Mapping[str, str]) -> None:
        self.objects = objects
        self.parts = dict(parts)
        self._loaded: dict[str, dict[str, np.ndarray]] = {}

    def part(self, part: str) -> dict[str, np.ndarray]:
        """All tensors of one part, with their whole names."""
        if part not in self._loaded:
            self._loaded[part] = self.objects.get(self.parts[part])
        return self._loaded[part]

    def selected(self, prefixes: Sequence[str]) -> dict[str, str]:
        """Part -> digest of the parts that `prefixes` touch ("genotype." touches all 22)."""
        return {
            part: digest
            for part, digest in sorted(self.parts.items())
            if any((part + ".").startswith(prefix) or prefix.startswith(part + ".") for prefix in prefixes)
        }

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
    parent: hash of the parent's manifest, "" at the root
    study, config: name of the study and SHA-256 of its resolved configuration
    phase, round, rounds: what made it
    parts: part -> SHA-256 of its object
    sites: site -> its number of examples in this round (in the clear only)
    privacy: the guarantee in words; "no differential privacy" where no budget was paid
    """

    sequence: int
    parent: str
    study: str
    config: str
    phase: str
    round: int
    rounds: int
    parts: Mapping[str, str]
    sites: Mapping[str, float] = field(default_factory=dict)
    privacy: str = "no differential privacy"
    format: int = FORMAT

    @property
    def hash(self) -> str:
        """SHA-256 over the manifest's canonical JSON."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


class CheckpointFolder:
    """All checkpoints of one run, in order."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.objects = ObjectStore(folder / "objects")

    def save(
        self,
        previous: Checkpoint | None,
        tensors: Tensors,
        *,
        study: str,
        config: str,
        phase: str,
        round_number: int,
        rounds: int,
        sites: Mapping[str, float],
        privacy: str,
    ) -> Checkpoint:
        """Write `tensors` over what `previous` holds. The manifest is written last, so it never dangles."""
        parts = dict(previous.parts) if previous else {}
        for part, group in by_part(tensors).items():
            parts[part] = self.objects.put(group)
        checkpoint = Checkpoint(
            sequence=previous.sequence + 1 if previous else 1,
            parent=previous.hash if previous else "",
            study=study,
            config=config,
            phase=phase,
            round=round_number,
            rounds=rounds,
            parts=parts,
            sites=dict(sites),
            privacy=privacy,
        )
        atomic.write_json(
            self._manifest(checkpoint.sequence), {**asdict(checkpoint), "hash": checkpoint.hash}
        )
        return checkpoint

    def sequences(self) -> list[int]:
        """Numbers of the checkpoints that are there, in order."""
        return sorted(int(file.stem) for file in self.folder.glob("[0-9]*.json"))

    def load(self, sequence: int) -> Checkpoint:
        """Read a manifest. Raises CheckpointError if it is absent, damaged or of another format."""
        file = self._manifest(sequence)
        try:
            content = json.loads(file.read_text())
            stated = content.pop("hash")
            checkpoint = Checkpoint(**content)
        except FileNotFoundError:
            raise CheckpointError(
                refusal(file, "found no such checkpoint", f"choose from {self.folder}")
            ) from None
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                refusal(file, f"cannot be read ({error})", "restore it from a copy")
            ) from None
        if checkpoint.hash != stated:
            raise CheckpointError(
                refusal(file, "its hash does not match its content", "restore it from a copy")
            )
        return checkpoint

    def latest(self) -> Checkpoint | None:
        """The newest checkpoint, or None in a fresh run."""
        sequences = self.sequences()
        return self.load(sequences[-1]) if sequences else None

    def state(self, checkpoint: Checkpoint | None) -> State:
        """The global tensors as of `checkpoint`."""
        return State(self.objects, checkpoint.parts if checkpoint else {})

    def verify(self) -> list[Checkpoint]:
        """Walk the lineage from the root and return it; raises CheckpointError at the first broken link."""
        lineage: list[Checkpoint] = []
        for sequence in range(1, (self.sequences() or [0])[-1] + 1):
            checkpoint = self.load(sequence)
            expected = lineage[-1].hash if lineage else ""
            if checkpoint.parent != expected:
                raise CheckpointError(
                    refusal(
                        self._manifest(sequence),
                        f"its parent is {checkpoint.parent[:12]!r}, not {expected[:12]!r}",
                        "the lineage is broken here; restore the missing checkpoint",
                    )
                )
            for digest in checkpoint.parts.values():
                self.objects.get(digest)
            lineage.append(checkpoint)
        return lineage

    def _manifest(self, sequence: int) -> Path:
        return self.folder / f"{sequence:06d}.json"
