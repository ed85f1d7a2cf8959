"""What can be said of a run while it goes on, read from its folder and from nothing else.

    study.json                  phases, guarantee, gates
    checkpoints/, releases/     rounds that are done, their seconds and bytes, what may be released
    roster.json phases.json dropped.json metrics.jsonl status.json coordinator.log

Nothing is written, and no torch is loaded unless a guarantee is counted.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pm1_core import atomic
from pm1_core.checkpoint import Checkpoint, CheckpointFolder
from pm1_core.errors import ConfigError, InputError, StateError
from pm1_core.gates import Gates, judge
from pm1_core.proposal import study_hash
from pm1_core.validate import refusal
from server.pulse import EVERY, FINISHED, NAME, RUNNING
from server.registry import STUDY
from server.releases import ReleaseFolder
from server.runs import Run

_QUIET = 120.0
"""Seconds without a sign of life after which a run is called silent: a large model folds for a minute."""
_STOPPING = 30.0
"""Seconds for which a stopped run may still give signs of life."""
_LINES = 12
_LOSS = "loss"

Facts = dict[str, Any]


class Watch:
    """The run in `folder`. Manifests are read once, they do not change."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._manifests: dict[int, Checkpoint] = {}
        self._spent: tuple[object, Facts] | None = None

    def facts(self, run: Run | None = None, now: datetime | None = None) -> Facts:
        """Everything that `pm1-server study status --json` prints.

        run: how it was started and stopped, as runs.json of its consortium has it

        Raises InputError if the folder is no run's, StateError or CheckpointError if a file of it is damaged.
        """
        try:
            return self._facts(run, now or datetime.now(UTC))
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            found = f"a file of it is not what a run writes ({error!r})"
            raise StateError(refusal(self.folder, found, "restore it from a copy")) from None

    def _facts(self, run: Run | None, now: datetime) -> Facts:
        study = self._study()
        lineage = self._lineage(study)
        status = self._read(NAME)
        done = _rounds_done(lineage)
        last = max((made.sequence for made in lineage), default=0)
        losses = self._losses(last)
        phases = [
            self._phase(phase, lineage, losses.get(phase["name"], {}), done) for phase in study["phases"]
        ]
        whole = sum(phase["rounds"] for phase in phases)
        state, quiet = _state(study, status, lineage, now)
        why = status.get("why", "")
        if run and state != "finished":
            if run.stopped and _seconds(status.get("time"), run.stopped) > -_STOPPING:
                state, why = "ended", "stopped with pm1-server study stop; submit the same study to go on"
            elif not run.stopped and _seconds(status.get("time"), run.submitted) > 0:
                state = "starting"
        return {
            "run": run.name if run else self.folder.name,
            "flower": str(run.run) if run else None,
            "folder": str(self.folder),
            "study": study["name"],
            "config": study_hash(study),
            "state": state,
            "why": why if state == "ended" else "",
            "doing": status.get("doing", "") if state in ("running", "silent") else "",
            "waiting": status.get("waiting", []) if state in ("running", "silent") else [],
            "started": status.get("started"),
            "last_sign": status.get("time"),
            "quiet_seconds": quiet,
            "rounds": {"done": sum(done.values()), "of": whole},
            "left": _left(phases),
            "phases": phases,
            "sites": self._sites(status, losses, status.get("phase") or (phases[-1]["name"])),
            "bytes": {way: sum(status.get(way, {}).values()) for way in ("sent", "received")},
            "privacy": self._privacy(study, done),
            "checkpoints": self._checkpoints(study, lineage),
            "log": self._log(),
        }

    def _study(self) -> Facts:
        file = self.folder / STUDY
        if not file.is_file():
            remedy = "name the folder of a run, or a run of the consortium"
            raise InputError(refusal(self.folder, f"found no {STUDY}: it is no run's folder", remedy))
        study = atomic.read_json(file)
        try:
            held = study["phases"][0]["name"] and [
                (str(phase["name"]), str(phase["task"]), int(phase["rounds"])) for phase in study["phases"]
            ]
            if not held or not isinstance(study["name"], str):
                raise TypeError("no phases")
        except (KeyError, TypeError, ValueError, IndexError) as error:
            found = f"it is no resolved study ({error!r})"
            raise StateError(refusal(file, found, "restore it from a copy")) from None
        return dict(study)

    def _lineage(self, study: Facts) -> list[Checkpoint]:
        folder = CheckpointFolder(self.folder / "checkpoints")
        for sequence in folder.sequences():
            if sequence not in self._manifests:
                self._manifests[sequence] = folder.load(sequence)
        lineage = [self._manifests[sequence] for sequence in folder.sequences()]
        config = study_hash(study)
        if lineage and lineage[-1].config != config:
            found = f"its checkpoints are of study {lineage[-1].config[:12]}, its {STUDY} is {config[:12]}"
            raise StateError(refusal(self.folder, found, f"restore its {STUDY} from a copy"))
        return lineage

    def _read(self, name: str) -> Facts:
        """A file of the run that may not be there yet."""
        file = self.folder / name
        content = atomic.read_json(file) if file.exists() else {}
        if not isinstance(content, dict):
            raise StateError(refusal(file, "found no mapping", "remove it; the run writes it anew"))
        return content

    def _losses(self, last: int) -> dict[str, Facts]:
        """Phase -> {"train", "validation", "test"} -> site, None for all -> (round, loss)."""
        file = self.folder / "metrics.jsonl"
        found: dict[str, Facts] = {}
        for text in atomic.whole_lines(file) if file.exists() else []:
            try:
                line = json.loads(text)
                loss = line["metrics"].get(_LOSS)
                if loss is not None and line["sequence"] <= last:
                    of_split = found.setdefault(line["phase"], {}).setdefault(line["split"], {})
                    of_split[line["site"]] = line["round"], float(loss)
            except (ValueError, KeyError, TypeError, AttributeError):
                continue  # torn when a process died; the next coordinator drops it
        return found

    def _phase(
        self, phase: Facts, lineage: Sequence[Checkpoint], losses: Facts, done: Mapping[str, int]
    ) -> Facts:
        """What is shown of one phase."""
        name = phase["name"]
        rounds = [made for made in lineage if made.phase == name and made.round]
        told = self._read("phases.json").get(name, {})
        return {
            "name": name,
            "task": phase["task"],
            "rounds": phase["rounds"],
            "done": done.get(name, 0),
            "min_sites": phase.get("min_sites", 1),
            "loss": {split: by[None][1] for split, by in losses.items() if None in by},
            "seconds": round(sum(made.measured.get("seconds", 0.0) for made in rounds), 3),
            "bytes": {
                way: int(sum(made.measured.get(f"bytes_{way}", 0.0) for made in rounds))
                for way in ("sent", "received")
            },
            "sites": sorted(told.get("sites", {})),
            "absent": told.get("absent", {}),
            "lost": told.get("lost", {}),
        }

    def _sites(self, status: Facts, losses: Mapping[str, Facts], phase: str) -> list[Facts]:
        roster, dropped = self._read("roster.json"), self._read("dropped.json")
        phases = self._read("phases.json")
        lost = [by for told in phases.values() for by in told.get("lost", {}).values()]
        names = sorted(
            {*roster, *status.get("contact", {}), *(s for p in phases.values() for s in p["sites"])}
        )
        own = losses.get(phase, {}).get("train", {})
        return [
            {
                "site": site,
                "people": roster.get(site, {}).get("counts", {}).get(phase, {}).get("train"),
                "refused": roster.get(site, {}).get("refused", {}).get(phase, ""),
                "contact": status.get("contact", {}).get(site),
                "waited_for": site in status.get("waiting", []),
                "sent": status.get("sent", {}).get(site, 0),
                "received": status.get("received", {}).get(site, 0),
                "loss": own[site][1] if site in own else None,
                "lost": sum(site in by for by in lost),
                "dropped": sum(dropped.get(site, {}).values()),
            }
            for site in names
        ]

    def _privacy(self, study: Facts, done: Mapping[str, int]) -> Facts:
        """The guarantee, and what the rounds so far have spent of it at a site that was in all of them."""
        guarantee = dict(study.get("guarantee") or {})
        found = {"text": study.get("privacy", ""), "secure": bool(study.get("secure")), "whole": guarantee}
        if not guarantee:
            return found | {"spent": None}
        key = study_hash(study), tuple(sorted(done.items()))
        if self._spent is None or self._spent[0] != key:
            from server.spending import spent

            self._spent = key, spent(study, done)
        return found | {"spent": self._spent[1]}

    def _checkpoints(self, study: Facts, lineage: Sequence[Checkpoint]) -> Facts:
        """The newest, what is released, and how the gates judge the newest that ends a phase."""
        if not lineage:
            return {"count": 0, "latest": None, "released": None, "candidate": None}
        releases = ReleaseFolder(self.folder / "checkpoints" / "releases").all()
        by_hash = {made.hash: made for made in lineage}
        released = by_hash.get(releases[-1].checkpoint) if releases else None
        ends = [made for made in lineage if made.round and made.round == made.rounds]
        candidate = None
        if ends and (released is None or ends[-1].sequence > released.sequence):
            try:
                gates = Gates(**study.get("gates", {}))
            except (TypeError, ConfigError) as error:
                raise StateError(
                    refusal(self.folder / STUDY, f"its gates cannot be read ({error})", "restore it")
                ) from None
            verdicts = [asdict(verdict) for verdict in judge(gates, ends[-1], released)]
            holds = all(verdict["passed"] for verdict in verdicts)
            candidate = {**_named(ends[-1]), "gates": verdicts, "holds": holds}
        shown = {**_named(released), "release": len(releases), "by": releases[-1].by} if released else None
        return {
            "count": len(lineage),
            "latest": _named(lineage[-1]),
            "released": shown,
            "candidate": candidate,
        }

    def _log(self) -> list[str]:
        file = self.folder / "coordinator.log"
        if not file.exists():
            return []
        with file.open("rb") as stream:
            stream.seek(max(0, file.stat().st_size - 200 * _LINES))
            return stream.read().decode(errors="replace").splitlines()[-_LINES:]


