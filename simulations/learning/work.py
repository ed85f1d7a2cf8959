"""Runs of every seed, and the figures that are measured of them. Interrupted, the same command goes on.

runs/NAME/seed-S/encoders/               every phase before the fusion, which the variants share
runs/NAME/seed-S/linear/, shallow/       the genotype phases with a baseline in the VAE's place
runs/NAME/seed-S/VARIANT/                the fusion phase of a variant, from the encoders' release
runs/NAME/seed-S/figures/PART.json       what was measured; a part that has this file is done
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from pm1_core import atomic
from pm1_core.errors import ConfigError
from pm1_core.validate import refusal
from server.configure import build_study
from simulations.halves import halves, released, train, train_from
from simulations.learning.figures import Figures, People, encoder_figures, fusion_figures
from simulations.learning.variants import BASELINES, ENCODERS, VARIANTS, varied, with_architecture
from simulations.progress import Stages
from simulations.real_cohort import REAL
from simulations.request import Request
from simulations.run import run_folder, with_public
from simulations.workspace import simulated

REQUEST = Request("learning-request.json", apart=("resume", "runs", "seed", "attack", "search"))
Measured = dict[str, dict[str, Figures]]
"""Seed -> part -> figure -> number."""


def learn(
    config: dict[str, Any], seeds: Sequence[int], stages: Stages
) -> tuple[Path, dict[str, Any], Measured]:
    """Run and measure what is left of every seed; the folder, the configuration that counts, and the figures.

    Raises ConfigError if the study is private or of real people, lacks a fusion phase, or if a run of this name had
    another configuration.
    """
    named = config["name"] or f"learning-{config['study']['name']}-{config['model']['size']}"
    folder = run_folder({**config, "name": named})
    config = REQUEST.settled({**config, "name": named}, folder)
    _require_measurable(config)
    halves(build_study(config))  # what is wrong with it is said before anything is written
    if config["site"]["threads"]:
        torch.set_num_threads(config["site"]["threads"])
    folder.mkdir(parents=True, exist_ok=True)
    with atomic.locked(folder / "lock", "wait until it has ended"):
        REQUEST.remember(config, folder)
        measured = {}
        for number, seed in enumerate(seeds, start=1):
            stages.console.print(f"seed {seed}, {number} of {len(seeds)}", highlight=False)
            measured[str(seed)] = _seed({**config, "seed": seed}, folder / f"seed-{seed}", stages)
    return folder, config, measured


def _seed(config: dict[str, Any], folder: Path, stages: Stages) -> dict[str, Figures]:
    files = {part: folder / "figures" / f"{part}.json" for part in (ENCODERS, *VARIANTS)}
    if not all(file.exists() for file in files.values()):
        _work(config, folder, files, stages)
    return {part: atomic.read_json(file) for part, file in files.items()}


def _work(config: dict[str, Any], folder: Path, files: Mapping[str, Path], stages: Stages) -> None:
    workspace = simulated(config, stages)
    config = with_public(config, workspace)
    people, workers = People.of(workspace), config["workers"]
    first, _ = halves(build_study(config))
    encoders = folder / ENCODERS
    train(first, workspace, encoders, stages, workers)
    baselines = {name: (folder / name, with_architecture(first, name)) for name in BASELINES}
    for run, study in baselines.values():
        train(study, workspace, run, stages, workers)
    _measure(files[ENCODERS], partial(encoder_figures, encoders, first, baselines, config, people), stages)
    origin = released(encoders)
    for variant, words in VARIANTS.items():
        stages.console.print(f"variant {words}", highlight=False)
        own = varied(config, variant)
        _, second = halves(build_study(own))
        run = folder / variant
        train_from(encoders, origin, second, workspace, run, stages, workers)
        _measure(files[variant], partial(fusion_figures, run, own, people), stages)


def _measure(file: Path, measure: Callable[[], Figures], stages: Stages) -> None:
    if not file.exists():
        with stages.stage(f"figures of {file.stem}"):
            figures = measure()
        atomic.write_json(file, figures)


def _require_measurable(config: Mapping[str, Any]) -> None:
    if config["study"]["scenario"] == REAL:
        found = "found real people, of whom nobody has two modalities"
        raise ConfigError(refusal("key 'study'", found, "use study=ukb_eyepacs"))
    if config["privacy"]["unit"] != "none":
        remedy = "use privacy=none; pm1-sim sweep measures what privacy costs"
        raise ConfigError(refusal("key 'privacy'", f"found {config['privacy']['unit']}", remedy))
