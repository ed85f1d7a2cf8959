"""Aggregation rules (`rules`, plain numpy) and the thin Flower strategies around them, by name."""

from __future__ import annotations

import os

# Flower reads this when it is imported: a hospital's processes do not call home.
os.environ["FLWR_TELEMETRY_ENABLED"] = "0"

from flwr.serverapp.strategy import Strategy

from pm1_core.errors import ConfigError
from pm1_core.validate import require_choice
from strategies.fedavg import FedAvg, Summation

STRATEGIES: dict[str, type[FedAvg]] = {"fedavg": FedAvg}

__all__ = ["STRATEGIES", "FedAvg", "Strategy", "Summation", "build"]


def build(name: str) -> FedAvg:
    """The strategy of that name. Raises ConfigError naming the choices."""
    return STRATEGIES[require_choice("strategy.name", name, STRATEGIES, ConfigError)]()
