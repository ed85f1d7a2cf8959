"""How updates become one model: the aggregation strategies, each a small class in a file of its own.

`build({"name": "fedadam", "server_learning_rate": 0.1})` makes one; `STRATEGIES` names all there are.
"""

from __future__ import annotations

import os

# Flower reads these when it is imported: a hospital's processes do not call home.
os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["FLWR_DISABLE_UPDATE_CHECK"] = "1"

from strategies.base import Strategy
from strategies.registry import STRATEGIES, build
from strategies.summation import Summation
from strategies.updates import Gathered, Updates

__all__ = ["STRATEGIES", "Gathered", "Strategy", "Summation", "Updates", "build"]
