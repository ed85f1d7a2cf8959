"""Groups of named arrays in safetensors files named by their SHA-256: how tensors are kept and how they travel.

A part that is larger than SHARD_BYTES is several objects, cut between tensors in the order of their names, as
Hugging Face cuts large models into shards. No one who writes, sends or reads a model has to hold all of it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from safetensors import safe_open

from pm1_core import atomic
from pm1_core.errors import CheckpointError
from pm1_core.update import Tensors
from pm1_core.validate import refusal

SHARD_BYTES = 256 * 2**20
_READ_BYTES = 2**22


def packed(tensors: Tensors) -> tuple[str, bytes]:
    """The bytes of one object, with the tensors in the order of names, and their SHA-256 in hex."""
    content = safetensors.numpy.save({name: np.asarray(tensors[name], order="C") for name in sorted(tensors)})
    return hashlib.sha256(content).hexdigest(), content


def unpacked(digest: str, content: bytes) -> dict[str, np.ndarray]:
    """The tensors of an object. Raises CheckpointError if the bytes are not those of `digest`."""
    if hashlib.sha256(content).hexdigest() != digest:
        raise CheckpointError(
            refusal(f"object {digest[:12]}", "the bytes do not match the name", "send it again")
        )
    try:
        return safetensors.numpy.load(content)
    except (ValueError, KeyError, safetensors.SafetensorError) as error:
        raise CheckpointError(
            refusal(f"object {digest[:12]}", f"no safetensors ({error})", "write it with safetensors")
        ) from None


class ObjectStore:
    """A folder of objects. A file is whole or absent, and its bytes are checked once before they are used."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._checked: set[str] = set()

    def path(self, digest: str) -> Path:
        """Where the object with this digest lies."""
        return self.folder / f"{digest}.safetensors"

    def put(self, tensors: Tensors) -> str:
        """Write the arrays as one object, unless it is there, and return its digest."""
        digest, content = packed(tensors)
        self._write(digest, content)
        return digest

    def put_bytes(self, digest: str, content: bytes) -> None:
        """Keep an object that arrived. Raises CheckpointError if the bytes are not those of `digest`."""
        if hashlib.sha256(content).hexdigest() != digest:
            raise CheckpointError(
                refusal(f"object {digest[:12]}", "the bytes do not match the name", "send it again")
            )
        self._write(digest, content)

    def put_all(self, tensors: Iterable[tuple[str, np.ndarray]], limit: int = SHARD_BYTES) -> list[str]:
        """Write arrays one after another into as many objects as `limit` bytes each ask for."""
        digests: list[str] = []
        shard: dict[str, np.ndarray] = {}
        size = 0
        for name, array in tensors:
            if shard and size + array.nbytes > limit:
                digests.append(self.put(shard))
                shard, size = {}, 0
            shard[name] = array
            size += array.nbytes
        return [*digests, self.put(shard)] if shard or not digests else digests

    def check(self, digest: str) -> Path:
        """The object's file. Raises CheckpointError if it is absent or its bytes have changed."""
        path = self.path(digest)
        if digest not in self._checked:
            found = hashlib.sha256()
            try:
                with path.open("rb") as stream:
                    while block := stream.read(_READ_BYTES):
                        found.update(block)
            except FileNotFoundError:
                remedy = "restore the file or start from an older checkpoint"
                raise CheckpointError(refusal(path, "found no such object", remedy)) from None
            if found.hexdigest() != digest:
                raise CheckpointError(
                    refusal(path, "the bytes do not match the name", "restore the file from a copy")
                )
            self._checked.add(digest)
        return path

    def get(self, digest: str) -> dict[str, np.ndarray]:
        """All arrays of an object. Raises CheckpointError if it is absent or its bytes have changed."""
        return safetensors.numpy.load_file(self.check(digest))

    def read(self, digest: str) -> bytes:
        """The bytes of an object, as they travel."""
        return self.check(digest).read_bytes()

    def size(self, digest: str) -> int:
        """Bytes of an object that is here."""
        return self.path(digest).stat().st_size

    def __contains__(self, digest: str) -> bool:
        return self.path(digest).exists()

    def _write(self, digest: str, content: bytes) -> None:
        if not self.path(digest).exists():
            atomic.write_bytes(self.path(digest), content)
        self._checked.add(digest)


class Reader(Mapping[str, np.ndarray]):
    """The arrays of some objects by name, each read from disk when it is asked for and not kept."""

    def __init__(self, objects: ObjectStore, digests: Sequence[str]) -> None:
        self._objects = objects
        self._digests = list(digests)
        self._handles: dict[str, Any] | None = None

    def __getitem__(self, name: str) -> np.ndarray:
        array: np.ndarray = self._index()[name].get_tensor(name)
        return array

    def __contains__(self, name: object) -> bool:
        return name in self._index()

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._index()))

    def __len__(self) -> int:
        return len(self._index())

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of an array, without reading it."""
        return tuple(self._index()[name].get_slice(name).get_shape())

    def _index(self) -> dict[str, Any]:
        if self._handles is None:
            self._handles = {}
            for digest in self._digests:
                handle: Any = safe_open(self._objects.check(digest), framework="numpy")
                self._handles |= dict.fromkeys(handle.keys(), handle)
        return self._handles
