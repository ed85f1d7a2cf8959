"""What a site holds every answer against before it leaves: the terms of its order, and the site's own ledger.

A site with a ledger has promised its people a bound. So an order either has terms, and its release is charged
before it is sent, or it asks for something that no bound covers: that is refused, unless the site's IT allows it
(`unprotected`), and then noted in the ledger. A site without a ledger promised nothing, and answers orders without
terms only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from client import counts
from client.outbox import Release
from pm1_core.data.store import Store
from pm1_core.errors import PrivacyError
from pm1_core.privacy.accounting import tightest
from pm1_core.privacy.accounts import release_hash
from pm1_core.privacy.distributed_noise import nominal
from pm1_core.privacy.ledger import Ledger
from pm1_core.privacy.mechanisms import GAUSSIAN, Mechanism
from pm1_core.privacy.terms import SiteTerms, record_terms, terms_of
from pm1_core.validate import refusal

if TYPE_CHECKING:
    from client.counts import Counts
    from pm1_core.training.order import Order
    from pm1_core.training.tasks import Task

Charged = tuple[str, str, int, str, str]
"""Study, phase, round, request and hash of what is charged."""

_PERSON = "one person at this site is added or removed"


@dataclass(frozen=True)
class Guarantee:
    """The guarantee under which a site answers one study.

    ledger: of the site, of all its studies; study: its name there
    unprotected: answer orders without terms although there is a ledger
    charged: is told (unit, epsilon, delta) of what a new charge would have cost alone
    """

    ledger: Ledger
    study: str
    unprotected: bool = False
    charged: Callable[[str, float, float], None] | None = None

    def require(self, task: Task, order: Order, kind: str = "train") -> None:
        """Raise PrivacyError unless an answer to `order` could be given now. Nothing is computed or charged.

        kind: "train" or "evaluate"; figures of a model on people are no part of what terms pay for
        """
        where = f"phase {order.phase!r}"
        if not order.privacy:
            if self.ledger.exists and not self.unprotected:
                found = "it asks for no differential privacy, and this site has a ledger"
                remedy = 'study with privacy=record, or allow it here: --node-config "unprotected=true"'
                raise PrivacyError(refusal(where, found, remedy))
            return
        if not self.ledger.exists:
            remedy = "make one: pm1-site privacy open FOLDER --epsilon 8 --delta 1e-5"
            raise PrivacyError(refusal(where, f"found no ledger at {self.ledger.path.name}", remedy))
        if record_terms(order.privacy):
            if not task.private:
                found = f"task {task.name!r} keeps no record-level terms"
                raise PrivacyError(refusal(where, found, "leave the phase out"))
            if kind != "train":
                found = "figures on people here are not paid for"
                raise PrivacyError(refusal(where, found, "evaluate on people who are at no site"))
        given = task.mechanisms(order)
        if isinstance(terms := terms_of(order.privacy), SiteTerms):
            if not order.secure:
                found = "it asks for noise in a sum over sites, and for an answer in the clear"
                raise PrivacyError(refusal(where, found, "use aggregation=secure with privacy=site"))
            if kind != "train":
                found = "figures on people here are not paid for"
                raise PrivacyError(refusal(where, found, "evaluate on people who are at no site"))
            public = task.name == "reference"  # which gives nothing of anybody
            if not public and (task.aggregation == "sum" or not terms.noise_multiplier):
                found = f"task {task.name!r} would be answered without noise"
                raise PrivacyError(
                    refusal(where, found, "use privacy.statistics=public, privacy.tokens=identity")
                )
            given = () if public else (nominal(terms.noise_multiplier),)
        if order.round:
            self.ledger.require(given, f"round {order.round} of {order.phase!r}")

    def pay(self, release: Release) -> None:
        """Charge a release that is on disk; it may leave once this returns. Paid once, however often it is sent.

        Raises PrivacyError if the ledger does not afford it.
        """
        digest = release_hash(release.objects, release.figures)
        where = self.study, release.phase, release.round, release.request, digest
        if release.mechanisms:
            given = [Mechanism.from_json(item) for item in release.mechanisms]
            self._charge(where, given, release.statement)
        elif not release.protected and self.ledger.exists:
            self.ledger.note(*where, release.statement)

    def counts(self, task: Task, order: Order, store: Store, folder: Path) -> Counts:
        """How many people the site says it has for a phase, as the order's terms ask.

        folder: of the study; noised counts are drawn, kept and charged there once. Raises as `require` and `pay`.
        """
        terms = record_terms(order.privacy)
        if isinstance(terms_of(order.privacy), SiteTerms):
            return counts.equal(task, store)
        if terms is None:
            found = counts.exact(task, store)
            if self.ledger.exists:
                digest = release_hash([order.phase], found)
                self.ledger.note(
                    self.study, order.phase, 0, digest, digest, statement(order, "numbers of people")
                )
            return found
        if terms.weights == "equal":
            return counts.equal(task, store)
        held = counts.noised_cells(store, terms, folder / "counts.json")
        given = [Mechanism(GAUSSIAN, held.noise_multiplier)]
        digest = release_hash([str(held.people.tolist())], {})
        request = release_hash([self.study], {})
        where = self.study, "counts", 0, request, digest
        self._charge(where, given, f"numbers of people; {_PERSON}")
        return counts.from_cells(task, held.people)

    def _charge(self, where: Charged, given: list[Mechanism], words: str) -> None:
        if not self.ledger.charge(*where, given, words).new or not self.charged:
            return
        budget = self.ledger.budget()
        for unit in sorted({item.unit for item in given}):
            delta = budget[unit][1]
            alone = tightest([item for item in given if item.unit == unit], delta)
            self.charged(unit, alone.value, delta)


def statement(order: Order, kind: str) -> str:
    """What a release is, in the ledger's words."""
    if not order.privacy:
        return f"{kind}, no differential privacy"
    return (
        f"{kind}; {_PERSON}"
        if record_terms(order.privacy)
        else f"{kind}; this whole site is added or removed"
    )
