"""From a composed configuration (plain dicts) to a study: which phase gets which parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pm1_core.errors import ConfigError
from pm1_core.validate import refusal
from server.study import Study, expand

PRIVACY_STATEMENTS = {"none": "no differential privacy"}


def build_study(config: Mapping[str, Any]) -> Study:
    """The study that `config` describes (the keys of configs.schema.Study).

    Every phase gets its part's sizes under "model" and its training under "loop"; tokens and fusion also get
    the sizes of the encoders whose tokens they read. Raises ConfigError on a value out of bounds.
    """
    model = config["model"]
    encoders = {part: model[part] for part in ("genotype", "phenotype", "fundus")}
    widths = {part: model["fusion"][f"{part}_width"] for part in encoders}
    _require_widths(model)
    phases: dict[str, dict[str, Any]] = {}
    for name, given in config["study"]["phases"].items():
        phase = dict(given)
        objective, chromosomes = phase.pop("objective"), phase.pop("chromosomes")
        phase["loop"] = {**phase["loop"], "device": config["site"]["device"]}
        task = phase["task"]
        if task == "genotype":
            phase["chromosomes"] = chromosomes
        if task in model:
            phase["model"] = model[task]
        if task in ("tokens", "fusion"):
            phase["encoders"] = encoders
        if task == "tokens":
            phase["widths"] = widths
        if task == "fusion":
            phase["objective"] = objective
        if task in ("statistics", "tokens"):
            phase.pop("loop")
        phases[name] = phase
    return Study(
        name=config["study"]["name"],
        seed=config["seed"],
        phases=expand(phases),
        strategy=config["strategy"]["name"],
        timeout=config["timeout"],
        privacy=PRIVACY_STATEMENTS[config["privacy"]["unit"]],
    )


def _require_widths(model: Mapping[str, Any]) -> None:
    """The fusion transformer's token widths are those of the encoders."""
    for part, key in (("genotype", "latent"), ("phenotype", "latent"), ("fundus", "width")):
        wanted, found = model[part][key], model["fusion"][f"{part}_width"]
        if wanted != found:
            raise ConfigError(
                refusal(
                    f"key 'model.fusion.{part}_width'", f"found {found}", f"use model.{part}.{key} = {wanted}"
                )
            )
