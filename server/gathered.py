"""What came of a round, whichever way its answers were added up: what a checkpoint and the journal take from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from strategies.updates import Updates


@dataclass(frozen=True)
class Gathered:
    """A round's answers.

    updates: what the strategy folds
    sites: who is in it, with its number of examples
    figures: site -> its own figures, where the coordinator may see them
    means: figures over all of these sites
    energy: "energy_joules" over all sites that measured and "energy_sites", their number; {} if none did
    clear: removes what was kept of the answers
    """

    updates: Updates
    sites: Mapping[str, float]
    means: Mapping[str, float]
    clear: Callable[[], None]
    figures: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    energy: Mapping[str, float] = field(default_factory=dict)
