"""The coordinator's page: what `pm1-server study status` says, of all runs of the consortium, and its sites."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from starlette.types import ASGIApp

from pm1_core import page
from pm1_core.errors import PM1Error
from pm1_core.exposition import COUNTER, GAUGE, Sample, family
from server.consortium import Consortium
from server.runs import Runs
from server.services import PAGE, address
from server.watch import Watch, as_json
from server.watch_view import gates, left, spent
from strategies import loopback

STATES = ("not begun", "starting", "running", "silent", "ended", "finished")
Facts = dict[str, Any]


def serve(folder: Path) -> None:
    """Serve the page of the consortium in `folder` on PM1_PAGE until this process is asked to end."""
    host, port = address(PAGE)
    loopback.serve(application(folder, host, port), host, port)


def application(folder: Path, host: str, port: int) -> ASGIApp:
    """The page of the consortium in `folder`. Nothing is ever written."""
    reader = Reader(folder)
    shown = loopback.Shown(reader, html, metrics, as_json, page.style())
    return loopback.application(shown, host, port)


class Reader:
    """Reads a consortium. Of a run that cannot be read, "error" has the sentence."""

    def __init__(self, folder: Path) -> None:
        self.consortium = Consortium(folder)
        self._watched: dict[str, Watch] = {}

    def __call__(self) -> Facts:
        """Raises StateError without a consortium."""
        facts = self.consortium.facts
        runs = []
        for run in Runs(self.consortium.folder).newest():
            watch = self._watched.setdefault(run.folder, Watch(Path(run.folder)))
            try:
                runs.append({**watch.facts(run), "error": ""})
            except (PM1Error, OSError) as error:
                runs.append({"run": run.name, "study": run.study, "error": str(error)})
        sites = [
            {"site": one.site, "status": one.status, "until": one.until, "days_left": one.days_left}
            for one in self.consortium.sites()
        ]
        return {"name": facts["name"], "address": facts["address"], "runs": runs, "sites": sites}


def html(facts: Facts) -> str:
    """The page."""
    said = [run | {"left": left(run), "spent": spent(run), "judged": gates(run)} for run in _read(facts)]
    by_name = {run["run"]: run for run in said}
    runs = [by_name.get(run["run"], run) for run in facts["runs"]]
    now = datetime.now(UTC).isoformat(sep=" ", timespec="seconds")[:19]
    return page.page("server", "coordinator.html.j2", {**facts, "runs": runs, "now": now})


def metrics(facts: Facts) -> str:
    """The same in Prometheus' text format."""
    runs = _read(facts)
    of = [({"run": run["run"]}, run) for run in runs]
    phases = [({"run": run["run"], "phase": phase["name"]}, phase) for run in runs for phase in run["phases"]]
    sites = [({"run": run["run"], "site": site["site"]}, site) for run in runs for site in run["sites"]]
    state = [
        ({"run": run["run"], "state": state}, float(run["state"] == state))
        for run in runs
        for state in STATES
    ]
    losses = [
        ({**labels, "split": split}, loss)
        for labels, phase in phases
        for split, loss in sorted(phase["loss"].items())
    ]
    broken = [({"run": run["run"]}, float(bool(run["error"]))) for run in facts["runs"]]
    enrolled = [({"site": one["site"]}, float(one["status"] == "enrolled")) for one in facts["sites"]]
    days = [({"site": one["site"]}, one["days_left"]) for one in facts["sites"]]
    contact = [(labels, _epoch(site["contact"])) for labels, site in sites]
    families: list[tuple[str, str, str, Sequence[Sample]]] = [
        ("run_state", GAUGE, "1 for the state that a run is in.", state),
        ("run_unreadable", GAUGE, "1 if the folder of a run cannot be read.", broken),
        (
            "run_sign_of_life_timestamp_seconds",
            GAUGE,
            "When the coordinator of a run last gave one.",
            [(labels, _epoch(run["last_sign"])) for labels, run in of],
        ),
        (
            "run_left_seconds",
            GAUGE,
            "Estimate from the rounds that are done.",
            [(labels, run["left"]["seconds"]) for labels, run in of],
        ),
        (
            "run_epsilon_spent",
            GAUGE,
            "Of the study's guarantee, by the rounds that are done.",
            [(labels, (run["privacy"]["spent"] or {}).get("epsilon")) for labels, run in of],
        ),
        (
            "run_epsilon",
            GAUGE,
            "The study's guarantee.",
            [(labels, run["privacy"]["whole"].get("epsilon")) for labels, run in of],
        ),
        (
            "run_checkpoints",
            GAUGE,
            "Checkpoints of a run.",
            [(labels, run["checkpoints"]["count"]) for labels, run in of],
        ),
        ("phase_rounds", GAUGE, "Rounds of a phase.", [(labels, one["rounds"]) for labels, one in phases]),
        (
            "phase_rounds_done",
            GAUGE,
            "Rounds that are in a checkpoint.",
            [(labels, one["done"]) for labels, one in phases],
        ),
        (
            "phase_seconds_total",
            COUNTER,
            "Seconds that the rounds took.",
            [(labels, one["seconds"]) for labels, one in phases],
        ),
        ("phase_loss", GAUGE, "Loss over all sites, of the last round that has one.", losses),
        ("site_last_answer_timestamp_seconds", GAUGE, "When a site last answered.", contact),
        (
            "site_waited_for",
            GAUGE,
            "1 if the round waits for a site.",
            [(labels, float(one["waited_for"])) for labels, one in sites],
        ),
        (
            "site_sent_bytes_total",
            COUNTER,
            "Bytes of messages to a site.",
            [(labels, one["sent"]) for labels, one in sites],
        ),
        (
            "site_received_bytes_total",
            COUNTER,
            "Bytes of messages of a site.",
            [(labels, one["received"]) for labels, one in sites],
        ),
        (
            "site_lost_rounds_total",
            COUNTER,
            "Rounds and evaluations that went on without a site.",
            [(labels, one["lost"]) for labels, one in sites],
        ),
        ("site_enrolled", GAUGE, "1 if a site is enrolled, 0 if it was revoked.", enrolled),
        ("site_certificate_days", GAUGE, "Days until a site's certificate runs out.", days),
    ]
    return "".join(family(f"pm1_{name}", kind, text, samples) for name, kind, text, samples in families)


def _read(facts: Facts) -> list[Facts]:
    return [run for run in facts["runs"] if not run["error"]]


def _epoch(when: str | None) -> float | None:
    return datetime.fromisoformat(when).timestamp() if when else None
