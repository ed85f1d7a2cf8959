"""What the lines of a ledger add up to, and how a line is written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pm1_core.errors import ConfigError
from pm1_core.privacy.accounting import Epsilon, tightest
from pm1_core.privacy.mechanisms import RECORD, UNITS, Mechanism, as_record
from pm1_core.validate import refusal, require_choice, require_range

Budget = Mapping[str, tuple[float, float]]
"""(epsilon, delta) of each unit."""


@dataclass(frozen=True)
class Spent:
    """What the releases of a study, or of one of its phases, cost if they were all there are."""

    study: str
    phase: str
    releases: int
    epsilon: Epsilon


@dataclass
class Account:
    """Releases of one phase of one study. mechanisms: each with one step, and how many steps there were."""

    releases: int = 0
    unprotected: int = 0
    mechanisms: dict[Mechanism, int] = field(default_factory=dict)

    @property
    def released(self) -> list[Mechanism]:
        """Each mechanism with its steps."""
        return [replace(item, steps=steps) for item, steps in self.mechanisms.items()]


@dataclass
class State:
    """What the ledger says. charged: request -> (hash of the release, line)."""

    site: str = ""
    budget: dict[str, tuple[float, float]] = field(default_factory=dict)
    charged: dict[str, tuple[str, int]] = field(default_factory=dict)
    accounts: dict[tuple[str, str], Account] = field(default_factory=dict)

    def take(self, line: Mapping[str, Any], number: int) -> None:
        """Add one line."""
        if line["what"] in ("open", "raise"):
            self.site = line.get("site", self.site)
            self.budget |= {unit: (epsilon, delta) for unit, (epsilon, delta) in line["budget"].items()}
            return
        self.charged[line["request"]] = line["release"], number
        account = self.accounts.setdefault((line["study"], line["phase"]), Account())
        account.releases += 1
        account.unprotected += line["what"] == "note"
        for content in line["mechanisms"]:
            item = Mechanism.from_json(content)
            account.mechanisms[item.kind_alone] = account.mechanisms.get(item.kind_alone, 0) + item.steps


def spent(
    accounts: Mapping[tuple[str, str], Account], unit: str, delta: float, by_phase: bool
) -> list[Spent]:
    """What each study, or each of its phases, would have cost alone, in the order in which they came."""
    found: dict[tuple[str, str], tuple[int, list[Mechanism]]] = {}
    for (study, phase), account in accounts.items():
        name = study, phase if by_phase else ""
        releases, items = found.get(name, (0, []))
        releases += account.releases - account.unprotected
        found[name] = releases, [*items, *seen_by(unit, account.released)]
    return [
        Spent(*name, releases, tightest(items, delta)) for name, (releases, items) in found.items() if items
    ]


def release_hash(objects: Iterable[str], figures: Mapping[str, float]) -> str:
    """SHA-256 over the digests of what leaves, in order, and its figures: the same for the same bytes."""
    content = json.dumps([list(objects), dict(figures)], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def release_facts(
    study: str, phase: str, round_number: int, request: str, release: str, statement: str
) -> dict[str, Any]:
    """What a line says about a release."""
    return {
        "study": study,
        "phase": phase,
        "round": round_number,
        "request": request,
        "release": release,
        "statement": statement,
    }


def checked_budget(budget: Budget) -> dict[str, list[float]]:
    """A budget as it is written. Raises ConfigError."""
    if not budget:
        raise ConfigError(refusal("budget", "found no unit", f"give one of {', '.join(UNITS)}"))
    for unit, (epsilon, delta) in budget.items():
        require_choice("budget, unit", unit, UNITS, ConfigError)
        require_range(f"budget of unit {unit!r}, epsilon", epsilon, 1e-6, 1e3, ConfigError)
        require_range(f"budget of unit {unit!r}, delta", delta, 1e-12, 0.5, ConfigError)
    return {unit: [float(epsilon), float(delta)] for unit, (epsilon, delta) in budget.items()}


def seen_by(unit: str, mechanisms: Iterable[Mechanism]) -> list[Mechanism]:
    """Mechanisms as they hide a unit. What hides people hides no site; that is another study's promise."""
    if unit == RECORD:
        return [as_record(item) for item in mechanisms]
    return [item for item in mechanisms if item.unit == unit]
