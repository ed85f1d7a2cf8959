"""`pm1-server checkpoints ...`: the registry of a run's global checkpoints on the command line."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pm1_core.checkpoint import Checkpoint, CheckpointFolder
from pm1_core.command import subcommand
from pm1_core.signing import Signer, Trust
from server.consortium import Consortium
from server.differences import compare
from server.publication import SHORT, publish
from server.registry import KEY, LATEST, Registry
from server.releases import Release
from server.shards import bytes_of
from server.tables import number, print_json, print_table

if TYPE_CHECKING:
    from pm1_core.command import Subcommands

_EPILOG = """\
A checkpoint is named by its number, the first digits of its hash, "latest", "released" or "origin".

Examples
  pm1-server checkpoints list    runs/first
  pm1-server checkpoints verify  runs/first --key coordinator.pem.pub
  pm1-server checkpoints compare runs/first released latest
  pm1-server checkpoints promote runs/first 175 --by "A. Example" --because "end of the study, board of 3 May"
  pm1-server checkpoints start   runs/second --origin runs/first --key runs/first/keys/coordinator.pem.pub
  pm1-server checkpoints export  runs/first released --out pm1-first --license cc-by-nc-4.0

Exit codes: 0 done; 1 a gate does not hold; 2 a name or file of yours is wrong; 3 a link is broken."""


def add_parser(commands: Subcommands) -> None:
    """The grammar of `checkpoints` and its actions."""
    what = "list, verify, compare, release, export and hand on the checkpoints of a run"
    root = subcommand(commands, "checkpoints", what, _EPILOG)
    actions = root.add_subparsers(dest="action", required=True, metavar="ACTION")

    def action(
        name: str, text: str, handler: Callable[[argparse.Namespace], None]
    ) -> argparse.ArgumentParser:
        parser = actions.add_parser(name, help=text, description=text)
        parser.add_argument("run", type=Path, metavar="RUN", help="folder of the run, runs/NAME")
        parser.add_argument("--json", action="store_true", help="print one JSON document")
        parser.set_defaults(handler=handler)
        return parser

    action("list", "a line per checkpoint, and which are released", _list)
    show = action("show", "everything that a manifest says", _show)
    verify = action("verify", "walk the lineage to its root and name the first broken link", _verify)
    verify.add_argument(
        "--expect", default="", metavar="HASH", help="a checkpoint or release that must be there"
    )
    both = action("compare", "figures and tensors of two checkpoints", _compare)
    both.add_argument("first", metavar="A")
    both.add_argument("second", metavar="B")
    promote = action("promote", "release a checkpoint, if the study's gates hold", _promote)
    promote.add_argument("--by", required=True, metavar="NAME", help="who decides")
    promote.add_argument("--because", required=True, metavar="TEXT", help="why")
    promote.add_argument("--key", type=Path, help=f"the coordinator's private key; default: RUN/{KEY}")
    export = action("export", "write a folder as Hugging Face's tools read it", _export)
    export.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="must not be there yet")
    export.add_argument(
        "--part", action="append", default=[], metavar="P", help="only this part; may be repeated"
    )
    export.add_argument(
        "--license", default="unknown", metavar="ID", help="of the weights, for the model card"
    )
    export.add_argument("--shard-size", default="5GB", metavar="N", help="largest file, as 5GB or 200MiB")
    export.add_argument(
        "--merge", action="store_true", help="also write the fundus encoder with its adapters merged"
    )
    export.add_argument("--mlflow", metavar="URI", help="also register it in this MLflow registry")
    export.add_argument(
        "--mlflow-name", metavar="NAME", help="name of the registered model; default: the study's"
    )
    publish = action("publish", "let every site of the consortium fetch a release", _publish)
    publish.add_argument(
        "--folder", type=Path, default=Consortium.default(), help="the consortium's folder (%(default)s)"
    )
    start = action("start", "let a new run start from what another one released", _start)
    start.add_argument(
        "--origin", type=Path, required=True, metavar="FOLDER", help="another run, or an export"
    )
    start.add_argument("--checkpoint", default="", metavar="HASH", help="default: the newest release")
    start.add_argument(
        "--key", type=Path, action="append", required=True, metavar="PUB", help="who must have signed"
    )
    for parser in (show, promote, export, publish):
        parser.add_argument(
            "checkpoint", nargs="?", default=LATEST, metavar="CHECKPOINT", help="default: latest"
        )
    for parser in (promote, export):
        parser.add_argument(
            "--study", type=Path, metavar="FILE", help="the resolved study; default: RUN/study.json"
        )
    for parser in (verify, export):
        parser.add_argument(
            "--key", type=Path, action="append", metavar="PUB",
            help=f"the coordinator's public key; may be repeated; default: RUN/{KEY}.pub, if it is there",
        )  # fmt: skip


def run(options: argparse.Namespace) -> None:
    """Do what `options`, parsed by the grammar above, ask for."""
    options.handler(options)


def _list(options: argparse.Namespace) -> None:
    registry = Registry(options.run)
    held = [registry.checkpoints.load(number) for number in registry.checkpoints.sequences()]
    released = {release.checkpoint: release for release in registry.releases.all()}
    if options.json:
        print_json([_as_json(checkpoint, released.get(checkpoint.hash)) for checkpoint in held])
        return
    rows = [
        (
            str(checkpoint.sequence),
            checkpoint.hash[:12],
            checkpoint.phase,
            f"{checkpoint.round}/{checkpoint.rounds}",
            _stage(checkpoint, released.get(checkpoint.hash)),
            ", ".join(f"{site} {count:g}" for site, count in checkpoint.sites.items()),
        )
        for checkpoint in held
    ]
    print_table(("number", "hash", "phase", "round", "stage", "sites"), rows, "rllrll")


def _show(options: argparse.Namespace) -> None:
    registry = Registry(options.run)
    checkpoint = registry.find(options.checkpoint)
    release = next((r for r in registry.releases.all() if r.checkpoint == checkpoint.hash), None)
    if options.json:
        print_json(_as_json(checkpoint, release))
        return
    rows = [
        ("checkpoint", f"{checkpoint.sequence}  {checkpoint.hash}"),
        ("parent", checkpoint.parent or "none: the root"),
        ("study", f"{checkpoint.study}, configuration {checkpoint.config[:12]}, code {checkpoint.code[:12]}"),
        ("phase", f"{checkpoint.phase}, round {checkpoint.round} of {checkpoint.rounds}"),
        ("stage", _stage(checkpoint, release)),
        ("privacy", checkpoint.privacy),
        ("signer", f"{checkpoint.signer} (`verify` checks it)" if checkpoint.signer else "unsigned"),
    ]
    if release:
        rows.append(("released", f"by {release.by}, {release.time}: {release.because}"))
    rows += [(f"site {site}", f"{count:g} examples") for site, count in checkpoint.sites.items()]
    rows += [(f"measured {name}", f"{value:g}") for name, value in sorted(checkpoint.measured.items())]
    rows += [(f"part {part}", _digests(held)) for part, held in sorted(checkpoint.parts.items())]
    print_table(None, rows, "ll")
    if checkpoint.areas:
        print()
        areas = [
            (name, f"{area['auc']:.4f}", f"{area['cases']:g}", f"{area['controls']:g}")
            for name, area in sorted(checkpoint.areas.items())
        ]
        print_table(("area", "AUC", "cases", "controls"), areas, "lrrr")
    if checkpoint.metrics:
        print()
        figures = [(n, f"{value:.6g}") for n, value in sorted(checkpoint.metrics.get("all", {}).items())]
        print_table(("figure over all sites", "value"), figures, "lr")
        print(f"{len(checkpoint.metrics) - 1} sites have figures of their own: --json")


def _verify(options: argparse.Namespace) -> None:
    registry = Registry(options.run)
    given = Trust.load(*options.key) if options.key else None
    trust = given or registry.default_trust()
    # Keys that were named have to cover the origin as well; the run's own files vouch for each other.
    origins = given or registry.origin_trust(trust)
    found = registry.verify(trust, origins, expected=options.expect.lower())
    if options.json:
        print_json(
            {
                "checkpoints": len(found.lineage),
                "root": found.lineage[0].hash,
                "latest": found.lineage[-1].hash,
                "origin": found.origin.hash if found.origin else "",
                "releases": [release.hash for release in found.releases],
                "signers": found.signers,
                "signatures_checked": found.checked,
            }
        )
        return
    root, latest = found.lineage[0].hash[:12], found.lineage[-1].hash[:12]
    print(f"{len(found.lineage)} checkpoints: lineage whole from {root} to {latest}, every tensor hashed")
    if found.origin:
        print(f"  starts from {found.origin.hash[:12]} of {found.origin.study}")
    last = f", the last {found.releases[-1].hash}" if found.releases else ""
    print(f"  {len(found.releases)} released{last}")
    for signer, count in found.signers.items():
        print(f"  {count} signed by {signer}" if signer else f"  {count} not signed: no site loads them")
    if not found.checked:
        print("  signatures not checked: give the coordinator's public key with --key")
    elif given is None:
        print(
            "  checked with the run's own public key; who could change the run could change that, see --key"
        )


def _compare(options: argparse.Namespace) -> None:
    registry = Registry(options.run)
    first, second = registry.find(options.first), registry.find(options.second)
    found = compare(registry.checkpoints, first, second)
    if options.json:
        print_json({"first": first.hash, "second": second.hash, **found.as_json()})
        return
    a, b = (f"{checkpoint.sequence} ({checkpoint.hash[:8]})" for checkpoint in (first, second))
    pooled = [
        replace(p, name=p.name.removeprefix("all/")) for p in found.figures if p.name.startswith("all/")
    ]
    for title, pairs in (("AUC", found.areas), ("figure over all sites", pooled)):
        if pairs:
            rows = [(p.name, number(p.first), number(p.second), number(p.difference, "+")) for p in pairs]
            print_table((title, a, b, "difference"), rows, "lrrr")
            print()
    parts = [
        (p.part, number(p.distance), str(p.tensors), f"{len(p.unmatched)} unmatched" if p.unmatched else "")
        for p in found.parts
    ]
    print_table(("part", "relative L2 distance", "tensors", ""), parts, "lrrl")
    for name, only in ((a, found.only_first), (b, found.only_second)):
        if only:
            print(f"only in {name}: {', '.join(only)}")


def _promote(options: argparse.Namespace) -> None:
    registry = Registry(options.run)
    checkpoint = registry.find(options.checkpoint)
    gates = registry.study(checkpoint, options.study).gates
    signer = Signer.load(options.key or options.run / KEY)
    release, verdicts = registry.promote(checkpoint, gates, signer, options.by, options.because)
    if options.json:
        print_json({**asdict(release), "hash": release.hash})
        return
    rows = [(v.gate, f"{v.limit:g}", number(v.found), v.note) for v in verdicts]
    print_table(("gate", "limit", "found", ""), rows, "lrrl")
    print(
        f"checkpoint {checkpoint.sequence} ({checkpoint.hash[:12]}) is release {release.number}, {release.hash}"
    )


def _export(options: argparse.Namespace) -> None:
    # Imported here: peft and the study's tasks bring torch along.
    from server.export import export
    from server.mlflow_registry import register

    registry = Registry(options.run)
    checkpoint = registry.find(options.checkpoint)
    done = export(
        registry, checkpoint, options.out, parts=options.part, study_file=options.study,
        trust=Trust.load(*options.key) if options.key else None,
        licence=options.license, shard_bytes=bytes_of(options.shard_size), merged=options.merge,
    )  # fmt: skip
    version = None
    if options.mlflow:
        release = next((r for r in registry.releases.all() if r.checkpoint == checkpoint.hash), None)
        name = options.mlflow_name or checkpoint.study
        version = register(options.out, options.mlflow, name, checkpoint, release)
    if options.json:
        print_json({"folder": str(done.folder), "files": done.files, "parameters": done.parameters,
                     "mlflow_version": version})  # fmt: skip
        return
    print_table(("file", "bytes"), [(name, f"{size:,}") for name, size in done.files.items()], "lr")
    print(f"{done.tensors} tensors, {done.parameters:,} parameters in {done.folder}")
    if version:
        print(f"registered as version {version}")


def _publish(options: argparse.Namespace) -> None:
    consortium, registry = Consortium(options.folder), Registry(options.run)
    _ = consortium.facts
    checkpoint = registry.find("released" if options.checkpoint == LATEST else options.checkpoint)
    folder = publish(registry, checkpoint, consortium.folder / "public")
    if options.json:
        print_json({"folder": str(folder), "hash": checkpoint.hash})
        return
    print(f"{folder}: sites get it with pm1-site fetch {checkpoint.hash[:SHORT]}")


def _start(options: argparse.Namespace) -> None:
    from server.origins import start_from

    folder = CheckpointFolder(options.run / "checkpoints")
    origin = start_from(options.origin, folder, Trust.load(*options.key), options.checkpoint.lower())
    if options.json:
        print_json(_as_json(origin, None))
        return
    print(
        f"{options.run} starts from checkpoint {origin.sequence} of {origin.study}, signed by {origin.signer}"
    )
    print(f"the study has to say so: pm1-server study resolve ... start_from={origin.hash}")


def _stage(checkpoint: Checkpoint, release: Release | None) -> str:
    if release:
        return f"release {release.number}"
    return "candidate" if checkpoint.round == checkpoint.rounds else ""


def _as_json(checkpoint: Checkpoint, release: Release | None) -> dict[str, Any]:
    released = {**asdict(release), "hash": release.hash} if release else None
    return {**asdict(checkpoint), "hash": checkpoint.hash, "released": released}


def _digests(held: Sequence[str]) -> str:
    return held[0][:12] if len(held) == 1 else f"{len(held)} objects, {held[0][:12]} ..."
