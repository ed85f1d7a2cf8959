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
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from flwr.app import RecordDict

from client.outbox import Outbox, Release
from client.site import Site
from pm1_core import atomic
from pm1_core.errors import FederationError, PM1Error, PrivacyError
from pm1_core.objects import Reader
from pm1_core.privacy.opened import Openings
from pm1_core.privacy.primitives import canonical
from pm1_core.privacy.secure_plan import (
    EXACT,
    FIGURE,
    TRAIN,
    Place,
    Plan,
    Secured,
    exact_words,
    layout_digest,
)
from pm1_core.privacy.secure_sum import STAGES, Member, Terms
from pm1_core.signing import Signer, Trust
from pm1_core.validate import refusal
from strategies import records

if TYPE_CHECKING:
    from pm1_core.training.order import Order

_LOCKED = "another message of a secure sum is being answered here: ask again"


@dataclass(frozen=True)
class Sealed:
    """What of an answer is added up.

    places: tensors of the train sum in their order, trained here or not
    weights: kind -> weight of this site's tensors; marks: kind or name of an entry -> SHA-256 of the bytes under it
    entries: name -> size, of what this site has for the exact sum
    """

    places: list[list[Any]]
    weights: dict[str, float]
    entries: dict[str, int]
    marks: dict[str, str]

    @property
    def layout(self) -> list[Place]:
        """The tensors of the train sum."""
        return [Place(*place) for place in self.places]

    @property
    def words(self) -> int:
        """Elements of the train sum."""
        return sum(place.size for place in self.layout)


def sealed(
    changes: Mapping[str, np.ndarray],
    places: list[Place],
    weights: Mapping[str, float],
    entries: Mapping[str, np.ndarray],
) -> tuple[Sealed, Iterator[tuple[str, np.ndarray]]]:
    """What of an answer is added up, and the arrays to keep for it.

    changes: tensor -> received to trained, float32, of those that were trained here
    entries: name -> float64 numbers for the exact sum
    """
    marks = {f"{EXACT} {name}": _mark([name], [array]) for name, array in entries.items()}
    for kind in {place.kind for place in places}:
        names = [place.name for place in places if place.kind == kind and place.name in changes]
        marks[f"{TRAIN} {kind}"] = _mark(names, (changes[name] for name in names))
    said = Sealed(
        [[place.name, place.size, place.kind] for place in places],
        {kind: weight for kind, weight in weights.items() if weight > 0},
        {name: array.size for name, array in sorted(entries.items())},
        marks,
    )
    pairs = [(f"{TRAIN}/{name}", array) for name, array in changes.items()]
    pairs += [(f"{EXACT}/{name}", array) for name, array in entries.items()]
    return said, iter(sorted(pairs, key=lambda pair: pair[0]))


def figure_entries(figures: Mapping[str, float], weigh: Callable[[str], float]) -> dict[str, np.ndarray]:
    """Entries of figures: each times its weight, and the weight. What is no number, or too large, is left out."""
    found = {}
    for name, value in figures.items():
        pair = np.array([value * weigh(name), weigh(name)], np.float64)
        if np.isfinite(pair).all() and (np.abs(pair) < 2.0**49).all():
            found[FIGURE + name] = pair
    return found


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
        return Outbox(self.store.site, self.outbox.log, self.folder / "sealed", self._pay)

    @property
    def sums(self) -> Path:
        """Where attempts are."""
        return self.folder / "sealed" / "sums"

    def _said(self, request: str) -> Sealed:
        return Sealed(**atomic.read_json(self.sums / request / "answer.json"))

    def _attempts(self, request: str) -> list[int]:
        folder = self.sums / request
        return sorted(int(one.name) for one in folder.glob("[0-9]*") if (one / "plan.json").exists())

    def _attempt(self, stage: str) -> _Attempt:
        """The attempt that a message is about. Raises PrivacyError on one that is over, or is another one."""
        request = records.text_of(self.facts, "request")
        release = self.vault.held(request) if request.isalnum() else None
        if release is None:
            found = "this site has no such answer"
            raise FederationError(refusal(f"request {request[:12]!r}", found, "ask for the round again"))
        text = records.text_of(self.facts, "order")
        if records.request_digest(release.kind, text, self.checkpoint.hash) != request:
            raise FederationError(refusal("secure sum", "it is for another order", "send the order itself"))
        secured = Secured.of(json.loads(text)["secure"])
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
        return _Attempt(self, release, self._said(request), plan, secured, folder)


