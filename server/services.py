"""What runs at a coordinator: Flower's SuperLink, the executor of its ServerApp, the guard, the gateway, the page.

sites --TLS 1.3--> gateway --> guard --TLS--> superlink <-- executor
                                                 ^-- pm1-server study submit, status, stop (loopback)
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import sys
import tempfile
import threading
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pm1_core import atomic, supervisor
from pm1_core.errors import BoundError, ConfigError
from pm1_core.supervisor import Service
from pm1_core.validate import refusal
from server.consortium import EXECUTOR, Consortium

GATEWAY, GUARD, SUPERLINK, PAGE = "PM1_GATEWAY", "PM1_GUARD", "PM1_SUPERLINK", "PM1_PAGE"
ADDRESSES = {GUARD: "127.0.0.1:8001", SUPERLINK: "127.0.0.1:8000", PAGE: "127.0.0.1:8080"}
"""Environment variable -> where a service listens if it is not set; the gateway on all addresses, at its port."""
SERVICES = ("superlink", "executor", "guard", "gateway", "page")


def start(consortium: Consortium, names: Sequence[str]) -> int:
    """Run services until they are ended, one in this process or several under a supervisor; the exit code.

    Raises StateError if there is no consortium, or a supervisor runs already.
    """
    os.umask(0o077)
    _ = consortium.facts
    if len(names) == 1:
        return _foreground(consortium, names[0])
    run = (consortium.folder / "run").resolve()
    command = [sys.executable, "-m", "server.cli", "start", "--folder", str(consortium.folder.resolve())]
    chosen = list(dict.fromkeys(names)) or [name for name in SERVICES if name != "page" or _has_page()]
    services = [
        Service(name, [*command, name], _environment(consortium), run / f"{name}.log") for name in chosen
    ]
    return supervisor.supervise(services, run)


def health(consortium: Consortium, name: str) -> dict[str, Any]:
    """How a service is. Raises BoundError if it does not do its work."""
    import httpx

    folder = consortium.folder.resolve()
    if name == "executor":  # it listens to nobody
        host, port = address(SUPERLINK)
    else:
        variable = {"superlink": SUPERLINK, "guard": GUARD, "gateway": GATEWAY, "page": PAGE}[name]
        host, port = listening(consortium) if name == "gateway" else address(variable)
    host = "127.0.0.1" if host in ("0.0.0.0", "[::]", "::") else host
    found = {"service": name, "address": f"{host}:{port}"}
    try:
        if name == "gateway":
            context = ssl.create_default_context(cafile=folder / "ca/ca.crt")
            context.load_cert_chain(folder / "coordinator/client.crt", folder / "coordinator/client.key")
            context.check_hostname = False
            with httpx.Client(verify=context, trust_env=False, timeout=5) as client:
                client.get(f"https://{host}:{port}/health").raise_for_status()
        elif name == "guard":
            httpx.get(f"http://{host}:{port}/health", trust_env=False, timeout=5).raise_for_status()
        else:
            with socket.create_connection((host, port), timeout=5):
                pass
    except (OSError, httpx.HTTPError) as error:
        remedy = f"start it: pm1-server start {name}, or look into run/{name}.log"
        raise BoundError(refusal(name, f"{host}:{port}: {error}", remedy)) from None
    return found


def address(variable: str) -> tuple[str, int]:
    """Host and port of a service: its environment variable HOST:PORT, or the default. Raises ConfigError."""
    text = os.environ.get(variable) or ADDRESSES[variable]
    host, _, port = text.rpartition(":")
    if not host or not (port.isascii() and port.isdecimal()) or not 0 < int(port) < 65536:
        raise ConfigError(refusal(variable, f"found {text!r}", "write HOST:PORT, such as 127.0.0.1:8000"))
    return host, int(port)


def listening(consortium: Consortium) -> tuple[str, int]:
    """Where the gateway listens: PM1_GATEWAY, or all addresses at the port that sites were told."""
    if os.environ.get(GATEWAY):
        return address(GATEWAY)
    return "0.0.0.0", int(consortium.facts["address"].rpartition(":")[2])


def _foreground(consortium: Consortium, name: str) -> int:
    folder = consortium.folder.resolve()
    os.environ.update(_environment(consortium))
    if name == "gateway":
        from server import gateway

        at = [
            ":".join(map(str, pair)) for pair in (listening(consortium), address(GUARD), address(SUPERLINK))
        ]
        return gateway.serve(consortium, *at)
    if name == "guard":
        asyncio.run(_serve_guard(consortium))
        return 0
    if name == "page":
        import_module("server.page").serve(folder)
        return 0
    supervisor.replace(Service(name, _flower(consortium, name), _environment(consortium)))
    return 1


def _flower(consortium: Consortium, name: str) -> list[str]:
    """The command of Flower's own processes."""
    folder, (host, port) = consortium.folder.resolve(), address(SUPERLINK)
    binaries, ca = Path(sys.executable).parent, str(folder / "ca/ca.crt")
    secret = ["--superexec-auth-secret-file", str(folder / EXECUTOR)]
    if name == "executor":
        command = [str(binaries / "flower-superexec"), "--runtime-api-address", f"{host}:{port}"]
        return [*command, "--root-certificates", ca, *secret]
    command = [str(binaries / "flower-superlink"), "--host", host, "--port", str(port)]
    command += ["--ssl-ca-certfile", ca, "--ssl-certfile", str(folder / "gateway/server.crt")]
    command += ["--ssl-keyfile", str(folder / "gateway/server.key"), "--enable-supernode-auth"]
    command += ["--isolation", "process", "--disable-runtime-dependency-installation"]
    return [*command, "--database", str(_database(folder)), *secret]


