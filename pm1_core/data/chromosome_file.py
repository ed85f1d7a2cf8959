"""The chromosome files of a store, .npy files of packed genotypes that are filled block by block."""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from pm1_core import atomic
from pm1_core.data.arrays import write_header
from pm1_core.data.genotype import ABSENT, packed_width
from pm1_core.data.genotype_blocks import Block

_FILLED_AT_ONCE = 4 << 20


class ChromosomeWriter:
    """One chromosome of a store, uint8 [people, ceil(n_snps / 4)]; what no block gives is missing.

    Blocks go to the file as they come, so that memory holds none: a mapped file would count as this process's
    memory, and grow with the people.
    """

    def __init__(self, path: Path, people: int, n_snps: int) -> None:
        self.n_snps, self.people, self.width = n_snps, people, packed_width(n_snps)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._written = np.zeros(self.width, bool)
        self._stream = path.open("w+b", buffering=0)
        self._start = write_header(self._stream, (people, self.width), np.dtype(np.uint8))
        self._stream.truncate(self._start + people * self.width)

    def put(self, block: Block) -> None:
        """Write a block; no SNP may come twice."""
        first = block.first // 4
        columns = slice(first, first + block.packed.shape[1])
        packed = np.ascontiguousarray(block.packed)
        if self._written[columns].any():
            # Unwritten SNPs are 3, all bits set, in the file and in the block alike.
            packed &= np.where(self._written[columns], self._read(columns), np.uint8(ABSENT))
        self._write(columns.start, packed)
        self._written[columns] = True

    def finish(self) -> None:
        """Fill up what no block gave, and close."""
        if not self._written.all():
            self._fill()
        self.sync()
        self._stream.close()

    def sync(self) -> None:
        """Bring what has been written to the disk."""
        atomic.sync(self._stream.fileno())

    def abandon(self) -> None:
        """Close the file as it is."""
        self._stream.close()

    def _fill(self) -> None:
        edges = np.flatnonzero(np.diff(np.r_[True, self._written, True])).reshape(-1, 2)
        for start, stop in edges.tolist():
            rows = max(1, _FILLED_AT_ONCE // (stop - start))
            for row in range(0, self.people, rows):
                count = min(rows, self.people - row)
                self._write(start, np.full((count, stop - start), ABSENT, np.uint8), row)

    def _read(self, columns: slice) -> np.ndarray:
        width = columns.stop - columns.start
        rows = [
            os.pread(self._stream.fileno(), width, self._place(row, columns.start))
            for row in range(self.people)
        ]
        return np.frombuffer(b"".join(rows), np.uint8).reshape(self.people, width)

    def _write(self, column: int, packed: np.ndarray, row: int = 0) -> None:
        """Rows of `packed` from `row` on, from byte `column` on; whole rows in one go."""
        if packed.shape[1] == self.width:
            self._write_bytes(packed.reshape(-1).data, self._place(row, 0))
            return
        for number, part in enumerate(packed, row):
            self._write_bytes(part.data, self._place(number, column))

    def _write_bytes(self, content: memoryview, place: int) -> None:
        while len(content):  # a disk that is full, or a signal, may take a part only
            done = os.pwrite(self._stream.fileno(), content, place)
            content, place = content[done:], place + done

    def _place(self, row: int, column: int) -> int:
        return self._start + row * self.width + column


class ChromosomeFiles:
    """All chromosome files of a store, while they are written; a thread brings them to the disk meanwhile."""

    def __init__(self, folder: Path | None, people: int, sizes: Mapping[int, int]) -> None:
        """folder: None to write nothing; sizes: chromosome -> SNPs."""
        self._disk = ThreadPoolExecutor(1)
        self._synced: list[Future[None]] = []
        self._files: dict[int, ChromosomeWriter] = {}
        if folder is not None:
            for chromosome, size in sizes.items():
                self._files[chromosome] = ChromosomeWriter(folder / f"chr{chromosome}.npy", people, size)

    def put(self, block: Block) -> None:
        """Write a block of any chromosome; no SNP may come twice."""
        if self._files:
            self._files[block.chromosome].put(block)
            self._synced.append(self._disk.submit(self._files[block.chromosome].sync))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._disk.shutdown(cancel_futures=kind is not None)
        try:
            for file in self._files.values() if kind is None else ():
                file.finish()
            for synced in self._synced if kind is None else ():
                synced.result()  # a disk that failed says so here
        finally:
            for file in self._files.values():
                file.abandon()
