"""The site's page: what left and what was stopped, what is approved, the ledger's budget, and how the door is.

Nothing is ever written, and no file is read that holds a key or a person.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from starlette.types import ASGIApp

from client import services
from client.audit import EVENTS, LEFT
from client.audit import NAME as AUDIT
from client.folder import PAGE, SiteFolder, address
from pm1_core import page
from pm1_core.chain import Chain
from pm1_core.errors import PM1Error
from pm1_core.exposition import COUNTER, GAUGE, Sample, family
from pm1_core.privacy.ledger import Ledger
from strategies import loopback

_SHOWN = 40
Facts = dict[str, Any]


def serve(folder: SiteFolder) -> None:
    """Serve the site's page on PM1_PAGE until this process is asked to end."""
    host, port = address(PAGE)
    loopback.serve(application(folder, host, port), host, port)


def application(folder: SiteFolder, host: str, port: int) -> ASGIApp:
    """The page of the site in `folder`."""
    shown = loopback.Shown(Reader(folder), html, metrics, lambda facts: facts, page.style())
    return loopback.application(shown, host, port)


class Reader:
    """Reads a site. What cannot be read has a sentence in its place."""

    def __init__(self, folder: SiteFolder) -> None:
        self.folder = folder
        self._log = _Log(folder)
        self._budget: tuple[tuple[int, int], Facts] | None = None

    def __call__(self) -> Facts:
        """Raises StateError if the site has not joined."""
        facts = self.folder.facts
        return {
            "site": self.folder.name,
            "gateway": facts["gateway"],
            "consortium": facts.get("consortium", ""),
            "services": {name: services.found(self.folder, name) for name in ("door", "supernode")},
            "policy": self._policy(),
            "approvals": [
                {
                    "hash": one.name,
                    "study": one.study,
                    "phases": len(one.proposal.study["phases"]),
                    "privacy": str(one.proposal.study.get("privacy", "")),
                    "secure": bool(one.proposal.study.get("secure")),
                    "tasks": list(one.proposal.tasks),
                }
                for one in services.approvals(self.folder)
            ],
            "ledger": self._ledger(),
            "audit": self._log.facts(),
        }

    def _policy(self) -> str:
        try:
            services.policy(self.folder)
        except PM1Error as error:
            return str(error)
        return ""

    def _ledger(self) -> Facts:
        """Budgets by unit. Counted anew when the file has changed: accounting takes a moment."""
        file = self.folder.file("state") / Ledger.NAME
        if not file.exists():
            return {"error": "", "units": {}, "phases": [], "unprotected": {}}
        state = file.stat()
        mark = state.st_mtime_ns, state.st_size
        if self._budget is None or self._budget[0] != mark:
            self._budget = mark, _budget(Ledger(file))
        return self._budget[1]


class _Log:
    """audit.jsonl, of which only what is new is read each time."""

    def __init__(self, folder: SiteFolder) -> None:
        self.path = folder.file(AUDIT)
        self._begin()

    def _begin(self) -> None:
        self._chain = Chain(self.path)
        self._latest: deque[Facts] = deque(maxlen=_SHOWN)
        self._events: Counter[str] = Counter()
        self._by_study: Counter[str] = Counter()
        self._by_day: Counter[str] = Counter()

    def facts(self) -> Facts:
        """Counts, and the last lines, newest first; "error" if the log was tampered with."""
        error = ""
        try:
            for line in self._chain.read():
                self._take(line)
        except (PM1Error, OSError) as found:
            error = str(found)
        told = {
            "error": error,
            "lines": self._chain.head.lines,
            "digest": self._chain.head.digest,
            "events": {event: self._events[event] for event in EVENTS},
            "bytes": dict(self._by_study),
            "bytes_today": self._by_day[datetime.now(UTC).date().isoformat()],
            "latest": list(reversed(self._latest)),
        }
        if error:
            self._begin()
        return told

    def _take(self, line: Facts) -> None:
        self._events[line["event"]] += 1
        if line["event"] == LEFT:
            size = int(line.get("bytes", 0))
            self._by_study[str(line.get("study", ""))] += size
            self._by_day[str(line["time"])[:10]] += size
        self._latest.append(line)


def html(facts: Facts) -> str:
    """The page."""
    now = datetime.now(UTC).isoformat(sep=" ", timespec="seconds")[:19]
    return page.page("client", "site.html.j2", {**facts, "now": now})


def metrics(facts: Facts) -> str:
    """The same in Prometheus' text format."""
    units = [({"unit": unit}, found) for unit, found in facts["ledger"]["units"].items()]
    audit, door = facts["audit"], facts["services"]["door"]
    families: list[tuple[str, str, str, Sequence[Sample]]] = [
        (
            "service_up",
            GAUGE,
            "1 if a service of the site does its work.",
            [({"service": name}, float(one["runs"])) for name, one in facts["services"].items()],
        ),
        ("policy_valid", GAUGE, "1 if policy.yaml is in force.", [({}, float(not facts["policy"]))]),
        ("approved_studies", GAUGE, "Studies that may run here.", [({}, len(facts["approvals"]))]),
        ("supernode_quiet_seconds", GAUGE, "Since the SuperNode's last sign.", [({}, door.get("heartbeat"))]),
        (
            "audit_lines_total",
            COUNTER,
            "Lines of the log, by event.",
            [({"event": event}, count) for event, count in audit["events"].items()],
        ),
        ("audit_intact", GAUGE, "0 if the log was tampered with.", [({}, float(not audit["error"]))]),
        (
            "left_bytes_total",
            COUNTER,
            "Bytes of tensors that left, by study.",
            [({"study": study}, count) for study, count in sorted(audit["bytes"].items())],
        ),
        ("left_bytes_today", GAUGE, "Of this day of UTC.", [({}, audit["bytes_today"])]),
        (
            "ledger_epsilon",
            GAUGE,
            "The site's budget.",
            [(labels, found["epsilon"]) for labels, found in units],
        ),
        (
            "ledger_epsilon_spent",
            GAUGE,
            "What of it is spent.",
            [(la, found["spent"]) for la, found in units],
        ),
        (
            "ledger_delta",
            GAUGE,
            "Delta of the budget.",
            [(labels, found["delta"]) for labels, found in units],
        ),
        (
            "ledger_unprotected_releases_total",
            COUNTER,
            "Releases that no figure covers, by study.",
            [({"study": study}, count) for study, count in facts["ledger"]["unprotected"].items()],
        ),
    ]
    return "".join(
        family(
            f"pm1_site_{name}", kind, text, [({"site": facts["site"], **given}, v) for given, v in samples]
        )
        for name, kind, text, samples in families
    )


def _budget(ledger: Ledger) -> Facts:
    try:
        units = {
            unit: {
                "epsilon": bound,
                "delta": delta,
                "spent": ledger.spent(unit).value,
                "remaining": ledger.remaining(unit),
            }
            for unit, (bound, delta) in ledger.budget().items()
        }
        phases = [
            {
                "unit": unit,
                "study": one.study,
                "phase": one.phase,
                "releases": one.releases,
                "epsilon": one.epsilon.value,
            }
            for unit in units
            for one in ledger.by_phase(unit)
        ]
        return {"error": "", "units": units, "phases": phases, "unprotected": ledger.unprotected()}
    except PM1Error as error:
        return {"error": str(error), "units": {}, "phases": [], "unprotected": {}}
