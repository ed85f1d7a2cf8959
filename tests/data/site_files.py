"""Writes the files of a made-up site: studies, genotypes in three formats, photographs, manifests."""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pgenlib
import yaml


@dataclass(frozen=True)
class Variant:
    """A row of a variant file. alts may be several."""

    chrom: str
    pos: int
    ref: str
    alts: tuple[str, ...]
    name: str = "."

    def turned(self) -> Variant:
        """The same with reference and (only) alternate exchanged."""
        return Variant(self.chrom, self.pos, self.alts[0], (self.ref,), self.name)


def reference(n_per_chromosome: int, chromosomes: Sequence[int], seed: int = 0) -> list[Variant]:
    """Study SNPs that are never palindromic, 1,000 base pairs apart."""
    rng = np.random.default_rng(seed)
    pairs = [("A", "G"), ("A", "C"), ("G", "T"), ("C", "T"), ("G", "A"), ("C", "A")]
    return [
        Variant(str(c), 1000 * (i + 1), *(lambda p: (p[0], (p[1],)))(pairs[rng.integers(6)]), f"rs{c}{i:04d}")
        for c in chromosomes
        for i in range(n_per_chromosome)
    ]


def random_dosages(people: int, snps: int, seed: int = 0, missing: float = 0.05) -> np.ndarray:
    """uint8 [people, snps] with 3 for missing."""
    rng = np.random.default_rng(seed)
    dosages = rng.binomial(2, rng.uniform(0.1, 0.9, snps), (people, snps)).astype(np.uint8)
    dosages[rng.random(dosages.shape) < missing] = 3
    return dosages


def write_study(folder: Path, variants: Sequence[Variant] = (), **extra: Any) -> Path:
    """study.yaml and variants.tsv in `folder`."""
    content: dict[str, Any] = {"study": "trial", "build": "GRCh38", **extra}
    if "split_key" not in content and "split_key_file" not in content:
        content["split_key"] = "42"
    if variants:
        rows = "".join(f"{v.chrom}\t{v.pos}\t{v.name}\t{v.ref}\t{v.alts[0]}\n" for v in variants)
        (folder / "variants.tsv").write_text("chrom\tpos\tid\tref\talt\n" + rows)
        content["variants"] = "variants.tsv"
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def write_site(folder: Path, site: str = "leeds", name: str = "site.yaml", **parts: Any) -> Path:
    """A manifest beside study.yaml."""
    path = folder / name
    path.write_text(yaml.safe_dump({"site": site, "study": "study.yaml", **parts}))
    return path


def genotype_part(kind: str, path: str, **extra: Any) -> dict[str, Any]:
    """The manifest's part `genotype`."""
    return {"format": kind, "path": path, "build": "GRCh38", **extra}


def write_fam(path: Path, people: Sequence[str], rows: Sequence[str] | None = None) -> None:
    """A .fam without pedigree, or with `rows`."""
    path.write_text("".join(f"{r}\n" for r in rows or [f"0 {p} 0 0 0 -9" for p in people]))


def write_pgen(prefix: Path, people: Sequence[str], variants: Sequence[Variant], dosages: np.ndarray) -> None:
    """dosages: uint8 [people, variants], count of the (only) alternate allele, 3 missing."""
    calls = np.where(dosages == 3, -9, dosages).astype(np.int8)
    with pgenlib.PgenWriter(
        bytes(prefix.with_name(prefix.name + ".pgen")),
        len(people),
        variant_ct=len(variants),
        nonref_flags=False,
    ) as writer:
        for column in calls.T:
            writer.append_biallelic(np.ascontiguousarray(column))
    write_pvar(prefix, variants)
    prefix.with_name(prefix.name + ".psam").write_text("#IID\tSEX\n" + "".join(f"{p}\tNA\n" for p in people))


def write_pvar(prefix: Path, variants: Sequence[Variant], header: str = "##fileformat=VCFv4.2\n") -> None:
    """The .pvar of `prefix`."""
    rows = "".join(f"{v.chrom}\t{v.pos}\t{v.name}\t{v.ref}\t{','.join(v.alts)}\n" for v in variants)
    prefix.with_name(prefix.name + ".pvar").write_text(header + "#CHROM\tPOS\tID\tREF\tALT\n" + rows)


def write_bed(prefix: Path, people: Sequence[str], variants: Sequence[Variant], dosages: np.ndarray) -> None:
    """PLINK 1 files, A1 the alternate allele: 00 hom A1, 01 missing, 10 het, 11 hom A2."""
    code = np.array([3, 2, 0, 1], np.uint8)[dosages.T]
    padded = np.zeros((code.shape[0], -(-code.shape[1] // 4) * 4), np.uint8)
    padded[:, : code.shape[1]] = code
    packed = sum(padded[:, i::4] << (2 * i) for i in range(4)).astype(np.uint8)
    prefix.with_name(prefix.name + ".bed").write_bytes(b"\x6c\x1b\x01" + packed.tobytes())
    rows = "".join(f"{v.chrom}\t{v.name}\t0\t{v.pos}\t{v.alts[0]}\t{v.ref}\n" for v in variants)
    prefix.with_name(prefix.name + ".bim").write_text(rows)
    write_fam(prefix.with_name(prefix.name + ".fam"), people)


def vcf_line(variant: Variant, calls: Sequence[str]) -> str:
    """One record."""
    alts = ",".join(variant.alts) or "."
    return "\t".join(
        [variant.chrom, str(variant.pos), variant.name, variant.ref, alts, ".", "PASS", ".", "GT", *calls]
    )


def write_vcf(path: Path, people: Sequence[str], lines: Sequence[str], contigs: str = "") -> None:
    """A gzipped VCF of ready records."""
    header = (
        "##fileformat=VCFv4.2\n" + contigs + '##FORMAT=<ID=GT,Number=1,Type=String,Description="Genotype">\n'
    )
    columns = "\t".join(["#CHROM", "POS", "ID", "REF", "ALT", "QUAL", "FILTER", "INFO", "FORMAT", *people])
    with gzip.open(path, "wt", compresslevel=1) as stream:
        stream.write(header + columns + "\n" + "".join(line + "\n" for line in lines))


def write_vcfs(
    folder: Path, people: Sequence[str], variants: Sequence[Variant], dosages: np.ndarray, phased: bool = True
) -> None:
    """chr{chrom}.vcf.gz of all chromosomes."""
    mark = "|" if phased else "/"
    text = np.array([f"0{mark}0", f"0{mark}1", f"1{mark}1", f".{mark}."])
    for chromosome in dict.fromkeys(v.chrom for v in variants):
        lines = [
            vcf_line(v, text[dosages[:, i]].tolist()) for i, v in enumerate(variants) if v.chrom == chromosome
        ]
        write_vcf(folder / f"chr{chromosome}.vcf.gz", people, lines)


def disc(height: int, width: int, centre: tuple[int, int], radius: int, seed: int = 0) -> np.ndarray:
    """A photograph: an orange disc with noise on black, uint8 [height, width, 3] RGB."""
    rng = np.random.default_rng(seed)
    image = np.zeros((height, width, 3), np.uint8)
    cv2.circle(image, centre, radius, (190, 100, 40), -1)
    noise = rng.integers(0, 8, image.shape, dtype=np.uint8)
    return cv2.add(image, noise)


def jpeg(image: np.ndarray) -> bytes:
    """JPEG bytes of an RGB image."""
    return bytes(cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1])
