"""`pm1-sim attack`: attacks as measurements, written to runs/NAME/attacks.json and attacks.html."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from pm1_core import atomic
from pm1_core.errors import ConfigError
from pm1_core.validate import require_choice
from simulations.attacks.outcome import Outcome, Setting
from simulations.attacks.page import write_page
from simulations.progress import Stages
from simulations.run import run_folder

ATTACKS: Mapping[str, str] = {
    "membership": "simulations.attacks.membership:attack",
    "audit": "simulations.attacks.audit:attack",
    "frequencies": "simulations.attacks.frequencies:attack",
    "inversion": "simulations.attacks.inversion:attack",
    "row_space": "simulations.attacks.row_space:attack",
    "inference": "simulations.attacks.inference:attack",
}
"""Every attack: a function of a Setting that returns an Outcome."""
ALL = "all"


def run_attacks(config: dict[str, Any], names: Sequence[str], stages: Stages) -> Path:
    """Run the attacks `names` (every one for none, or for "all") and return the page, runs/NAME/attacks.html.

    What attacks.json holds of other attacks is kept, so that they can be run one after another. Raises ConfigError
    on a name that is unknown.
    """
    for name in names:
        require_choice("attack", name, (ALL, *ATTACKS), ConfigError)
    if config["site"]["threads"]:
        torch.set_num_threads(config["site"]["threads"])
    folder = run_folder(config)
    path = folder / "attacks.json"
    folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = atomic.read_json(path) if path.exists() else {}
    for name in ATTACKS if not names or ALL in names else names:
        module, _, function = ATTACKS[name].partition(":")
        attack: Callable[[Setting], Outcome] = getattr(importlib.import_module(module), function)
        began = time.monotonic()
        outcome = attack(Setting(config, folder / "attacks" / name, stages))
        about = {
            "seed": config["seed"],
            "size": config["model"]["size"],
            "people": config["people"],
            "seconds": round(time.monotonic() - began, 1),
            "options": dict(config["attack"]),
        }
        found[name] = {**outcome, "run": about}
        atomic.write_json(path, found)
    return write_page(folder)
