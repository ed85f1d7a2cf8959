"""pm1-site fetch: what the coordinator released, checked against its key."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from client.folder import SiteFolder

if TYPE_CHECKING:
    from pm1_core.command import Subcommands

COMMANDS = ("fetch",)


def add_parser(commands: Subcommands) -> None:
    """The grammar of `fetch`."""
    text = "fetch a checkpoint that the coordinator released, and check its signature"
    sub = commands.add_parser("fetch", help=text, description=text)
    sub.add_argument("name", nargs="?", default="", metavar="HASH", help="first digits; the newest if none")
    sub.add_argument("--out", type=Path, metavar="FOLDER", help="default: released/ in the site's folder")
    sub.add_argument("--list", action="store_true", help="list what is released, fetch nothing")
    sub.add_argument("--folder", type=Path, default=SiteFolder.default(), help="the site's folder")
    sub.add_argument("--json", action="store_true", help="print the outcome as JSON on standard output")


def run(options: argparse.Namespace) -> None:
    """Do what `options`, parsed by the grammar above, ask for."""
    # Imported here: httpx takes a moment, which the other commands need not wait for.
    from rich.console import Console
    from rich.progress import Progress

    from client.fetch import Library
    from client.services import PROXY

    os.umask(0o077)
    folder = SiteFolder(options.folder)
    library = Library.of(folder, os.environ.get(PROXY) or None)
    with library.client:
        if options.list:
            listed = library.listed()
            print(json.dumps(listed) if options.json else "\n".join(map(_line, listed)) or "nothing yet")
            return
        out = options.out or folder.file("released")
        with Progress(console=Console(stderr=True), transient=True) as bars:
            task = bars.add_task("fetching")

            def progress(done: int, whole: int) -> None:
                bars.update(task, completed=done, total=whole or None)

            found = library.fetch(options.name.lower(), out, progress)
    if options.json:
        print(json.dumps({"folder": str(out), "hash": found.hash, "study": found.study}))
        return
    print(f"checkpoint {found.sequence} of {found.study}, {found.hash}, signed by {found.signer[:16]}: {out}")


def _line(one: dict[str, object]) -> str:
    return (
        f"{str(one['hash'])[:16]}  release {one.get('release')} of {one.get('study')}, {one.get('privacy')}"
    )
