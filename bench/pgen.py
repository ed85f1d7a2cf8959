"""A .pgen of random genotypes, written as a site's own would be: what benchmarks of genotypes read."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pgenlib
import yaml

_SNPS_AT_ONCE = 2048
_CALLED = 0.995
_LETTERS = np.array([["A", "C"], ["A", "G"], ["C", "T"], ["G", "T"]])


def write_pgen(prefix: Path, people: int, sizes: dict[int, int], seed: int = 0) -> None:
    """Write {prefix}.pgen, .pvar and .psam, and {prefix}.tsv, the study's list of the same SNPs.

    sizes: chromosome -> SNPs. Frequencies of the alternate allele lie between 1 and 50%, rare ones more often,
    in Hardy-Weinberg proportions; 0.5% of the calls are missing.
    """
    rng = np.random.default_rng(seed)
    snps = sum(sizes.values())
    with pgenlib.PgenWriter(bytes(prefix.with_suffix(".pgen")), people, variant_ct=snps) as writer:
        for block in _blocks(rng, people, snps):
            writer.append_biallelic_batch(block)
    prefix.with_suffix(".psam").write_text("#IID\tSEX\n" + "".join(f"p{i:06d}\t0\n" for i in range(people)))
    edges = np.cumsum([0, *sizes.values()])
    letters = _LETTERS[rng.integers(0, len(_LETTERS), snps)].tolist()
    with prefix.with_suffix(".pvar").open("w") as ours, prefix.with_suffix(".tsv").open("w") as study:
        ours.write("#CHROM\tPOS\tID\tREF\tALT\n")
        study.write("chrom\tpos\tid\tref\talt\n")
        for chromosome, (start, stop) in zip(sizes, pairwise(edges.tolist()), strict=True):
            for number in range(start, stop):
                ref, alt = letters[number]
                line = f"{chromosome}\t{1000 + 100 * (number - start)}\trs{number + 1}\t{ref}\t{alt}\n"
                ours.write(line)
                study.write(line)


def _blocks(rng: np.random.Generator, people: int, snps: int) -> Iterator[np.ndarray]:
    """int8 [k, people], -9 missing. A byte of chance decides each allele: frequencies are right to 1 in 256."""
    for start in range(0, snps, _SNPS_AT_ONCE):
        count = min(_SNPS_AT_ONCE, snps - start)
        frequency = np.round(256 * 0.01 * 50 ** rng.random((count, 1))).astype(np.uint8)
        block = np.zeros((count, people), np.int8)
        for _ in range(2):
            block += rng.integers(0, 256, (count, people), np.uint8) < frequency
        missing = rng.integers(0, count * people, int((1 - _CALLED) * count * people))
        block.reshape(-1)[missing] = -9
        yield block


def write_manifest(folder: Path, prefix: str) -> Path:
    """site.yaml and study.yaml for the files that `write_pgen` wrote at {folder}/{prefix}."""
    study = {"study": "scale", "build": "GRCh38", "split_key": "42", "variants": f"{prefix}.tsv"}
    genotype = {"format": "pgen", "path": prefix, "build": "GRCh38"}
    (folder / "study.yaml").write_text(yaml.safe_dump(study))
    path = folder / "site.yaml"
    path.write_text(yaml.safe_dump({"site": "scale", "study": "study.yaml", "genotype": genotype}))
    return path
