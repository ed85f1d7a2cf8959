"""Packed genotypes of everybody at some consecutive SNPs: between a genotype file and the store."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pm1_core.data.genotype import ABSENT, pack, packed_width
from pm1_core.fields import MISSING_DOSAGE

_LOW = np.uint8(0b01010101)
_ROW_BYTES = (
    1 << 17
)  # of packed rows that are looked at together: the cache holds them and what is made of them


@dataclass(frozen=True)
class Block:
    """Genotypes of one chromosome.

    first: index of the first SNP on the chromosome, a multiple of 4
    packed: uint8 [people, w], see `genotype.pack`
    held: bool [4 w], which SNPs the file gives; the others are missing for everybody
    """

    chromosome: int
    first: int
    packed: np.ndarray
    held: np.ndarray

    @property
    def snps(self) -> np.ndarray:
        """int64 indices of the SNPs that the file gives."""
        return self.first + np.flatnonzero(self.held)

    def statistics(self) -> tuple[np.ndarray, np.ndarray]:
        """Missing calls a person, int64 [people], and which SNPs have one value at most, bool [4 w].

        SNPs that the file does not give count for neither.
        """
        people, width = self.packed.shape
        missing = np.zeros(people, np.int64)
        # Over the bits of all known calls: a SNP has one value if "and" and "or" agree, none if 3 and 0 are left.
        every, some = np.full(width, 0xFF, np.uint8), np.zeros(width, np.uint8)
        rows = max(1, _ROW_BYTES // max(1, width))
        for start in range(0, people, rows):
            part = self.packed[start : start + rows]
            unknown = part >> np.uint8(1)
            unknown &= part
            unknown &= _LOW
            missing[start : start + rows] = np.bitwise_count(unknown).sum(axis=1, dtype=np.int64)
            unknown *= np.uint8(3)
            np.invert(unknown, out=unknown)
            unknown &= part  # known calls, 0 where missing
            some |= np.bitwise_or.reduce(unknown, axis=0)
            every &= np.bitwise_and.reduce(part, axis=0)
        low, high = _spread(every), _spread(some)
        constant = self.held & ((low == high) | (low == MISSING_DOSAGE))
        return missing - int((~self.held).sum()), constant


def block_of(chromosome: int, snps: np.ndarray, dosages: np.ndarray) -> Block:
    """A block from dosages uint8 [people, k] of distinct SNPs `snps`, int64 [k] in any order."""
    first, width = int(snps.min()) // 4 * 4, packed_width(int(snps.max()) + 1) - int(snps.min()) // 4
    held = np.zeros(4 * width, bool)
    held[snps - first] = True
    whole = np.full((len(dosages), 4 * width), MISSING_DOSAGE, np.uint8)
    whole[:, snps - first] = dosages
    return Block(chromosome, first, pack(whole), held)


def turn(packed: np.ndarray, snps: np.ndarray) -> None:
    """Count the other allele at `snps`, bool [4 w], of `packed` uint8 [n, w], in place: 0 <-> 2."""
    if snps.any():
        flipped = ~packed
        flipped <<= np.uint8(1)
        flipped &= _bits(snps, 0b10)
        packed ^= flipped


def remove(packed: np.ndarray, snps: np.ndarray) -> None:
    """Set everybody to missing at `snps`, bool [4 w], of `packed` uint8 [n, w], in place."""
    if snps.any():
        packed |= _bits(snps, MISSING_DOSAGE)


def replace(packed: np.ndarray, snp: int, dosages: np.ndarray) -> None:
    """Put dosages uint8 [n] at one SNP of `packed` uint8 [n, w], in place."""
    byte, shift = snp // 4, 2 * (snp % 4)
    column = packed[:, byte] & np.uint8(ABSENT ^ MISSING_DOSAGE << shift)
    packed[:, byte] = column | dosages << np.uint8(shift)


def _bits(snps: np.ndarray, value: int) -> np.ndarray:
    """uint8 [w] with `value` at the chosen of four SNPs a byte."""
    weights = np.array([value << shift for shift in (0, 2, 4, 6)], np.uint8)
    bits: np.ndarray = np.where(snps.reshape(-1, 4), weights, np.uint8(0))
    return np.asarray(np.bitwise_or.reduce(bits, axis=1))


def _spread(packed: np.ndarray) -> np.ndarray:
    """uint8 [w] -> [4 w]."""
    shifts = np.array([0, 2, 4, 6], np.uint8)
    return np.asarray((packed[:, None] >> shifts & np.uint8(3)).reshape(-1))
