"""Genome builds: their names, and the chromosome lengths that give a wrong one away."""

from __future__ import annotations

from typing import Any

from pm1_core.errors import DataError, ManifestError
from pm1_core.validate import refusal, require_choice

ALIASES: dict[str, str] = {
    "grch36": "NCBI36", "ncbi36": "NCBI36", "hg18": "NCBI36", "b36": "NCBI36",
    "grch37": "GRCh37", "hg19": "GRCh37", "b37": "GRCh37", "hs37d5": "GRCh37",
    "grch38": "GRCh38", "hg38": "GRCh38", "b38": "GRCh38",
    "t2t": "T2T-CHM13v2.0", "t2t-chm13v2.0": "T2T-CHM13v2.0", "hs1": "T2T-CHM13v2.0",
}  # fmt: skip

# Lengths of chromosomes 1 to 22 in base pairs (Genome Reference Consortium assembly reports).
LENGTHS: dict[str, tuple[int, ...]] = {
    "GRCh37": (
        249250621, 243199373, 198022430, 191154276, 180915260, 171115067, 159138663, 146364022,
        141213431, 135534747, 135006516, 133851895, 115169878, 107349540, 102531392, 90354753,
        81195210, 78077248, 59128983, 63025520, 48129895, 51304566,
    ),
    "GRCh38": (
        248956422, 242193529, 198295559, 190214555, 181538259, 170805979, 159345973, 145138636,
        138394717, 133797422, 135086622, 133275309, 114364328, 107043718, 101991189, 90338345,
        83257441, 80373285, 58617616, 64444167, 46709983, 50818468,
    ),
}  # fmt: skip


def build_name(where: str, value: Any) -> str:
    """The one name of a build, e.g. "GRCh37" for "hg19". Raises ManifestError for an unknown name."""
    name = ALIASES.get(str(value).lower())
    if name is None:
        require_choice(where, value, sorted(set(ALIASES.values())), ManifestError)
    return str(name)


def chromosome_number(text: str) -> int:
    """1 to 22 for an autosome written "7", "07" or "chr7"; 0 for anything else.

    >>> [chromosome_number(t) for t in ("7", "chr22", "X", "23", "MT", "GL000207.1")]
    [7, 22, 0, 0, 0, 0]
    """
    bare = text[3:] if text[:3].lower() == "chr" else text
    number = int(bare) if bare.isascii() and bare.isdigit() and len(bare) <= 2 else 0
    return number if 1 <= number <= 22 else 0


def check_contig_lengths(where: str, lengths: dict[int, int], build: str) -> None:
    """Raise DataError if a header's chromosome lengths are those of another build than `build`.

    lengths: chromosome -> length in base pairs, as far as the header gives them.
    """
    for other, known in LENGTHS.items():
        agree = [c for c, length in lengths.items() if known[c - 1] == length]
        if other != build and build in LENGTHS and agree:
            chromosome = agree[0]
            raise DataError(
                refusal(
                    f"{where}, header line of chromosome {chromosome}",
                    f"found length {lengths[chromosome]}, which is {other}'s, but the manifest says {build}",
                    f"lift the file over to {build}, or correct genotype.build",
                )
            )
