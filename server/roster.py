"""Which sites there are, for which phases, with how many people; who is new, and who is away.

A site is asked once when its node appears, for all phases of the study. Nodes come and go between rounds: one that
comes late is asked before the next round begins, one that comes back is asked again. What sites said is kept in
roster.json: how many people a phase has in all, and who may take part, is the same after the coordinator was
restarted while some of them were away.
"""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from flwr.app import Message

from pm1_core import atomic
from pm1_core.checkpoint import Checkpoint
from pm1_core.errors import FederationError
from pm1_core.fields import Modality, Split
from pm1_core.validate import refusal
from server.exchange import Exchange, Participant, shortened
from server.study import Phase, Study
from strategies import records

log = logging.getLogger("pm1.coordinator")

_POLL_SECONDS = 1.0
_SAY_SECONDS = 30.0
_SILENT_SECONDS = 1.0
_MOST_PEOPLE = 2**40
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")  # as a site's manifest has it; it names a folder here
_KEY = re.compile(r"[0-9a-f]{64}")
_COUNTED = {*Split, *Modality}


@dataclass
class Member:
    """A site that is known.

    counts: phase -> examples by split and by modality; refused: phase -> why the site does not take part
    held: objects of the coordinator's checkpoint that it has
    identity: its long-term public key in hex, for secure sums; "" if it has none
    """

    participant: Participant
    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    held: set[str] = field(default_factory=set)
    identity: str = ""


