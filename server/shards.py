"""Safetensors files read tensor by tensor, and cut anew from others block by block: no model is ever in memory.

Layout of a file: a little-endian uint64 n, n bytes of JSON (name -> dtype, shape, offsets into what follows), data.
Source: huggingface/safetensors, README, "Format".
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from pm1_core.errors import CheckpointError, InputError
from pm1_core.validate import refusal

_BLOCK = 2**22
_NUMPY = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "I64": np.int64, "I32": np.int32, "I16": np.int16,
    "I8": np.int8, "U64": np.uint64, "U32": np.uint32, "U16": np.uint16, "U8": np.uint8, "BOOL": np.bool_,
}  # fmt: skip
_ALIGNED = 8

_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def bytes_of(text: str) -> int:
    """A size in words as bytes. Raises InputError if it is none.

    >>> bytes_of("5GB"), bytes_of("200 MiB")
    (5000000000, 209715200)
    """
    found = re.fullmatch(r"(\d+)\s*([A-Za-z]*)", text.strip())
    if not found or found[2].upper() not in _UNITS or not int(found[1]):
        raise InputError(refusal("shard size", f"found {text!r}", "write a number with KB, MB, GB or GiB"))
    return int(found[1]) * _UNITS[found[2].upper()]


@dataclass(frozen=True)
class Entry:
    """A tensor in a safetensors file: `length` bytes of `dtype` ("F32", ...) from byte `start` of `file` on."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    start: int
    length: int

    @property
    def parameters(self) -> int:
        """Numbers in it."""
        return math.prod(self.shape)

    def read(self) -> np.ndarray:
        """The tensor. Unlike a memory map, it leaves nothing behind in the memory of this process.

        Raises CheckpointError for a kind of number that numpy lacks.
        """
        if self.dtype not in _NUMPY:
            found = f"tensor {self.name!r} is of {self.dtype}"
            raise CheckpointError(refusal(self.file, found, f"use one of {', '.join(_NUMPY)}"))
        flat: np.ndarray = np.fromfile(self.file, _NUMPY[self.dtype], self.parameters, offset=self.start)
        return flat.reshape(self.shape)


def entries(file: Path) -> list[Entry]:
    """The tensors of a safetensors file in the order of names. Raises CheckpointError if it is none."""
    with file.open("rb") as stream:
        try:
            # It holds what a header says against the file: that offsets fit sizes and types, and each other.
            with safe_open(file, framework="numpy"):
                pass
            (size,) = struct.unpack("<Q", stream.read(8))
            header: Any = json.loads(stream.read(size))
            found = [
                Entry(
                    name=name,
                    dtype=tensor["dtype"],
                    shape=tuple(tensor["shape"]),
                    file=file,
                    start=8 + size + tensor["data_offsets"][0],
                    length=tensor["data_offsets"][1] - tensor["data_offsets"][0],
                )
                for name, tensor in header.items()
                if name != "__metadata__"
            ]
        except (
            SafetensorError,
            struct.error,
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
            RecursionError,
        ):
            raise CheckpointError(
                refusal(file, "found no safetensors file", "restore it from a copy")
            ) from None
    return sorted(found, key=lambda entry: entry.name)


def shards(tensors: Iterable[Entry], limit: int) -> list[list[Entry]]:
    """Cut into groups of at most `limit` bytes in the given order; a larger tensor is a group of its own."""
    groups: list[list[Entry]] = [[]]
    size = 0
    for tensor in tensors:
        if groups[-1] and size + tensor.length > limit:
            groups.append([])
            size = 0
        groups[-1].append(tensor)
        size += tensor.length
    return groups


def write(path: Path, tensors: Sequence[Entry], metadata: Mapping[str, str]) -> None:
    """Write tensors of other files as one safetensors file, in the given order, under the names they carry."""
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    offset = 0
    for tensor in tensors:
        end = offset + tensor.length
        header[tensor.name] = {
            "dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [offset, end],
        }  # fmt: skip
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNED)
    with path.open("xb") as stream:
        stream.write(struct.pack("<Q", len(text)))
        stream.write(text)
        for tensor in tensors:
            with tensor.file.open("rb") as source:
                source.seek(tensor.start)
                left = tensor.length
                while left:
                    block = source.read(min(left, _BLOCK))
                    if not block:
                        raise CheckpointError(refusal(tensor.file, "it ends early", "restore it from a copy"))
                    stream.write(block)
                    left -= len(block)
