"""What runs at a site: the door, the SuperNode behind it, and the page; started, looked after, and asked after."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import ssl
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from client.approvals import Approvals
from client.audit import LEFT, REFUSED, STARTED, STOPPED, Audit
from client.audit import NAME as AUDIT
from client.folder import DOOR, PAGE, RUNTIME, SECRET, TICKETS, SiteFolder, address, joined
from client.policy import NAME as POLICY
from client.policy import Policy
from pm1_core import atomic, supervisor
from pm1_core.errors import BoundError, ConfigError, PM1Error, StateError
from pm1_core.supervisor import Service
from pm1_core.training.cached import cached_bytes
from pm1_core.validate import refusal

if TYPE_CHECKING:
    from client.door import Door

SERVICES = ("door", "supernode", "page")
PROXY, STORE, MORE = "PM1_PROXY", "PM1_STORE", "PM1_NODE_CONFIG"
_NEEDED = (
    "site.json",
    "keys/node.key",
    "keys/tls.key",
    "local/ca.crt",
    "local/door.crt",
    "local/door.key",
    SECRET,
    "ca.crt",
    "client.crt",
    "coordinator.pub",
    POLICY,
)
_QUIET = 120  # seconds without a heartbeat of the SuperNode


def start(folder: SiteFolder, names: Sequence[str]) -> int:
    """Run services until they are ended, one in this process or several under a supervisor; the exit code.

    Raises StateError if the site has not joined, or a supervisor runs already.
    """
    os.umask(0o077)
    folder.require(*_NEEDED)
    chosen = list(dict.fromkeys(names)) or [name for name in SERVICES if name != "page" or _has_page()]
    if len(names) == 1:
        return _foreground(folder, names[0])
    run = folder.file("run")
    command = [sys.executable, "-m", "client.cli", "start", "--folder", str(folder.path.resolve())]
    services = [Service(name, [*command, name], _environment(folder), run / f"{name}.log") for name in chosen]
    return supervisor.supervise(services, run)


def approvals(folder: SiteFolder) -> Approvals:
    """The site's approvals."""
    return Approvals(folder.file("approvals"), folder.file("coordinator.pub"))


def audit(folder: SiteFolder) -> Audit:
    """The site's log of what left."""
    return Audit(folder.file(AUDIT))


def policy(folder: SiteFolder) -> Policy:
    """The site's policy, as it is now."""
    return Policy.load(folder.file(POLICY))


def door(folder: SiteFolder) -> Door:
    """The door of a site. Raises StateError if a file that it needs is missing or damaged."""
    from client.desk import Desk
    from client.door import Door
    from client.upstream import Upstream, client_of

    base = f"https://{folder.facts['gateway']}"
    ca, certificate, key_file = (folder.file(name) for name in ("ca.crt", "client.crt", "keys/tls.key"))
    client = client_of(base, ca, certificate, key_file, os.environ.get(PROXY) or None)
    desk = Desk.at(folder.file("run/desk.json"))
    key = public_key(folder.file("keys/node.key"))
    return Door(Upstream(client), desk, approvals(folder), audit(folder), partial(policy, folder), key)


async def serve_door(folder: SiteFolder) -> None:
    """Serve the door and its ticket service until this process is asked to end."""
    import uvicorn

    from client.tickets import server
    from strategies.serving import configuration

    opened, (host, port) = door(folder), address(DOOR)
    cert, private = folder.file("local/door.crt"), folder.file("local/door.key")
    config = configuration(opened.app(), host, port, ssl_certfile=cert, ssl_keyfile=private)
    config.load()
    assert config.ssl is not None
    config.ssl.minimum_version = ssl.TLSVersion.TLSv1_3
    secret, office = folder.file(SECRET).read_text(), opened.office
    tickets = server(joined(*address(TICKETS)), secret, office.permit, office.ticket, opened.stranger)
    await tickets.start()
    try:
        opened.audit.write(STARTED, {"what": f"door of {folder.name} on {joined(host, port)}"})
        await uvicorn.Server(config).serve()
    finally:
        await tickets.stop(2)
        await opened.upstream.client.aclose()


def supernode(folder: SiteFolder) -> Service:
    """Flower's SuperNode, which knows of nothing but the door."""
    host, port = address(RUNTIME)
    command = [str(Path(sys.executable).parent / "flower-supernode"), "--superlink", joined(*address(DOOR))]
    command += ["--root-certificates", str(folder.file("local/ca.crt"))]
    command += ["--auth-supernode-private-key", str(_openssh_key(folder))]
    command += ["--host", host, "--port", str(port), "--node-config", node_config(folder)]
    return Service("supernode", command, _environment(folder))


def node_config(folder: SiteFolder) -> str:
    """What the ClientApp is told: where its store and folder are, whom it trusts, and its door.

    Whether an answer may be in the clear or without noise is a matter of each approved study behind a door.

    Raises ConfigError if a path cannot be written there.
    """
    tasks = sorted({name for one in approvals(folder) for name in one.proposal.tasks})
    values = {
        "store": os.environ.get(STORE) or str(folder.file("store")),
        "folder": str(folder.file("state")),
        "trust": str(folder.file("coordinator.pub")),
        "identity": str(folder.file("keys/identity.pem")),
        "peers": str(folder.file("peers")),
        "door": joined(*address(TICKETS)),
        "door_secret": str(folder.file(SECRET)),
        "tasks": ",".join(tasks),
        "unsecured": "true",
        "unprotected": "true",
    }
    if not any(folder.file("peers").glob("*.pub")):
        del values["identity"], values["peers"]
    for name, value in values.items():
        if set(value) & set("\"'\\\n"):
            raise ConfigError(refusal(f"path of {name}", f"found {value!r}", "use a path without quotes"))
    given = [f'{name}="{value}"' for name, value in values.items() if value]
    return " ".join([*given, *os.environ.get(MORE, "").split()])


