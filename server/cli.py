"""pm1-server: the coordinator's command line."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from pm1_core import atomic
from pm1_core.command import grammar, guarded
from pm1_core.signing import PASSPHRASE, Signer, public_file
from server import checkpoint_commands, consortium_commands, service_commands, study_commands

_EPILOG = """\
Examples
  pm1-server init --name "Eyes and genes" --address pm1.example.org:8443
  pm1-server enrol leeds.request
  pm1-server study resolve study=ukb_eyepacs model=paper --out study.json
  pm1-server study submit study.json --definition study.yaml
  pm1-server study status --watch
  pm1-server key runs/first/keys/coordinator.pem
  pm1-server checkpoints verify runs/ukb_eyepacs-small
  pm1-server reference /data/panel-store --out panel.safetensors
A resolved study runs on real sites through Flower:
  flwr run . --run-config 'study="/srv/study.json" definition="/srv/study.yaml" run="/srv/runs/first"
    key="/srv/runs/first/keys/coordinator.pem"'"""


def parser() -> argparse.ArgumentParser:
    """The command line's grammar."""
    root, commands = grammar("pm1-server", "Coordinate a federated study of PM1.", _EPILOG)
    consortium_commands.add_parser(commands)
    service_commands.add_parser(commands)
    study_commands.add_parser(commands)
    config = commands.add_parser("config", help="print the composed configuration")
    config.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    checkpoint_commands.add_parser(commands)
    key = commands.add_parser("key", help="make the key pair under which checkpoints are signed")
    key.add_argument(
        "file", type=Path, help="the private key; the public one is written beside it as FILE.pub"
    )
    reference = commands.add_parser(
        "reference",
        help="write the statistics of public people, for privacy.statistics=public",
        description="Write allele counts, means and deviations of a prepared store of public people: a reference "
        "panel, never people of a site. They are exact, and whoever has the file has them.",
    )
    reference.add_argument("store", type=Path, help="a store that pm1-site prepare made of the panel's files")
    reference.add_argument("--out", type=Path, required=True, help="the safetensors file to write")
    return root


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    options = parser().parse_args(arguments)
    actions = {
        **dict.fromkeys(consortium_commands.COMMANDS, consortium_commands.run),
        **dict.fromkeys(service_commands.COMMANDS, service_commands.run),
        "study": study_commands.run,
        "config": _config,
        "checkpoints": _checkpoints,
        "key": _key,
        "reference": _reference,
    }
    return guarded("pm1-server", lambda: actions[options.command](options))


def _config(options: argparse.Namespace) -> None:
    # Imported here, and below: configuration and studies bring torch along, and the other commands are quick.
    from configs import compose

    print(compose.to_yaml(compose.load("server", options.overrides)), end="")


def _reference(options: argparse.Namespace) -> None:
    import safetensors.numpy

    from pm1_core.data.store import Store
    from pm1_core.training.tasks.reference import statistics_of_panel

    store = Store.open(options.store)
    with tempfile.TemporaryDirectory() as scratch:
        tensors = statistics_of_panel(store, Path(scratch))
    atomic.write_bytes(options.out, safetensors.numpy.save(dict(tensors)))
    print(f"{options.out}: {len(tensors)} tensors of {store.site!r}, for privacy.reference={options.out}")


def _checkpoints(options: argparse.Namespace) -> None:
    checkpoint_commands.run(options)


def _key(options: argparse.Namespace) -> None:
    signer = Signer.create(options.file)
    public = public_file(options.file)
    public.chmod(0o644)
    protected = "" if os.environ.get(PASSPHRASE) else f"not encrypted: set {PASSPHRASE} for that"
    print(f"private key  {options.file} (mode 0600) {protected}".rstrip())
    print(f"public key   {public}, for the sites")
    print(f"fingerprint  {signer.fingerprint}")


if __name__ == "__main__":
    sys.exit(main())
