"""Readers of .pgen, .bed and .vcf.gz: people, and dosages of the study's SNPs in blocks of variants.

Every reader gives the count of the study's alternate allele, 3 for missing, whatever the file's own
orientation, strand, sample order or layout.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
import pandas as pd
import pgenlib

from pm1_core.data.alleles import Match, Matcher, blocks
from pm1_core.data.builds import check_contig_lengths
from pm1_core.data.genotype_tables import read_people, read_variant_rows
from pm1_core.data.genotype_vcf import VcfGenotypes
from pm1_core.data.manifest import GenotypeSource
from pm1_core.data.preparation_report import Findings
from pm1_core.data.subjects import Person
from pm1_core.errors import DataError
from pm1_core.fields import MISSING_DOSAGE
from pm1_core.validate import refusal

# (chromosome, SNP indices int64 [k], dosages uint8 [people, k])
Block = tuple[int, np.ndarray, np.ndarray]
_BLOCK_BYTES = 64 << 20


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
        """Dosages of the study's SNPs. keep: int64 indices into `people`, increasing; rows follow it."""
        ...


def open_genotypes(source: GenotypeSource, findings: Findings) -> Genotypes:
    """The reader for the manifest's format. Raises DataError if people or headers cannot be read."""
    if source.format == "vcf":
        return VcfGenotypes(source, findings)
    return PlinkGenotypes(source, findings)


def _lookup(direct: bool) -> np.ndarray:
    """Table from pgenlib's int8 (-9 missing), seen as uint8, to our dosage."""
    table = np.full(256, MISSING_DOSAGE, np.uint8)
    table[:3] = [0, 1, 2] if direct else [2, 1, 0]
    return table


_DIRECT, _TURNED = _lookup(True), _lookup(False)


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
            for done, (chromosome, chosen) in enumerate(matches.items()):
                progress(done, len(matches))
                plain = [match for match in chosen if match.n_alleles == 2]
                size = max(4, _BLOCK_BYTES // max(1, len(keep)) // 4 * 4)
                for part in blocks(np.arange(len(plain)), size):
                    if plain[part]:
                        yield chromosome, *self._biallelic(reader, plain[part], len(keep))
                for match in chosen:
                    if match.n_alleles > 2:
                        yield chromosome, *self._multiallelic(reader, match, len(keep))
            progress(len(matches), len(matches))
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

    def _match(self, rows: pd.DataFrame, n_alleles: np.ndarray, matcher: Matcher) -> dict[int, list[Match]]:
        chromosomes, positions = rows["chrom"].to_numpy(np.int64), rows["pos"].to_numpy(np.int64)
        autosomal = chromosomes > 0
        here = autosomal & matcher.at_study_position(chromosomes, positions)
        self._count(rows, ~autosomal, "genotype.non-autosome")
        self._count(rows, autosomal & ~here, "genotype.not-in-study")
        self._count(rows, autosomal & ~here & (n_alleles > 2), "genotype.multiallelic-ignored")
        for index in np.flatnonzero(autosomal & matcher.has_identifier(rows["id"])):
            row = rows.iloc[int(index)]
            matcher.note_identifier(
                row["id"], row["chrom"], row["pos"], f"{self._variants}, row {row['row']}"
            )
        matcher.check_build(self._variants, self._source.build)
        matches: dict[int, list[Match]] = {}
        chosen = rows[here]
        columns = [chosen[name].tolist() for name in ("row", "chrom", "pos", "ref", "alt")]
        for source, number, chromosome, position, ref, alt in zip(
            np.flatnonzero(here).tolist(), *columns, strict=True
        ):
            alleles = [ref, *alt.split(",")]
            for match in matcher.offer(self._variants, number, chromosome, position, alleles, source):
                matches.setdefault(chromosome, []).append(match)
        return matches

    def _count(self, rows: pd.DataFrame, chosen: np.ndarray, code: str) -> None:
        first = rows[chosen].head(20)
        texts = [
            f"row {r} ({i} at {p})" for r, i, p in zip(first["row"], first["id"], first["pos"], strict=True)
        ]
        self._findings.add_all(code, self._variants, texts)
        self._findings.add(code, self._variants, count=int(chosen.sum()) - len(texts))

    def _biallelic(
        self, reader: pgenlib.PgenReader, matches: list[Match], people: int
    ) -> tuple[np.ndarray, np.ndarray]:
        matches = sorted(matches, key=lambda match: match.snp)
        calls = np.empty((people, len(matches)), np.int8)
        self._call(
            lambda: reader.read_list(np.array([m.source for m in matches], np.uint32), calls, sample_maj=True)
        )
        turned = np.array([match.orientation.alt == 0 for match in matches])
        codes = calls.view(np.uint8)
        dosages = _DIRECT[codes]
        dosages[:, turned] = _TURNED[codes[:, turned]]
        return np.array([match.snp for match in matches], np.int64), dosages

    def _multiallelic(
        self, reader: pgenlib.PgenReader, match: Match, people: int
    ) -> tuple[np.ndarray, np.ndarray]:
        codes = np.empty(2 * people, np.int32)
        self._call(lambda: reader.read_alleles(match.source, codes))
        pairs = codes.reshape(people, 2)
        dosages = (pairs == match.orientation.alt).sum(axis=1, dtype=np.uint8)
        known = (pairs >= 0).all(axis=1)
        ours = ((pairs == match.orientation.alt) | (pairs == match.orientation.ref)).all(axis=1)
        dosages[~ours] = MISSING_DOSAGE
        self._findings.add("genotype.other-allele", self._variants, match.place, int((known & ~ours).sum()))
        return np.array([match.snp], np.int64), dosages[:, None]

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
