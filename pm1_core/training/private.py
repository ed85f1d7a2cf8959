"""Training under record-level terms: DP-SGD (Abadi et al. 2016, "Deep learning with differential privacy", algorithm 1).

In every step each unit, a person or a group of people, is taken with probability q, independently of all others; its
gradient is cut to an L2 norm of at most C; the sum over the taken is noised by N(0, (z C)^2) and divided by a public
number. So a step is the mechanism that `Task.mechanisms` declares and `pm1_core.privacy.accounting` counts, and all
that follows from it (moments, guides, the update) is post-processing.

What this loop leaves out of the plain one, because it would depend on people unseen: skipped steps, clipping of the
batch's gradient, batches that cover everybody once, and figures. The number of steps is the order's. A unit whose
gradient is not finite counts as zero.

Who is taken, and the noise, follow from the operating system's randomness, and are never drawn again: the coordinator
knows the order's seed, and with it could undo the noise, or say who was in a step and so take away what sampling gives.
What else is drawn in a step (masks, corruptions, latents) does not depend on people; it follows from the seed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from pm1_core.privacy.noise import gaussian, poisson_sample, secret_generator
from pm1_core.privacy.terms import RecordTerms
from pm1_core.training.guide import UNGUIDED, Guide, Trained
from pm1_core.training.memory import Memory
from pm1_core.training.moments import load_moments, save_moments
from pm1_core.training.optimisers import build_optimiser, learning_rate
from pm1_core.training.order import Order, generator

if TYPE_CHECKING:
    from pm1_core.training.loop import LoopConfig

LossesOf = Callable[[np.ndarray, torch.Generator], torch.Tensor]


@dataclass(frozen=True)
class Units:
    """Whose gradients are cut.

    count: units at this site, a secret; losses: indices int64 [k] into them, and draws -> loss of each alone, float [k]
    """

    count: int
    losses: LossesOf


def train_privately(
    module: torch.nn.Module,
    trained: Trained,
    order: Order,
    terms: RecordTerms,
    folder: Path,
    units: Units,
    loop: LoopConfig,
    guide: Guide = UNGUIDED,
) -> dict[str, float]:
    """Train `trained`, parameters of `module`, in place for one round.

    order.parameters["loop"] says how, as for `train_epochs`; its batch size bounds only how many units are in memory
    at a time, and its epochs are `terms.steps` * `terms.sample_rate`. Moments are carried on as there.

    Returns {"steps": n}: nothing that depends on people.
    """
    from pm1_core.training.clipping import ClippedGradients

    parameters, memory = list(trained.values()), Memory(folder, order)
    optimiser = build_optimiser(parameters, loop.optimiser)
    before = load_moments(optimiser, trained, memory) if loop.keep_moments else 0
    secret, clipped = secret_generator(), ClippedGradients(module, trained)
    module.train()
    guide.begin(trained)
    for local in range(terms.steps):
        epoch = _epoch(order.round, local, loop.epochs, terms.steps)
        rate = learning_rate(loop.optimiser, before + local, epoch, order.rounds * loop.epochs)
        for group in optimiser.param_groups:
            group["lr"] = rate
        taken = np.flatnonzero(poisson_sample(units.count, terms.sample_rate, secret))
        draws = generator(order.seed, order.phase, "step", before + local)
        sums = _clipped_sums(clipped, trained, units, taken, terms.clip, loop.batch_size, draws)
        for name, parameter in trained.items():
            noised = gaussian(sums[name], terms.clip, terms.noise_multiplier, secret)
            parameter.grad = torch.from_numpy(noised).to(parameter) / terms.units
        guide.adjust(trained)
        optimiser.step()
    if loop.keep_moments:
        save_moments(optimiser, trained, memory, before + terms.steps)
    return {"steps": float(terms.steps)}


def _epoch(round_number: int, local: int, epochs: int, steps: int) -> int:
    """The epoch, from 0, that a step of a round belongs to, for schedules that go by epochs."""
    return (round_number - 1) * epochs + local * epochs // steps


def _clipped_sums(
    clipped: ClippedGradients,
    trained: Trained,
    units: Units,
    taken: np.ndarray,
    clip: float,
    at_once: int,
    draws: torch.Generator,
) -> dict[str, np.ndarray]:
    """The sum of the cut gradients of the units `taken`, float32 by name; zeros if nobody was."""
    sums = {name: torch.zeros_like(parameter) for name, parameter in trained.items()}
    for start in range(0, len(taken), at_once or max(1, len(taken))):
        chunk = taken[start : start + (at_once or len(taken))]
        clipped.step(lambda chunk=chunk: units.losses(chunk, draws), len(chunk), clip)  # type: ignore[misc]
        for name, parameter in trained.items():
            if parameter.grad is not None:
                sums[name] += parameter.grad
    return {name: total.detach().cpu().numpy() for name, total in sums.items()}
