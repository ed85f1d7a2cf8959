"""Orientation of a site's variants against the study's reference list.

A variant is matched by chromosome, position and alleles, never by identifier: identifiers are merged,
split and missing ("."). A dosage is always the count of the study's alternate allele.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pandas as pd

from pm1_core.data.preparation_report import Findings
from pm1_core.errors import DataError
from pm1_core.validate import refusal

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


@dataclass(frozen=True)
class Match:
    """A variant of a file that is a SNP of the study.

    snp: index within its chromosome; source: the caller's own number; place: row and alleles, for findings
    """

    chromosome: int
    snp: int
    source: int
    n_alleles: int
    orientation: Orientation
    place: str


class Matcher:
    """Matches a file's variants to the study's list, one after the other, and counts what it meets."""

    def __init__(self, variants: pd.DataFrame, palindromic: str, findings: Findings) -> None:
        """variants: the study's list, sorted; palindromic: "drop" or "keep"."""
        self._findings, self._keep_palindromic = findings, palindromic == "keep"
        self._chromosome = variants["chrom"].to_numpy(np.int64)
        self._position = variants["pos"].to_numpy(np.int64)
        self._ref, self._alt = variants["ref"].tolist(), variants["alt"].tolist()
        self._keys = (self._chromosome << 32) | self._position
        starts = np.searchsorted(self._chromosome, np.arange(24))
        self._within = np.arange(len(self._keys)) - starts[self._chromosome]
        self._by_key: dict[int, list[int]] = defaultdict(list)
        for index, key in enumerate(self._keys.tolist()):
            self._by_key[key].append(index)
        self._identifiers = {
            i: k for i, k in zip(variants["id"], self._keys.tolist(), strict=True) if i.startswith("rs")
        }
        self._taken = np.zeros(len(self._keys), bool)
        self._dropped = np.zeros(len(self._keys), bool)
        self._mismatched: dict[int, tuple[str, str]] = {}
        self._same_identifier = self._moved = 0
        self._moved_example = ""

    def at_study_position(self, chromosomes: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Bool [n]: whether the study has a SNP there. chromosomes, positions: int64 [n]."""
        return np.isin((chromosomes << 32) | positions, self._keys)

    def has_position(self, chromosome: int, position: int) -> bool:
        """`at_study_position` of one variant."""
        return ((chromosome << 32) | position) in self._by_key

    def has_identifier(self, identifiers: pd.Series) -> np.ndarray:
        """Bool [n]: which identifiers are rs-numbers of the study's list."""
        return identifiers.isin(list(self._identifiers)).to_numpy(bool)

    def note_identifier(self, identifier: str, chromosome: int, position: int, where: str) -> None:
        """Compare the position of an rs-number with the study's; see `check_build`."""
        known = self._identifiers.get(identifier)
        if known is not None:
            self._same_identifier += 1
            if known != (chromosome << 32) | position:
                self._moved += 1
                self._moved_example = self._moved_example or (
                    f"{where}: found {identifier} at {chromosome}:{position}, where the study has it at"
                    f" {known >> 32}:{known & 0xFFFFFFFF}"
                )

    def check_build(self, file: object, build: str) -> None:
        """Raise DataError if most identifiers shared with the study lie elsewhere: another genome build."""
        if self._same_identifier >= 10 and 2 * self._moved > self._same_identifier:
            raise DataError(
                refusal(
                    self._moved_example,
                    f"and {self._moved} of {self._same_identifier} shared identifiers lie elsewhere",
                    f"{file} is not on {build}: lift it over, or correct genotype.build",
                )
            )

    def offer(
        self, file: object, row: int, chromosome: int, position: int, alleles: Sequence[str], source: int
    ) -> list[Match]:
        """The matches of one variant: none, one, or several if the study lists several pairs at a position.

        alleles: reference first; row: of the file, for the report; source: handed back in the match.
        """
        upper = [allele.upper() for allele in alleles]
        text = f"row {row} ({chromosome}:{position} {'/'.join(upper)})"
        matches, again = [], False
        for index in self._by_key.get((chromosome << 32) | position, ()):
            ref, alt = self._ref[index], self._alt[index]
            orientation = orient(upper, ref, alt)
            if orientation is None:
                self._mismatched.setdefault(index, (str(file), f"{text}, study {ref}/{alt}"))
            elif self._taken[index] or self._dropped[index]:
                again = True
            elif is_palindromic(ref, alt) and not self._keep_palindromic:
                self._dropped[index] = True
                self._findings.add("genotype.palindromic", file, text)
            else:
                self._taken[index] = True
                self._note(
                    file, f"{text}, study {ref}/{alt}", is_palindromic(ref, alt), len(alleles), orientation
                )
                within = int(self._within[index])
                matches.append(Match(chromosome, within, source, len(alleles), orientation, text))
        if again and not matches:
            self._findings.add("genotype.duplicate-variant", file, text)
        return matches

    def _note(
        self, file: object, text: str, palindromic: bool, n_alleles: int, orientation: Orientation
    ) -> None:
        for code, found in (
            ("genotype.palindromic-kept", palindromic),
            ("genotype.multiallelic", n_alleles > 2),
            ("genotype.flipped", orientation.flipped),
            ("genotype.strand", orientation.strand),
            ("genotype.one-allele", orientation.one_allele),
        ):
            if found:
                self._findings.add(code, file, text)

    @property
    def matched(self) -> int:
        """How many SNPs of the study were found and are used."""
        return int(self._taken.sum())

    def finish(self, file_of: Callable[[int], object]) -> None:
        """Count what was not found in any row. file_of: chromosome -> the file to name for absent SNPs."""
        for index, (where, row) in self._mismatched.items():
            if not self._taken[index] and not self._dropped[index]:
                self._findings.add("genotype.allele-mismatch", where, row)
        for index in np.flatnonzero(~self._taken & ~self._dropped).tolist():
            if index not in self._mismatched:
                self._findings.add(
                    "genotype.absent", file_of(int(self._chromosome[index])),
                    f"{self._chromosome[index]}:{self._position[index]} {self._ref[index]}/{self._alt[index]}",
                )  # fmt: skip


def blocks(indices: np.ndarray, size: int) -> list[slice]:
    """Consecutive slices over `indices` of at most `size` elements.

    >>> blocks(np.arange(5), 2)
    [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    edges = [*range(0, len(indices), size), len(indices)]
    return [slice(a, b) for a, b in pairwise(edges)]
