"""Matching a site's variants to the study's reference list.

A variant is matched by chromosome, position and alleles, never by identifier: identifiers are merged,
split and missing (".").
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from pm1_core.data.alleles import NO_BASE, Orientation, base_codes, is_palindromic, orient, orient_bases
from pm1_core.data.identifiers import Identifiers
from pm1_core.data.preparation_report import ROWS_KEPT, Findings

Note = Callable[[str, str], None]


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


@dataclass(frozen=True)
class Matches:
    """Variants of two alleles that are SNPs of the study, as arrays [m], and `several`: those of more alleles.

    chromosome, snp, source: int64 as in `Match`; flipped: bool, the file's first allele is the study's alternate
    """

    chromosome: np.ndarray
    snp: np.ndarray
    source: np.ndarray
    flipped: np.ndarray
    several: tuple[Match, ...]


class Matcher:
    """Matches a file's variants to the study's list, all at once or one by one, and counts what it meets."""

    def __init__(self, variants: pd.DataFrame, palindromic: str, findings: Findings) -> None:
        """variants: the study's list, sorted; palindromic: "drop" or "keep"."""
        self._variants, self._findings = variants, findings
        self._keep_palindromic = palindromic == "keep"
        self._chromosome = variants["chrom"].to_numpy(np.int64)
        self._position = variants["pos"].to_numpy(np.int64)
        self._keys = (self._chromosome << 32) | self._position
        starts = np.searchsorted(self._chromosome, np.arange(24))
        self._within = np.arange(len(self._keys)) - starts[self._chromosome]
        self._taken = np.zeros(len(self._keys), bool)
        self._dropped = np.zeros(len(self._keys), bool)
        self._mismatched: dict[int, tuple[str, str]] = {}
        self.identifiers = Identifiers(variants["id"], self._keys)

    @cached_property
    def _bases(self) -> tuple[np.ndarray, np.ndarray]:
        return base_codes(self._variants["ref"]), base_codes(self._variants["alt"])

    @cached_property
    def _letters(self) -> tuple[list[str], list[str]]:
        return self._variants["ref"].tolist(), self._variants["alt"].tolist()

    @cached_property
    def _by_key(self) -> dict[int, list[int]]:
        by_key: dict[int, list[int]] = defaultdict(list)
        for index, key in enumerate(self._keys.tolist()):
            by_key[key].append(index)
        return dict(by_key)

    @property
    def chromosomes(self) -> dict[int, int]:
        """Chromosome -> SNPs of the study."""
        numbers, counts = np.unique(self._chromosome, return_counts=True)
        return dict(zip(numbers.tolist(), counts.tolist(), strict=True))

    def at_study_position(self, chromosomes: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Bool [n]: whether the study has a SNP there. chromosomes, positions: int64 [n]."""
        return self._place((chromosomes << 32) | positions) >= 0

    def _place(self, keys: np.ndarray) -> np.ndarray:
        """Index of the first SNP of the study with each key, -1 if there is none; int64 [n]."""
        if not len(self._keys):
            return np.full(len(keys), -1, np.int64)
        place = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        return np.where(self._keys[place] == keys, place, -1)

    def has_position(self, chromosome: int, position: int) -> bool:
        """`at_study_position` of one variant."""
        return ((chromosome << 32) | position) in self._by_key

    def offer_rows(self, file: object, rows: pd.DataFrame, sources: np.ndarray) -> Matches:
        """The matches of all variants of a file at positions of the study.

        rows: row, chrom, pos, ref, alt (several alternates separated by commas); sources: int64 [n]
        """
        keys = (rows["chrom"].to_numpy(np.int64) << 32) | rows["pos"].to_numpy(np.int64)
        place = self._place(keys)
        first, second = base_codes(rows["ref"]), base_codes(rows["alt"])
        after = np.minimum(place + 1, len(self._keys) - 1)
        alone = (after == place) | (self._keys[after] != keys)
        plain = alone & ~pd.Series(keys).duplicated(keep=False).to_numpy()
        plain &= (first != NO_BASE) & (second != NO_BASE) & (first != second)
        plain &= ~self._taken[place] & ~self._dropped[place]
        # One SNP, one variant, two bases: nearly all of a file, and all of them in a few operations.
        notes: dict[str, list[tuple[int, str]]] = defaultdict(list)
        counts: dict[str, int] = defaultdict(int)
        at = np.flatnonzero(plain)
        index = place[at]
        ref, alt = self._bases
        found = orient_bases(first[at], second[at], ref[index], alt[index])
        dropped = found.matched & found.palindromic & (not self._keep_palindromic)
        taken = found.matched & ~dropped
        self._dropped[index[dropped]] = True
        self._taken[index[taken]] = True
        for code, chosen in (
            ("genotype.palindromic", dropped),
            ("genotype.palindromic-kept", taken & found.palindromic),
            ("genotype.flipped", taken & found.flipped),
            ("genotype.strand", taken & found.strand),
        ):
            counts[code] += int(chosen.sum())
            for number in np.flatnonzero(chosen)[:ROWS_KEPT].tolist():
                text = self._text(rows.iloc[int(at[number])])
                study = "" if code == "genotype.palindromic" else self._study(int(index[number]))
                notes[code].append((int(at[number]), text + study))
        for number in np.flatnonzero(~found.matched).tolist():
            text = self._text(rows.iloc[int(at[number])]) + self._study(int(index[number]))
            self._mismatched.setdefault(int(index[number]), (str(file), text))
        singles = self._offer_singly(file, rows, sources, np.flatnonzero(~plain), notes, counts)
        for code, texts in notes.items():
            self._findings.add_some(code, file, counts[code], (text for _, text in sorted(texts)))
        two = [match for match in singles if match.n_alleles == 2]
        return Matches(
            np.r_[self._chromosome[index[taken]], _integers(match.chromosome for match in two)],
            np.r_[self._within[index[taken]], _integers(match.snp for match in two)],
            np.r_[sources[at[taken]], _integers(match.source for match in two)],
            np.r_[found.flipped[taken], np.array([match.orientation.alt == 0 for match in two], bool)],
            tuple(match for match in singles if match.n_alleles > 2),
        )

    def _offer_singly(
        self,
        file: object,
        rows: pd.DataFrame,
        sources: np.ndarray,
        at: np.ndarray,
        notes: dict[str, list[tuple[int, str]]],
        counts: dict[str, int],
    ) -> list[Match]:
        """`offer` for the rows `at`; what it notes goes to `notes` with its place in the file."""
        matches: list[Match] = []
        chosen = rows.iloc[at]
        columns = [chosen[name].tolist() for name in ("row", "chrom", "pos", "ref", "alt")]
        for place, source, row, chromosome, position, ref, alt in zip(
            at.tolist(), sources[at].tolist(), *columns, strict=True
        ):

            def note(code: str, text: str, place: int = place) -> None:
                counts[code] += 1
                notes[code].append((place, text))

            matches += self.offer(file, row, chromosome, position, [ref, *alt.split(",")], source, note)
        return matches

    def offer(
        self,
        file: object,
        row: int,
        chromosome: int,
        position: int,
        alleles: Sequence[str],
        source: int,
        note: Note | None = None,
    ) -> list[Match]:
        """The matches of one variant: none, one, or several if the study lists several pairs at a position.

        alleles: reference first; row: of the file, for the report; source: handed back in the match;
        note: takes code and text of a finding in place of the findings
        """
        note = note or (lambda code, text: self._findings.add(code, file, text))
        upper = [allele.upper() for allele in alleles]
        text = f"row {row} ({chromosome}:{position} {'/'.join(upper)})"
        matches, again = [], False
        for index in self._by_key.get((chromosome << 32) | position, ()):
            ref, alt = self._letters[0][index], self._letters[1][index]
            orientation = orient(upper, ref, alt)
            if orientation is None:
                self._mismatched.setdefault(index, (str(file), text + self._study(index)))
            elif self._taken[index] or self._dropped[index]:
                again = True
            elif is_palindromic(ref, alt) and not self._keep_palindromic:
                self._dropped[index] = True
                note("genotype.palindromic", text)
            else:
                self._taken[index] = True
                for code, met in (
                    ("genotype.palindromic-kept", is_palindromic(ref, alt)),
                    ("genotype.multiallelic", len(alleles) > 2),
                    ("genotype.flipped", orientation.flipped),
                    ("genotype.strand", orientation.strand),
                    ("genotype.one-allele", orientation.one_allele),
                ):
                    if met:
                        note(code, text + self._study(index))
                within = int(self._within[index])
                matches.append(Match(chromosome, within, source, len(alleles), orientation, text))
        if again and not matches:
            note("genotype.duplicate-variant", text)
        return matches

    def _text(self, row: pd.Series) -> str:
        return f"row {row['row']} ({row['chrom']}:{row['pos']} {row['ref']}/{row['alt']})"

    def _study(self, index: int) -> str:
        return f", study {self._letters[0][index]}/{self._letters[1][index]}"

    @property
    def matched(self) -> int:
        """How many SNPs of the study were found and are used."""
        return int(self._taken.sum())

    def finish(self, file_of: Callable[[int], object]) -> None:
        """Count what was not found in any row. file_of: chromosome -> the file to name for absent SNPs."""
        for index, (where, row) in self._mismatched.items():
            if not self._taken[index] and not self._dropped[index]:
                self._findings.add("genotype.allele-mismatch", where, row)
        absent = ~self._taken & ~self._dropped
        absent[list(self._mismatched)] = False
        for chromosome in np.unique(self._chromosome[absent]).tolist():
            here = np.flatnonzero(absent & (self._chromosome == chromosome))
            texts = (
                f"{chromosome}:{self._position[i]} {self._letters[0][i]}/{self._letters[1][i]}" for i in here
            )
            self._findings.add_some("genotype.absent", file_of(chromosome), len(here), texts)


def _integers(values: Iterable[int]) -> np.ndarray:
    return np.fromiter(values, np.int64)
