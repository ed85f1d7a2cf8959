"""pm1-site init and join: a site's keys, its request to the coordinator, and the kit that comes back."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from client import enrol
from client.folder import SiteFolder
from pm1_core import telephone
from pm1_core.enrolment import Kit, ed25519, grouped, read
from pm1_core.signing import PASSPHRASE, fingerprint

if TYPE_CHECKING:
    from pm1_core.command import Subcommands

COMMANDS = ("init", "join")


def add_parser(commands: Subcommands) -> None:
    """The grammar of both."""

    def command(name: str, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.add_argument(
            "--folder", type=Path, default=SiteFolder.default(), help="the site's folder (%(default)s)"
        )
        return sub

    init = command("init", "make this site's keys, here, and a request for the coordinator")
    what = init.add_mutually_exclusive_group(required=True)
    what.add_argument("--site", metavar="NAME", help="of the site: a-z, 0-9, _ and -")
    what.add_argument("--renew", action="store_true", help="write the request again, of the keys there are")
    join = command("join", "check the coordinator's kit and put it in its place")
    join.add_argument("kit", type=Path, metavar="KIT", help="the file that pm1-server enrol wrote")
    join.add_argument("--fingerprint", metavar="HEX", help="as the coordinator read it out; asked for if not")
    join.add_argument("--replace", action="store_true", help="leave the consortium that was joined before")


def run(options: argparse.Namespace) -> None:
    """Do what `options`, parsed by the grammar above, ask for."""
    os.umask(0o077)
    folder = SiteFolder(options.folder)
    if options.command == "join":
        _join(folder, options)
        return
    file = enrol.renewed(folder) if options.renew else enrol.initialise(folder, options.site)
    if not os.environ.get(PASSPHRASE):
        print(f"The identity key is not encrypted, only closed to others: set {PASSPHRASE} for that.")
    print(f"Request: {file}, to be sent to the coordinator; nothing in it is secret.")
    print("The coordinator will call and ask for its fingerprint:")
    print(f"\n  {grouped(enrol.read_request(folder).fingerprint)}\n")
    print("Next: pm1-site join KIT, with what comes back.")


def _join(folder: SiteFolder, options: argparse.Namespace) -> None:
    kit = Kit.from_json(read(options.kit), options.kit)
    enrol.require_for(folder, kit, options.replace)
    telephone.compare(
        f"consortium {kit.consortium!r}", "the coordinator", kit.fingerprint, options.fingerprint
    )
    new = enrol.strangers(folder, kit)
    enrol.install(folder, kit)
    print(f"{kit.site} has joined {kit.consortium!r}, whose gateway is {kit.gateway}.")
    if others := {site: key for site, key in new.items() if site != kit.site}:
        print("Keys of other sites that are new here. Secure sums rest on them: compare them with the sites.")
        for site, key in others.items():
            print(f"  {site:<24} {grouped(fingerprint(ed25519('kit', key)))}")
    print("Next: pm1-site check, pm1-site approve PROPOSAL, pm1-site start.")
