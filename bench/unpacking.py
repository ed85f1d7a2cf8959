"""From two bits in the store to the tensor that the encoder embeds, beside pgenlib and a copy of memory.

python -m bench.unpacking
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pgenlib
import torch

from bench.pgen import write_manifest, write_pgen
from bench.report import keep, scratch_folder, show
from pm1_core.data.genotype import unpack
from pm1_core.data.manifest import load_manifest
from pm1_core.data.preparation import prepare
from pm1_core.data.store import Store

PEOPLE, SNPS = 1000, 53_000
"""SNPs as on chromosome 1 of the paper's array."""
BATCH = 32
"""People in a step of the genotype VAE (`study=paper`)."""
REPEATS = 15


def unpacking(scratch: Path) -> dict[str, Any]:
    """Genotypes a second, one thread each, best of several in turns; bytes of the store and of int32."""
    write_pgen(scratch / "cohort", PEOPLE, {1: SNPS})
    prepare(load_manifest(write_manifest(scratch, "cohort")), scratch / "store")
    store = Store.open(scratch / "store")
    file = store.path / "genotype" / "chr1.npy"
    packed = np.load(file)
    everybody = store.people(None)
    batches = np.array_split(np.random.default_rng(0).permutation(everybody), -(-PEOPLE // BATCH))
    reader = pgenlib.PgenReader(bytes(scratch / "cohort.pgen"))
    theirs = np.empty((SNPS, PEOPLE), np.int8)
    source, target = np.ones((PEOPLE, SNPS), np.uint8), np.ones((PEOPLE, SNPS), np.uint8)

    def from_store() -> None:
        for batch in batches:
            torch.from_numpy(store.dosages(1, batch))

    def in_batches() -> None:
        for start in range(0, PEOPLE, BATCH):
            unpack(packed[start : start + BATCH], SNPS)

    ways: dict[str, Callable[[], object]] = {
        "unpack, batches of 32": in_batches,
        "unpack, all at once": lambda: unpack(packed, SNPS),
        "from the store, shuffled batches of 32": from_store,
        "pgenlib read_range": lambda: reader.read_range(0, SNPS, theirs),
        "copy": lambda: np.copyto(target, source),
    }
    best = dict.fromkeys(ways, float("inf"))
    for _ in range(REPEATS):
        for name, way in ways.items():
            began = time.perf_counter()
            way()
            best[name] = min(best[name], time.perf_counter() - began)
    reader.close()
    # The same people and SNPs on both sides, or a ratio would say nothing.
    calls = theirs.T.view(np.uint8)
    ours = store.dosages(1, everybody)
    assert ((ours == calls) | ((calls == 247) & (ours == 3))).all()
    rates = {name: PEOPLE * SNPS / seconds / 1e9 for name, seconds in best.items()}
    return {
        "people": PEOPLE,
        "snps": SNPS,
        "rates": rates,
        "to pgenlib": {name: rate / rates["pgenlib read_range"] for name, rate in rates.items()},
        "to copy": {name: rate / rates["copy"] for name, rate in rates.items()},
        "int32 to packed": ours.astype(np.int32).nbytes / packed.nbytes,
        "int32 to file": ours.astype(np.int32).nbytes / file.stat().st_size,
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    with scratch_folder() as place:
        measured = unpacking(place)
    keep("unpacking", measured)
    show(measured)