def _database(folder: Path) -> Path:
    """The SuperLink's database, with all tables of this version of Flower or absent.

    Flower makes tables one by one, and refuses a database in which it was killed on the way. So the first one is
    made elsewhere. Raises StateError if another process makes it.
    """
    # Imported here: they take a second, which other services need not wait for.
    from flwr.supercore.state.alembic.utils import run_migrations
    from sqlalchemy import create_engine

    file = folder / "superlink.db"
    with (
        atomic.locked(folder / "run/superlink.lock", "wait until it has started"),
        tempfile.TemporaryDirectory() as scratch,
    ):
        atomic.sweep(folder)
        if not file.exists():
            made = Path(scratch) / file.name
            run_migrations(engine := create_engine(f"sqlite:///{made}"))
            engine.dispose()
            atomic.write_bytes(file, made.read_bytes())
    return file


async def _serve_guard(consortium: Consortium) -> None:
    import httpx
    import uvicorn

    from server.guard import Guard, Register
    from server.nodes import keep_registered
    from strategies.serving import configuration

    folder, (host, port) = consortium.folder.resolve(), address(GUARD)
    superlink = ":".join(map(str, address(SUPERLINK)))
    context = ssl.create_default_context(cafile=folder / "ca/ca.crt")
    (folder / "run").mkdir(exist_ok=True)
    ended = threading.Event()
    registrar = threading.Thread(target=keep_registered, args=(consortium, superlink, ended), daemon=True)
    registrar.start()
    timeout = httpx.Timeout(60.0, connect=10.0)
    async with httpx.AsyncClient(
        base_url=f"https://{superlink}", verify=context, trust_env=False, timeout=timeout
    ) as client:
        guard = Guard(folder, client, Register(folder / "run/guard.db"))
        await uvicorn.Server(configuration(guard.app(), host, port)).serve()
    ended.set()
    registrar.join(10)


def _has_page() -> bool:
    return find_spec("server.page") is not None


def _environment(consortium: Consortium) -> dict[str, str]:
    return {
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_HOME": str((consortium.folder / "run/flower").resolve()),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
    }
