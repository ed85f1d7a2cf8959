"""`pm1-server study ...`: resolve a study, start it on the consortium's sites, watch it, stop it."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pm1_core import atomic
from pm1_core.command import subcommand
from pm1_core.errors import InputError
from pm1_core.validate import refusal
from server.consortium import Consortium
from server.runs import Runs

if TYPE_CHECKING:
    from pm1_core.command import Subcommands

_EPILOG = """\
Examples
  pm1-server study resolve study=ukb_eyepacs model=small --out study.json
  pm1-server study submit study.json --definition study.yaml --dry-run     # the proposal, for the sites to approve
  pm1-server study submit study.json --definition study.yaml               # start it, or go on with it
  pm1-server study status --watch
  pm1-server study stop ukb_eyepacs"""


def add_parser(commands: Subcommands) -> None:
    """The grammar of `study` and its actions."""
    what = "resolve a study, start it, watch it, stop it"
    root = subcommand(commands, "study", what, _EPILOG)
    actions = root.add_subparsers(dest="action", required=True, metavar="ACTION")

    def action(
        name: str, text: str, handler: Callable[[argparse.Namespace], None]
    ) -> argparse.ArgumentParser:
        parser = actions.add_parser(name, help=text, description=text)
        parser.set_defaults(handler=handler)
        return parser

    resolve = action("resolve", "resolve a study and show its phases", _resolve)
    resolve.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    resolve.add_argument("--out", type=Path, help="write the resolved study to this file")
    resolve.add_argument("--json", action="store_true", help="print the resolved study as JSON")

    def of_consortium(
        name: str, text: str, handler: Callable[[argparse.Namespace], None]
    ) -> argparse.ArgumentParser:
        parser = action(name, text, handler)
        folder = Consortium.default()
        parser.add_argument(
            "--folder", type=Path, default=folder, help="the consortium's folder (%(default)s)"
        )
        parser.add_argument("--json", action="store_true", help="print JSON on standard output")
        return parser

    submit = of_consortium("submit", "propose a study to the sites and start it, or go on with it", _submit)
    submit.add_argument("study", type=Path, metavar="STUDY.json", help="what `study resolve --out` wrote")
    submit.add_argument(
        "--definition", type=Path, required=True, metavar="study.yaml", help="the study definition"
    )
    submit.add_argument("--run", default="", metavar="NAME", help="name of the run; default: the study's")
    submit.add_argument(
        "--tasks", default="", metavar="A,B", help="tasks of installed packages that it may name"
    )
    submit.add_argument(
        "--app",
        type=Path,
        metavar="FOLDER",
        help="root of PM1's source tree, if it was not installed from it",
    )
    submit.add_argument("--dry-run", action="store_true", help="write the proposal only")
    status = of_consortium("status", "what a run is doing, what it has done, and what is left", _status)
    status.add_argument(
        "run",
        nargs="?",
        default="",
        metavar="RUN",
        help="name of a run, or any run's folder; default: the newest",
    )
    status.add_argument("--watch", action="store_true", help="go on until it has ended")
    stop = of_consortium("stop", "stop a run; it can be gone on with", _stop)
    stop.add_argument("run", metavar="RUN", help="name of the run, or Flower's number")


def run(options: argparse.Namespace) -> None:
    """Run one action. Raises PM1Error."""
    options.handler(options)


def _resolve(options: argparse.Namespace) -> None:
    # Imported here: configuration and studies bring torch along, and the other actions are quick.
    from configs import compose
    from server.configure import build_study

    study = build_study(compose.load("server", options.overrides))
    if options.out:
        atomic.write_text(options.out, study.to_json() + "\n")
    if options.json:
        print(study.to_json())
        return
    print(f"study {study.name}, seed {study.seed}, {study.strategy['name']}, {study.privacy}")
    print(f"{'phase':<14} {'task':<12} {'rounds':>6} {'least sites':>12}")
    for phase in study.phases:
        print(f"{phase.name:<14} {phase.task:<12} {phase.rounds:>6} {phase.min_sites:>12}")
    if options.out:
        print(f"written to {options.out}")


def _submit(options: argparse.Namespace) -> None:
    from server.submission import prepared

    tasks = options.tasks.split(",")
    consortium = Consortium(options.folder)
    made = prepared(consortium, options.study, options.definition, options.run, tasks, options.app)
    before = made.proposed
    again = before is not None and before != made.proposal
    file = made.propose()
    outcome = {"proposal": str(file), "bundle": made.proposal.bundle, "config": made.proposal.config}
    lines = [f"proposal   {file}, for pm1-site approve"]
    if again:
        lines.append("           it is not what was proposed before: sites have to approve it again")
    if not options.dry_run:
        started = made.start()
        outcome |= {**asdict(started), "run": str(started.run)}
        lines += [
            f"run        {started.name}, Flower's number {started.run}",
            f"folder     {started.folder}",
            f"watch it   pm1-server study status {started.name} --watch",
        ]
    print(json.dumps(outcome) if options.json else "\n".join(lines))


def _status(options: argparse.Namespace) -> None:
    from rich.console import Console

    from server.watch import Watch, as_json
    from server.watch_view import view, watch

    watched = Watch(_folder_of(options.folder, options.run))
    runs = Runs(options.folder)

    def facts() -> dict[str, Any]:
        here = [run for run in runs.newest() if Path(run.folder) == watched.folder.resolve()]
        return watched.facts(here[0] if here else None)

    if options.json and not options.watch:
        print(json.dumps(as_json(facts())))
    elif options.watch:
        watch(facts, Console(), options.json)
    else:
        Console().print(view(facts()))


def _folder_of(consortium: Path, name: str) -> Path:
    """Of a run of the consortium, or of any. Raises InputError."""
    runs = Runs(consortium)
    found = runs.named(name) if name else next(iter(runs.newest()), None)
    if found:
        return Path(found.folder)
    if not name:
        raise InputError(refusal(consortium, "no run was submitted", "name the folder of a run"))
    inside = consortium / "runs" / name
    return inside if inside.is_dir() else Path(name)


def _stop(options: argparse.Namespace) -> None:
    from server.submission import stop

    found, stopped = stop(Consortium(options.folder), options.run)
    text = f"run {found.name} (Flower's number {found.run}) "
    text += "is stopped" if stopped else "had ended before"
    text += "; its last checkpoint stays in force, and submitting the same study again goes on from there"
    print(json.dumps({**asdict(found), "run": str(found.run)}) if options.json else text)
