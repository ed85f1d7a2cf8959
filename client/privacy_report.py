"""What pm1-site privacy prints: a ledger, what a study would cost, a person at several hospitals."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pm1_core import atomic
from pm1_core.errors import InputError
from pm1_core.privacy.accounting import tightest
from pm1_core.privacy.hospitals import BUDGETS, MOST, at_hospitals, stand_in
from pm1_core.privacy.ledger import Ledger
from pm1_core.privacy.mechanisms import GAUSSIAN, SITE, Mechanism
from pm1_core.privacy.terms import SiteTerms, terms_of
from pm1_core.validate import refusal

_MEANING = {
    "record": "a person at this site is added or removed",
    "site": "this whole site is added or removed",
}


def run(options: argparse.Namespace) -> None:
    """Run one action. Raises PM1Error."""
    if options.action == "hospitals":
        outcome, text = _hospitals(options)
    else:
        ledger = Ledger(options.folder / Ledger.NAME)
        if options.action == "open":
            site = options.site or options.folder.resolve().name
            ledger.open(site, {options.unit: (options.epsilon, options.delta)})
        if options.action == "raise":
            ledger.raise_budget(options.unit, options.epsilon, options.delta, options.reason)
        outcome, text = _verified(ledger, options) if options.action == "verify" else _shown(ledger, options)
    print(json.dumps(outcome) if options.json else text)


def _verified(ledger: Ledger, options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    head = ledger.verify(options.digest)
    lines = [
        f"{ledger.path}: {head.lines} lines, each follows from the one before it",
        f"hash of the last  {head.digest}",
        "Write it down: a later `verify --digest` shows that nothing was put back.",
    ]
    return asdict(head), "\n".join(lines)


def _shown(ledger: Ledger, options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    head, units = ledger.verify(), {}
    lines = [f"site {ledger.site}, ledger {ledger.path}: {head.lines} lines"]
    for unit, (bound, delta) in ledger.budget().items():
        spent, remaining = ledger.spent(unit), ledger.remaining(unit)
        phases = ledger.by_phase(unit)
        units[unit] = {
            "epsilon": bound,
            "delta": delta,
            "spent": asdict(spent),
            "remaining": remaining,
            "studies": [asdict(item) for item in ledger.by_study(unit)],
            "phases": [asdict(item) for item in phases],
        }
        lines += [
            f"\nunit {unit}: {_MEANING[unit]}; delta {delta:g}",
            f"  budget {bound:.4g}   spent {spent.value:.4g} ({spent.accountant})   remaining {remaining:.4g}",
        ]
        if phases:
            lines.append(f"  {'study':<24} {'phase':<16} {'releases':>8} {'epsilon alone':>14}")
            lines += [
                f"  {item.study:<24.24} {item.phase:<16.16} {item.releases:>8} {item.epsilon.value:>14.4g}"
                for item in phases
            ]
            lines.append("  Figures of phases do not add up; what is spent is that of all of them composed.")
    outcome = {"site": ledger.site, "lines": head.lines, "digest": head.digest, "units": units}
    unprotected = ledger.unprotected()
    outcome["unprotected"] = unprotected
    for study, count in unprotected.items():
        lines.append(f"\nstudy {study}: {count} releases without differential privacy; no figure covers them")
    if getattr(options, "study", None):
        found, text = study_cost(options.study, ledger)
        outcome["study"] = found
        lines.append(f"\n{text}")
    return outcome, "\n".join(lines)


def study_cost(file: Path, ledger: Ledger) -> tuple[dict[str, Any], str]:
    """The division of a study's budget over its phases, and whether the ledger affords it."""
    name, divided = division(file)
    together = [item for part in divided for item in part.items]
    whole = {
        unit: tightest([item for item in together if item.unit == unit], _delta(ledger, unit))
        for unit in sorted({item.unit for item in together})
    }
    lines = [f"study {name}", f"  {'phase':<32} {'noise':>8} {'rate':>7} {'steps':>7} {'alone':>8}"]
    for part in divided:
        if not part.items:
            nothing = "nothing of anybody here" if part.private else "no differential privacy"
            lines.append(f"  {part.title:<32.32} {nothing:>33}")
        for item in _counted(part.items):
            figures = f"{item.noise_multiplier:>8.4g} {item.sample_rate:>7.3g} {item.steps:>7}"
            alone = tightest([item], _delta(ledger, item.unit)).value
            lines.append(f"  {part.title:<32.32} {figures} {alone:>8.4g}")
    lines += [f"  all together: {epsilon}" for epsilon in whole.values()]
    if not all(part.private for part in divided):
        lines.append("  phases without differential privacy: no figure covers this study")
    affords = ledger.affords(together)
    if together:
        refused = "THE LEDGER DOES NOT AFFORD IT: its last rounds would be refused"
        lines.append(f"  {'the ledger affords it' if affords else refused}")
    found = {
        "name": name,
        "phases": [
            {
                "name": part.name,
                "count": part.count,
                "private": part.private,
                "mechanisms": [item.to_json() for item in _counted(part.items)],
            }
            for part in divided
        ],
        "composed": {unit: asdict(epsilon) for unit, epsilon in whole.items()},
        "affordable": affords,
    }
    return found, "\n".join(lines)


