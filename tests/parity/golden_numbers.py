"""Numbers that every machine draws alike: weights and inputs that golden files need not hold."""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

GOLDEN = Path(__file__).parent / "golden"

MAE = {
    "img_size": 16,
    "patch_size": 4,
    "embed_dim": 24,
    "depth": 2,
    "num_heads": 3,
    "decoder_embed_dim": 16,
    "decoder_depth": 1,
    "decoder_num_heads": 2,
}
ALLEL = {"some missing": 0.1, "complete": 0.0}
QHADAM = {
    "the paper's": {"lr": 1e-2, "betas": (0.9, 0.999), "nus": (0.7, 1.0), "weight_decay": 1e-4},
    "without decay": {"lr": 1e-2, "betas": (0.9, 0.999), "nus": (0.7, 1.0), "weight_decay": 0.0},
    "both discounted": {"lr": 1e-2, "betas": (0.8, 0.95), "nus": (0.6, 0.9), "weight_decay": 0.1},
    "nu 1": {"lr": 1e-2, "betas": (0.9, 0.999), "nus": (1.0, 1.0), "weight_decay": 0.1},
}


def uniform(name: str, *shape: int) -> np.ndarray:
    """float64 in [0, 1) of 24 bits, by name. Raw output, which numpy promises never to change, unlike its draws."""
    raw = np.random.PCG64(zlib.crc32(name.encode())).random_raw(int(np.prod(shape)))
    return (raw >> np.uint64(40)).astype(np.float64).reshape(shape) / 2**24


def weights(name: str, *shape: int, scale: float = 1.0) -> np.ndarray:
    """float64 in [-scale, scale) by name."""
    return scale * (2 * uniform(name, *shape) - 1)


def genotypes(name: str, people: int, snps: int, missing: float) -> np.ndarray:
    """Dosages uint8 [people, snps] with 3 for missing; a haplotype changes its ancestor every few SNPs."""
    ancestors = uniform(name + " ancestors", 30, snps) < 0.2 + 0.6 * uniform(name + " frequency", snps)
    change = uniform(name + " change", people, 2, snps) < 0.2
    drawn = (30 * uniform(name + " drawn", people, 2, snps)).astype(np.int64)
    last = np.maximum.accumulate(np.where(change, np.arange(snps), 0), axis=2)
    ancestor = np.take_along_axis(drawn, last, axis=2)
    dosages = ancestors[ancestor, np.arange(snps)].sum(1).astype(np.uint8)
    dosages[uniform(name + " missing", people, snps) < missing] = 3
    return dosages


def read(name: str) -> dict[str, Any]:
    """The golden numbers `name`.json."""
    content: dict[str, Any] = json.loads((GOLDEN / f"{name}.json").read_text())
    return content


def images() -> np.ndarray:
    """Two images float64 [2, 3, 16, 16]."""
    return weights("images", 2, 3, 16, 16, scale=2)


def hiding() -> np.ndarray:
    """What decides the order of patches, [2, 16]: the first quarter of its argsort is seen."""
    return uniform("hiding", 2, 16)


@dataclass(frozen=True)
class _AutoComplete:
    """A small network: `features` columns, the last `binary` of them 0 or 1, down to `latent` in `depth` layers."""

    rows: int = 40  # of which its script keeps a fifth for validation
    features: int = 11
    binary: int = 5
    latent: int = 4
    depth: int = 3
    steps: int = 3

    @property
    def ratio(self) -> float:
        """What AutoComplete divides the number of columns by to get that of the latent."""
        return self.features / self.latent

    def start(self) -> dict[str, np.ndarray]:
        """Weights by their names in a sequence of linear maps and activations, float64."""
        widths = [int(w) for w in np.linspace(self.features, self.latent, self.depth + 1)]
        widths += widths[-2::-1]
        found = {}
        for layer, (before, after) in enumerate(pairwise(widths)):
            found[f"{2 * layer}.weight"] = weights(f"weight {layer}", after, before, scale=0.5)
            found[f"{2 * layer}.bias"] = weights(f"bias {layer}", after, scale=0.5)
        return found


AUTOCOMPLETE = _AutoComplete()


def phenotypes() -> tuple[np.ndarray, list[str]]:
    """Values float64 [rows, features], NaN where missing, and names of columns: c of continuous, b of binary."""
    shape = AUTOCOMPLETE.rows, AUTOCOMPLETE.features
    continuous = AUTOCOMPLETE.features - AUTOCOMPLETE.binary
    values = weights("phenotypes", *shape, scale=1.7)
    values[:, continuous:] = values[:, continuous:] > 0.5
    values[uniform("missing phenotypes", *shape) < 0.3] = np.nan
    return values, [f"{'c' if i < continuous else 'b'}{i}" for i in range(AUTOCOMPLETE.features)]
