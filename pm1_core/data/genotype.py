"""Two bits a SNP: packing and unpacking.

Four SNPs a byte, SNP i of a byte at `value << (2 * i)`, 3 = missing, one row per person (appendix E.2).
This is neither the layout of .bed nor of .pgen; those are read through their library.
"""

from __future__ import annotations

import numpy as np

from pm1_core.errors import InputError
from pm1_core.fields import MISSING_DOSAGE
from pm1_core.validate import refusal

ABSENT = 0xFF
"""A byte of four missing genotypes."""
_SHIFTS = np.array([0, 2, 4, 6], np.uint8)
_UNPACKED = ((np.arange(256, dtype=np.uint8)[:, None] >> _SHIFTS) & 3).astype(np.uint8)
# Two bytes at a time: eight dosages are looked up as one word, whose bytes lie in memory order on any machine.
# The table is 512 KiB, which a core's second cache holds.
_PAIRS = np.arange(1 << 16, dtype=np.uint16).view(np.uint8)
_WORDS = _UNPACKED[_PAIRS].reshape(1 << 16, 8).view(np.uint64).reshape(1 << 16)
_AT_ONCE = 1 << 15
_PACKED_AT_ONCE = 1 << 18


def packed_width(n_snps: int) -> int:
    """Bytes a person: ceil(n_snps / 4)."""
    return (n_snps + 3) // 4


def pack(dosages: np.ndarray) -> np.ndarray:
    """Pack uint8 [n, S] of 0, 1, 2, 3 into uint8 [n, ceil(S / 4)]; unused slots of the last byte are 3.

    Raises InputError if a value is above 3.
    """
    dosages = np.asarray(dosages, np.uint8)
    people, n_snps = dosages.shape
    if dosages.size and dosages.max() > MISSING_DOSAGE:
        raise InputError(refusal("dosages", f"found {dosages.max()}", "use 0, 1, 2, or 3 for missing"))
    width = packed_width(n_snps)
    if 4 * width != n_snps or not dosages.flags.c_contiguous:
        whole = np.full((people, 4 * width), MISSING_DOSAGE, np.uint8)
        whole[:, :n_snps] = dosages
        dosages = whole
    packed = np.empty((people, width), np.uint8)
    pack_calls(dosages, packed)
    return packed


def pack_calls(calls: np.ndarray, out: np.ndarray) -> None:
    """As `pack`, without a check: the lower two bits of each byte of `calls` [n, 4 w] into `out` uint8 [n, w].

    pgenlib's -9 for a missing call has 3 there, so that its calls need no translation.
    """
    rows = max(1, _PACKED_AT_ONCE // max(1, calls.shape[1]))  # what the cache holds
    for start in range(0, len(calls), rows):
        # Little-endian words on any machine: four calls, the first in the lowest byte.
        words = calls[start : start + rows].view("<u4") & np.uint32(0x03030303)
        # One product moves the four pairs of bits into the highest byte; no two terms of it share a bit.
        words *= np.uint32(1 << 24 | 1 << 18 | 1 << 12 | 1 << 6)
        out[start : start + rows] = words >> np.uint32(24)


def unpack(packed: np.ndarray, n_snps: int) -> np.ndarray:
    """Undo `pack`: uint8 [n, ceil(n_snps / 4)] -> uint8 [n, n_snps]. Raises InputError on another width."""
    packed = np.ascontiguousarray(packed)
    people, width = packed.shape
    if width != packed_width(n_snps):
        raise InputError(
            refusal("packed genotypes", f"found {width} bytes a person", f"give {packed_width(n_snps)}")
        )
    whole = np.empty((people, 4 * width), np.uint8)
    even = packed.size // 2 * 2
    pairs, words = packed.reshape(-1)[:even].view(np.uint16), whole.reshape(-1)[: 4 * even].view(np.uint64)
    for start in range(0, len(pairs), _AT_ONCE):
        # "clip" because numpy would copy once more to be able to raise; no pair of bytes is out of bounds.
        part = slice(start, start + _AT_ONCE)
        np.take(_WORDS, pairs[part], out=words[part], mode="clip")
    if even < packed.size:
        whole[-1, -4:] = _UNPACKED[packed[-1, -1]]
    return whole[:, :n_snps]
