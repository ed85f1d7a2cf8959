"""What a run tells while it goes on: metrics.jsonl, TensorBoard, who took part, what was dropped, and a log.

A line of metrics.jsonl: {"sequence", "phase", "round", "site" (null for the aggregate), "split", "examples",
"seconds", "metrics": {...}}. Lines per site exist where the coordinator may see them: in simulations and in
studies in the clear.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pm1_core import atomic
from pm1_core.fields import Split
from server.board import Board

log = logging.getLogger("pm1.coordinator")


class Journal:
    """Appends lines, and forgets those after a checkpoint when a run is resumed from it."""

    def __init__(self, folder: Path, sequence: int = 0) -> None:
        self.folder = folder
        self.file = folder / "metrics.jsonl"
        self.phases: dict[str, dict[str, Any]] = {}
        self.dropped: dict[str, dict[str, int]] = {}
        folder.mkdir(parents=True, exist_ok=True)
        if self.file.exists():
            kept = [line for line in atomic.whole_lines(self.file) if _sequence(line) <= sequence]
            atomic.write_text(self.file, "".join(line + "\n" for line in kept))
        if (folder / "phases.json").exists():
            self.phases = atomic.read_json(folder / "phases.json")
        if (folder / "dropped.json").exists():
            self.dropped = atomic.read_json(folder / "dropped.json")
        self._board = Board(folder / "tensorboard", sequence)
        self._log = _Log(folder / "coordinator.log")
        self._log.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        log.addHandler(self._log)
        log.setLevel(logging.INFO)

    def took_part(
        self, phase: str, sites: Mapping[str, Mapping[str, int]], absent: Mapping[str, str]
    ) -> None:
        """Record who takes part in a round of a phase with how many people of each split, and why others do not.

        "sites" are those of all rounds so far, "absent" those who are not among them.
        """
        before = self.phases.setdefault(phase, {"sites": {}, "absent": {}})
        entered = {**before["sites"], **{site: dict(counts) for site, counts in sites.items()}}
        away = {site: why for site, why in absent.items() if site not in entered}
        if (entered, away) != (before["sites"], before["absent"]):
            before |= {"sites": entered, "absent": away}
            atomic.write_json(self.folder / "phases.json", self.phases)

    def lost(self, phase: str, when: str, failures: Mapping[str, str]) -> None:
        """Record who did not answer, and why, in a round ("round 3") or in the "evaluation" of a phase."""
        if failures:
            for site, why in sorted(failures.items()):
                log.warning("%s, %s: without %s (%s)", phase, when, site, why)
            known = self.phases.setdefault(phase, {"sites": {}, "absent": {}})
            known.setdefault("lost", {})[when] = dict(failures)
            atomic.write_json(self.folder / "phases.json", self.phases)

    def strange(self, site: str, what: str) -> None:
        """Record an answer that nobody waits for: late, or given twice. They are counted and dropped."""
        log.warning("%s %s: dropped", site, what)
        counts = self.dropped.setdefault(site, {})
        counts[what] = counts.get(what, 0) + 1
        atomic.write_json(self.folder / "dropped.json", self.dropped)

    def write(
        self,
        sequence: int,
        phase: str,
        round_number: int,
        site: str | None,
        metrics: Mapping[str, float],
        examples: float,
        seconds: float,
    ) -> None:
        """Append one line per split: names that begin with "validation." or "test." belong to those splits."""
        by_split: dict[str, dict[str, float]] = {Split.TRAIN: {}}
        for name, value in sorted(metrics.items()):
            split, _, rest = name.partition(".")
            if split in (Split.VALIDATION, Split.TEST):
                by_split.setdefault(split, {})[rest] = value
            else:
                by_split[Split.TRAIN][name] = value
        lines = []
        for split, figures in by_split.items():
            if not set(figures) - {"examples"}:
                continue
            # A received model is validated before it is trained on: its figures belong to the round before.
            shown = (
                round_number - 1 if split == Split.VALIDATION and Split.TEST not in by_split else round_number
            )
            line: dict[str, Any] = {
                "sequence": sequence,
                "phase": phase,
                "round": shown,
                "site": site,
                "split": str(split),
                "examples": figures.get("examples", examples),
                "seconds": round(seconds, 3),
                "metrics": {name: value for name, value in figures.items() if name != "examples"},
            }
            lines.append(json.dumps(line, sort_keys=True))
            if site is None:
                for name, value in line["metrics"].items():
                    if math.isfinite(value):
                        self._board.add(f"{phase}/{split}/{name}", value, sequence)
        atomic.append_lines(self.file, lines)

    def close(self) -> None:
        """End TensorBoard's file and the log."""
        self._board.close()
        log.removeHandler(self._log)
        self._log.close()


class _Log(logging.FileHandler):
    """The log beside the run. Where it cannot be written, the study's own files will tell why."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """Lose the line rather than print a traceback for each."""


def _sequence(line: str) -> float:
    """The checkpoint that a line belongs to; infinity for one that was torn when a process died."""
    try:
        return int(json.loads(line)["sequence"])
    except (ValueError, KeyError, TypeError):
        return math.inf
