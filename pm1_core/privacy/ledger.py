"""What has been released about the people of a site, in all studies together, and the bound that it may not pass.

`ledger.jsonl` belongs to the site's IT. Its first line says whose it is and the budget (epsilon, delta) of each
unit; every later one is a charge, a raised budget, or a note of a release without differential privacy. Lines
are only added, each on disk before its release leaves, and each has the SHA-256 of the line before it.

A charge is one release and counts for *everybody* at the site, whoever was in it. So whether a release is refused
depends on what was asked, never on people: a budget of each person by itself would tell who has been used up.
The budget is that of the composition of all charges (`pm1_core.privacy.accounting`). Releases that hide a whole
site are charged to its unit, and as what they hide of one person (`as_record`) to the unit of people too.

Order of things: the release is kept on disk, then charged, then sent. A process that is killed before the
charge has sent nothing, and charges the kept release later; after it, the same release is charged again at no
cost.

What the chain shows: `verify` names a line that was changed, removed, inserted or moved. `ledger.head` holds
the number of lines and the hash of the last, so that lines cut off at the end are missed as well, but for one
line that was written when a process was killed before it wrote the head, and whose release therefore has not
left. It cannot show what a person does who may write both files and puts both back to an earlier state, from a
backup for instance: for that, write down the hash that `pm1-site privacy verify` prints, and give it to a later
`verify`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

from pm1_core import chain
from pm1_core.errors import ConfigError, PrivacyError
from pm1_core.privacy import accounts
from pm1_core.privacy.accounting import Epsilon, tightest, within
from pm1_core.privacy.accounts import Budget, Spent, State, checked_budget, release_facts, seen_by
from pm1_core.privacy.mechanisms import RECORD, Mechanism
from pm1_core.validate import refusal

_OPEN = "make one: pm1-site privacy open FOLDER --epsilon 8 --delta 1e-5"


@dataclass(frozen=True)
class Charge:
    """A release that may leave. new: whether it had to be charged now; line: of the ledger, from 1, that has
    it.
    """

    new: bool
    line: int


class Ledger:
    """The ledger of a site at `path`. Nothing is read or written before a method is called.

    wait: seconds for which another process that is charging is waited for
    """

    NAME: ClassVar[str] = "ledger.jsonl"

    def __init__(self, path: Path, wait: float = 60.0) -> None:
        self.path = path
        self.wait = wait
        self._chain = chain.Chain(path)
        self._state = State()

    @property
    def exists(self) -> bool:
        """Whether a ledger was opened here."""
        return bool(self._read().budget)

    @property
    def site(self) -> str:
        """Whose ledger this is. Raises PrivacyError if there is none."""
        return self._opened().site

    def open(self, site: str, budget: Budget) -> None:
        """Write the first line. Raises PrivacyError if there is a ledger already, ConfigError on a bad budget."""
        with self._locked():
            if self._read().budget:
                remedy = "keep to it, or raise its budget: pm1-site privacy raise"
                raise PrivacyError(refusal(self.path, "the ledger is open already", remedy))
            self._append({"what": "open", "site": site, "budget": checked_budget(budget)})

    def raise_budget(self, unit: str, epsilon: float, delta: float, reason: str) -> None:
        """Write a larger budget of a unit, or that of a further unit, and why.

        Raises ConfigError if it is not larger, or nobody says why; PrivacyError if the ledger was not opened.
        """
        with self._locked():
            before = self._opened().budget.get(unit, (0.0, 0.0))
            budget = checked_budget({unit: (epsilon, delta)})
            if epsilon < before[0] or delta < before[1] or (epsilon, delta) == before:
                found = f"found ({epsilon:g}, {delta:g}), it is ({before[0]:g}, {before[1]:g}) now"
                raise ConfigError(refusal(f"budget of unit {unit!r}", found, "give a larger one"))
            if not reason.strip():
                raise ConfigError(refusal("reason", "found none", "say why, and who decided"))
            self._append({"what": "raise", "budget": budget, "reason": reason.strip()})

    def charge(
        self,
        study: str,
        phase: str,
        round: int,
        request: str,
        release_hash: str,
        mechanisms: Iterable[Mechanism],
        statement: str = "",
    ) -> Charge:
        """Charge a release to everybody at the site; once this returns it may leave, and it may not before.

        request: digest of the request that it answers; release_hash: of the bytes that will leave
        mechanisms: what it releases; () if nothing of anybody, then nothing is written
        statement: what it is, in words

        Raises PrivacyError, and writes nothing, if there is no ledger or no budget of the unit, if another
        release was charged for the same request, or if the composition of all charges would pass the budget;
        StateError if the ledger is damaged, or another process holds it for too long.
        """
        given = tuple(mechanisms)
        if not given:
            return Charge(new=False, line=0)
        with self._locked():
            self._opened()
            held = self._held(request, release_hash)
            if held:
                return Charge(new=False, line=held)
            self.require(given, f"round {round} of {phase!r} in study {study!r}")
            line = {
                "what": "charge",
                **release_facts(study, phase, round, request, release_hash, statement),
                "mechanisms": [item.to_json() for item in given],
            }
            return Charge(new=True, line=self._append(line))

    def note(
        self, study: str, phase: str, round: int, request: str, release_hash: str, statement: str
    ) -> Charge:
        """Write down a release without differential privacy: no epsilon covers it, and all figures say so.

        Raises PrivacyError if there is no ledger, or another release was written down for the request.
        """
        with self._locked():
            self._opened()
            held = self._held(request, release_hash)
            if held:
                return Charge(new=False, line=held)
            line = {"what": "note", **release_facts(study, phase, round, request, release_hash, statement)}
            return Charge(new=True, line=self._append({**line, "mechanisms": []}))

    def budget(self) -> dict[str, tuple[float, float]]:
        """(epsilon, delta) of each unit. Raises PrivacyError if the ledger was not opened."""
        return dict(self._opened().budget)

    def spent(self, unit: str = RECORD) -> Epsilon:
        """Epsilon of all charges together, at the budget's delta. Raises PrivacyError without a budget of it."""
        _, delta = self._bound(unit)
        found = tightest(self.mechanisms(unit), delta)
        return Epsilon(found.value, found.accountant, delta, unit)

    def remaining(self, unit: str = RECORD) -> float:
        """The budget's epsilon less what is spent; what a further release may cost at least, by itself."""
        return max(0.0, self._bound(unit)[0] - self.spent(unit).value)

    def affords(self, mechanisms: Iterable[Mechanism]) -> bool:
        """Whether a release of `mechanisms` could be charged now. Writes nothing, and promises nothing."""
        given = tuple(mechanisms)
        state = self._opened()
        if any(item.unit not in state.budget for item in given):
            return False
        return all(
            within([*self.mechanisms(unit), *seen_by(unit, given)], epsilon, delta)
            for unit, (epsilon, delta) in state.budget.items()
        )

    def require(self, mechanisms: Iterable[Mechanism], what: str) -> None:
        """Raise PrivacyError unless a release of `mechanisms`, called `what`, could be charged now. Writes nothing.

        Asked before the work of making a release; `charge` asks again.
        """
        given = tuple(mechanisms)
        state = self._opened()
        for unit in sorted({item.unit for item in given}):
            if unit not in state.budget:
                raise PrivacyError(
                    refusal(self.path, f"found no budget of unit {unit!r}", "ask the site's IT for one")
                )
        if given:
            self._require_affordable(given, what)

    def mechanisms(self, unit: str = RECORD) -> tuple[Mechanism, ...]:
        """All charges, as the unit sees them."""
        held = self._opened().accounts.values()
        return tuple(item for account in held for item in seen_by(unit, account.released))

    def by_phase(self, unit: str = RECORD) -> list[Spent]:
        """What each phase of each study would have cost alone, in the order in which they came."""
        return accounts.spent(self._opened().accounts, unit, self._bound(unit)[1], by_phase=True)

    def by_study(self, unit: str = RECORD) -> list[Spent]:
        """What each study would have cost alone."""
        return accounts.spent(self._opened().accounts, unit, self._bound(unit)[1], by_phase=False)

    def unprotected(self) -> dict[str, int]:
        """How many releases without differential privacy each study has made; nothing of those that made none."""
        counts: dict[str, int] = {}
        for (study, _), account in self._opened().accounts.items():
            counts[study] = counts.get(study, 0) + account.unprotected
        return {study: count for study, count in counts.items() if count}

    def verify(self, digest: str = "") -> chain.Head:
        """Read all lines anew, check the chain and the head, and return its end.

        digest: hash of the last line at an earlier time, which has to be one of the lines now

        Raises StateError naming the first line that does not belong where it is; PrivacyError without a ledger.
        """
        with self._locked():
            fresh = Ledger(self.path)
            fresh._opened()
            fresh._chain.require_close()
            fresh._chain.require_known(digest)
            return fresh._chain.head

    def _require_affordable(self, given: tuple[Mechanism, ...], what: str) -> None:
        for unit, (epsilon, delta) in self._state.budget.items():
            together = [*self.mechanisms(unit), *seen_by(unit, given)]
            if within(together, epsilon, delta):
                continue
            would, spent = tightest(together, delta).value, self.spent(unit).value
            found = (
                f"{what} would take unit {unit!r} from epsilon {spent:.4g} to {would:.4g} at delta {delta:g}, "
                f"past its budget of {epsilon:g}, of which {self.remaining(unit):.4g} remains"
            )
            remedy = "ask for more noise or fewer rounds, or raise the budget: pm1-site privacy raise"
            raise PrivacyError(refusal(self.path, found, remedy))

    def _held(self, request: str, release_hash: str) -> int:
        """The line that has this release, 0 if none has."""
        held, line = self._state.charged.get(request, (release_hash, 0))
        if held != release_hash:
            found = f"line {line} has another release for the request {request[:12]}"
            remedy = "send that one again; two answers to one request would need two charges"
            raise PrivacyError(refusal(self.path, found, remedy))
        return line

    def _bound(self, unit: str) -> tuple[float, float]:
        budget = self._opened().budget
        if unit not in budget:
            raise PrivacyError(
                refusal(self.path, f"found no budget of unit {unit!r}", "raise it from nothing")
            )
        return budget[unit]

    def _opened(self) -> State:
        state = self._read()
        if not state.budget:
            raise PrivacyError(refusal(self.path, "found no ledger", _OPEN))
        return state

    def _read(self) -> State:
        """Take what was added since the last time."""
        for line in self._chain.read():
            self._state.take(line, int(line["n"]))
        return self._state

    def _append(self, line: Mapping[str, Any]) -> int:
        number = self._chain.append({**line, "time": datetime.now(UTC).isoformat(timespec="seconds")})
        self._state.take(line, number)
        return number

    def _locked(self) -> AbstractContextManager[None]:
        """Hold the ledger against other processes."""
        return chain.held(self.path, self.wait)
