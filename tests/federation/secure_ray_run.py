"""Runs a short secure study on Ray in a process of its own: python secure_ray_run.py STORES-AS-JSON FOLDER."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

_HERE = Path(__file__).parent
sys.path[:0] = [str(_HERE.parent.parent), str(_HERE), str(_HERE.parent)]

from studies import coordinate, site_paths  # noqa: E402
from test_secure_engines import secure_study  # noqa: E402

from simulations.grid import run_on_ray  # noqa: E402

if __name__ == "__main__":
    torch.set_num_threads(1)
    stores = {site: Path(store) for site, store in json.loads(sys.argv[1]).items()}
    folder = Path(sys.argv[2])
    run_on_ray(coordinate(secure_study(), stores, folder), site_paths(stores, folder, secure=True))