def health(folder: SiteFolder, name: str) -> dict[str, Any]:
    """How a service is. Raises BoundError if it does not do its work."""
    where = {"door": DOOR, "supernode": RUNTIME, "page": PAGE}[name]
    host, port = address(where)
    try:
        with socket.create_connection((host, port), timeout=5):
            pass
    except OSError as error:
        remedy = f"start it: pm1-site start {name}"
        raise BoundError(refusal(name, f"{joined(host, port)}: {error}", remedy)) from None
    if name != "door":
        return {"service": name, "address": joined(host, port)}
    told = _asked_door(folder)
    if told["coordinator"] not in ("", "answers"):
        raise BoundError(refusal("door", f"coordinator: {told['coordinator']}", "see pm1-site check"))
    if told["heartbeat"] is not None and told["heartbeat"] > _QUIET:
        silence = f"no sign of the SuperNode for {told['heartbeat']} s"
        raise BoundError(refusal("door", silence, "start it: pm1-site start supernode"))
    return {"service": name, "address": joined(host, port), **told}


def found(folder: SiteFolder, name: str) -> dict[str, Any]:
    """How a service is, "runs" with what `health` says, or "reason".

    A SuperNode that is not to be reached from here, as from another container, works while the door hears of it.
    """
    try:
        return {"runs": True, "reason": "", **health(folder, name)}
    except PM1Error as error:
        quiet = _quiet(folder) if name == "supernode" else None
        if quiet is None or quiet > _QUIET:
            return {"runs": False, "reason": str(error)}
        return {"runs": True, "reason": "", "service": name, "heartbeat": quiet}


def status(folder: SiteFolder) -> dict[str, Any]:
    """What a site is part of, what runs, what it allows, and what left."""
    rules = "is in force"
    try:
        policy(folder)
    except PM1Error as error:
        rules = str(error)
    lines = audit(folder).lines()
    day = datetime.now(UTC).date().isoformat()
    left = [line for line in lines if line["event"] == LEFT]
    return {
        "site": folder.name,
        "gateway": folder.facts["gateway"],
        "services": {name: found(folder, name) for name in SERVICES},
        "policy": rules,
        "approvals": [
            {"hash": one.name, "study": one.study, "config": one.proposal.config} for one in approvals(folder)
        ],
        "tokens": cached_bytes(folder.file("state")),
        "left": len(left),
        "stopped": sum(line["event"] in (STOPPED, REFUSED) for line in lines),
        "bytes": sum(line.get("bytes", 0) for line in left),
        "bytes_today": sum(line.get("bytes", 0) for line in left if line["time"][:10] == day),
    }


def _foreground(folder: SiteFolder, name: str) -> int:
    if name == "supernode":
        supervisor.replace(supernode(folder))
    if name == "page":
        import_module("client.page").serve(folder)
        return 0
    asyncio.run(serve_door(folder))
    return 0


def _has_page() -> bool:
    return find_spec("client.page") is not None


def _environment(folder: SiteFolder) -> dict[str, str]:
    return {
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_HOME": str(folder.file("run/flower")),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
    }


def _asked_door(folder: SiteFolder) -> dict[str, Any]:
    import httpx

    context = ssl.create_default_context(cafile=folder.file("local/ca.crt"))
    host, port = address(DOOR)
    context.check_hostname = host not in ("0.0.0.0", "::")
    try:
        with httpx.Client(verify=context, trust_env=False, timeout=5) as client:
            answer = client.get(f"https://{joined(host, port)}/health")
            told: dict[str, Any] = answer.raise_for_status().json()
            return told
    except (httpx.HTTPError, json.JSONDecodeError) as error:
        raise BoundError(refusal("door", f"it does not answer ({error})", "look into run/door.log")) from None


def _quiet(folder: SiteFolder) -> int | None:
    """Seconds since the door passed a heartbeat of the SuperNode, None if it did not or does not answer."""
    try:
        quiet: int | None = _asked_door(folder)["heartbeat"]
    except PM1Error:
        return None
    return quiet


def public_key(file: Path) -> bytes:
    """The public half of the SuperNode's key, as Flower writes it. Raises StateError."""
    from flwr.supercore.primitives.asymmetric import public_key_to_bytes

    return bytes(public_key_to_bytes(_node_key(file).public_key()))


def _openssh_key(folder: SiteFolder) -> Path:
    """The SuperNode's key in the form of OpenSSH, the only one that flower-supernode reads. Raises StateError."""
    from cryptography.hazmat.primitives import serialization

    file, copy = folder.file("keys/node.key"), folder.file("run/node.key")
    form = serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH
    atomic.write_bytes(copy, _node_key(file).private_bytes(*form, serialization.NoEncryption()))  # mode 0600
    return copy


def _node_key(file: Path) -> Any:
    from cryptography.hazmat.primitives import serialization

    content = file.read_bytes()
    try:
        if b"OPENSSH" in content:
            return serialization.load_ssh_private_key(content, None)
        return serialization.load_pem_private_key(content, None)
    except (ValueError, TypeError) as error:
        raise StateError(refusal(file, f"cannot be read ({error})", "run pm1-site init anew")) from None
