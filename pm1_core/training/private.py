"""Training under record-level terms: DP-SGD (Abadi et al. 2016, "Deep learning with differential privacy").

In every step each unit, a person or a group of people, is taken with probability q, independently of all
others; its gradient is cut to an L2 norm of at most C; the sum over the taken is noised by N(0, (z C)^2) and
divided by a public number. So a step is the mechanism that `Task.mechanisms` declares and
`pm1_core.privacy.accounting` counts, and all that follows from it (moments, guides, the update) is
post-processing.

What this loop leaves out of the plain one, because it would depend on people unseen: skipped steps, clipping of the
batch's gradient, batches that cover everybody once, and figures. The number of steps is the order's. A unit whose
gradient is not finite counts as zero.

Who is taken, the noise, and what is drawn for a unit (masks, corruptions, latents) follow from the operating
system's randomness, and are never drawn again. The coordinator knows the order's seed: with it it could undo
the noise, or say who was in a step. It would also know which mask belongs to which place in a batch; when a
person is removed, all who come after her move up by one, and get other masks. With masks that nobody knows,
the same masks can be laid on the same people in both data sets, and one person's gradient is all that they
differ by.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from pm1_core.privacy.noise import gaussian_each, poisson_sample, secret_generator
from pm1_core.privacy.terms import RecordTerms
from pm1_core.training.clipping import ClippedGradients, Rows
from pm1_core.training.guide import UNGUIDED, Guide, Trained
from pm1_core.training.memory import Memory
from pm1_core.training.moments import load_moments, save_moments
from pm1_core.training.optimisers import build_optimiser, learning_rate
from pm1_core.training.order import Order

if TYPE_CHECKING:
    from pm1_core.training.loop import LoopConfig

LossesOf = Callable[[np.ndarray, torch.Generator, int], torch.Tensor]
SharesOf = Callable[[np.ndarray], tuple[int, ...]]
_MOST_AT_ONCE = 128
"""Units whose gradients are added up in float32; `clipping` leaves room for the rounding of so many."""


@dataclass(frozen=True)
class Units:
    """Whose gradients are cut.

    count: units at this site, a secret where they are people
    losses: (indices int64 [k] into them, draws, number of the step in the phase) -> loss of each unit, float
        [k], which depends on nothing of any other unit; the rows of a unit are neighbours in every layer's
        batch
    shares: how many rows each of these units has in a batch, None if all have as many
    """

    count: int
    losses: LossesOf
    shares: SharesOf | None = None


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

    order.parameters["loop"] says how, as for `train_epochs`; its batch size bounds only how many people are
    in memory at a time, and its epochs are `terms.steps` * `terms.sample_rate`. Moments are carried on as
    there.

    Returns {"steps": n}: nothing that depends on people.
    """
    parameters, memory = list(trained.values()), Memory(folder, order)
    optimiser = build_optimiser(parameters, loop.optimiser)
    if loop.keep_moments:
        load_moments(optimiser, trained, memory)
    secret, clipped = secret_generator(), ClippedGradients(module, trained)
    draws = torch.Generator().manual_seed(secrets.randbits(63))
    at_once = min(_MOST_AT_ONCE, max(1, (loop.batch_size or _MOST_AT_ONCE) // terms.group_size))
    threads, before = torch.get_num_threads(), (order.round - 1) * terms.steps
    module.train()
    guide.begin(trained)
    for local in range(terms.steps):
        epoch = (order.round - 1) * loop.epochs + local * loop.epochs // terms.steps
        rate = learning_rate(loop.optimiser, before + local, epoch, order.rounds * loop.epochs)
        for group in optimiser.param_groups:
            group["lr"] = rate
        taken = np.flatnonzero(poisson_sample(units.count, terms.sample_rate, secret))
        sums = clipped_sums(clipped, trained, units, taken, terms.clip, at_once, draws, before + local)
        noised = gaussian_each(
            [sums[name] for name in trained],
            terms.clip,
            terms.noise_multiplier,
            secret,
            terms.units,
            threads,
        )
        for parameter, values in zip(parameters, noised, strict=True):
            parameter.grad = torch.from_numpy(values).to(parameter)
        guide.adjust(trained)
        optimiser.step()
    if loop.keep_moments:
        save_moments(optimiser, trained, memory, before + terms.steps)
    return {"steps": float(terms.steps)}


def clipped_sums(
    clipped: ClippedGradients,
    trained: Trained,
    units: Units,
    taken: np.ndarray,
    clip: float,
    at_once: int,
    draws: torch.Generator,
    step: int = 0,
) -> dict[str, np.ndarray]:
    """The sum of the cut gradients of the units `taken`, by name; zeros if nobody was.

    Float32 if all fit into memory `at_once`; else such sums are added up in float64.
    """
    sums: dict[str, np.ndarray] = {}
    for start in range(0, len(taken), at_once):
        chunk = taken[start : start + at_once]
        rows = Rows(len(chunk), units.shares(chunk) if units.shares else None)
        clipped.step(partial(units.losses, chunk, draws, step), rows, clip)
        for name, parameter in trained.items():
            assert parameter.grad is not None  # `step` has just set it
            found = parameter.grad.cpu().numpy()
            sums[name] = sums[name] + found.astype(np.float64) if name in sums else found
    if not sums:
        return {name: np.zeros(parameter.shape, np.float32) for name, parameter in trained.items()}
    return sums
