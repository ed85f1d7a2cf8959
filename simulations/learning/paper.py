"""What the paper claims that PM1 learns, as comparisons of figures (simulations/learning/figures.py)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from simulations.diseases import DISEASES
from simulations.learning.claims import Claim, Seed

MARGIN = 0.01
"""By how much an area may be smaller and still count as not worse."""
EYE_DISEASES = tuple(disease.name for disease in DISEASES if disease.eye)
_LOSS = ("mask", "recon")
_INFERENCE = "supplementary figure 10"


def _reconstruction(method: str, words: str, every: bool) -> Claim:
    where = "on every chromosome" if every else "on the mean of chromosomes"
    return Claim(
        f"genotype.{method}.{'every' if every else 'mean'}",
        "supplementary figure 9",
        f"Genotypes are rebuilt better by the VAE than by a {words}, {where}",
        ("VAE", words),
        "encoders/genotype.pm1.*",
        f"encoders/genotype.{method}.*",
        every=every,
    )


def _imputation(method: str, words: str, kind: str) -> Claim:
    return Claim(
        f"imputation.{method}.{kind}",
        "section 2",
        f"Hidden {kind} phenotypes are imputed better than by {words}",
        ("auto-encoder", words),
        f"encoders/imputation.pm1.{kind}",
        0.0 if method == "means" else f"encoders/imputation.{method}.{kind}",
    )


def _ablation(variant: str, words: str) -> Claim:
    return Claim(
        f"ablation.{variant}",
        "supplementary figure 14",
        f"Tokens are rebuilt with a smaller validation loss than {words}",
        ("whole model", words),
        "full/validation.*",
        f"{variant}/validation.*",
        keys=_LOSS,
        lower=True,
    )


def _inference(second: str, words: str, bare: bool) -> tuple[Claim, Claim]:
    """Of genotypes, and of the tokens that they are decoded from: a token may be nearer and decode to the same."""
    prefix, beside = ("bare.", ", genetic components hidden") if bare else ("", "")
    of_second = "" if second == "mean" else prefix
    text, sides = f"from phenotypes and photographs are better than from {words}{beside}", ("P+I", second)
    return (
        Claim(
            f"{prefix}inference.{second}", _INFERENCE, f"Genotypes {text}", sides,
            f"full/{prefix}inference.P+I.*", f"full/{of_second}inference.{second}.*",
        ),
        Claim(
            f"{prefix}token.{second}", _INFERENCE, f"Genotype tokens {text}", sides,
            f"full/{prefix}token.P+I", f"full/{of_second}token.{second}", lower=True,
        ),
    )  # fmt: skip


CLAIMS: tuple[Claim, ...] = (
    *(
        _reconstruction(method, words, every)
        for method, words in (("linear", "linear projection"), ("shallow", "shallow VAE"))
        for every in (True, False)
    ),
    *(
        _imputation(method, words, kind)
        for kind in ("continuous", "binary")
        for method, words in (("soft_impute", "SoftImpute"), ("means", "column means"))
    ),
    _ablation("without_infonce", "without InfoNCE"),
    _ablation("third_of_layers", "with a third of the layers"),
    Claim(
        "eyes.closer",
        "figure 2",
        "Fused tokens of a person's two eyes lie closer than those of two people",
        ("how often they do", "chance"),
        "full/eyes.area",
        0.5,
    ),
    Claim(
        "eyes.contrast",
        "figure 2",
        "They do so more often with InfoNCE than without",
        ("with InfoNCE", "without"),
        "full/eyes.area",
        "without_infonce/eyes.area",
    ),
    Claim(
        "eyes.ratio",
        "figure 2",
        "Of two people they are more times as far apart as of one with InfoNCE than without",
        ("with InfoNCE", "without"),
        "full/eyes.ratio",
        "without_infonce/eyes.ratio",
    ),
    Claim(
        "auc.photographs",
        "table 1",
        "Photographs added to phenotypes raise the area of eye diseases",
        ("P+I", "P"),
        "full/auc.P+I.*",
        "full/auc.P.*",
        keys=EYE_DISEASES,
    ),
    Claim(
        "auc.genotypes",
        "table 1",
        "Genotypes added to phenotypes do not lower the area of diseases with a genetic liability, here all nine",
        ("P+G", "P"),
        "full/auc.P+G.*",
        "full/auc.P.*",
        margin=MARGIN,
    ),
    *(
        claim
        for bare in (False, True)
        for second, words in (("P", "phenotypes alone"), ("mean", "the mean token"))
        for claim in _inference(second, words, bare)
    ),
)


def held(seeds: Mapping[str, Seed], reasons: Mapping[str, str]) -> list[dict[str, Any]]:
    """Every claim that the seeds have figures for, see `Claim.held`; reasons: by the claim's name."""
    rows = (claim.held(seeds, reasons.get(claim.name, "")) for claim in CLAIMS)
    return [row for row in rows if row is not None]
