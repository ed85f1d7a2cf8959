"""What is trained beside the whole model: the ablations of supplementary figure 14, the baselines of figure 9."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from server.study import Study
from simulations.halves import FUSION

ENCODERS = "encoders"
"""The part of a seed that all variants share."""
FULL, WITHOUT_CONTRAST, THIRD = "full", "without_infonce", "third_of_layers"
VARIANTS: Mapping[str, str] = {
    FULL: "whole model",
    WITHOUT_CONTRAST: "without InfoNCE",
    THIRD: "a third of the layers",
}
"""Variants of the fusion phase, in words; all start from the same encoders."""
BASELINES: Mapping[str, str] = {"linear": "linear projection", "shallow": "shallow VAE"}
"""Architectures that take the genotype VAE's place, in words."""


def varied(config: Mapping[str, Any], variant: str) -> dict[str, Any]:
    """The configuration of a variant of the fusion phase; what comes before that stays.

    Of 32 layers a third are 10, as in the paper, and there is always one.
    """
    made = copy.deepcopy(dict(config))
    if variant == WITHOUT_CONTRAST:
        for phase in made["study"]["phases"].values():
            if phase["task"] == FUSION:
                phase["objective"]["contrast"] = 0.0
    elif variant == THIRD:
        made["model"]["fusion"]["layers"] = max(1, made["model"]["fusion"]["layers"] // 3)
    return made


def with_architecture(encoders: Study, architecture: str) -> Study:
    """The study's statistics and genotype phases, with a baseline of the same latent in the VAE's place.

    Sites, rounds, orders, loss and optimiser are the VAE's.
    """
    phases = [phase for phase in encoders.phases if phase.task in ("statistics", "genotype")]
    return replace(
        encoders,
        phases=tuple(
            replace(phase, parameters={**phase.parameters, "architecture": architecture})
            if phase.task == "genotype"
            else phase
            for phase in phases
        ),
    )
