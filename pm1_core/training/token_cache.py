"""Tokens of a site's people, computed once by the frozen encoders and read by memory map afterwards.

The cache lies in the site's folder under a fingerprint of the encoders, so that another encoder never meets
old tokens. It holds raw tokens; standardisation uses the statistics of the state at hand.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pm1_core import atomic
from pm1_core.checkpoint import State as PartState
from pm1_core.data.store import Store
from pm1_core.fields import Modality, Split
from pm1_core.training.parts import State
from pm1_core.training.pm1 import PM1, TokenArrays, standardise_tokens

ENCODERS = ("statistics.", "genotype.", "phenotype.", "fundus.")


@dataclass(frozen=True)
class TokenSet:
    """people: int64 [n]; tokens: {modality: float32 [n, T_m, d_m]}; present: bool [n, 25]."""

    people: np.ndarray
    tokens: TokenArrays
    present: np.ndarray


def raw_tokens(
    store: Store, state: State, parameters: Mapping[str, Any], folder: Path, split: Split
) -> TokenSet:
    """Tokens of the people of `split` who have any, before standardisation; from the cache where it is there."""
    cache = folder / "tokens" / f"{_fingerprint(store, state, parameters)}.{split}"
    if not cache.exists():
        model = PM1(state, store.study, parameters["encoders"])
        people = store.people(split)
        tokens, present = model.raw_tokens(store, people)
        some = present.any(1)
        with atomic.whole_folder(cache) as beside:
            np.save(beside / "people.npy", people[some])
            np.save(beside / "present.npy", present[some])
            for modality, array in tokens.items():
                np.save(beside / f"{modality}.npy", array[some])
    return TokenSet(
        np.load(cache / "people.npy"),
        {modality: np.load(cache / f"{modality}.npy", mmap_mode="r") for modality in Modality},
        np.load(cache / "present.npy"),
    )


def load_tokens(
    store: Store, state: State, parameters: Mapping[str, Any], folder: Path, split: Split
) -> TokenSet:
    """As `raw_tokens`, standardised by the state's token statistics (section 4.2)."""
    raw = raw_tokens(store, state, parameters, folder, split)
    return TokenSet(raw.people, standardise_tokens(raw.tokens, raw.present, state), raw.present)


def _fingerprint(store: Store, state: State, parameters: Mapping[str, Any]) -> str:
    if isinstance(state, PartState):
        parts = state.fingerprint(ENCODERS)
    else:
        digest = hashlib.sha256()
        for name in sorted(state):
            if name.startswith(ENCODERS):
                digest.update(name.encode() + np.ascontiguousarray(state[name]).tobytes())
        parts = digest.hexdigest()[:16]
    encoders = json.dumps(parameters["encoders"], sort_keys=True, default=str)
    text = f"{parts}/{store.fingerprint}/{encoders}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]
