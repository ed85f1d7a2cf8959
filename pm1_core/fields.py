"""Names that cross modules: modalities, splits, the token layout, and every stored array.

The token layout is fixed by the paper (section 4.2): 22 chromosomes, one phenotype token, two eyes.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

CHROMOSOMES: tuple[int, ...] = tuple(range(1, 23))
EYES: tuple[str, ...] = ("left", "right")
MISSING_DOSAGE = 3


class Modality(StrEnum):
    """What a site may hold of a person."""

    GENOTYPE = "genotype"
    PHENOTYPE = "phenotype"
    FUNDUS = "fundus"


class Split(StrEnum):
    """Where a person belongs (appendix E.1)."""

    TRAIN = "train"
    VALIDATION = "validation"
    TEST = "test"


TOKENS: tuple[str, ...] = (
    *(f"genotype.{c}" for c in CHROMOSOMES),
    "phenotype",
    *(f"fundus.{eye}" for eye in EYES),
)
TOKENS_OF: dict[Modality, slice] = {
    Modality.GENOTYPE: slice(0, 22),
    Modality.PHENOTYPE: slice(22, 23),
    Modality.FUNDUS: slice(23, 25),
}


@dataclass(frozen=True)
class Field:
    """Declaration of a stored array."""

    name: str
    dimensions: tuple[str, ...]
    dtype: str
    unit: str
    missing: str


FIELDS: dict[str, Field] = {
    field.name: field
    for field in (
        Field("genotype", ("person", "snp/4"), "uint8", "2-bit count of the study's alternate allele", "3"),
        Field(
            "phenotype.values",
            ("person", "feature"),
            "float32",
            "the study's unit per feature",
            "0 where not observed",
        ),
        Field("phenotype.observed", ("person", "feature"), "bool", "1 observed, 0 missing", "none"),
        Field("fundus", ("photograph", "224", "224", "rgb"), "uint8", "sRGB 0-255", "absent row"),
        Field(
            "tokens", ("person", "token", "width"), "float32", "standardised latent", "0 where not present"
        ),
        Field("tokens.present", ("person", "token"), "bool", "1 present, 0 missing", "none"),
    )
}
