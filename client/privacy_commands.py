"""pm1-site privacy: the ledger of a site, for its IT, and what a study would cost it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from pm1_core.command import subcommand
from pm1_core.privacy.mechanisms import RECORD, UNITS

if TYPE_CHECKING:
    from pm1_core.command import Subcommands

_EPILOG = """\
Examples
  pm1-site privacy open /state --site leeds --epsilon 8 --delta 1e-5
  pm1-site privacy show /state
  pm1-site privacy show /state --study study.json
  pm1-site privacy raise /state --epsilon 12 --delta 1e-5 --reason "ethics board, 3 March"
  pm1-site privacy verify /state --digest 3f1c...
  pm1-site privacy hospitals --epsilon 8

FOLDER is the site's own folder, the one that its Flower client is given. The ledger is FOLDER/ledger.jsonl.
Exit codes: 0 done, 2 something you wrote is wrong, 3 the ledger is damaged, 5 a budget would be broken."""


def add_parser(commands: Subcommands) -> None:
    """Put `privacy` and what it can do into the command line's grammar."""
    text = "the site's ledger of releases: its budget, what is spent, what remains"
    privacy = subcommand(commands, "privacy", text, _EPILOG)
    actions = privacy.add_subparsers(dest="action", required=True, metavar="ACTION")

    def action(name: str, description: str, folder: bool = True) -> argparse.ArgumentParser:
        sub = actions.add_parser(name, help=description, description=description)
        if folder:
            sub.add_argument("folder", type=Path, metavar="FOLDER", help="the site's own folder")
        sub.add_argument("--json", action="store_true", help="print the outcome as JSON on standard output")
        return sub

    show = action("show", "print budget, spent and remaining, by study and phase")
    show.add_argument("--study", type=Path, metavar="FILE", help="a resolved study: what it would cost here")
    opened = action("open", "open the ledger with the budget of all studies together")
    opened.add_argument("--site", default="", help="name of the site; default: the folder's name")
    _budget(opened)
    raised = action("raise", "give a larger budget; what was spent stays spent")
    _budget(raised)
    raised.add_argument("--reason", required=True, help="why, and who decided: it stands in the ledger")
    verify = action("verify", "check that no line was changed, removed, inserted, moved or cut off")
    verify.add_argument("--digest", default="", help="hash that an earlier verify printed")
    several = action("hospitals", "what holds for a person who is at several hospitals", folder=False)
    several.add_argument(
        "--epsilon", type=float, nargs="*", help="budgets of each hospital; default: 0.5 1 2 4 8"
    )
    several.add_argument("--delta", type=float, default=1e-5)
    several.add_argument("--study", type=Path, metavar="FILE", help="a resolved study that all of them join")


def _budget(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--epsilon", type=float, required=True, help="of all releases to all studies, composed")
    sub.add_argument("--delta", type=float, required=True, help="well below one in the number of people")
    sub.add_argument(
        "--unit", choices=UNITS, default=RECORD, help="what is hidden; default: record, a person"
    )


def run(options: argparse.Namespace) -> None:
    """Run one action. Raises PM1Error."""
    # Imported here: accountants take a second to load, which the other commands need not wait for.
    from client import privacy_report

    privacy_report.run(options)
