"""Readers of .pgen, .bed and .vcf.gz: people, and the study's SNPs in packed blocks.

Every reader gives the count of the study's alternate allele, 3 for missing, whatever the file's own
orientation, strand, sample order or layout.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
import pandas as pd
import pgenlib

from pm1_core.data.builds import check_contig_lengths
from pm1_core.data.genotype import ABSENT, pack_calls, packed_width
from pm1_core.data.genotype_blocks import Block, remove, replace, turn
from pm1_core.data.genotype_tables import read_people, read_variant_rows
from pm1_core.data.genotype_vcf import VcfGenotypes
from pm1_core.data.manifest import GenotypeSource
from pm1_core.data.matching import Match, Matcher, Matches
from pm1_core.data.preparation_report import ROWS_KEPT, Findings
from pm1_core.data.subjects import Person
from pm1_core.errors import DataError
from pm1_core.fields import MISSING_DOSAGE
from pm1_core.validate import refusal

# Of calls as pgenlib gives them, a byte each, and of packed genotypes: what memory holds of any number of people.
_CALL_BYTES = 64 << 20
_PACKED_BYTES = 128 << 20


class Genotypes(Protocol):
    """What preparation needs of a genotype file."""

    people: list[Person]

    @property
    def people_file(self) -> Path:
        """The file that names the people."""
        ...

    def files(self) -> list[Path]:
        """Every file that is read."""
        ...

    def file_of(self, chromosome: int) -> Path:
        """The file that lists the variants of `chromosome`, which may be absent."""
        ...

    def read(
        self, keep: np.ndarray, matcher: Matcher, progress: Callable[[int, int], None]
    ) -> Iterator[Block]:
        """The study's SNPs, block by block. keep: int64 indices into `people`, increasing; rows follow it."""
        ...


def open_genotypes(source: GenotypeSource, findings: Findings) -> Genotypes:
    """The reader for the manifest's format. Raises DataError if people or headers cannot be read."""
    if source.format == "vcf":
        return VcfGenotypes(source, findings)
    return PlinkGenotypes(source, findings)


