"""Orientation of a variant's alleles against the study's: which is which, and on which strand.

A dosage is always the count of the study's alternate allele.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

_COMPLEMENT = {"A": "T", "T": "A", "C": "G", "G": "C"}
_UNKNOWN = frozenset({"0", ".", "", "N", "<NON_REF>", "<*>"})


def is_palindromic(ref: str, alt: str) -> bool:
    """Whether both strands read alike, so that a flip and the other strand cannot be told apart."""
    return _COMPLEMENT.get(ref) == alt


@dataclass(frozen=True)
class Orientation:
    """Which of a file's alleles are the study's. Codes count the file's alleles from 0 (its reference).

    ref, alt: codes of the study's alleles; every other code is a third allele
    flipped: the file's first allele is the study's alternate; strand: alleles were complemented
    """

    ref: int
    alt: int
    flipped: bool
    strand: bool
    one_allele: bool = False


def orient(alleles: Sequence[str], ref: str, alt: str) -> Orientation | None:
    """How a file's `alleles` (reference first, in capitals) give the study's `ref` and `alt`; None if they do not.

    An allele that the file leaves open ("0" in .bim, "." in VCF) is the study's other one. The strand
    as given is preferred; palindromic pairs are only ever taken as given.

    >>> orient(["A", "G"], "A", "G")
    Orientation(ref=0, alt=1, flipped=False, strand=False, one_allele=False)
    >>> orient(["C", "T"], "A", "G")
    Orientation(ref=1, alt=0, flipped=True, strand=True, one_allele=False)
    >>> orient(["A", "C"], "A", "G") is None
    True
    """
    known = [allele for allele in alleles if allele not in _UNKNOWN]
    open_place = len(known) < len(alleles) or len(alleles) == 1
    for strand in (False, True):
        if strand and is_palindromic(ref, alt):
            break
        wanted = (_COMPLEMENT[ref], _COMPLEMENT[alt]) if strand else (ref, alt)
        places = [alleles.index(allele) if allele in alleles else -1 for allele in wanted]
        if min(places) >= 0:
            return Orientation(places[0], places[1], places[1] < places[0], strand)
        if max(places) >= 0 and open_place and len(known) == 1:
            other = 1 - max(places)
            ref_place, alt_place = (places[0], other) if places[0] >= 0 else (other, places[1])
            return Orientation(ref_place, alt_place, alt_place < ref_place, strand, one_allele=True)
    return None


NO_BASE = 9
"""What `base_codes` gives for anything but a single capital base."""
_BASES = pa.array(["A", "C", "G", "T"])


def base_codes(alleles: pd.Series) -> np.ndarray:
    """uint8 [n]: 0 to 3 for A, C, G, T, so that 3 - code is the complement; NO_BASE for everything else."""
    found = pc.index_in(pa.array(alleles, pa.string()), value_set=_BASES)
    return np.asarray(pc.fill_null(found, NO_BASE).to_numpy(zero_copy_only=False), np.uint8)


@dataclass(frozen=True)
class Orientations:
    """`orient` of many variants of two known bases: bool [n] each."""

    matched: np.ndarray
    flipped: np.ndarray
    strand: np.ndarray
    palindromic: np.ndarray


def orient_bases(first: np.ndarray, second: np.ndarray, ref: np.ndarray, alt: np.ndarray) -> Orientations:
    """`orient` for codes of `base_codes` [n]: a file's first and second allele, and the study's two."""

    def equal(one: np.ndarray, other: np.ndarray) -> np.ndarray:
        return np.asarray((first == one) & (second == other))

    palindromic = ref + alt == 3
    given, turned = equal(ref, alt), equal(alt, ref)
    strand = ~palindromic & equal(3 - ref, 3 - alt)
    both = ~palindromic & equal(3 - alt, 3 - ref)
    return Orientations(given | turned | strand | both, turned | both, strand | both, palindromic)
