"""The Hydra application behind `pm1-sim sweep`: one job is one cell.

    python -m simulations.sweep_app --multirun hydra/launcher=joblib hydra.launcher.n_jobs=2 +seed=1,2 ...

Hydra expands the grid and its joblib launcher runs the jobs in processes. A job's configuration is composed from
its overrides as every command composes it, not by Hydra's own pass, which knows no schema here: so every key
begins with a "+". A cell that fails keeps its reason beside where its result would be, and the others go on.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from rich.console import Console

from pm1_core import atomic
from pm1_core.errors import PM1Error

if TYPE_CHECKING:
    from simulations.sweep_grid import Cell


@hydra.main(version_base="1.3", config_path=None)
def main(config: DictConfig) -> None:
    """Run the cell of this job's overrides."""
    # Imported here: a job that has nothing to do needs no torch.
    from simulations.sweep_grid import cell_of, folder_of
    from simulations.sweep_result import read_result

    combination = [item.lstrip("+") for item in HydraConfig.get().overrides.task]
    GlobalHydra.instance().clear()  # a launcher's worker has its parent's, and nothing could be composed
    cell = cell_of(combination)
    folder = folder_of(cell.config)
    if read_result(folder, cell) is None:
        run_kept(cell, folder)


def run_kept(cell: Cell, folder: Path) -> None:
    """Run a cell; why it could not be run is kept in its `error_file`."""
    import torch

    from simulations.progress import Stages
    from simulations.sweep_cell import run_cell
    from simulations.sweep_result import error_file

    torch.set_num_threads(max(1, int(cell.config["site"]["threads"])))
    reason = error_file(folder, cell)
    reason.unlink(missing_ok=True)
    try:
        run_cell(cell, folder, Stages(Console(quiet=True)))
    except PM1Error as error:
        reason.parent.mkdir(parents=True, exist_ok=True)
        atomic.write_text(reason, f"{error}\n")


if __name__ == "__main__":
    sys.exit(main())
