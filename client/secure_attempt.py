"""One attempt at a secure sum at one site: its members' answers, its masked words, and what it lets be opened."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from flwr.app import RecordDict

from client.enrolment import identity, known_peers
from client.outbox import Release
from client.sealed import Sealed
from client.site_noise import NoisedWords
from pm1_core import atomic
from pm1_core.errors import PrivacyError
from pm1_core.objects import Reader
from pm1_core.privacy.distributed_noise import SiteNoise
from pm1_core.privacy.opened import Openings
from pm1_core.privacy.primitives import canonical
from pm1_core.privacy.secure_plan import (
    EXACT,
    FIGURE,
    TRAIN,
    Plan,
    Secured,
    exact_words,
    layout_digest,
    require_noise,
)
from pm1_core.privacy.secure_sum import STAGES, Member, Terms
from pm1_core.privacy.terms import SiteTerms, terms_of
from pm1_core.validate import refusal

if TYPE_CHECKING:
    from client.secure import SecureSite


class SiteAttempt:
    """One attempt at this site: its members, one for each sum."""

    def __init__(
        self, site: SecureSite, release: Release, said: Sealed, plan: Plan, order: str, folder: Path
    ) -> None:
        self.site = site
        self.order = order
        self.name = site.store.site
        self.release = release
        self.said = said
        self.plan = plan
        self.secured = Secured.of(json.loads(order)["secure"])
        terms = terms_of(json.loads(order)["privacy"])
        self.site_terms = terms if isinstance(terms, SiteTerms) and terms.noise_multiplier else None
        self.folder = folder
        self.signer = identity(site.paths.identity)
        self.noised = NoisedWords(folder.parent, SiteNoise.from_json(plan.noise)) if plan.noise else None

    def answered(self, what: str, stage: str, asked: bytes) -> bytes:
        """The answer of one sum's member to one stage; it is on disk once this returns."""
        if stage == STAGES[0]:
            return self._begun(what, asked)
        member = Member.from_bytes(self._file(what).read_bytes(), self.signer)
        if stage == "input":
            member.open(asked)
            self._save(what, member)
            return member.to_bytes()
        answer = bytes(getattr(member, stage)(asked))
        if stage == "agree":
            self.plan.require_enough(what, self.name, member.survivors())
        if stage == "reveal":
            self._note_opened(what, member.survivors())
        self._save(what, member)
        return answer

    def upload(self, opened: Mapping[str, bytes]) -> RecordDict:
        """Masked words of the sums whose shares were taken: kept and sent; the same ones if asked again.

        The answer that is in them is on disk since it was sealed, and is paid for here.
        """
        self.site.outbox.pay(self.release)
        if self.noised and TRAIN in opened:
            self.noised.drawn(self.said.layout, self._changes())
            self.site.outbox.pay(self.noised.release(self.release))
        named = self.plan.masked
        members = {what: Member.from_bytes(state, self.signer) for what, state in opened.items()}
        held = self.site.outbox.held(named)
        again = held is not None and all(_masked_all(member) for member in members.values())
        if held is None:
            release = dataclasses.replace(
                self.release,
                request=named,
                kind="masked",
                objects=[],
                figures={"weight": 1.0},  # words are weighed already
                mechanisms=[],
                protected=True,  # what is in it was charged above
            )
            held = self.site.outbox.keep(release, self._masked(members))
        elif not again:  # it was kept, and the process died before it wrote that down
            for _ in self._masked(members):
                pass
        for what, member in members.items():
            self._save(what, member)
        return self.site.outbox.answer(held, again)

    def _begun(self, what: str, asked: bytes) -> bytes:
        """Fresh keys for a new attempt; those of attempts before it are gone then."""
        terms = Terms.from_bytes(asked)
        checkpoint, plan = self.site.checkpoint, self.plan
        expected = plan.terms(
            what, checkpoint.config, self.release.phase, self.release.round, terms.sites, self.secured
        )
        if terms != expected:
            found = "the terms are not those of the plan and the order"
            raise PrivacyError(refusal(f"secure sum, {what}", found, "run the same version at both ends"))
        self.site.counter.permit(self.order, sites=len(terms.sites) - 1)
        if self._file(what).exists():
            member = Member.from_bytes(self._file(what).read_bytes(), self.signer)
            if member.terms != terms:
                raise PrivacyError(
                    refusal("secure sum", "the attempt has other terms here", "begin a new one")
                )
            return member.advertise()
        said = self.said
        if plan.words:
            require_noise(plan, self.site_terms, self.secured, len(terms.sites))
        plan.require_own(self.name, layout_digest(said.layout), said.words, said.weights, said.entries)
        member = Member.create(terms, self.name, self.signer, known_peers(self.site.paths.peers))
        answer = member.advertise()
        atomic.write_text(self.folder / "plan.json", plan.to_json())
        self._save(what, member)
        for other in self.folder.parent.glob("[0-9]*"):
            if int(other.name) < plan.attempt:
                shutil.rmtree(other)
        return answer

    def _masked(self, members: Mapping[str, Member]) -> Iterator[tuple[str, np.ndarray]]:
        """Words under "SUM/NAME", masked, and the receipt of each sum, in the order of names."""
        held = Reader(self.site.vault.objects, self.release.objects)
        for what in sorted(members):
            places = self._words_of(what, held)
            offset = 0
            for name, words in places:
                yield f"{what}/{name}", members[what].mask(words, offset)
                offset += words.size
        for what, member in sorted(members.items()):
            yield f"receipt/{what}", np.frombuffer(member.receipt(), np.uint8)

    def _words_of(self, what: str, held: Reader) -> Iterator[tuple[str, np.ndarray]]:
        """Plain words of one sum, in the order in which they are masked."""
        if what == EXACT:
            for name, entry in self.plan.entries.items():
                if self.name in entry.sites:
                    yield name, exact_words(held[f"{EXACT}/{name}"])
                else:
                    yield name, np.zeros(2 * entry.size, "<u8")
            return
        if self.noised:
            words = self.noised.drawn(self.said.layout, self._changes())
            yield from ((place.name, words[place.name].copy()) for place in self.said.layout)
            return
        for place in self.said.layout:
            weight = self.plan.weights.get(place.kind, {}).get(self.name, 0.0)
            name = f"{TRAIN}/{place.name}"
            if weight and name in held:
                fixed = self.plan.fixed(place.kind, self.secured)
                draws = _draws(self.release.request, self.name, place.name) if fixed.bits == 16 else None
                yield place.name, fixed.encode(held[name], weight, draws)
            else:
                yield place.name, np.zeros(place.size, f"<u{self.secured.bits // 8}")

    def _changes(self) -> dict[str, np.ndarray]:
        """What this site changed, of kinds in which the plan lets it have a part."""
        held = Reader(self.site.vault.objects, self.release.objects)
        return {
            place.name: held[f"{TRAIN}/{place.name}"]
            for place in self.said.layout
            if f"{TRAIN}/{place.name}" in held and self.name in self.plan.weights.get(place.kind, {})
        }

    def _note_opened(self, what: str, survivors: tuple[str, ...]) -> None:
        """Write down what will be opened, or raise PrivacyError if it may not be."""
        everywhere = Path(self.site.paths.folder) / "opened.json"
        here = self.folder.parent / "opened.json"
        noted = {file: _openings(file) for file in (everywhere, here)}
        for name, sites in self.plan.groups(what):
            if self.name in sites:
                # A number of steps is the same in every round: of figures only this request's count.
                file = here if name.startswith(FIGURE) else everywhere
                mark, left = self.said.marks[f"{what} {name}"], sites & set(survivors)
                if self.noised and what == TRAIN:
                    noted[file] = self.noised.opened(noted[file], mark, name, left)
                else:
                    noted[file] = noted[file].with_opened(mark, left)
        for file, openings in noted.items():
            if openings.sets:
                atomic.write_bytes(file, openings.to_bytes())

    def _file(self, what: str) -> Path:
        return self.folder / f"{what}.member"

    def _save(self, what: str, member: Member) -> None:
        atomic.write_bytes(self._file(what), member.to_bytes())  # mode 0600


def _masked_all(member: Member) -> bool:
    try:
        return bool(member.receipt())
    except PrivacyError:
        return False


def _draws(*purpose: str) -> np.random.Generator:
    """For rounding, which hides nothing: the same answer is rounded to the same words again."""
    seed = hashlib.sha256(canonical(["rounding", *purpose])).digest()
    return np.random.default_rng(int.from_bytes(seed, "big"))


def _openings(file: Path) -> Openings:
    return Openings.from_bytes(file.read_bytes() if file.exists() else b"")
