"""`pm1-server study ...`: resolve a study, start it on the consortium's sites, watch it, stop it."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from pm1_core import atomic

if TYPE_CHECKING:
    from pm1_core.command import Subcommands

_EPILOG = """\
Examples
  pm1-server study resolve study=ukb_eyepacs model=small --out study.json"""


def add_parser(commands: Subcommands) -> None:
    """The grammar of `study` and its actions."""
    what = "resolve a study, start it, watch it, stop it"
    raw = argparse.RawDescriptionHelpFormatter
    root = commands.add_parser("study", help=what, description=what, epilog=_EPILOG, formatter_class=raw)
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