class PlinkGenotypes:
    """.pgen or .bed through pgenlib, which reads both and gives hard calls of dosage files too."""

    def __init__(self, source: GenotypeSource, findings: Findings) -> None:
        self._source, self._findings = source, findings
        suffixes = (".pgen", ".pvar", ".psam") if source.format == "pgen" else (".bed", ".bim", ".fam")
        self._data, self._variants, self._people = (source.file(suffix) for suffix in suffixes)
        self.people = read_people(self._people)

    @property
    def people_file(self) -> Path:
        """The .psam or .fam."""
        return self._people

    def files(self) -> list[Path]:
        """The three files of the prefix."""
        return [self._data, self._variants, self._people]

    def file_of(self, chromosome: int) -> Path:
        """The .pvar or .bim."""
        return self._variants

    def read(
        self, keep: np.ndarray, matcher: Matcher, progress: Callable[[int, int], None]
    ) -> Iterator[Block]:
        """See `Genotypes.read`."""
        rows, contigs = read_variant_rows(self._variants)
        check_contig_lengths(str(self._variants), contigs, self._source.build)
        n_alleles = rows["alt"].str.count(",").to_numpy(np.int64) + 2
        reader = self._open(len(rows), n_alleles, keep)
        try:
            matches = self._match(rows, n_alleles, matcher)
            del rows
            sizes = matcher.chromosomes
            for done, (chromosome, size) in enumerate(sizes.items()):
                progress(done, len(sizes))
                yield from self._chromosome(reader, chromosome, size, matches, len(keep))
            progress(len(sizes), len(sizes))
        finally:
            reader.close()

    def _open(self, n_variants: int, n_alleles: np.ndarray, keep: np.ndarray) -> pgenlib.PgenReader:
        offsets = None
        if self._source.format == "pgen" and n_alleles.max(initial=2) > 2:
            offsets = np.concatenate([[0], np.cumsum(n_alleles)]).astype(np.uintp)
        try:
            reader = pgenlib.PgenReader(
                bytes(self._data), raw_sample_ct=len(self.people), variant_ct=n_variants,
                sample_subset=keep.astype(np.uint32), allele_idx_offsets=offsets,
            )  # fmt: skip
        except (RuntimeError, AssertionError, OSError) as problem:
            text = _sentence(problem)
            raise DataError(
                refusal(
                    self._data,
                    f"could not be read with {len(self.people)} people of {self._people.name} and {n_variants}"
                    f" variants of {self._variants.name} ({text})",
                    "use three files that were written together, whole",
                )
            ) from None
        return reader

    def _match(self, rows: pd.DataFrame, n_alleles: np.ndarray, matcher: Matcher) -> Matches:
        chromosomes, positions = rows["chrom"].to_numpy(np.int64), rows["pos"].to_numpy(np.int64)
        autosomal = chromosomes > 0
        here = autosomal & matcher.at_study_position(chromosomes, positions)
        self._count(rows, ~autosomal, "genotype.non-autosome")
        self._count(rows, autosomal & ~here, "genotype.not-in-study")
        self._count(rows, autosomal & ~here & (n_alleles > 2), "genotype.multiallelic-ignored")
        matcher.identifiers.note_rows(rows if autosomal.all() else rows[autosomal], self._variants)
        matcher.identifiers.check_build(self._variants, self._source.build)
        return matcher.offer_rows(
            self._variants, rows if here.all() else rows[here], np.flatnonzero(here).astype(np.int64)
        )

    def _count(self, rows: pd.DataFrame, chosen: np.ndarray, code: str) -> None:
        first = rows.iloc[np.flatnonzero(chosen)[:ROWS_KEPT]]
        texts = [
            f"row {r} ({i} at {p})" for r, i, p in zip(first["row"], first["id"], first["pos"], strict=True)
        ]
        self._findings.add_some(code, self._variants, int(chosen.sum()), texts)

    def _chromosome(
        self, reader: pgenlib.PgenReader, chromosome: int, size: int, matches: Matches, people: int
    ) -> Iterator[Block]:
        """The whole chromosome in blocks of bounded size; none if the file has nothing of it."""
        width = packed_width(size)
        source, flipped = np.full(4 * width, -1, np.int64), np.zeros(4 * width, bool)
        ours = matches.chromosome == chromosome
        source[matches.snp[ours]] = matches.source[ours]
        flipped[matches.snp[ours]] = matches.flipped[ours]
        several = [match for match in matches.several if match.chromosome == chromosome]
        held = source >= 0
        held[[match.snp for match in several]] = True
        if not held.any():
            return
        wide = min(width, max(1, _PACKED_BYTES // people))
        for first in range(0, width, wide):
            packed = np.empty((people, min(wide, width - first)), np.uint8)
            snps = slice(4 * first, 4 * (first + packed.shape[1]))
            self._read_calls(reader, source[snps], packed)
            turn(packed, flipped[snps])
            for match in several:
                if snps.start <= match.snp < snps.stop:
                    replace(packed, match.snp - snps.start, self._multiallelic(reader, match, people))
            yield Block(chromosome, snps.start, packed, held[snps])

    def _read_calls(self, reader: pgenlib.PgenReader, source: np.ndarray, packed: np.ndarray) -> None:
        """Calls of the variants `source`, int64 [4 w], -1 for none, into `packed` uint8 [people, w]."""
        people, width = packed.shape
        wide = min(width, max(1, _CALL_BYTES // (4 * people)))
        buffer = np.empty(4 * wide * people, np.int8)
        for first in range(0, width, wide):
            part = packed[:, first : first + wide]
            wanted = source[4 * first : 4 * (first + wide)]
            known = np.flatnonzero(wanted >= 0)
            if not len(known):
                part[:] = ABSENT
                continue
            # In the place of a variant that is not there its neighbour is read and taken out again: columns then
            # come as they have to lie, and nothing has to be moved.
            near = known[np.maximum(np.searchsorted(known, np.arange(len(wanted)), "right") - 1, 0)]
            calls = buffer[: people * len(wanted)].reshape(people, len(wanted))
            asked = wanted[near].astype(np.uint32)
            self._call(partial(reader.read_list, asked, calls, sample_maj=True))
            pack_calls(calls, part)
            remove(part, wanted < 0)

    def _multiallelic(self, reader: pgenlib.PgenReader, match: Match, people: int) -> np.ndarray:
        codes = np.empty(2 * people, np.int32)
        self._call(partial(reader.read_alleles, match.source, codes))
        pairs = codes.reshape(people, 2)
        dosages: np.ndarray = (pairs == match.orientation.alt).sum(axis=1, dtype=np.uint8)
        known = (pairs >= 0).all(axis=1)
        ours = ((pairs == match.orientation.alt) | (pairs == match.orientation.ref)).all(axis=1)
        dosages[~ours] = MISSING_DOSAGE
        self._findings.add("genotype.other-allele", self._variants, match.place, int((known & ~ours).sum()))
        return dosages

    def _call(self, read: Callable[[], None]) -> None:
        try:
            read()
        except RuntimeError as problem:
            text = _sentence(problem)
            raise DataError(refusal(self._data, f"broke off ({text})", "copy the file again")) from None


def _sentence(problem: Exception) -> str:
    """What pgenlib said, some of which it says in bytes."""
    said = problem.args[0] if problem.args else problem
    text = said.decode(errors="replace") if isinstance(said, bytes) else str(said)
    return " ".join(text.split()).rstrip(".")
