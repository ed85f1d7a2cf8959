"""python -m bench: measure everything, keep it in bench/results.json and write docs/benchmarks.md.

python -m bench page     only write the page from what was measured before
"""

from __future__ import annotations

import subprocess
import sys

from bench.page import write_page

MEASURES = (
    ("bench.simulation", "logistic"),
    ("bench.simulation", "many"),
    ("bench.encodings",),
    ("bench.private_step", "fusion"),
    ("bench.private_step", "blocks"),
    ("bench.secure_sum", "flower"),
    ("bench.secure_sum", "paper"),
    ("bench.simulation", "small"),
    ("bench.large_model", "paper"),
)

if __name__ == "__main__":
    for measure in MEASURES if sys.argv[1:] != ["page"] else ():
        print(f"{' '.join(measure)} ...", flush=True)
        # A process each: what one has in memory is no part of what the next one measures.
        subprocess.run([sys.executable, "-m", *measure], check=True, stdout=subprocess.DEVNULL)
    print(f"written: {write_page()}")