def _rounds_done(lineage: Sequence[Checkpoint]) -> dict[str, int]:
    done: dict[str, int] = {}
    for made in lineage:
        done[made.phase] = max(done.get(made.phase, 0), made.round)
    return done


def _state(
    study: Facts, status: Facts, lineage: Sequence[Checkpoint], now: datetime
) -> tuple[str, float | None]:
    """One of "not begun", "running", "silent", "ended", "finished", and seconds since the last sign of life."""
    last = study["phases"][-1]
    whole = bool(lineage) and (lineage[-1].phase, lineage[-1].round) == (last["name"], last["rounds"])
    try:
        quiet = (now - datetime.fromisoformat(status["time"])).total_seconds()
    except (KeyError, TypeError, ValueError):
        return ("finished" if whole else "ended" if lineage else "not begun"), None
    if status.get("state") == RUNNING:
        state = "running" if quiet < max(_QUIET, 4 * EVERY) else "silent"
        return state, round(quiet, 1)
    finished = whole and status.get("state") == FINISHED
    return ("finished" if finished else "ended"), round(quiet, 1)


def _seconds(sign: str | None, moment: str) -> float:
    """From the last sign of life, or the beginning of time, to a moment; both ISO 8601."""
    if sign is None:
        return float("inf")
    return (datetime.fromisoformat(moment) - datetime.fromisoformat(sign)).total_seconds()


