"""Numpy files that grow row by row, so that no whole matrix stands in memory."""

from __future__ import annotations

import os
from io import BufferedRandom, RawIOBase
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np

_HEADER = 128


def write_header(stream: BinaryIO | RawIOBase, shape: tuple[int, ...], dtype: np.dtype[Any]) -> int:
    """Write the header of a .npy file in C order; returns where its data start."""
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, header)
    return stream.tell()


class RowWriter:
    """Writes a .npy file of shape [rows, *shape] whose number of rows is known only at the end.

    The header of a .npy file is padded to a multiple of 64 bytes, so that 128 bytes hold any of ours;
    it is written last. Until `close` the file has no valid header and cannot be read by accident.
    """

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: str) -> None:
        self._shape, self._dtype, self.rows = shape, np.dtype(dtype), 0
        path.parent.mkdir(parents=True, exist_ok=True)
        self._stream: BufferedRandom = path.open("w+b")
        self._stream.write(b"\0" * _HEADER)

    def append(self, block: np.ndarray) -> None:
        """Add `block` [any, *shape]."""
        if block.shape[1:] != self._shape:
            raise ValueError(f"block of shape {block.shape} for rows of shape {self._shape}")
        self._stream.write(np.ascontiguousarray(block, self._dtype).tobytes())
        self.rows += len(block)

    def close(self) -> None:
        """Write the header."""
        if self._stream.closed:
            return
        self._stream.seek(0)
        if write_header(self._stream, (self.rows, *self._shape), self._dtype) != _HEADER:
            raise ValueError(f"header of {self._stream.tell()} bytes")
        self._stream.seek(0, os.SEEK_END)
        self._stream.close()

    def __enter__(self) -> RowWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self._stream.close()


def read_rows(path: Path) -> np.ndarray:
    """A .npy file as a read-only memory map; an empty one as an empty array (nothing can be mapped)."""
    with path.open("rb") as stream:
        np.lib.format.read_magic(stream)
        shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
    if 0 in shape:
        return np.empty(shape, dtype)
    mapped: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    return mapped
