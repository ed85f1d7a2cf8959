"""A coordinator's services as `pm1-server start` runs them, on free ports of this machine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
from places import founded
from ports import free_ports
from processes import Closing

from pm1_core.errors import PM1Error
from server import services
from server.consortium import Consortium

_BINARIES = Path(sys.executable).parent


def await_(what: str, condition: Callable[[], bool], seconds: float = 60.0) -> None:
    """Return as soon as `condition` holds. Raises TimeoutError naming `what`."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} did not come in {seconds:.0f} s")
        time.sleep(0.05)


class Coordinator(Closing):
    """SuperLink, executor, guard and gateway of a new consortium in `folder`.

    way: makes of the gateway's port the one that sites are told, where something lies between
    environment: further variables of all services
    """

    def __init__(
        self,
        folder: Path,
        way: Callable[[int], int] = lambda port: port,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.gateway, self.guard, self.superlink, page = free_ports(4)
        self.consortium: Consortium = founded(folder, way(self.gateway))
        self.folder = folder
        self.environment = {
            services.GATEWAY: f"127.0.0.1:{self.gateway}",
            services.GUARD: f"127.0.0.1:{self.guard}",
            services.SUPERLINK: f"127.0.0.1:{self.superlink}",
            services.PAGE: f"127.0.0.1:{page}",
            **(environment or {}),
        }
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Coordinator:
        command = [str(_BINARIES / "pm1-server"), "start", "superlink", "executor", "guard", "gateway"]
        with (self.folder / "start.log").open("ab") as log:
            self.process = subprocess.Popen(
                [*command, "--folder", str(self.folder)],
                env={**os.environ, **self.environment},
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
            )
        try:
            for name in ("superlink", "guard", "gateway"):
                await_(name, lambda name=name: self.does(name))  # type: ignore[misc]
        except BaseException:
            self.close()
            raise
        return self

    def close(self) -> None:
        """Ask them to end, and wait until they have."""
        if self.process:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(60)
            self.process = None

    def does(self, name: str) -> bool:
        """Whether a service does its work."""
        with self.addressed():
            try:
                services.health(self.consortium, name)
            except PM1Error:
                return False
        return True

    @contextmanager
    def addressed(self) -> Iterator[None]:
        """In it, what is called in this process finds the services."""
        with pytest.MonkeyPatch.context() as patch:
            for name, address in self.environment.items():
                patch.setenv(name, address)
            yield

    def lines(self, name: str) -> list[str]:
        """Of a log in run/."""
        file = self.folder / "run" / name
        return file.read_text().splitlines() if file.exists() else []
