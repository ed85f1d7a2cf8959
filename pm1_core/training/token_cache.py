"""Tokens of a site's people, written once by the frozen encoders and read by memory map afterwards.

    folder/tokens/FINGERPRINT.KIND.SPLIT/    people.npy, present.npy, a file for each modality, cache.json

The fingerprint is of the encoders' tensors and sizes and of the store, so that another encoder, or a store that was
prepared anew, never meets old tokens; those are removed. It holds raw tokens; standardisation uses the statistics
of the state at hand. A folder takes its place when it is whole.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pm1_core import atomic
from pm1_core.checkpoint import State as PartState
from pm1_core.data.arrays import RowWriter, read_rows
from pm1_core.data.store import Store
from pm1_core.errors import ConfigError
from pm1_core.fields import TOKENS, TOKENS_OF, Modality, Split
from pm1_core.training.cached import FACTS, TOKEN_CACHES
from pm1_core.training.loop import device_of
from pm1_core.training.parts import State
from pm1_core.training.pm1 import PM1
from pm1_core.training.token_set import EncodedTokens, TokenSet, to_bfloat16
from pm1_core.validate import require_choice

ENCODERS = ("statistics.", "genotype.", "phenotype.", "fundus.")
FLOAT32, BFLOAT16, OFF = "float32", "bfloat16", "off"
KINDS = (FLOAT32, BFLOAT16, OFF)
"""How tokens are kept: exactly, in half the bytes, or not at all, so that every batch is encoded anew."""


def raw_tokens(
    store: Store, state: State, parameters: Mapping[str, Any], folder: Path, split: Split
) -> TokenSet:
    """Tokens of the people of `split` who have any, before standardisation.

    parameters: "encoders", see PM1; "cache", one of KINDS, float32 by default. Raises ConfigError for another.
    """
    kind = require_choice("tokens, cache", parameters.get("cache", FLOAT32), KINDS, ConfigError)
    if kind == OFF:
        return _encoded(_model(store, state, parameters), store, split)
    cache = folder / TOKEN_CACHES / f"{_fingerprint(store, state, parameters)}.{kind}.{split}"
    if not cache.exists():
        _write(cache, _model(store, state, parameters), store, split, kind)
        for other in cache.parent.glob(f"*.{split}"):
            if other != cache:
                shutil.rmtree(other, ignore_errors=True)
    return TokenSet(
        np.load(cache / "people.npy"),
        {modality: read_rows(cache / f"{modality}.npy") for modality in Modality},
        np.load(cache / "present.npy"),
    )


def load_tokens(
    store: Store, state: State, parameters: Mapping[str, Any], folder: Path, split: Split
) -> TokenSet:
    """As `raw_tokens`, standardised by the state's token statistics (section 4.2) when rows are read."""
    raw = raw_tokens(store, state, parameters, folder, split)
    scale = {m: (np.array(state[f"tokens.{m}.mean"]), np.array(state[f"tokens.{m}.std"])) for m in Modality}
    return replace(raw, scale=scale)


def _model(store: Store, state: State, parameters: Mapping[str, Any]) -> PM1:
    return PM1(state, store.study, parameters["encoders"], device=device_of(parameters))


def _write(cache: Path, model: PM1, store: Store, split: Split, kind: str) -> None:
    """Encode and write some people at a time, so that memory does not grow with them."""
    encoded, dtype = (to_bfloat16, "uint16") if kind == BFLOAT16 else (np.asarray, "float32")
    people = store.people(split)
    with atomic.whole_folder(cache) as beside:
        with ExitStack() as stack:

            def writer(name: str, shape: tuple[int, ...], dtype: str) -> RowWriter:
                return stack.enter_context(RowWriter(beside / f"{name}.npy", shape, dtype))

            who, which = writer("people", (), "int64"), writer("present", (len(TOKENS),), "bool")
            writers = {
                m: writer(str(m), (span.stop - span.start, model.widths[m]), dtype)
                for m, span in TOKENS_OF.items()
            }
            for rows, tokens, present in model.token_chunks(store, people):
                some = present.any(1)
                who.append(people[rows][some])
                which.append(present[some])
                for modality, array in tokens.items():
                    writers[modality].append(encoded(array[some]))
        size = sum(file.stat().st_size for file in beside.glob("*.npy"))
        atomic.write_json(beside / FACTS, {"kind": kind, "bytes": size, "people": who.rows})


def _encoded(model: PM1, store: Store, split: Split) -> TokenSet:
    people = store.people(split)
    present = model.present_tokens(store, people)
    some = present.any(1)
    return EncodedTokens(people[some], {}, present[some], model=model, store=store)


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
