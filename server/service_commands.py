"""pm1-server start and health: the coordinator's services, together or one by one."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from pm1_core.errors import ConfigError
from pm1_core.validate import require_choice
from server import services
from server.consortium import Consortium

if TYPE_CHECKING:
    from pm1_core.command import Subcommands

COMMANDS = ("start", "health")


def add_parser(commands: Subcommands) -> None:
    """The grammar of both."""
    for name, text, count in (
        (
            "start",
            "run the coordinator's services until they are ended; one alone stays in the foreground",
            "*",
        ),
        ("health", "say whether a service does its work; exit code 1 if not", 1),
    ):
        sub = commands.add_parser(name, help=text, description=text)
        sub.add_argument(
            "services", nargs=count, metavar="SERVICE", help=", ".join(services.SERVICES) + " (all)"
        )
        sub.add_argument(
            "--folder", type=Path, default=Consortium.default(), help="the consortium's folder (%(default)s)"
        )
        if name == "health":
            sub.add_argument("--json", action="store_true", help="print JSON on standard output")


def run(options: argparse.Namespace) -> None:
    """Do what `options`, parsed by the grammar above, ask for."""
    for name in options.services:
        require_choice("service", name, services.SERVICES, ConfigError)
    consortium = Consortium(options.folder)
    if options.command == "start":
        code = services.start(consortium, options.services)
        if code:
            sys.exit(code)
        return
    found = services.health(consortium, options.services[0])
    print(json.dumps(found) if options.json else f"{found['service']} on {found['address']}: ok")
