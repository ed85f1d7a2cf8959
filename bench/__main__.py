"""python -m bench: measure everything, keep it in bench/results.json and write docs/benchmarks.md.

python -m bench page               only write the page from what was measured before
python -m bench unpacking parts    only measure these modules of bench/, then write the page
"""

from __future__ import annotations

import subprocess
import sys

from bench.page import write_page

MEASURES = (
    ("unpacking",),
    ("preparation",),
    ("token_loader",),
    ("part_steps",),
    ("gpu",),
    ("simulation", "logistic"),
    ("simulation", "many"),
    ("encodings",),
    ("private_step", "fusion"),
    ("private_step", "blocks"),
    ("secure_sum", "flower"),
    ("secure_sum", "paper"),
    ("simulation", "small"),
    ("large_model", "paper"),
)
_PAGE = "page"


def main(names: list[str]) -> int:
    """Measure the modules `names`, all of them if none is named; 2 for a name that is none."""
    known = {module for module, *_ in MEASURES}
    unknown = [name for name in names if name not in {*known, _PAGE}]
    if unknown:
        print(
            f"bench: found {unknown[0]!r}; use {_PAGE} or some of {', '.join(sorted(known))}", file=sys.stderr
        )
        return 2
    for module, *which in MEASURES:
        if names and module not in names:
            continue
        print(" ".join((module, *which)), "...", flush=True)
        # A process each: what one has in memory is no part of what the next one measures.
        subprocess.run(
            [sys.executable, "-m", f"bench.{module}", *which], check=True, stdout=subprocess.DEVNULL
        )
    print(f"written: {write_page()}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
