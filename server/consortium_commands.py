"""pm1-server init, enrol, revoke, sites, kit: who belongs to the consortium."""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from pm1_core import telephone
from pm1_core.enrolment import Request, grouped, read
from pm1_core.errors import InputError
from pm1_core.signing import PASSPHRASE
from pm1_core.validate import refusal, require_range
from server.consortium import DAYS, ENROLLED, Consortium

if TYPE_CHECKING:
    from pm1_core.command import Subcommands

COMMANDS = ("init", "enrol", "revoke", "sites", "kit")
_SOON = 30


def add_parser(commands: Subcommands) -> None:
    """The grammar of the five commands."""

    def command(name: str, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.add_argument(
            "--folder", type=Path, default=Consortium.default(), help="the consortium's folder (%(default)s)"
        )
        return sub

    init = command("init", "make a consortium: its authority, certificates and the key of checkpoints")
    what = init.add_mutually_exclusive_group(required=True)
    what.add_argument("--name", help="of the consortium, as sites will read it")
    what.add_argument(
        "--renew", action="store_true", help="sign gateway's and coordinator's certificates anew, same keys"
    )
    init.add_argument("--address", metavar="HOST:PORT", help="where sites reach the gateway")
    enrol = command("enrol", "check a site's request, sign its certificate and write its kit")
    enrol.add_argument("request", type=Path, metavar="REQUEST", help="the file that pm1-site init wrote")
    enrol.add_argument("--fingerprint", metavar="HEX", help="as the site read it out; asked for if not given")
    enrol.add_argument(
        "--replace",
        action="store_true",
        help="renew the certificate of an enrolled site; if its keys are new, those it had are revoked",
    )
    for sub in (init, enrol):
        sub.add_argument(
            "--days", type=int, default=DAYS, help="for which certificates are good (%(default)s)"
        )
    revoke = command("revoke", "shut a site out, at once")
    revoke.add_argument("site")
    revoke.add_argument("--reason", required=True, help="written into the consortium's log")
    sites = command("sites", "list sites, their certificates and fingerprints")
    sites.add_argument("--json", action="store_true", help="print the list as JSON on standard output")
    kit = command("kit", "write a site's kit again, with the keys of all sites enrolled by now")
    kit.add_argument("site")


def run(options: argparse.Namespace) -> None:
    """Do what `options`, parsed by the grammar above, ask for."""
    os.umask(0o077)
    if "days" in options:
        require_range("option --days", options.days, 1, 3650)
    {"init": _init, "enrol": _enrol, "revoke": _revoke, "sites": _sites, "kit": _kit}[options.command](
        options
    )


def _init(options: argparse.Namespace) -> None:
    if options.renew:
        held = Consortium(options.folder)
        held.renew(options.days, options.address)
        print(f"Renewed for {held.days_left} days. Start the services again; sites need nothing.")
        if options.address:
            print("They learn of the new address by a new kit: pm1-server kit SITE.")
        return
    if not options.address:
        raise InputError(refusal("option --address", "it is missing", "write HOST:PORT as sites reach it"))
    made = Consortium.create(options.folder, options.name, options.address, options.days)
    print(f"Consortium {options.name!r} in {options.folder}; sites reach it at {options.address}.")
    if not os.environ.get(PASSPHRASE):
        print(f"Its keys are not encrypted, only closed to others: set {PASSPHRASE} for that.")
    print(f"Fingerprint, which sites will ask you for by telephone:\n\n  {grouped(made.fingerprint)}\n")
    print("Next: pm1-server enrol REQUEST for each site, then pm1-server start.")


def _enrol(options: argparse.Namespace) -> None:
    consortium = Consortium(options.folder)
    _ = consortium.facts
    request = Request.from_json(read(options.request), options.request)
    telephone.compare(f"request of {request.site}", "the site", request.fingerprint, options.fingerprint)
    file = consortium.enrol(request, options.days, options.replace)
    one = consortium.site(request.site)
    print(f"{request.site} is enrolled until {one.until[:10]}.")
    for until in one.overlapping.values():
        print(f"Its earlier certificate stays good until {until[:10]}: it installs the kit before that.")
    print(f"Kit: {file}, to be sent to the site; nothing in it is secret.")
    print(f"The site will ask you to read out:\n\n  {grouped(consortium.fingerprint)}\n")
    print("Sites that are enrolled already learn of it by a new kit: pm1-server kit SITE.")


def _revoke(options: argparse.Namespace) -> None:
    one = Consortium(options.folder).revoke(options.site, options.reason)
    print(f"{one.site} is revoked: its certificate is refused from now on.")
    print("Other sites drop its key by a new kit: pm1-server kit SITE.")


def _sites(options: argparse.Namespace) -> None:
    consortium = Consortium(options.folder)
    _ = consortium.facts
    sites = consortium.sites()
    if options.json:
        print(json.dumps([{**asdict(one), "days_left": one.days_left} for one in sites]))
        return
    print(f"{'site':<24} {'status':<10} {'since':<11} {'until':<11} fingerprint of the request")
    for one in sites:
        print(
            f"{one.site:<24} {one.status:<10} {one.since[:10]:<11} {one.until[:10]:<11} "
            f"{grouped(one.fingerprint[:16])}"
        )
        if one.status == ENROLLED:
            for until in one.overlapping.values():
                print(f"{'':<24} {'earlier':<10} {'':<11} {until[:10]:<11} of the same keys")
    if consortium.days_left < _SOON:
        print(f"gateway: {consortium.days_left} days left; pm1-server init --renew", file=sys.stderr)
    for one in sites:
        if one.status == ENROLLED and one.days_left < _SOON:
            remedy = "have it send the request of pm1-site init --renew, and enrol that with --replace"
            print(f"{one.site}: {one.days_left} days left; {remedy}", file=sys.stderr)


def _kit(options: argparse.Namespace) -> None:
    print(f"Kit: {Consortium(options.folder).kit(options.site)}")
