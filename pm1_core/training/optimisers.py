"""Optimisers and learning-rate schedules of the paper (section 4.2, appendices F.1 to F.5)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from pytorch_optimizer import QHAdam

from pm1_core.errors import ConfigError
from pm1_core.validate import require_choice, require_range

OPTIMISERS = ("adam", "adamw", "qhadam", "sgd")
SCHEDULES = ("constant", "cosine", "cyclic")


@dataclass(frozen=True)
class OptimiserConfig:
    """An optimiser, its schedule and its guards.

    name: adam (F.1), sgd (F.2), adamw (F.3) or qhadam (F.5)
    learning_rate: the base rate
    betas, nus: of Adam and of QHAdam
    momentum: of SGD
    weight_decay: decoupled for adamw, as an L2 term otherwise
    schedule: constant; cosine (per epoch: linear warm-up from `warmup_start` x base over `warmup_epochs`,
        then cosine to `floor`); cyclic (per step: triangular between base and `peak` in `half_cycle` steps)
    clip_norm: global gradient norm is clipped to it; None leaves it
    skip_norm: a step whose gradient norm exceeds it is skipped and counted; None skips only NaN
    """

    name: str = "adamw"
    learning_rate: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    nus: tuple[float, float] = (0.7, 1.0)
    momentum: float = 0.0
    weight_decay: float = 0.0
    schedule: str = "constant"
    warmup_epochs: int = 0
    warmup_start: float = 0.1
    floor: float = 0.0
    peak: float = 0.0
    half_cycle: int = 2000
    clip_norm: float | None = None
    skip_norm: float | None = None

    def __post_init__(self) -> None:
        require_choice("optimiser.name", self.name, OPTIMISERS, ConfigError)
        require_choice("optimiser.schedule", self.schedule, SCHEDULES, ConfigError)
        require_range("optimiser.learning_rate", self.learning_rate, 0.0, error=ConfigError)
        if self.schedule == "cyclic":
            require_range("optimiser.peak", self.peak, self.learning_rate, error=ConfigError)


def build_optimiser(
    parameters: Iterable[torch.nn.Parameter], config: OptimiserConfig
) -> torch.optim.Optimizer:
    """The optimiser that `config` names, over `parameters`.

    QHAdam comes from pytorch-optimizer, whose 4.x agrees with its authors' release (Ma and Yarats 2018).
    """
    rate, decay = config.learning_rate, config.weight_decay
    # An order's JSON turns tuples into lists.
    betas, nus = (config.betas[0], config.betas[1]), (config.nus[0], config.nus[1])
    match config.name:
        case "adam":
            return torch.optim.Adam(parameters, rate, betas, weight_decay=decay)
        case "adamw":
            return torch.optim.AdamW(parameters, rate, betas, weight_decay=decay)
        case "qhadam":
            return QHAdam(parameters, rate, betas, nus=nus, weight_decay=decay)
        case _:
            return torch.optim.SGD(parameters, rate, config.momentum, weight_decay=decay)


def learning_rate(config: OptimiserConfig, step: int, epoch: int, epochs: int) -> float:
    """The rate at a step and epoch (both from 0) of a phase of `epochs` epochs in all.

    >>> config = OptimiserConfig(learning_rate=1.0, schedule="cosine", warmup_epochs=2, floor=0.0)
    >>> [round(learning_rate(config, 0, epoch, 4), 3) for epoch in range(4)]
    [0.1, 0.55, 1.0, 0.5]
    """
    base = config.learning_rate
    if config.schedule == "cyclic":
        # CyclicLR in triangular mode, with the momentum left alone: torch's default would reset Adam's beta.
        position = abs(step / config.half_cycle - 2 * math.floor(1 + step / (2 * config.half_cycle)) + 1)
        return base + (config.peak - base) * max(0.0, 1 - position)
    if config.schedule == "cosine":
        if epoch < config.warmup_epochs:
            return base * (config.warmup_start + (1 - config.warmup_start) * epoch / config.warmup_epochs)
        progress = (epoch - config.warmup_epochs) / max(1, epochs - config.warmup_epochs)
        return config.floor + (base - config.floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return base
