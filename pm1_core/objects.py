"""Groups of named arrays in safetensors files named by their SHA-256: how tensors are kept and how they travel.

A part that is larger than SHARD_BYTES is several objects, cut between tensors in the order of their names, as
Hugging Face cuts large models into shards. No one who writes, sends or reads a model has to hold all of it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
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
_HELD_BYTES = 2**20
_DIGEST = re.compile(r"[0-9a-f]{64}")


def is_digest(name: object) -> bool:
    """Whether this can name an object: a SHA-256 in hex."""
    return isinstance(name, str) and _DIGEST.fullmatch(name) is not None


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
    with _read_from(digest):
        return safetensors.numpy.load(content)


class ObjectStore:
    """A folder of objects. A file is whole or absent, and its bytes are checked once before they are used."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._checked: set[str] = set()

    def path(self, digest: str) -> Path:
        """Where the object with this digest lies. Raises CheckpointError if that is none: it names a file."""
        if not is_digest(digest):
            raise CheckpointError(
                refusal(f"object {digest[:12]!r}", "its name is no SHA-256 in hex", "name it by its digest")
            )
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
        with _read_from(digest):
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
        """Write what is known to be whole, also in the place of a file of this name that is damaged."""
        if digest in self:
            try:
                self.check(digest)
                return
            except CheckpointError:
                pass
        atomic.write_bytes(self.path(digest), content)
        self._checked.add(digest)


class Reader(Mapping[str, np.ndarray]):
    """The arrays of some objects by name, each read from disk when it is asked for and not kept.

    Objects of up to _HELD_BYTES are read whole and held. Of larger ones no file stays open: pages of a mapped file
    count as memory of whoever reads it. Reading raises CheckpointError if an object is absent, damaged or no
    safetensors file.
    """

    def __init__(self, objects: ObjectStore, digests: Sequence[str]) -> None:
        self._objects = objects
        self._digests = list(digests)
        self._held: dict[str, np.ndarray] = {}
        self._places: dict[str, tuple[str, tuple[int, ...]]] | None = None

    def __getitem__(self, name: str) -> np.ndarray:
        digest, _ = self._index()[name]
        if name not in self._held:
            return self._read(digest, name)
        return self._held[name]

    def __contains__(self, name: object) -> bool:
        return name in self._index()

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._index()))

    def __len__(self) -> int:
        return len(self._index())

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of an array, without reading it."""
        return self._index()[name][1]

    def _index(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Name -> digest of its object, and shape."""
        if self._places is None:
            places: dict[str, tuple[str, tuple[int, ...]]] = {}
            for digest in self._digests:
                small = self._objects.check(digest).stat().st_size <= _HELD_BYTES
                with self._opened(digest) as handle:
                    names: list[str] = handle.keys()
                    for name in names:
                        places[name] = (digest, tuple(handle.get_slice(name).get_shape()))
                        if small:
                            self._held[name] = _array(handle, name)
            self._places = places
        return self._places

    def _read(self, digest: str, name: str) -> np.ndarray:
        with self._opened(digest) as handle:
            return _array(handle, name)

    @contextmanager
    def _opened(self, digest: str) -> Iterator[Any]:
        with _read_from(digest), safe_open(self._objects.path(digest), framework="numpy") as handle:
            yield handle


_DAMAGED = (ValueError, KeyError, TypeError, AttributeError, FileNotFoundError, safetensors.SafetensorError)


@contextmanager
def _read_from(digest: str) -> Iterator[None]:
    """Raise CheckpointError if the block finds no safetensors file, or arrays of a type that numpy lacks."""
    try:
        yield
    except _DAMAGED as error:
        raise CheckpointError(
            refusal(f"object {digest[:12]}", f"no safetensors ({error})", "write it with safetensors")
        ) from None


def _array(handle: Any, name: str) -> np.ndarray:
    try:
        array: np.ndarray = handle.get_tensor(name)
    except (safetensors.SafetensorError, TypeError, AttributeError) as error:
        # numpy has no array of the file's type: bfloat16, 8-bit floats.
        raise CheckpointError(
            refusal(f"tensor {name!r}", f"cannot be read ({error})", "write a type that numpy has")
        ) from None
    return array
