"""A run's facts in a terminal: once, or again and again while it goes on."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from pm1_core.words import ago, duration, plain, size
from server.watch import as_json

_EVERY = 2.0
_COLOURS = {
    "running": "green",
    "finished": "green",
    "silent": "yellow",
    "ended": "red",
    "not begun": "yellow",
    "starting": "yellow",
}
Facts = dict[str, Any]


def watch(facts: Callable[[], Facts], console: Console, machine: bool = False, every: float = _EVERY) -> None:
    """Show a run until it is finished or has ended, or the command is interrupted.

    What is no terminal gets a line whenever something has changed; machine: a line of JSON
    """
    if machine or not console.is_terminal:
        said = ""
        while True:
            found = facts()
            if (text := json.dumps(as_json(_steady(found))) if machine else line(found)) != said:
                console.print(said := text, highlight=False, markup=False, soft_wrap=True)
            if over(found):
                return
            time.sleep(every)
    with Live(console=console, auto_refresh=False, screen=False) as live:
        while True:
            found = facts()
            live.update(view(found), refresh=True)
            if over(found):
                return
            time.sleep(every)


def _steady(facts: Facts) -> Facts:
    """Without what changes by itself."""
    return {key: value for key, value in facts.items() if key not in ("quiet_seconds", "last_sign", "log")}


def over(facts: Facts) -> bool:
    """Whether nothing more will come of this run unless somebody starts it again."""
    return facts["state"] in ("finished", "ended")


def line(facts: Facts) -> str:
    """One line."""
    words = [facts["run"], facts["state"], f"{facts['rounds']['done']}/{facts['rounds']['of']} rounds"]
    if facts["doing"]:
        words.append(facts["doing"])
    if facts["waiting"]:
        words.append(f"waiting for {', '.join(facts['waiting'])}")
    if facts["why"]:
        words.append(facts["why"])
    return plain("  ".join(words))


def view(facts: Facts) -> RenderableType:
    """All of it."""
    return Group(_head(facts), Text(), _phases(facts), Text(), _sites(facts), Text(), _checkpoints(facts))


def left(facts: Facts) -> str:
    """The time that is left, in words."""
    seconds, unknown = facts["left"]["seconds"], facts["left"]["unknown"]
    if facts["state"] == "finished":
        return "nothing is left"
    if seconds is None:
        return "cannot be told before the first round"
    return f"{'at least' if unknown else 'about'} {duration(seconds)}"


def spent(facts: Facts) -> str:
    """The guarantee and what is spent of it, in words."""
    privacy = facts["privacy"]
    used, whole = privacy["spent"], privacy["whole"]
    secure = "; sums only, no update is opened" if privacy["secure"] else ""
    if not whole:
        return f"{privacy['text']}{secure}"
    if not used or "epsilon" not in used:
        return f"{privacy['text']}; what is spent cannot be counted{secure}"
    figure = f"epsilon {used['epsilon']:.3g} of {whole['epsilon']:.3g}"
    return f"{figure} at delta {used['delta']:g}, unit {used['unit']}{secure}"


def gates(facts: Facts) -> str:
    """How the gates judge the newest checkpoint that ends a phase, in words."""
    candidate = facts["checkpoints"]["candidate"]
    if candidate is None:
        return "no checkpoint to release"
    where = f"checkpoint {candidate['sequence']} ({candidate['phase']})"
    failed = [f"{one['gate']}: {one['note']}" for one in candidate["gates"] if not one["passed"]]
    return f"{where}: " + ("; ".join(failed) if failed else "all gates hold")


def _head(facts: Facts) -> Table:
    grid = Table.grid(padding=(0, 2))
    state = Text(facts["state"], style=f"bold {_COLOURS[facts['state']]}")
    rows: list[tuple[str, RenderableType]] = [
        ("run", Text.assemble((plain(facts["run"]), "bold"), f"  study {plain(facts['study'])}")),
        ("state", Text.assemble(state, f"  {plain(facts['why'] or facts['doing'])}")),
    ]
    if facts["waiting"]:
        rows.append(("waiting for", Text(plain(", ".join(facts["waiting"])))))
    done, whole = facts["rounds"]["done"], facts["rounds"]["of"]
    rows += [
        ("rounds", Text(f"{done} of {whole}")),
        ("", ProgressBar(total=whole, completed=done, width=40)),
        ("time left", Text(left(facts))),
        ("sign of life", Text(ago(facts["last_sign"]))),
        ("bytes", Text(f"{size(facts['bytes']['sent'])} sent, {size(facts['bytes']['received'])} received")),
        ("privacy", Text(plain(spent(facts)))),
    ]
    for name, value in rows:
        grid.add_row(Text(name, style="dim"), value)
    return grid


def _phases(facts: Facts) -> Table:
    table = _table("phase", ">rounds", ">loss", ">validation", ">a round", ">received", "without")
    for phase in facts["phases"]:
        pace = phase["seconds"] / phase["done"] if phase["done"] else None
        lost = [f"{site} ({when})" for when, by in phase["lost"].items() for site in by]
        table.add_row(
            plain(phase["name"]),
            f"{phase['done']}/{phase['rounds']}",
            _figure(phase["loss"].get("train")),
            _figure(phase["loss"].get("validation")),
            duration(pace),
            size(phase["bytes"]["received"]),
            Text(plain(", ".join(lost[-3:]))),
        )
    return table


def _sites(facts: Facts) -> Table:
    table = _table("site", "last answer", ">people", ">loss", ">received", ">lost", "")
    for site in facts["sites"]:
        note = "waited for" if site["waited_for"] else site["refused"]
        table.add_row(
            plain(site["site"]),
            ago(site["contact"]),
            "-" if site["people"] is None else str(site["people"]),
            _figure(site["loss"]),
            size(site["received"]),
            str(site["lost"] or "-"),
            Text(plain(note)),
        )
    return table


def _checkpoints(facts: Facts) -> Table:
    held, grid = facts["checkpoints"], Table.grid(padding=(0, 2))
    latest, released = held["latest"], held["released"]
    shown = f"{latest['sequence']} {latest['hash'][:12]}, {latest['phase']}" if latest else "none yet"
    grid.add_row(Text("newest", style="dim"), Text(plain(shown)))
    out = f"{released['sequence']} {released['hash'][:12]}, by {released['by']}" if released else "nothing"
    grid.add_row(Text("released", style="dim"), Text(plain(out)))
    grid.add_row(Text("gates", style="dim"), Text(plain(gates(facts))))
    return grid


def _table(*names: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in names:
        table.add_column(name.lstrip(">"), justify="right" if name.startswith(">") else "left")
    return table


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
