"""The weighted mean of updates in memory."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from pm1_core.update import Update
from strategies.fedavg import FedAvg
from strategies.updates import Gathered


def weighted_mean(updates: Mapping[str, Update]) -> dict[str, np.ndarray]:
    """Mean over sites weighted by examples."""
    gathered = Gathered(updates)
    return dict(FedAvg().aggregate(1, updates[gathered.sites[0]].tensors, gathered))
