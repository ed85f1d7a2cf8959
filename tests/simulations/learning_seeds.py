"""Figures of seeds as `simulations.learning.work.learn` returns them, for tests of what is made of them."""

from __future__ import annotations

import zlib

import numpy as np

from simulations.diseases import DISEASES
from simulations.learning.variants import VARIANTS

CHROMOSOMES = (21, 22)
_EYES = ("own", "others", "area", "ratio", "before.area", "before.ratio")
_METHODS = {"pm1": 0.70, "linear": 0.69, "shallow": 0.60, "majority": 0.33}
_INPUTS = {"G+P+I": 0.6, "P+I": 0.36, "P": 0.35, "I": 0.34}


def seeds_of(*names: str) -> dict[str, dict[str, dict[str, float]]]:
    """Seeds in which most claims hold, with noise that follows from the seed's name."""
    return {name: _seed(np.random.default_rng(zlib.crc32(name.encode()))) for name in names}


def _seed(rng: np.random.Generator) -> dict[str, dict[str, float]]:
    def noisy(value: float) -> float:
        return float(value + 1e-4 * rng.standard_normal())

    encoders = {
        f"genotype.{method}.{c}": noisy(accuracy)
        for method, accuracy in _METHODS.items()
        for c in CHROMOSOMES
    }
    for kind in ("continuous", "binary"):
        encoders |= {f"imputation.pm1.{kind}": noisy(0.2), f"imputation.soft_impute.{kind}": noisy(0.25)}
    return {"encoders": encoders, **{variant: _fusion(variant == "full", noisy) for variant in VARIANTS}}


def _fusion(full: bool, noisy) -> dict[str, float]:  # type: ignore[no-untyped-def]
    figures = {f"auc.P.{disease.name}": noisy(0.65) for disease in DISEASES}
    figures |= {f"auc.{inputs}.{d.name}": noisy(0.66) for inputs in ("P+I", "P+G", "P+I+G") for d in DISEASES}
    figures |= {f"eyes.{name}": noisy(0.9 if full else 0.7) for name in _EYES}
    for prefix in ("", "bare."):
        for inputs, accuracy in _INPUTS.items():
            figures |= {f"{prefix}inference.{inputs}.{c}": noisy(accuracy) for c in CHROMOSOMES}
            figures[f"{prefix}token.{inputs}"] = noisy(1.3 - accuracy)
    figures |= {f"inference.mean.{c}": 1 / 3 for c in CHROMOSOMES} | {"token.mean": 1.0}
    for name in ("mask", "recon", "cross.genotype", "cross.phenotype", "cross.fundus"):
        figures[f"validation.{name}"] = noisy(0.8 if full else 0.9)
    return figures
