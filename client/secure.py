"""A site's side of a secure sum: what it trained stays sealed here, and masked words leave in its place.

    folder/secure.lock                       one message of a secure sum at a time
    folder/opened.json                       which sums over which of this site's bytes were opened, of all studies
    folder/studies/<hash>/
        secure                               this study's answers are added up: none is given in the clear any more
        sealed/<request>.json, objects/      the answer itself, never handed out
        sealed/sums/<request>/answer.json    what of it is added up: names, sizes, weights, digests
        sealed/sums/<request>/opened.json    as above, for figures, which only mean something in this request
        sealed/sums/<request>/<attempt>/     plan and state of one attempt (mode 0600)

Stages come as messages `query.advertise` to `query.reveal`, each for both sums of a plan
(pm1_core.privacy.secure_plan). State is written before an answer leaves, and what will be opened before anything is
revealed. A sum that this site refuses does not keep it from answering the other one.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import numpy as np
from flwr.app import RecordDict

from client.outbox import Outbox, Release
from client.sealed import Sealed
from client.secure_attempt import SiteAttempt
from client.site import Site
from pm1_core import atomic
from pm1_core.errors import FederationError, PM1Error, PrivacyError
from pm1_core.privacy.secure_plan import Plan
from pm1_core.privacy.secure_sum import STAGES
from pm1_core.validate import refusal
from strategies import records

_LOCKED = "another message of a secure sum is being answered here: ask again"


class SecureSite(Site):
    """One message of a secure sum at one site."""

    def seal(self, release: Release, said: Sealed, arrays: Iterator[tuple[str, np.ndarray]]) -> RecordDict:
        """Keep an answer for good, and say which names it has for the sums."""
        folder = self.sums / release.request
        atomic.write_json(folder / "answer.json", dataclasses.asdict(said))
        release = self.vault.keep(release, arrays)
        for other in self.sums.iterdir():
            if not (self.vault.folder / f"{other.name}.json").exists():
                shutil.rmtree(other, ignore_errors=True)
        return self.sealed_answer(release, again=False)

    def sealed_answer(self, release: Release, again: bool) -> RecordDict:
        """The answer to an order whose answers are added up: that it is there, and names, no numbers of it."""
        said = self._said(release.request)
        facts: dict[str, records.Fact] = {
            "request": release.request,
            "entries": json.dumps(said.entries, sort_keys=True),
            "attempt": max(self._attempts(release.request), default=-1) + 1,
        }
        return self.outbox.tell(
            f"{release.kind}, sealed", facts, {"again": again, "entries": len(said.entries)}
        )

    def stage(self, stage: str) -> RecordDict:
        """This site's part in one stage of an attempt. Raises PrivacyError if it has none in any sum."""
        with atomic.locked(Path(self.paths.folder) / "secure.lock", _LOCKED):
            attempt = self._attempt(stage)
            answers: dict[str, bytes] = {}
            errors: list[PM1Error] = []
            for what in attempt.plan.sums:
                if what in self.facts:
                    try:
                        asked = records.text_of(self.facts, what).encode()
                        answers[what] = attempt.answered(what, stage, asked)
                    except PM1Error as error:
                        errors.append(error)
            if not answers:
                raise errors[0] if errors else PrivacyError(refusal(stage, "no sum is named", "name one"))
            if stage == "input":
                return attempt.upload(answers)
            facts: dict[str, records.Fact] = {what: said.decode() for what, said in answers.items()}
            about = {what: hashlib.sha256(said).hexdigest() for what, said in answers.items()}
            logged = {"attempt": attempt.plan.attempt, **about}
            return self.outbox.tell(
                stage, {"request": attempt.plan.request, **facts}, logged, attempt.release
            )

    @cached_property
    def vault(self) -> Outbox:
        """Keeps answers that are added up; what is in it is never packed."""
        return Outbox(self.store.site, self.outbox.log, self.folder / "sealed", self._pay, self.counter)

    @property
    def sums(self) -> Path:
        """Where attempts are."""
        return self.folder / "sealed" / "sums"

    def _said(self, request: str) -> Sealed:
        return Sealed(**atomic.read_json(self.sums / request / "answer.json"))

    def _attempts(self, request: str) -> list[int]:
        folder = self.sums / request
        return sorted(int(one.name) for one in folder.glob("[0-9]*") if (one / "plan.json").exists())

    def _attempt(self, stage: str) -> SiteAttempt:
        """The attempt that a message is about. Raises PrivacyError on one that is over, or is another one."""
        request = records.text_of(self.facts, "request")
        release = self.vault.held(request) if request.isalnum() else None
        if release is None:
            found = "this site has no such answer"
            raise FederationError(refusal(f"request {request[:12]!r}", found, "ask for the round again"))
        text = records.text_of(self.facts, "order")
        if records.request_digest(release.kind, text, self.checkpoint.hash) != request:
            raise FederationError(refusal("secure sum", "it is for another order", "send the order itself"))
        latest = max(self._attempts(request), default=-1)
        if stage == STAGES[0]:
            plan = Plan.from_json(records.text_of(self.facts, "plan"))
        elif latest < 0:
            raise PrivacyError(
                refusal("secure sum", "no attempt is under way here", "begin with the first stage")
            )
        else:
            plan = Plan.from_json((self.sums / request / str(latest) / "plan.json").read_text())
        number = plan.attempt if stage == STAGES[0] else self.facts.get("attempt")
        if plan.request != request or not isinstance(number, int) or number < latest:
            found = f"attempt {number} comes after attempt {latest}"
            raise PrivacyError(refusal("secure sum", found, "begin a new attempt, with a higher number"))
        if number != plan.attempt:
            raise PrivacyError(
                refusal("secure sum", f"attempt {number} was not begun here", "begin it first")
            )
        folder = self.sums / request / str(number)
        if number == latest and (folder / "plan.json").read_text() != plan.to_json():
            raise PrivacyError(refusal("secure sum", "the attempt has another plan here", "begin a new one"))
        return SiteAttempt(self, release, self._said(request), plan, text, folder)
