"""A gateway of pretend.Coordinator, reached over mutual TLS, and a door as a process of its own before it."""

from __future__ import annotations

import os
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn
from ports import free_ports
from pretend import Coordinator

from client.folder import SiteFolder
from server.consortium import Consortium


@contextmanager
def gateway(
    coordinator: Coordinator, consortium: Consortium, port: int, newest: str = "1.3"
) -> Iterator[None]:
    """Serve on `port` with the certificate of a consortium, for those who have one of it.

    It ends once nobody is connected: end the door first.
    """
    config = uvicorn.Config(
        coordinator.app(),
        host="127.0.0.1",
        port=port,
        log_level="critical",
        ws="none",
        log_config=None,
        loop="asyncio",
        ssl_certfile=consortium.folder / "gateway/server.crt",
        ssl_keyfile=consortium.folder / "gateway/server.key",
        ssl_ca_certs=str(consortium.folder / "ca/ca.crt"),
        ssl_cert_reqs=ssl.CERT_REQUIRED,
    )
    config.load()
    assert config.ssl
    if newest == "1.2":
        config.ssl.maximum_version = ssl.TLSVersion.TLSv1_2
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        await_("the gateway", lambda: server.started)
        yield
    finally:
        server.should_exit = True
        thread.join(20)


@contextmanager
def door_process(site: SiteFolder, *services: str) -> Iterator[subprocess.Popen[bytes]]:
    """pm1-site start SERVICES, ended with SIGTERM."""
    addresses = {name: f"127.0.0.1:{free_ports(1)[0]}" for name in ("PM1_DOOR", "PM1_TICKETS", "PM1_RUNTIME")}
    os.environ.update(addresses)
    command = [sys.executable, "-m", "client.cli", "start", *services, "--folder", str(site.path)]
    with (site.path / "start.log").open("ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=Path(__file__).parents[2])
    try:
        host, _, port = addresses["PM1_DOOR"].partition(":")

        def listens() -> bool:
            assert process.poll() is None, (site.path / "start.log").read_text()
            with socket.socket() as tried:
                return tried.connect_ex((host, int(port))) == 0

        await_("the door", listens)
        yield process
    finally:
        process.terminate()
        process.wait(30)
        for name in addresses:
            del os.environ[name]


def await_(what: str, condition: Callable[[], bool], seconds: float = 30) -> None:
    """Return once it holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.02)
