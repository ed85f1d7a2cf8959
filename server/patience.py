"""When a phase ends before its last round: no better validation loss for a while (section 4.1, F.1, F.2).

A model is validated in the round after the one that made it, by the sites that it is sent to. So the checkpoint of
round n keeps the loss of round n - 1's model among its metrics, under its own hash: a coordinator that goes on from
there knows what the killed one knew. The loss is averaged over the sites by their training people, as all figures
of a round. A phase that ends so ends on the model of the best round; the training of its last round is thrown away.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from pm1_core.checkpoint import Checkpoint, CheckpointFolder
from pm1_core.fields import Split

LOSS = f"{Split.VALIDATION}.loss"


def kept_loss(means: Mapping[str, float]) -> dict[str, dict[str, dict[str, float]]]:
    """What a checkpoint's manifest keeps of a round's figures, ready for it; nothing without a validation loss."""
    return {"metrics": {"all": {LOSS: means[LOSS]}}} if LOSS in means else {}


def validated(checkpoints: CheckpointFolder, latest: Checkpoint) -> dict[int, float]:
    """Validation loss of the phase's models so far, by the round that made them, as of `latest`."""
    losses: dict[int, float] = {}
    held = latest
    while held.phase == latest.phase and held.round:
        if LOSS in held.metrics.get("all", {}):
            losses[held.round - 1] = held.metrics["all"][LOSS]
        held = checkpoints.load(held.sequence - 1)
    return losses


def best_round(losses: Mapping[int, float], patience: int) -> int | None:
    """The round whose model a phase ends with, or None while it goes on. A loss that is not finite is never best.

    >>> best_round({1: 3.0, 2: 2.0, 3: 2.5}, patience=2), best_round({1: 3.0, 2: 2.0, 3: 2.5, 4: 2.0}, patience=2)
    (None, 2)
    """
    if not patience or not losses:
        return None
    best = min(
        sorted(losses), key=lambda number: losses[number] if math.isfinite(losses[number]) else math.inf
    )
    return best if max(losses) - best >= patience else None
