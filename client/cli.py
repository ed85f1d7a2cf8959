"""pm1-site: the command line of a site's IT."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from client import door_commands, enrol_commands, fetch_commands, privacy_commands
from client.folder import SiteFolder
from pm1_core.command import grammar, guarded
from pm1_core.errors import InputError
from pm1_core.signing import PASSPHRASE, Signer, public_file

if TYPE_CHECKING:
    from pm1_core.data.preparation_report import PreparationReport

_EPILOG = """\
Examples
  pm1-site init --site leeds
  pm1-site join leeds.kit
  pm1-site check
  pm1-site check /data/site.yaml
  pm1-site prepare /data/site.yaml store=/data/store
  pm1-site privacy open /state --site leeds --epsilon 8 --delta 1e-5
  pm1-site privacy show /state
  pm1-site key /etc/pm1/site.pem
The store is what the site's Flower client reads:
  flower-supernode ... --node-config 'store="/data/store" folder="/state" trust="/etc/pm1/coordinator.pem.pub"'"""


def parser() -> argparse.ArgumentParser:
    """The command line's grammar."""
    root, commands = grammar("pm1-site", "A hospital's data, next to which PM1 is trained.", _EPILOG)
    enrol_commands.add_parser(commands)
    for name, text in (
        (
            "check",
            "look at this machine and the way to the coordinator, and read everything the manifest names; "
            "say what is wrong with what to do, write nothing",
        ),
        ("prepare", "turn the files into a store that is read by memory map, with a report of every finding"),
        ("config", "print the composed configuration"),
    ):
        sub = commands.add_parser(name, help=text, description=text)
        sub.add_argument(
            "arguments",
            nargs="*",
            metavar="MANIFEST or KEY=VALUE",
            help="the site's manifest, and what to change in the configuration",
        )
        sub.add_argument("--json", action="store_true", help="print the outcome as JSON on standard output")
        if name == "check":
            where = (
                "the site's folder: its machine, certificates and way to the coordinator are looked at too"
            )
            sub.add_argument("--folder", type=Path, help=f"{where} ({SiteFolder.default()} if it is one)")
    privacy_commands.add_parser(commands)
    door_commands.add_parser(commands)
    fetch_commands.add_parser(commands)
    key = commands.add_parser("key", help="make the site's identity key, which secure aggregation needs")
    key.add_argument(
        "file", type=Path, help="the private key; the public one is written beside it as FILE.pub"
    )
    return root


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    options = parser().parse_args(arguments)
    return guarded("pm1-site", lambda: _run(options))


def _run(options: argparse.Namespace) -> None:
    if options.command == "privacy":
        privacy_commands.run(options)
        return
    if options.command in enrol_commands.COMMANDS:
        enrol_commands.run(options)
        return
    if options.command in fetch_commands.COMMANDS:
        fetch_commands.run(options)
        return
    if options.command in door_commands.COMMANDS:
        door_commands.run(options)
        return
    if options.command == "key":
        _key(options.file)
        return
    if options.command == "check":
        _check(options)
        return
    _data(options, {})


def _check(options: argparse.Namespace) -> None:
    folder = SiteFolder(options.folder or SiteFolder.default())
    looked: dict[str, Any] = {}
    refused = ""
    if options.folder or not options.arguments or (folder.path / "site.json").exists():
        from client.environment import examine

        found, refused = examine(folder, lambda one: None if options.json else print(one, flush=True))
        looked = {"environment": [asdict(one) for one in found]}
    if options.arguments:
        _data(options, looked)
    elif options.json:
        print(json.dumps(looked))
    if refused:
        raise InputError(refused)


def _data(options: argparse.Namespace, more: dict[str, Any]) -> None:
    """more: for the outcome as JSON"""
    # Imported here: they take seconds, and what runs all the time, or is asked every minute, needs none of them.
    from rich.console import Console
    from rich.progress import Progress

    from configs import compose
    from pm1_core.data.manifest import load_manifest
    from pm1_core.data.preparation import check, prepare

    given = [item if "=" in item else f"manifest={Path(item).resolve()}" for item in options.arguments]
    config = compose.load("client", given)
    if options.command == "config":
        print(json.dumps(config, indent=1) if options.json else compose.to_yaml(config), end="")
        return
    path = Path(config["manifest"])
    manifest = load_manifest(path)
    store = Path(config["store"] or path.parent / "store")
    with Progress(console=Console(stderr=True), transient=True) as bars:
        tasks: dict[str, Any] = {}

        def progress(stage: str, done: int, whole: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage)
            bars.update(tasks[stage], completed=done, total=whole or None)

        report = (
            check(manifest, progress) if options.command == "check" else prepare(manifest, store, progress)
        )
    if options.json:
        written = str(store) if options.command == "prepare" else None
        print(json.dumps({"store": written, **report.to_json(), **more}))
        return
    print(report.to_markdown())
    print(_closing(options.command, store, report))


def _key(file: Path) -> None:
    signer = Signer.create(file)
    protected = "" if os.environ.get(PASSPHRASE) else f"not encrypted: set {PASSPHRASE} for that"
    print(f"private key  {file} (mode 0600) {protected}".rstrip())
    print(f"public key   {public_file(file)}, for the other sites as SITE.pub")
    print(f"fingerprint  {signer.fingerprint}, to compare by telephone")


def _closing(command: str, store: Path, report: PreparationReport) -> str:
    if command == "check":
        return "Nothing was written. `pm1-site prepare` writes the store."
    if report.skipped:
        return f"Store: {store} (was there already, inputs unchanged)"
    return f"Store: {store}"


if __name__ == "__main__":
    sys.exit(main())
