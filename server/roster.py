"""Which sites there are, for which phases, with how many people; who is new, and who is away.

A site is asked once when its node appears, for all phases of the study. Nodes come and go between rounds: one that
comes late is asked before the next round begins, one that comes back is asked again.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from flwr.app import Message

from pm1_core.checkpoint import Checkpoint
from pm1_core.errors import FederationError
from pm1_core.fields import Split
from pm1_core.validate import refusal
from server.exchange import Exchange, Participant
from server.study import Phase, Study
from strategies import records

log = logging.getLogger("pm1.coordinator")

_POLL_SECONDS = 1.0
_SAY_SECONDS = 30.0


@dataclass
class Member:
    """A site that is known.

    counts: phase -> examples by split and by modality; refused: phase -> why the site does not take part
    held: objects of the coordinator's checkpoint that it has
    """

    participant: Participant
    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    held: set[str] = field(default_factory=set)


class Roster:
    """The sites of one run.

    definition: hash of the study definition that every site's store has to be prepared for
    """

    def __init__(self, study: Study, definition: str, exchange: Exchange) -> None:
        self.study = study
        self.definition = definition
        self.exchange = exchange
        self.members: dict[str, Member] = {}
        self.strangers: dict[str, str] = {}
        self._orders = [study.order(phase, 0).to_json() for phase in study.phases]
        self._asked: dict[int, str] = {}
        self._new: set[int] = set()

    def refresh(self, checkpoint: Checkpoint) -> list[str]:
        """Ask nodes that are new, and return the names of the sites that are connected now."""
        nodes = set(self.exchange.grid.get_node_ids())
        for node in set(self._asked) - nodes:
            del self._asked[node]  # asked again when it comes back: its disk may be another
        new = [Participant(f"node {node}", node) for node in sorted(nodes - set(self._asked))]
        self._new = {participant.node for participant in new}
        if new:
            facts: dict[str, records.Fact] = {
                "order": self._orders[0],
                "orders": self._orders,
                "checkpoint": checkpoint.to_json(),
            }
            request = records.pack("order", facts)
            self.strangers = {
                name: why for name, why in self.strangers.items() if not name.startswith("node ")
            }
            self.strangers |= self.exchange(
                dict.fromkeys(new, request),
                "query.ready",
                "ready",
                min(self.study.timeout, max(self.study.gather, 60.0)),
                lambda participant, message: self._welcome(participant, message, checkpoint),
            )
        connected = set(self._asked.values())
        return sorted(site for site in self.members if site in connected)

    def gather(self, phase: Phase, checkpoint: Checkpoint) -> list[Member]:
        """The sites that take part in a round of `phase`, in the order of names, once there are enough.

        Raises FederationError naming who is absent and why, if too few come within the study's bound.
        """
        began = said = time.monotonic()
        while True:
            here = [self.members[site] for site in self.refresh(checkpoint)]
            present = [member for member in here if phase.name in member.counts]
            lack = shortfall(phase, [m.participant.site for m in present], self.people(phase))
            waited = time.monotonic() - began
            if not lack:
                return present
            if waited >= self.study.gather:
                raise FederationError(
                    refusal(
                        f"phase {phase.name!r}",
                        f"{lack} ({self._why(phase)})",
                        "connect the sites and resume; the last checkpoint stays in force",
                    )
                )
            if time.monotonic() - said > _SAY_SECONDS or said == began:
                said = time.monotonic()
                bound = self.study.gather
                log.info("%s: waiting for sites, %s (%.0f of %.0f s)", phase.name, lack, waited, bound)
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
            **self.strangers,
            **{s: m.refused[phase.name] for s, m in self.members.items() if phase.name in m.refused},
            **away,
        }

    def forget(self, site: str) -> None:
        """Ask a site anew before the next round: it does not have what it was thought to have."""
        self._asked = {node: name for node, name in self._asked.items() if name != site}

    def _why(self, phase: Phase) -> str:
        absent = self.absent(phase)
        return "; ".join(f"{s}: {why}" for s, why in sorted(absent.items())) or "nobody else is connected"

    def _welcome(self, participant: Participant, message: Message, checkpoint: Checkpoint) -> None:
        facts = records.facts_of(message.content, "site")
        site = records.text_of(facts, "site")
        node = participant.node
        others = [other for other, name in self._asked.items() if name == site]
        if any(other in self._new for other in others):
            self.strangers[f"{site} (node {node})"] = "another node has this site's name"
            self._asked[node] = ""
            return
        for other in others:
            # A node that was killed stays in Flower's list for a minute; its successor is there within seconds.
            log.warning("%s: node %d takes the place of node %d", site, node, other)
            self._asked[other] = ""
        if facts.get("study") != self.definition:
            self.strangers[site] = "its data were prepared for another study definition"
            self._asked[node] = ""
            return
        named = {digest for held in checkpoint.parts.values() for digest in held}
        held = named - set(records.list_of(facts, "lacking"))
        member = Member(Participant(site, node), held=held)
        try:
            for phase, counts in json.loads(records.text_of(facts, "phases")).items():
                self._enter(member, phase, counts)
        except (ValueError, AttributeError, TypeError, FederationError) as error:
            self.strangers[site] = f"its answer cannot be read ({error})"
            return
        known = self.members.get(site)
        if known and known.counts != member.counts:
            log.warning("%s: its numbers of people have changed since it was last here", site)
        self.members[site] = member
        self.strangers.pop(site, None)
        self._asked[node] = site

    def _enter(self, member: Member, phase: str, counts: Mapping[str, object]) -> None:
        if "refused" in counts:
            member.refused[phase] = str(counts["refused"])
            return
        checked = {}
        for name, count in counts.items():
            if not isinstance(count, int) or count < 0:
                raise FederationError(
                    refusal(f"count {name!r}", f"found {count!r}", "send a whole number of at least 0")
                )
            checked[name] = count
        if set(Split) - set(checked):
            raise FederationError(refusal(f"phase {phase!r}", "a split has no count", "send all three"))
        if checked[Split.TRAIN]:
            member.counts[phase] = checked
        else:
            member.refused[phase] = "has no training people of this phase's modalities"


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