def _delta(ledger: Ledger, unit: str) -> float:
    return ledger.budget().get(unit, (0.0, 1e-5))[1]


def _counted(items: Sequence[Mechanism]) -> list[Mechanism]:
    """Equal mechanisms with their steps added up, in order."""
    steps: dict[Mechanism, int] = {}
    for item in items:
        steps[item.kind_alone] = steps.get(item.kind_alone, 0) + item.steps
    return [replace(item, steps=count) for item, count in steps.items()]


@dataclass(frozen=True)
class Part:
    """A phase of a study, or `count` phases alike. private: the study asks for terms; items: what all release."""

    name: str
    count: int
    private: bool
    items: list[Mechanism]

    @property
    def title(self) -> str:
        """Name and number."""
        return f"{self.name} ({self.count} phases)" if self.count > 1 else self.name


def division(file: Path) -> tuple[str, list[Part]]:
    """Name of a resolved study, and its phases, those that are alike as one.

    Raises InputError if it is no resolved study, or a phase's task is none of PM1's own.
    """
    # Imported here: tasks bring torch along, and the ledger alone is quick.
    from pm1_core.data.summary import nobody
    from pm1_core.training.order import Order
    from pm1_core.training.tasks import build_task

    if not file.exists():
        raise InputError(refusal(file, "no such file", "name the study.json that the coordinator resolved"))
    content = atomic.read_json(file)
    found: dict[tuple[str, bool, tuple[Mechanism, ...]], list[str]] = {}
    try:
        for phase in content["phases"]:
            items: list[Mechanism] = []
            for number in range(1, phase["rounds"] + 1):
                order = Order(
                    phase["name"],
                    phase["task"],
                    number,
                    phase["rounds"],
                    content["seed"],
                    phase["parameters"],
                    privacy=phase.get("privacy", {}),
                )
                terms = terms_of(order.privacy)
                if isinstance(terms, SiteTerms):
                    # The discrete noise in the sum costs a little more; the ledger is charged with that.
                    items.append(Mechanism(GAUSSIAN, terms.noise_multiplier, unit=SITE))
                else:
                    items += build_task(order, nobody()).mechanisms(order)
            key = phase["task"], bool(phase.get("privacy")), tuple(_counted(items))
            found.setdefault(key, []).append(phase["name"])
    except (KeyError, TypeError) as error:
        remedy = "name the study.json that the coordinator resolved"
        raise InputError(refusal(file, f"it is no resolved study ({error!r})", remedy)) from None
    return str(content["name"]), [
        Part(names[0] if len(names) == 1 else task, len(names), private, list(items) * len(names))
        for (task, private, items), names in found.items()
    ]


def _hospitals(options: argparse.Namespace) -> tuple[dict[str, Any], str]:
    if options.study:
        name, divided = division(options.study)
        columns: Mapping[str, Sequence[Mechanism]] = {name: [item for part in divided for item in part.items]}
    else:
        columns = {
            f"{epsilon:g}": [stand_in(epsilon, options.delta)] for epsilon in options.epsilon or BUDGETS
        }
    tables = {name: at_hospitals(items, options.delta) for name, items in columns.items()}
    lines = [
        f"Epsilon at delta {options.delta:g} of a person at k hospitals, each of which spends its whole budget",
        "  k " + "".join(f"{name:>12.12}" for name in tables),
    ]
    for place in range(MOST):
        figures = "".join(f"{rows[place].epsilon.value:>12.2f}" for rows in tables.values())
        lines.append(f"  {place + 1} {figures}")
    lines.append("Whatever they release: k times epsilon at k times delta.")
    if not options.study:
        lines.append(
            "Budgets are spent as by one Gaussian mechanism, to which many private steps come close."
        )
    outcome = {name: [asdict(row) for row in rows] for name, rows in tables.items()}
    return {"delta": options.delta, "budgets": outcome}, "\n".join(lines)
