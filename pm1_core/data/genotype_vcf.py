"""One VCF per chromosome, through htslib."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import cyvcf2
import numpy as np

from pm1_core.data.builds import check_contig_lengths, chromosome_number
from pm1_core.data.genotype_blocks import Block, block_of
from pm1_core.data.genotype_tables import contig_length
from pm1_core.data.manifest import GenotypeSource
from pm1_core.data.matching import Match, Matcher
from pm1_core.data.preparation_report import Findings
from pm1_core.data.subjects import Person, subject_text
from pm1_core.errors import DataError
from pm1_core.fields import CHROMOSOMES, MISSING_DOSAGE
from pm1_core.validate import refusal

_OTHERS = ("X", "Y", "XY", "MT", "M", "23", "24", "25", "26")
_BLOCK_BYTES = 64 << 20
_BGZF_END = bytes.fromhex("1f8b08040000000000ff0600424302001b0003000000000000000000")


def dosages_of(alleles: np.ndarray, match: Match) -> tuple[np.ndarray, int, int]:
    """Count of the study's alternate allele: uint8 [n], with the numbers of half-calls and of third alleles.

    alleles: int [n, ploidy] codes, negative where missing or absent; a person with any is missing, and
    so is one with an allele that is not the study's.
    """
    alt, ref = match.orientation.alt, match.orientation.ref
    known = alleles >= 0
    whole = known.all(axis=1) if alleles.shape[1] == 2 else np.zeros(len(alleles), bool)
    ours = ((alleles == alt) | (alleles == ref)).all(axis=1)
    dosages = (alleles == alt).sum(axis=1, dtype=np.uint8)
    dosages[~(whole & ours)] = MISSING_DOSAGE
    half = int((known.any(axis=1) & ~whole).sum())
    return dosages, half, int((whole & ~ours).sum())


def _header_rows(path: Path) -> tuple[int, dict[int, int]]:
    """Number of header lines and the chromosome lengths that they give.

    htslib adds lines to the header that it hands out, so that rows are counted in the file itself.
    Raises DataError if a block-gzipped file lacks its end marker: htslib would take the part for the whole.
    """
    lengths: dict[int, int] = {}
    rows = 0
    with path.open("rb") as stream:
        start = stream.read(16)
        stream.seek(max(0, path.stat().st_size - len(_BGZF_END)))
        if start[:2] == b"\x1f\x8b" and start[12:14] == b"BC" and stream.read() != _BGZF_END:
            raise DataError(
                refusal(path, "found no end marker, so that it is cut off", "copy the file again")
            )
    try:
        with gzip.open(path, "rb") if start[:2] == b"\x1f\x8b" else path.open("rb") as lines:
            for line in lines:
                if not line.startswith(b"#"):
                    break
                rows += 1
                lengths.update(contig_length(line.decode(errors="replace")))
    except (EOFError, OSError, zlib.error) as problem:
        raise DataError(refusal(path, f"broke off ({problem})", "copy the file again")) from None
    return rows, lengths


class VcfGenotypes:
    """VCF files by a pattern with {chrom}, or one file with all chromosomes (a pattern without it).

    People are the union over the files, in the order in which they are first met; a person whom a
    file lacks is missing on its chromosome.
    """

    def __init__(self, source: GenotypeSource, findings: Findings) -> None:
        self._source, self._findings = source, findings
        split = "{chrom}" in str(source.path)
        places = {c: source.vcf(c) for c in CHROMOSOMES} if split else {0: source.path}
        self._files = {chromosome: path for chromosome, path in places.items() if path.is_file()}
        for chromosome, path in places.items():
            if path not in self._files.values():
                findings.add("genotype.absent-file", path, f"chromosome {chromosome}")
        for path in dict.fromkeys(source.vcf(name) for name in _OTHERS) if split else ():
            if path.is_file():
                findings.add("genotype.non-autosome-file", path, path.name)
        self._header_rows: dict[Path, int] = {}
        self._samples = {chromosome: self._header(path) for chromosome, path in self._files.items()}
        everybody = dict.fromkeys(sample for samples in self._samples.values() for sample in samples)
        self.people = [Person(subject) for subject in everybody]
        first = next(iter(self._samples.values()))
        of_first = set(first)
        for chromosome, samples in self._samples.items():
            path, here = self._files[chromosome], set(samples)
            shared = [sample for sample in first if sample in here]
            if [sample for sample in samples if sample in of_first] != shared:
                findings.add("genotype.sample-order", path, f"chromosome {chromosome}")
            absent = [sample for sample in everybody if sample not in here]
            findings.add_all("genotype.sample-missing", path, absent)

    @property
    def people_file(self) -> Path:
        """The first VCF."""
        return next(iter(self._files.values()))

    def files(self) -> list[Path]:
        """All VCFs that are read."""
        return list(self._files.values())

    def file_of(self, chromosome: int) -> Path:
        """The VCF of `chromosome`."""
        return self._source.vcf(chromosome)

    def _open(self, path: Path) -> cyvcf2.VCF:
        # What htslib would print beside our sentence says the same in other words.
        if hasattr(cyvcf2.cyvcf2, "set_htslib_log_level"):
            cyvcf2.cyvcf2.set_htslib_log_level(0)
        try:
            # lazy: genotypes of records that the study does not use are never unpacked
            return cyvcf2.VCF(str(path), lazy=True)
        except Exception as problem:  # cyvcf2 raises bare Exception
            text = str(problem).replace("\n", " ").strip() or "htslib refuses it"
            raise DataError(
                refusal(path, f"could not be opened as VCF ({text})", "write it again with its header")
            ) from None

    def _header(self, path: Path) -> list[str]:
        vcf = self._open(path)
        try:
            samples = [subject_text(f"{path}, header", sample) for sample in vcf.samples]
        finally:
            vcf.close()
        if not samples:
            raise DataError(refusal(f"{path}, header", "found no people", "give a VCF with genotypes"))
        self._header_rows[path], lengths = _header_rows(path)
        check_contig_lengths(str(path), lengths, self._source.build)
        return samples

    def read(
        self, keep: np.ndarray, matcher: Matcher, progress: Callable[[int, int], None]
    ) -> Iterator[Block]:
        """See `genotype_readers.Genotypes.read`."""
        wanted = [self.people[index].subject for index in keep]
        for done, (chromosome, path) in enumerate(self._files.items()):
            progress(done, len(self._files))
            place = {sample: column for column, sample in enumerate(self._samples[chromosome])}
            columns = np.array([place.get(subject, -1) for subject in wanted], np.int64)
            yield from self._file(path, chromosome, columns, matcher)
            matcher.identifiers.check_build(path, self._source.build)
        progress(len(self._files), len(self._files))

    def _file(self, path: Path, expected: int, columns: np.ndarray, matcher: Matcher) -> Iterator[Block]:
        limit = max(4, _BLOCK_BYTES // max(1, len(columns)))
        held: dict[int, list[tuple[int, np.ndarray]]] = {}
        size = 0
        for match, calls in self._records(path, expected, matcher):
            dosages, half, other = dosages_of(calls, match)
            self._findings.add("genotype.half-call", path, match.place, half)
            self._findings.add("genotype.other-allele", path, match.place, other)
            row = np.append(dosages, np.uint8(MISSING_DOSAGE))[columns]  # -1 takes the appended missing
            held.setdefault(match.chromosome, []).append((match.snp, row))
            size += 1
            if size == limit:
                yield from _flush(held)
                size = 0
        yield from _flush(held)

    def _records(self, path: Path, expected: int, matcher: Matcher) -> Iterator[tuple[Match, np.ndarray]]:
        vcf = self._open(path)
        row = self._header_rows[path]
        add = self._findings.add
        try:
            while True:
                row += 1
                try:
                    record = next(vcf)
                except StopIteration:
                    return
                chromosome = chromosome_number(record.CHROM)
                where = f"row {row} ({record.CHROM}:{record.POS})"
                if chromosome == 0:
                    add("genotype.non-autosome", path, where)
                    continue
                if expected and chromosome != expected:
                    raise DataError(
                        refusal(
                            f"{path}, row {row}",
                            f"found chromosome {record.CHROM}",
                            f"keep chromosome {expected} only in this file",
                        )
                    )
                alleles = [record.REF, *(record.ALT or ["."])]
                if record.ID:
                    matcher.identifiers.note(record.ID, chromosome, record.POS, f"{path}, row {row}")
                if not matcher.has_position(chromosome, record.POS):
                    add("genotype.not-in-study", path, where)
                    if len(alleles) > 2:
                        add("genotype.multiallelic-ignored", path, where)
                    continue
                for match in matcher.offer(path, row, chromosome, record.POS, alleles, row):
                    yield match, self._calls(record, path, row)
        except DataError:
            raise
        except Exception as problem:  # cyvcf2 raises bare Exception for a bad or cut-off record
            text = str(problem).replace("\n", " ").strip()
            raise DataError(
                refusal(
                    f"{path}, row {row}",
                    f"could not be read ({text})",
                    "correct the row, or copy the file again if it is cut off",
                )
            ) from None
        finally:
            vcf.close()

    def _calls(self, record: cyvcf2.Variant, path: Path, row: int) -> np.ndarray:
        genotype = record.genotype
        if genotype is None:
            raise DataError(
                refusal(f"{path}, row {row}", "found no GT", "write genotypes (GT) for every variant")
            )
        return np.asarray(genotype.array())[:, :-1]  # the last column says whether the call is phased


def _flush(held: dict[int, list[tuple[int, np.ndarray]]]) -> Iterator[Block]:
    for chromosome, found in held.items():
        snps = np.array([snp for snp, _ in found], np.int64)
        yield block_of(chromosome, snps, np.stack([row for _, row in found], axis=1))
    held.clear()