class _Attempt:
    """One attempt at this site: its members, one for each sum."""

    def __init__(
        self, site: SecureSite, release: Release, said: Sealed, plan: Plan, secured: Secured, folder: Path
    ) -> None:
        self.site = site
        self.name = site.store.site
        self.release = release
        self.said = said
        self.plan = plan
        self.secured = secured
        self.folder = folder
        self.signer = identity(site.paths.identity)

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
        if self._file(what).exists():
            member = Member.from_bytes(self._file(what).read_bytes(), self.signer)
            if member.terms != terms:
                raise PrivacyError(
                    refusal("secure sum", "the attempt has other terms here", "begin a new one")
                )
            return member.advertise()
        said = self.said
        plan.require_own(self.name, layout_digest(said.layout), said.words, said.weights, said.entries)
        member = Member.create(terms, self.name, self.signer, known_peers(self.site.paths.peers))
        answer = member.advertise()
        for other in self.folder.parent.glob("[0-9]*"):
            if int(other.name) < plan.attempt:
                shutil.rmtree(other)
        atomic.write_text(self.folder / "plan.json", plan.to_json())
        self._save(what, member)
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
        for place in self.said.layout:
            weight = self.plan.weights.get(place.kind, {}).get(self.name, 0.0)
            name = f"{TRAIN}/{place.name}"
            if weight and name in held:
                fixed = self.plan.fixed(place.kind, self.secured)
                draws = _draws(self.release.request, self.name, place.name) if fixed.bits == 16 else None
                yield place.name, fixed.encode(held[name], weight, draws)
            else:
                yield place.name, np.zeros(place.size, f"<u{self.secured.bits // 8}")

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
                noted[file] = noted[file].with_opened(mark, left)
        for file, openings in noted.items():
            if openings.sets:
                atomic.write_bytes(file, openings.to_bytes())

    def _file(self, what: str) -> Path:
        return self.folder / f"{what}.member"

    def _save(self, what: str, member: Member) -> None:
        atomic.write_bytes(self._file(what), member.to_bytes())  # mode 0600


def require_aggregation(site: Site, order: Order) -> None:
    """Raise PrivacyError unless this site may answer `order` in the way in which it wants answers added up.

    A study whose answers are added up stays so: no later order gets one in the clear.
    """
    where, marker = f"phase {order.phase!r}", site.folder / "secure"
    if order.secure:
        Secured.of(order.secure)
        known, own = known_peers(site.paths.peers), public_hex(identity(site.paths.identity))
        if known.get(site.store.site) != own:
            found = f"{site.store.site}.pub among the peers is not the identity's public key"
            raise PrivacyError(refusal(where, found, "put there what lies beside the identity"))
        if order.encoding != "full":
            found = f"encoding {order.encoding!r} under secure aggregation"
            raise PrivacyError(refusal(where, found, "use encoding=full: words of the sum are its encoding"))
        if not marker.exists():
            atomic.write_text(marker, "")
        return
    if marker.exists():
        found = "it asks for an answer in the clear, and this study began with secure aggregation"
        raise PrivacyError(refusal(where, found, "ask the coordinator why"))
    if site.paths.peers and not site.paths.unsecured:
        found = "it asks for an answer in the clear, and this site has peers"
        remedy = 'study with aggregation=secure, or allow it here: --node-config "unsecured=true"'
        raise PrivacyError(refusal(where, found, remedy))


def identity(file: str) -> Signer:
    """The site's long-term key. Raises PrivacyError if the site has none."""
    if not file:
        remedy = (
            'make one with pm1-site key, and start with identity="/etc/pm1/site.pem" peers="/etc/pm1/peers"'
        )
        raise PrivacyError(refusal("secure sum", "this site has no identity key", remedy))
    return Signer.load(Path(file))


def public_hex(signer: Signer) -> str:
    """A public key as secure sums write it: 32 bytes in hex."""
    return signer.key.public_key().public_bytes_raw().hex()


def known_peers(folder: str) -> dict[str, str]:
    """The sites that this one enrolled with, itself among them: name -> public key, of the files NAME.pub.

    Raises PrivacyError if there is no such folder, InputError if a file is no public key.
    """
    files = sorted(Path(folder).glob("*.pub")) if folder else []
    if not files:
        remedy = "put the public key of every site there as SITE.pub, compared by telephone"
        raise PrivacyError(refusal(f"peers {folder or 'folder'}", "found no public keys", remedy))
    return {
        file.name.removesuffix(".pub"): Trust.load(file).keys[0].public_bytes_raw().hex() for file in files
    }


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


def _mark(names: list[str], arrays: Any) -> str:
    """SHA-256 over names and bytes of arrays."""
    found = hashlib.sha256(json.dumps(names).encode())
    for array in arrays:
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()
