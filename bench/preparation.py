"""Preparing genotypes of 5,000 people x 658,720 SNPs, beside pgenlib's bare read and a bare write of the store.

python -m bench.preparation [PEOPLE SNPS]     needs some 3 GB of disk
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pgenlib

from bench.pgen import write_manifest, write_pgen
from bench.report import keep, scratch_folder, show
from pm1_core.data.builds import LENGTHS
from pm1_core.data.genotype import packed_width
from pm1_core.data.manifest import load_manifest
from pm1_core.data.preparation import prepare

PEOPLE, SNPS = 5000, 658_720
_READ_AT_ONCE = 64 << 20
_WRITTEN_AT_ONCE = 8 << 20


def preparation(scratch: Path, people: int = PEOPLE, snps: int = SNPS) -> dict[str, Any]:
    """Seconds of preparation and of its two bare halves in turns, best of two; peak memory of the process."""
    sizes = chromosome_sizes(snps)
    write_pgen(scratch / "cohort", people, sizes)
    manifest = write_manifest(scratch, "cohort")
    store = sum(people * packed_width(size) for size in sizes.values())
    found: dict[str, list[float]] = {"pgenlib's read": [], "write and fsync": [], "preparation": []}
    peaks = []
    for attempt in range(2):
        found["pgenlib's read"].append(_read(scratch / "cohort.pgen", people, snps))
        found["write and fsync"].append(_write(scratch / "bare", store))
        command = [sys.executable, "-m", "bench.preparation", str(manifest), str(scratch / f"store{attempt}")]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        child = json.loads(said.splitlines()[-1])
        found["preparation"].append(child["seconds"])
        peaks.append(child["peak"])
    best = {name: min(seconds) for name, seconds in found.items()}
    bare = best["pgenlib's read"] + best["write and fsync"]
    return {
        "people": people,
        "snps": snps,
        "store_bytes": store,
        "seconds": best,
        "ratio": best["preparation"] / bare,
        "peak_bytes": max(peaks),
        "imports_bytes": child["imports"],
    }


def chromosome_sizes(snps: int) -> dict[int, int]:
    """`snps` over the 22 chromosomes by their length.

    >>> sum(chromosome_sizes(1000).values())
    1000
    """
    lengths = np.array(LENGTHS["GRCh38"], np.float64)
    edges = np.round(np.cumsum(lengths) / lengths.sum() * snps).astype(int)
    return {c: int(size) for c, size in enumerate(np.diff(edges, prepend=0), 1) if size}


def _read(file: Path, people: int, snps: int) -> float:
    size = max(1, _READ_AT_ONCE // people)
    calls = np.ones((size, people), np.int8)
    began = time.perf_counter()
    with pgenlib.PgenReader(bytes(file)) as reader:
        for start in range(0, snps, size):
            stop = min(start + size, snps)
            reader.read_range(start, stop, calls[: stop - start])
    return time.perf_counter() - began


def _write(file: Path, size: int) -> float:
    block = memoryview(os.urandom(_WRITTEN_AT_ONCE))
    began = time.perf_counter()
    with file.open("wb") as stream:
        for start in range(0, size, len(block)):
            stream.write(block[: size - start])
        stream.flush()
        os.fsync(stream.fileno())
    seconds = time.perf_counter() - began
    file.unlink()
    return seconds


def _prepare(manifest: str, out: str) -> dict[str, float]:
    """What this process measures on itself."""
    imports = _peak()
    began = time.perf_counter()
    prepare(load_manifest(manifest), out)
    return {"seconds": time.perf_counter() - began, "peak": _peak(), "imports": imports}


def _peak() -> int:
    """Bytes of memory that this process has held at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024


if __name__ == "__main__":
    if len(sys.argv) == 3 and not sys.argv[1].isdigit():
        print(json.dumps(_prepare(*sys.argv[1:])))
        sys.exit()
    with scratch_folder() as place:
        measured = preparation(place, *map(int, sys.argv[1:]))
    if len(sys.argv) == 1:
        keep("preparation", measured)
    show(measured)
