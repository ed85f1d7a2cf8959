"""A site's folder: what lies where in it, and on which addresses of this machine its services listen.

site.json                       name, gateway of the coordinator, consortium: written by pm1-site init and join
keys/tls.key node.key identity.pem      this site's own
local/ca.crt door.crt door.key tickets.secret   between SuperNode and door on this machine
ca.crt client.crt coordinator.pub peers/NAME.pub    of the consortium
policy.yaml approvals/ audit.jsonl      what may leave, and what left
store/ state/                   the prepared data, and the ClientApp's own folder
run/                            pids and logs of services, messages that wait for an answer
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pm1_core import atomic
from pm1_core.errors import ConfigError, StateError
from pm1_core.validate import refusal

FOLDER = "PM1_SITE"
DOOR, TICKETS, RUNTIME, PAGE = "PM1_DOOR", "PM1_TICKETS", "PM1_RUNTIME", "PM1_PAGE"
ADDRESSES = {
    DOOR: "127.0.0.1:9443",
    TICKETS: "127.0.0.1:9444",
    RUNTIME: "127.0.0.1:9094",
    PAGE: "127.0.0.1:9080",
}
"""Environment variable -> where a service listens if it is not set."""
SECRET = "local/tickets.secret"
"""What a ClientApp shows to the door's ticket service."""


@dataclass(frozen=True)
class SiteFolder:
    """A site's folder at `path`."""

    path: Path

    @staticmethod
    def default() -> Path:
        """Where commands look if nobody says."""
        return Path(os.environ.get(FOLDER, "site"))

    def file(self, name: str) -> Path:
        """A file of the folder, absolute, whether it is there or not."""
        return self.path.resolve() / name

    def require(self, *names: str) -> None:
        """Raise StateError naming the first file that is not there."""
        for name in names:
            if not self.file(name).exists():
                remedy = "run pm1-site init, then pm1-site join with the kit"
                raise StateError(refusal(self.path / name, "it is not there", remedy))

    @cached_property
    def facts(self) -> dict[str, str]:
        """site.json. Raises StateError if the site was not initialised or did not join."""
        self.require("site.json")
        content = atomic.read_json(self.file("site.json"))
        for key in ("site", "gateway"):
            if not isinstance(content, dict) or not content.get(key):
                found = f"key {key!r} is missing"
                raise StateError(refusal(self.path / "site.json", found, "run pm1-site join with the kit"))
        return {key: str(value) for key, value in content.items()}

    @property
    def name(self) -> str:
        """Of the site."""
        return self.facts["site"]


def address(variable: str) -> tuple[str, int]:
    """Host and port of a service: its environment variable HOST:PORT, or the default. Raises ConfigError."""
    text = os.environ.get(variable) or ADDRESSES[variable]
    return parsed_address(variable, text)


def parsed_address(where: str, text: str) -> tuple[str, int]:
    """Host and port of HOST:PORT. Raises ConfigError."""
    host, _, port = text.rpartition(":")
    if not host or not (port.isascii() and port.isdecimal()) or not 0 < int(port) < 65536:
        raise ConfigError(refusal(where, f"found {text!r}", "write HOST:PORT, such as 127.0.0.1:9443"))
    return host.strip("[]"), int(port)


def joined(host: str, port: int) -> str:
    """HOST:PORT, an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
