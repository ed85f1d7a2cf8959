"""The one training loop: epochs of shuffled batches, clipping, skipped steps, moments kept between rounds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pm1_core.errors import ConfigError
from pm1_core.privacy.terms import record_terms
from pm1_core.training.ahead import ahead
from pm1_core.training.guide import UNGUIDED, Guide, Trained
from pm1_core.training.memory import Memory
from pm1_core.training.moments import load_moments, save_moments
from pm1_core.training.optimisers import OptimiserConfig, build_optimiser, learning_rate
from pm1_core.training.order import Order, generator
from pm1_core.training.precision import FLOAT32, PRECISIONS, LossScale, computing, require_exact
from pm1_core.training.private import Units, train_privately
from pm1_core.training.processes import size
from pm1_core.validate import refusal, require_choice, require_keys, require_range


@dataclass(frozen=True)
class Losses:
    """What one batch gives: the scalar to minimise, and named parts to report.

    Parts may stay scalars on a GPU: the loop looks at them when it has to wait for the GPU anyway.
    """

    total: torch.Tensor
    parts: Mapping[str, float | torch.Tensor] = field(default_factory=dict)


DEVICES = ("auto", "cpu", "cuda", "mps", "xpu")

Read = Callable[[np.ndarray], Any]
LossOf = Callable[[Any, torch.Generator, int], Losses]


@dataclass(frozen=True)
class LoopConfig:
    """How a task is trained locally.

    batch_size: people in a step; 0 takes everybody at once (full-batch gradient descent)
    epochs: local epochs per round
    keep_moments: carry the optimiser's state from round to round on the site's own disk
    device: one of DEVICES, also "cuda:1"; "auto" takes a GPU where there is one
    precision: of the network's matrix products; parameters, losses and optimiser stay in float32
    """

    batch_size: int = 64
    epochs: int = 1
    keep_moments: bool = True
    device: str = "auto"
    precision: str = FLOAT32
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)

    def __post_init__(self) -> None:
        if self.device.partition(":")[0] not in DEVICES:
            require_choice("device", self.device, DEVICES, ConfigError)
        require_choice("loop.precision", self.precision, PRECISIONS, ConfigError)

    @staticmethod
    def of(parameters: Mapping[str, Any]) -> LoopConfig:
        """Read the key "loop" of an order's parameters. Raises ConfigError naming an unknown key."""
        names = tuple(LoopConfig.__dataclass_fields__)
        given = dict(require_keys("loop", parameters.get("loop", {}), (), names, ConfigError))
        optimiser = require_keys(
            "loop.optimiser",
            given.pop("optimiser", {}),
            (),
            tuple(OptimiserConfig.__dataclass_fields__),
            ConfigError,
        )
        require_range("loop.batch_size", given.get("batch_size", 0), 0, error=ConfigError)
        require_range("loop.epochs", given.get("epochs", 1), 1, error=ConfigError)
        return LoopConfig(**given, optimiser=OptimiserConfig(**optimiser))


def device_of(parameters: Mapping[str, Any]) -> torch.device:
    """The device that an order's parameters ask for; "auto" takes a GPU where there is one.

    Of several processes each has its own GPU.
    """
    name = LoopConfig.of(parameters).device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(f"cuda:{torch.cuda.current_device()}" if name == "cuda" and size() > 1 else name)


def train_epochs(
    module: torch.nn.Module,
    trained: Trained,
    order: Order,
    folder: Path,
    examples: int,
    loss_of: LossOf,
    guide: Guide = UNGUIDED,
    units: Units | None = None,
    read: Read = lambda indices: indices,
) -> dict[str, float]:
    """Train `trained`, parameters of `module`, in place for one round and return averaged figures.

    trained: by the names under which they travel, so that a strategy's guide can tell them apart
    order.parameters["loop"] is a LoopConfig. `loss_of(indices, generator, step)` gets int64 indices into
    0..examples-1, a generator for everything random in this batch, and the number of steps taken so far in
    the phase; it returns Losses. Batches of an epoch, and everything drawn in them, follow from
    (seed, phase, epoch) alone, so that a site which repeats a round repeats it to the bit.
    guide: asked in every step that is taken, between clipping and the optimiser; not in skipped ones
    units: whose gradients are cut one by one where the order has record-level terms, see `private.train_privately`;
        a task that gives none cannot keep them, and ConfigError is raised
    read: gives what `loss_of` gets in the place of indices. On a GPU a thread reads the next batch during a step,
        so that it draws nothing and looks at nothing that is trained

    Returns {"loss": mean over people, "steps": n, "skipped_steps": n, "gradient_norm": mean, **parts}, and
    "loss_scale" in float16. The norm is of the task's own gradient, before clipping and without the guide. Skipped
    is a step whose loss or gradient is not finite (a KL divergence that is NaN, appendix F.1, or an overflow of
    float16), or whose gradient is larger than `skip_norm`.
    """
    config = LoopConfig.of(order.parameters)
    terms = record_terms(order.privacy)
    if terms:
        if units is None:
            found = "it does not say whose gradients are to be cut"
            remedy = "train it without differential privacy, or hand units to train_epochs"
            raise ConfigError(refusal(f"task {order.task!r}, privacy", found, remedy))
        require_exact(f"task {order.task!r}", config.precision)
        return train_privately(module, trained, order, terms, folder, units, config, guide)
    parameters, memory = list(trained.values()), Memory(folder, order)
    optimiser = build_optimiser(parameters, config.optimiser)
    step = load_moments(optimiser, trained, memory) if config.keep_moments else 0
    device = parameters[0].device.type
    scale = LossScale(config.precision, device, memory if config.keep_moments else None)
    module.train()
    guide.begin(trained)
    batch = config.batch_size or max(1, examples)
    sums: dict[str, float] = defaultdict(float)
    seen = steps = skipped = 0
    for local in range(config.epochs):
        epoch = (order.round - 1) * config.epochs + local
        draws = generator(order.seed, order.phase, "epoch", epoch)
        shuffled = torch.randperm(examples, generator=draws).numpy()
        batches = [np.sort(shuffled[start : start + batch]) for start in range(0, examples, batch)]
        contents = ahead(read, batches) if device == "cuda" else map(read, batches)
        for indices, content in zip(batches, contents, strict=True):
            rate = learning_rate(config.optimiser, step, epoch, order.rounds * config.epochs)
            for group in optimiser.param_groups:
                group["lr"] = rate
            optimiser.zero_grad(set_to_none=True)
            with computing(config.precision, device):
                losses = loss_of(content, draws, step)
            scale.backward(losses.total, optimiser)
            norm = float(
                torch.nn.utils.clip_grad_norm_(parameters, config.optimiser.clip_norm or float("inf"))
            )
            # Before the optimiser is started: a look at a GPU's numbers waits for all that it was asked for.
            scalars = {"loss": losses.total.detach(), "gradient_norm": norm, **losses.parts}
            figures = {name: float(value) for name, value in scalars.items()}
            too_large = config.optimiser.skip_norm is not None and norm > config.optimiser.skip_norm
            step += 1
            if too_large or not np.isfinite(norm) or not np.isfinite(figures["loss"]):
                skipped += 1
                continue
            guide.adjust(trained)
            optimiser.step()
            steps += 1
            seen += len(indices)
            for name, value in figures.items():
                sums[name] += value * len(indices)
    if config.keep_moments:
        save_moments(optimiser, trained, memory, step)
    averages = {name: value / max(1, seen) for name, value in sums.items()}
    return {**averages, "steps": float(steps), "skipped_steps": float(skipped), **scale.kept()}
