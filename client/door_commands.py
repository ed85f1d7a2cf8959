"""pm1-site approve, audit, start, health, status: what a site allows, what left, and what runs."""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
import warnings
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from client.folder import SiteFolder
from pm1_core.errors import InputError, PM1Error
from pm1_core.validate import refusal
from pm1_core.words import plain

if TYPE_CHECKING:
    from client.approvals import Approved
    from pm1_core.command import Subcommands

COMMANDS = ("approve", "audit", "start", "health", "status")
_SERVICES = ("door", "supernode", "page")


def add_parser(commands: Subcommands) -> None:
    """Put the commands into the grammar."""

    def command(name: str, text: str, machine: bool = True) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.add_argument("--folder", type=Path, default=SiteFolder.default(), help="the site's folder")
        if machine:
            sub.add_argument(
                "--json", action="store_true", help="print the outcome as JSON on standard output"
            )
        return sub

    approve = command("approve", "show a proposed study, and let it run here")
    approve.add_argument("proposal", type=Path, nargs="?", help="the coordinator's signed proposal")
    approve.add_argument("--yes", action="store_true", help="approve without being asked")
    approve.add_argument("--list", action="store_true", help="list what is approved")
    approve.add_argument("--withdraw", metavar="HASH", default="", help="take an approval back, at once")
    audit = command("audit", "what left this site and what was stopped")
    audit.add_argument("action", choices=("show", "verify"))
    audit.add_argument("--digest", default="", help="hash that an earlier verify printed")
    start = command("start", "run the site's services, or one of them, until they are ended", machine=False)
    start.add_argument(
        "services", nargs="*", metavar="SERVICE", help=f"of {', '.join(_SERVICES)}; all if none"
    )
    health = command("health", "exit code 0 if a service does its work, 1 if not")
    health.add_argument("service", choices=_SERVICES)
    command("status", "what this site is part of, what runs, what it allows, and what left")


def run(options: argparse.Namespace) -> None:
    """Run one of the commands. Raises PM1Error, or SystemExit with the code of services that ended."""
    # Imported here: Flower takes a second, which the other commands need not wait for.
    from client import services

    folder = SiteFolder(options.folder)
    if options.command == "start":
        for name in options.services:
            if name not in _SERVICES:
                raise InputError(refusal("service", f"found {name!r}", f"use {', '.join(_SERVICES)}"))
        raise SystemExit(services.start(folder, options.services))
    if options.command == "approve":
        outcome, text = _approve(folder, options)
    elif options.command == "audit":
        outcome, text = _audit(folder, options)
    elif options.command == "health":
        outcome = services.health(folder, options.service)
        text = f"{options.service} runs on {outcome['address']}"
    else:
        outcome = services.status(folder)
        text = _status(outcome)
    print(json.dumps(outcome) if options.json else text)


def _approve(folder: SiteFolder, options: argparse.Namespace) -> tuple[Any, str]:
    from client import services
    from client.audit import APPROVED, WITHDRAWN

    held, audit = services.approvals(folder), services.audit(folder)
    if options.withdraw:
        gone = held.withdraw(options.withdraw)
        for one in gone:
            audit.write(WITHDRAWN, {"study": one.study, "what": one.name})
        return [one.name for one in gone], "\n".join(f"withdrawn: {one.name} {one.study}" for one in gone)
    if options.list:
        listed = [{"hash": one.name, "study": one.study, "config": one.proposal.config} for one in held]
        return listed, "\n".join(
            f"{item['hash']}  {item['study']}" for item in listed
        ) or "nothing is approved"
    if options.proposal is None:
        raise InputError(refusal("approve", "found no proposal", "name its file, or use --list"))
    approved = held.checked(options.proposal)
    shown, text = _shown(folder, approved)
    if not options.yes:
        print(text, file=sys.stderr if options.json else sys.stdout)
        if not _agreed():
            return {**shown, "approved": False}, "not approved"
        text = ""
    file = held.approve(approved)
    audit.write(
        APPROVED, {"study": approved.study, "what": approved.name, "sha256": [approved.proposal.bundle]}
    )
    done = f"approved: {file}"
    if approved.proposal.tasks:
        done += "\nStart the SuperNode again, so that it knows the installed tasks."
    return {**shown, "approved": True, "file": str(file)}, f"{text}\n{done}".strip()


