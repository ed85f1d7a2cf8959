"""A ledger with a budget, and what is charged to it."""

from __future__ import annotations

from pathlib import Path

from pm1_core.privacy.ledger import Ledger
from pm1_core.privacy.mechanisms import Mechanism

STEP = Mechanism("sampled", 1.0, 0.02, 10)
BUDGET = {"record": (3.0, 1e-5)}


def charge(ledger: Ledger, number: int, *mechanisms: Mechanism, study: str = "s", phase: str = "p") -> bool:
    return ledger.charge(study, phase, number, f"q{number}", f"h{number}", mechanisms or (STEP,)).new


def lines_of(ledger: Ledger) -> list[str]:
    return ledger.path.read_text().splitlines()


def opened(folder: Path) -> Ledger:
    """One that nothing was charged to."""
    made = Ledger(folder / Ledger.NAME)
    made.open("Freiburg", BUDGET)
    return made


def charged(folder: Path, releases: int = 5) -> Ledger:
    """One with so many releases."""
    ledger = opened(folder)
    for number in range(1, releases + 1):
        charge(ledger, number)
    return ledger
