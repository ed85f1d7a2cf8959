"""What an attack is given, and what it gives back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from simulations.progress import Stages
from simulations.workspace import Workspace, simulated

Cell = str | float | int | dict[str, float] | None
"""A figure with its interval is {"value", "low", "high"}."""


class Column(TypedDict):
    """kind: "text", "figure" (three digits, with an interval if there is one) or "count"."""

    key: str
    label: str
    kind: str


class Outcome(TypedDict):
    """An attack's figures, JSON-able.

    attacker: what the attacker knows and sees; sets: how many people, or canaries, stand behind the figures
    plot: {"kind": "roc", "curves": [{"label", "fpr", "tpr"}]},
        {"kind": "intervals", "axis", "rows": [{"label", "value", "low", "high"}], "lines": [{"label", "value"}]},
        {"kind": "bounds", "axis", "rows": [{"label", "value", "claim"}]},
        or {"kind": "picture", "svg"}; with a "caption" if it needs one
    findings: sentences with the figures; notes: what the figures do not say
    """

    title: str
    attacker: str
    sets: str
    columns: list[Column]
    rows: list[dict[str, Cell]]
    plot: NotRequired[dict[str, Any]]
    findings: list[str]
    notes: list[str]


@dataclass(frozen=True)
class Setting:
    """config: as composed (configs.schema.Simulation); folder: of this attack's own files."""

    config: Mapping[str, Any]
    folder: Path
    stages: Stages

    @cached_property
    def workspace(self) -> Workspace:
        """The simulated hospitals, made when an attack first asks for them."""
        return simulated(self.config, self.stages)

    @property
    def options(self) -> Mapping[str, Any]:
        """The node `attack` of the configuration."""
        options: Mapping[str, Any] = self.config["attack"]
        return options