def _agreed() -> bool:
    """Whether a person says yes. Raises InputError if there is none to ask."""
    try:
        return input("Approve it? [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        raise InputError(refusal("approve", "found nobody to ask", "use --yes")) from None


def _shown(folder: SiteFolder, approved: Approved) -> tuple[dict[str, Any], str]:
    """A proposal in words and for a script."""
    proposal, study = approved.proposal, approved.proposal.study
    same, said = _same_code(proposal.bundle)
    cost = _cost(folder, study)
    refused = ""
    try:
        from client import services

        services.policy(folder).require_privacy(approved.guarantee)
    except PM1Error as error:
        refused = str(error)
    phases = [f"{phase['name']} ({phase['task']}, {phase['rounds']} rounds)" for phase in study["phases"]]
    secure = "in sums over sites, never alone" if study.get("secure") else "IN THE CLEAR, to the coordinator"
    lines = [
        f"study        {approved.study}, {study.get('privacy', '')}",
        f"hash         {approved.name} (of the study {proposal.config[:16]})",
        f"phases       {', '.join(phases)}",
        f"tasks        {', '.join(proposal.tasks) or 'of PM1 itself only'}",
        f"answers      leave {secure}",
        f"code         {proposal.bundle}: {said}",
        "configured   "
        + (", ".join(f"{k}={v!r}" for k, v in sorted(proposal.run_config.items())) or "nothing"),
        *(f"{head:<13}{line}" for head, line in zip_longest(["privacy"], cost.splitlines(), fillvalue="")),
    ]
    if refused:
        lines.append(f"POLICY       {refused}")
    outcome = {
        "study": approved.study,
        "hash": approved.name,
        "config": proposal.config,
        "bundle": proposal.bundle,
        "same_code": same,
        "phases": [phase["name"] for phase in study["phases"]],
        "tasks": list(proposal.tasks),
        "run_config": dict(proposal.run_config),
        "secure": bool(study.get("secure")),
        "privacy": cost,
        "policy": refused,
    }
    # Whoever wrote the proposal must not be able to hide a line of this, or to add one.
    return outcome, "\n".join(map(plain, lines))


def _same_code(bundle: str) -> tuple[bool | None, str]:
    """Whether the code is that of the version that is installed here, None where that cannot be told."""
    root = Path(__file__).resolve().parent.parent
    if not (root / "pyproject.toml").exists():
        return None, "cannot be compared, PM1 is not installed from its source tree here"
    from flwr.cli.build import build_fab_from_disk

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Flower's, of what it uses itself
            own = hashlib.sha256(build_fab_from_disk(root)).hexdigest()
    except Exception as error:  # Flower's and click's: a tree that it cannot build
        return None, f"cannot be compared ({type(error).__name__}: {error})"
    if own == bundle:
        return True, "the version that is installed here"
    return False, f"NOT THE VERSION THAT IS INSTALLED HERE, which is {own}"


def _cost(folder: SiteFolder, study: Any) -> str:
    """What a study would cost in the site's ledger, in words."""
    from client.privacy_report import study_cost
    from pm1_core.privacy.ledger import Ledger

    ledger = Ledger(folder.file("state") / Ledger.NAME)
    if not ledger.exists:
        return "this site has no ledger: pm1-site privacy open"
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "study.json"
        file.write_text(json.dumps(dict(study)))
        try:
            return study_cost(file, ledger)[1]
        except InputError as error:
            return str(error)


def _audit(folder: SiteFolder, options: argparse.Namespace) -> tuple[Any, str]:
    from client import services

    audit = services.audit(folder)
    if options.action == "verify":
        head = audit.verify(options.digest)
        text = f"{audit.path}: {head.lines} lines, each follows from the one before it\n"
        text += f"hash of the last  {head.digest}"
        return {"lines": head.lines, "digest": head.digest}, text
    lines = audit.lines()
    return lines, "\n".join(_audit_line(line) for line in lines) or "nothing has left"


def _audit_line(line: dict[str, Any]) -> str:
    words = [line["time"], f"{line['event']:<9}", line.get("study", ""), line.get("phase", "")]
    words += [
        f"round {line['round']}" if line.get("round") else "",
        str(line.get("what", line.get("call", ""))),
    ]
    if line.get("bytes"):
        words.append(f"{line['bytes']} bytes")
    if line.get("figures"):
        words.append(f"{line['figures']} figures")
    if "epsilon" in line:
        words.append(f"epsilon {line['epsilon']:.4g} at delta {line['delta']:g} ({line['unit']})")
    words += ["again" if line.get("again") else "", line.get("reason", "")]
    return "  ".join(word for word in words if word)


def _status(found: dict[str, Any]) -> str:
    lines = [f"site {found['site']}, coordinator {found['gateway']}"]
    lines += [f"  {name:<10} {_service(service)}" for name, service in found["services"].items()]
    lines.append(f"  policy     {found['policy']}")
    lines += [f"  approved   {one['hash']} {one['study']}" for one in found["approvals"]]
    lines += [
        f"  tokens     {size / 2**30:.1f} GiB cached in {kind}" for kind, size in found["tokens"].items()
    ]
    lines.append(
        f"  left       {found['left']} answers, {found['bytes']} bytes, {found['bytes_today']} of them today"
    )
    lines.append(f"  stopped    {found['stopped']}")
    return "\n".join(lines)


def _service(found: dict[str, Any]) -> str:
    if not found["runs"]:
        return str(found["reason"])
    if "address" in found:
        return f"runs on {found['address']}"
    return f"runs elsewhere, heard by the door {found['heartbeat']} s ago"
