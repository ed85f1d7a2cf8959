"""The cache of tokens as it feeds the fusion trainer: people a second at the paper's token shapes.

python -m bench.token_loader     needs 3 GB of disk
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from bench.report import keep, scratch_folder, show
from configs import compose
from pm1_core.data.arrays import RowWriter, read_rows
from pm1_core.fields import TOKENS, TOKENS_OF, Modality
from pm1_core.model.fusion import FusionConfig
from pm1_core.training.token_cache import BFLOAT16, FLOAT32
from pm1_core.training.token_set import TokenSet, to_bfloat16

PEOPLE, BATCH, EPOCHS, CORES = 8192, 128, 3, 2
_AT_ONCE = 512


def token_loader(scratch: Path) -> dict[str, Any]:
    """By kind: bytes a person, and people a second of shuffled epochs, the best; torch's loader beside it."""
    config = FusionConfig(**compose.load("simulation", ["model=paper"])["model"]["fusion"])
    found: dict[str, Any] = {}
    for kind in (FLOAT32, BFLOAT16):
        held = _cache(scratch / kind, config, kind)
        seconds = min(_epoch(held, seed) for seed in range(EPOCHS))
        theirs = _torchs(held)
        size = sum(file.stat().st_size for file in (scratch / kind).iterdir())
        found[kind] = {
            "bytes a person": size / PEOPLE,
            "people a second": PEOPLE / seconds,
            "bytes a second": size / seconds,
            "torch's loader": PEOPLE / theirs,
        }
    return {"people": PEOPLE, "batch": BATCH, "threads": torch.get_num_threads(), "kinds": found}


def _cache(folder: Path, config: FusionConfig, kind: str) -> TokenSet:
    """Random tokens in files as the cache has them; a fifth of the modalities is not there."""
    rng = np.random.default_rng(0)
    present = np.ones((PEOPLE, len(TOKENS)), bool)
    scale, tokens = {}, {}
    for modality, span in TOKENS_OF.items():
        shape = (span.stop - span.start, config.token_width(modality))
        present[:, span] &= rng.random((PEOPLE, 1)) < 0.8
        with RowWriter(
            folder / f"{modality}.npy", shape, "uint16" if kind == BFLOAT16 else "float32"
        ) as file:
            for _ in range(PEOPLE // _AT_ONCE):
                block = rng.standard_normal((_AT_ONCE, *shape), np.float32)
                file.append(to_bfloat16(block) if kind == BFLOAT16 else block)
        tokens[modality] = read_rows(folder / f"{modality}.npy")
        scale[modality] = (np.zeros(shape, np.float32), np.ones(shape, np.float32))
    return TokenSet(np.arange(PEOPLE), tokens, present, scale)


def _epoch(held: TokenSet, seed: int) -> float:
    shuffled = np.random.default_rng(seed).permutation(PEOPLE)
    began = time.perf_counter()
    for start in range(0, PEOPLE, BATCH):
        tokens, _ = held.batch(np.sort(shuffled[start : start + BATCH]))
        assert tokens[Modality.GENOTYPE].dtype == torch.float32
    return time.perf_counter() - began


class _Rows(Dataset[tuple[torch.Tensor, ...]]):
    """The same rows, one person at a time, standardised by the worker."""

    def __init__(self, held: TokenSet) -> None:
        self.held = held

    def __len__(self) -> int:
        return PEOPLE

    def __getitem__(self, person: int) -> tuple[torch.Tensor, ...]:
        rows = slice(person, person + 1)
        return (*(torch.from_numpy(self.held.rows(m, rows)[0]) for m in Modality),)


def _torchs(held: TokenSet) -> float:
    """An epoch of torch's DataLoader with a worker for each core."""
    loader = DataLoader(_Rows(held), BATCH, shuffle=True, num_workers=CORES)
    began = time.perf_counter()
    for _ in loader:
        pass
    return time.perf_counter() - began


if __name__ == "__main__":
    torch.set_num_threads(CORES)
    with scratch_folder() as place:
        measured = token_loader(place)
    keep("token_loader", measured)
    show(measured)