def as_json(facts: Any) -> Any:
    """`facts` as JSON has it: null in the place of what is no finite number."""
    if isinstance(facts, Mapping):
        return {key: as_json(value) for key, value in facts.items()}
    if isinstance(facts, (list, tuple)):
        return [as_json(value) for value in facts]
    return None if isinstance(facts, float) and not math.isfinite(facts) else facts


def _left(phases: Sequence[Facts]) -> Facts:
    """Seconds that the rounds to come take, from those that are done: of the phase, or of another of its task.

    at_least: phases of which no round is known are not counted
    """
    paces: dict[str, float] = {}
    by_task: dict[str, list[float]] = {}
    for phase in phases:
        if phase["done"] and phase["seconds"]:
            paces[phase["name"]] = pace = phase["seconds"] / phase["done"]
            by_task.setdefault(phase["task"], []).append(pace)
    seconds, unknown = 0.0, []
    for phase in phases:
        rest = phase["rounds"] - phase["done"]
        alike = by_task.get(phase["task"], [])
        pace = paces.get(phase["name"]) or (sum(alike) / len(alike) if alike else None)
        if rest and pace is None:
            unknown.append(phase["name"])
        elif rest and pace is not None:
            seconds += rest * pace
    return {"seconds": round(seconds, 1) if by_task or not unknown else None, "unknown": unknown}


def _named(made: Checkpoint) -> Facts:
    return {
        "sequence": made.sequence,
        "hash": made.hash,
        "phase": made.phase,
        "round": made.round,
        "rounds": made.rounds,
    }