class Roster:
    """The sites of one run.

    definition: hash of the study definition that every site's store has to be prepared for
    file: where what the sites said is kept
    """

    def __init__(self, study: Study, definition: str, exchange: Exchange, file: Path) -> None:
        self.study = study
        self.definition = definition
        self.exchange = exchange
        self.file = file
        self.members: dict[str, Member] = {}
        self._orders = [study.order(phase, 0).to_json() for phase in study.phases]
        self._asked: dict[int, str] = {}
        self._new: set[int] = set()
        self._silent: set[int] = set()
        self._unwritten = False
        self._displaced: dict[int, str] = {}
        self._strange: dict[int, tuple[str, str]] = {}
        if file.exists():
            for site, said in atomic.read_json(file).items():
                kept = said["counts"], said["refused"]
                self.members[site] = Member(Participant(site, 0), *kept, identity=said.get("identity", ""))

    def refresh(self, checkpoint: Checkpoint, enough: Callable[[], bool] = lambda: True) -> list[str]:
        """Ask nodes that are new, and return the names of the sites that are connected now.

        A node that has not answered before is asked again, but nobody waits for it once there are `enough` sites.
        """
        nodes = set(self.exchange.grid.get_node_ids())
        for node in set(self._asked) - nodes:
            del self._asked[node]  # asked again when it comes back: its disk may be another
        for node, site in list(self._displaced.items()):
            if node not in nodes or site not in self._asked.values():
                del self._displaced[node]
                self._asked.pop(node, None)
        self._silent = (self._silent & nodes) - self.exchange.awake
        self.exchange.awake.clear()
        self._new = nodes - set(self._asked)
        self._strange = {
            node: told for node, told in self._strange.items() if node in nodes and node not in self._new
        }
        if self._new:
            self._ask(checkpoint, enough)
        connected = set(self._asked.values())
        return sorted(site for site in self.members if site in connected)

    def returned(self, checkpoint: Checkpoint, waited_for: Mapping[str, int]) -> list[Member]:
        """Sites that are waited for at a node (site -> node) and have come back as another one meanwhile.

        A SuperNode without a key of its own is a new node after each start, and Flower lists the old one for
        another minute.
        """
        if set(self.exchange.grid.get_node_ids()) - set(self._asked) - self._silent:
            self.refresh(checkpoint)
        found = [self.members[site] for site in sorted(waited_for) if site in self.members]
        return [m for m in found if m.participant.node != waited_for[m.participant.site]]

    def _ask(self, checkpoint: Checkpoint, enough: Callable[[], bool]) -> None:
        facts: dict[str, records.Fact] = {
            "order": self._orders[0],
            "orders": self._orders,
            "checkpoint": checkpoint.to_json(),
        }
        fresh, heard = self._new - self._silent, set[int]()

        def receive(participant: Participant, message: Message) -> None:
            heard.add(participant.node)
            self._welcome(participant, message, checkpoint)

        asked = [Participant(f"node {node}", node) for node in sorted(self._new)]
        failures = self.exchange(
            dict.fromkeys(asked, records.pack("order", facts)),
            "query.ready",
            "ready",
            min(self.study.timeout, max(self.study.gather, 60.0)),
            receive,
            lambda: fresh <= heard and enough(),
            _SILENT_SECONDS,
        )
        if self._unwritten:
            said = {
                s: {"counts": one.counts, "refused": one.refused, "identity": one.identity}
                for s, one in self.members.items()
            }
            atomic.write_json(self.file, said)
            self._unwritten = False
        for participant in asked:
            if participant.site in failures:
                self._strange[participant.node] = (participant.site, failures[participant.site])
        self._silent = self._new - heard

    def gather(self, phase: Phase, checkpoint: Checkpoint) -> list[Member]:
        """The sites that take part in a round of `phase`, in the order of names, once there are enough.

        Raises FederationError naming who is absent and why, if too few come within the study's bound.
        """
        began = said = time.monotonic()

        def lacking() -> str:
            return shortfall(phase, [m.participant.site for m in self._present(phase)], self.people(phase))

        while True:
            self.refresh(checkpoint, lambda: not lacking())
            lack = lacking()
            waited = time.monotonic() - began
            if not lack:
                return self._present(phase)
            if waited >= self.study.gather:
                raise FederationError(
                    refusal(
                        f"phase {phase.name!r}",
                        f"{lack} ({self._why(phase)})",
                        "connect the sites and resume; the last checkpoint stays in force",
                    )
                )
            self.exchange.pulse.beat(
                set(self.people(phase)) - {m.participant.site for m in self._present(phase)}
            )
            if time.monotonic() - said > _SAY_SECONDS or said == began:
                said = time.monotonic()
                bound = self.study.gather
                log.info("%s: waiting for sites, %s (%.0f of %.0f s)", phase.name, lack, waited, bound)
                self.exchange.pulse.doing(f"{phase.name}: waiting for sites, {lack}")
            time.sleep(min(_POLL_SECONDS, self.study.gather))

    def people(self, phase: Phase) -> dict[str, int]:
        """Training people of every site that ever said that the phase is for it."""
        return {
            site: member.counts[phase.name][Split.TRAIN]
            for site, member in sorted(self.members.items())
            if phase.name in member.counts
        }

    def absent(self, phase: Phase) -> dict[str, str]:
        """Why others do not take part in `phase`."""
        away = {site: "is not connected" for site in self.members if site not in set(self._asked.values())}
        return {
            **dict(self._strange.values()),
            **{s: m.refused[phase.name] for s, m in self.members.items() if phase.name in m.refused},
            **away,
        }

    def forget(self, site: str) -> None:
        """Ask a site anew before the next round: it does not have what it was thought to have."""
        self._asked = {node: name for node, name in self._asked.items() if name != site}

    def _present(self, phase: Phase) -> list[Member]:
        """Sites that are connected and that `phase` is for, in the order of names."""
        connected = set(self._asked.values())
        return [
            member
            for site, member in sorted(self.members.items())
            if site in connected and phase.name in member.counts
        ]

    def _why(self, phase: Phase) -> str:
        absent = self.absent(phase)
        return "; ".join(f"{s}: {why}" for s, why in sorted(absent.items())) or "nobody else is connected"

    def _welcome(self, participant: Participant, message: Message, checkpoint: Checkpoint) -> None:
        """Take a node's answer to what it has. Raises FederationError if it cannot be used."""
        facts = records.facts_of(message.content, "site")
        site, node = records.text_of(facts, "site"), participant.node
        if not _NAME.fullmatch(site):
            remedy = "use letters, digits, dots, dashes and underscores"
            raise FederationError(refusal("name of a site", f"found {shortened(site)!r}", remedy))
        others = [other for other, name in self._asked.items() if name == site]
        if any(other in self._new for other in others):
            self._stand_aside(node, site, "another node has this site's name")
            return
        if facts.get("study") != self.definition:
            self._strange[node] = (site, "its data were prepared for another study definition")
            self._asked[node] = ""
            return
        named = {digest for held in checkpoint.parts.values() for digest in held}
        held = named - set(records.list_of(facts, "lacking"))
        member = Member(Participant(site, node), held=held, identity=_identity(facts))
        said = json.loads(records.text_of(facts, "phases"))
        for phase in self.study.phases:
            if phase.name in said:
                self._enter(member, phase.name, said[phase.name])
        for other in others:
            # A node that was killed stays in Flower's list for a minute; its successor is there within seconds.
            log.warning("%s: node %d takes the place of node %d", site, node, other)
            self._stand_aside(other, site, f"node {node} took the place of this one")
        self._asked[node] = site
        self.exchange.pulse.answered(site)
        self._remember(member)

    def _stand_aside(self, node: int, site: str, why: str) -> None:
        """Leave a node alone for as long as another has its site's name."""
        self._displaced[node] = site
        self._asked[node] = ""
        self._strange[node] = (f"{site} (node {node})", why)

    def _remember(self, member: Member) -> None:
        known = self.members.get(member.participant.site)
        if known and known.counts != member.counts:
            name = member.participant.site
            log.warning("%s: its numbers of people have changed since it was last here", name)
        self.members[member.participant.site] = member
        said = member.counts, member.refused, member.identity
        if known is None or (known.counts, known.refused, known.identity) != said:
            self._unwritten = True

    def _enter(self, member: Member, phase: str, counts: Mapping[str, object]) -> None:
        if "refused" in counts:
            member.refused[phase] = shortened(str(counts["refused"]))
            return
        checked = {}
        for name, count in counts.items():
            if name not in _COUNTED or type(count) is not int or not 0 <= count <= _MOST_PEOPLE:
                raise FederationError(
                    refusal(f"count {shortened(name)!r}", f"found {count!r:.50}", "send a number of people")
                )
            checked[name] = count
        if set(Split) - set(checked):
            raise FederationError(refusal(f"phase {phase!r}", "a split has no count", "send all three"))
        if any(checked.get(modality, 0) > checked[Split.TRAIN] for modality in Modality):
            raise FederationError(
                refusal(f"phase {phase!r}", "a modality has more people than all", "count people once")
            )
        if checked[Split.TRAIN]:
            member.counts[phase] = checked
        else:
            member.refused[phase] = "has no training people of this phase's modalities"


def _identity(facts: records.Facts) -> str:
    """A site's public key in hex; "" if it said none. Whether it is the site's own the other sites know."""
    said = facts.get("identity", "")
    return said if isinstance(said, str) and _KEY.fullmatch(said) else ""


def shortfall(phase: Phase, sites: list[str], people: Mapping[str, int]) -> str:
    """What `sites` lack to be enough for a round of `phase`, in words; empty if they are.

    people: site -> training people, of all sites that the phase is for
    """
    if len(sites) < phase.min_sites:
        return f"{len(sites)} of at least {phase.min_sites} sites"
    whole = sum(people.values())
    share = sum(people[site] for site in sites) / whole if whole else 0.0
    if share < phase.min_share:
        return f"{share:.0%} of at least {phase.min_share:.0%} of the people"
    return ""
