"""Results of cells as `sweep_cell.run_cell` writes them, for tests of what is made of them."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np

from simulations.sweep_grid import Sweep

TARGETS = ("glaucoma", "heart_failure")
BINS = ("rarest", "middle", "commonest")


def results_of(planned: Sweep) -> list[dict[str, Any]]:
    """A result for every cell: figures that rise with epsilon, with noise that follows from the cell's place."""
    return [_result(cell.hash, dict(cell.axes)) for cell in planned.cells]


def _result(digest: str, values: dict[str, str]) -> dict[str, Any]:
    rng = np.random.default_rng(zlib.crc32(digest.encode()))
    free = values["epsilon"] == "none"
    epsilon = 16.0 if free else float(values["epsilon"])
    rise = epsilon / (epsilon + 2)

    def noisy(value: float) -> float:
        return float(value + 0.01 * rng.standard_normal())

    figures = {f"auc.{name}": noisy(0.5 + 0.25 * rise) for name in TARGETS}
    figures["auc"] = sum(figures.values()) / len(figures)
    for place, name in enumerate(BINS, start=1):
        figures[f"genotype.{name}"] = noisy(0.4 + 0.1 * place * rise)
        figures[f"chance.genotype.{name}"] = 0.4
        figures[f"kept.genotype.{name}"] = noisy(0.16 * place * rise)
    figures |= {f"ancestry.auc.{name}": noisy(0.6) for name in ("AFR", "EUR")}
    figures["gap.auc"] = abs(figures["ancestry.auc.AFR"] - figures["ancestry.auc.EUR"])
    figures |= {f"attack.{name}": noisy(0.5 + 0.2 * rise) for name in ("genotype", "phenotype")}
    return {
        "hash": digest,
        "values": values,
        "figures": figures,
        "budget": None if free else epsilon,
        "spent": None if free else 0.99 * epsilon,
        "delta": None if free else 1e-5,
        "seconds": 12.5,
    }
