"""Runs the tiny study on Ray in a process of its own: python ray_run.py STORES FOLDER.

Ray changes signal handlers and leaves processes behind, which no test runner should live with.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

_HERE = Path(__file__).parent
sys.path[:0] = [str(_HERE.parent.parent), str(_HERE), str(_HERE.parent)]

from studies import coordinate, site_paths, tiny_study  # noqa: E402

from simulations.grid import run_on_ray  # noqa: E402

if __name__ == "__main__":
    torch.set_num_threads(1)
    root, folder = Path(sys.argv[1]), Path(sys.argv[2])
    stores = {path.name: path for path in sorted(root.iterdir())}
    run_on_ray(coordinate(tiny_study(), stores, folder), site_paths(stores, folder))
