"""docker-compose.yml and the Dockerfile, as far as a process can be given what they say without an engine.

`docker-compose config` is the judge of the file; here nothing is checked that it checks.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
_VARIABLE = re.compile(r"\$(?:(\$)|\{(\w+)(?::-([^}]*))?\})")


@dataclass(frozen=True)
class Image:
    """What the Dockerfile gives to every container."""

    environment: Mapping[str, str]
    entrypoint: tuple[str, ...]
    user: str
    folder: str

    @staticmethod
    def read(file: Path = ROOT / "Dockerfile") -> Image:
        """The last stage of a Dockerfile."""
        stage = instructions(file)
        stage = stage[max(i for i, (name, _) in enumerate(stage) if name == "FROM") :]
        last = dict(stage)
        environment = dict(text.split("=", 1) for name, text in stage if name == "ENV")
        return Image(environment, tuple(json.loads(last["ENTRYPOINT"])), last["USER"], last["WORKDIR"])


@dataclass(frozen=True)
class Mount:
    """Something at `target` in a container: a file or folder of the machine, or a tmpfs where source is None."""

    target: str
    source: Path | None
    options: str = ""

    @property
    def read_only(self) -> bool:
        """Whether the file says so."""
        return self.source is not None and "ro" in self.options.split(",")


@dataclass(frozen=True)
class Service:
    """A service of the file.

    networks: network -> further names that it has there; addresses: network -> address, where the file gives one;
    restarts: whether it is started again when it ends by itself
    """

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str]
    user: str
    folder: str
    mounts: tuple[Mount, ...]
    networks: Mapping[str, tuple[str, ...]]
    addresses: Mapping[str, str]
    health: tuple[str, ...]
    after: tuple[str, ...]
    read_only: bool
    restarts: bool


@dataclass(frozen=True)
class Composed:
    """The file. networks: network -> its subnet, "" where the engine chooses; internal: those without a way out"""

    services: Mapping[str, Service]
    networks: Mapping[str, str]
    internal: frozenset[str]
    raw: Mapping[str, Any]

    @staticmethod
    def read(variables: Mapping[str, str], file: Path = ROOT / "docker-compose.yml") -> Composed:
        """The file with `variables` in place, and nothing of this process's environment."""
        raw = _filled(yaml.safe_load(file.read_text()), variables)
        image = Image.read()
        services = {name: _service(name, content, image) for name, content in raw["services"].items()}
        networks = {name: content or {} for name, content in raw["networks"].items()}
        subnets = {
            name: content.get("ipam", {}).get("config", [{}])[0].get("subnet", "")
            for name, content in networks.items()
        }
        internal = frozenset(name for name, content in networks.items() if content.get("internal"))
        return Composed(services, subnets, internal, raw)

    def of(self, profile: str) -> list[Service]:
        """The services of a profile, each after those that it depends on."""
        chosen = {
            name: service
            for name, service in self.services.items()
            if profile in self.raw["services"][name].get("profiles", [])
        }
        ordered: dict[str, Service] = {}

        def take(names: Iterable[str]) -> None:
            for name in names:
                take(chosen[name].after)
                ordered.setdefault(name, chosen[name])

        take(chosen)
        return list(ordered.values())


def instructions(file: Path) -> list[tuple[str, str]]:
    """A Dockerfile's instructions: name and text, with continued lines put together."""
    text = "\n".join(line for line in file.read_text().splitlines() if not line.lstrip().startswith("#"))
    lines = re.sub(r"\\\n\s*", " ", text).splitlines()
    return [(name, rest.strip()) for name, _, rest in (line.partition(" ") for line in lines) if name]


def _service(name: str, content: Mapping[str, Any], image: Image) -> Service:
    networks = content.get("networks", [])
    if content.get("network_mode") != "none" and not networks:
        networks = ["default"]
    listed = networks if isinstance(networks, dict) else dict.fromkeys(networks)
    entrypoint = content.get("entrypoint", image.entrypoint)
    volumes = [_volume(text) for text in content.get("volumes", [])]
    test = content.get("healthcheck", {}).get("test", ["NONE"])
    return Service(
        name,
        (*entrypoint, *_words(content.get("command", []))),
        {**image.environment, **{key: str(value) for key, value in content.get("environment", {}).items()}},
        str(content.get("user", image.user)),
        content.get("working_dir", image.folder),
        tuple(volumes + [_tmpfs(text) for text in content.get("tmpfs", [])]),
        {key: tuple((value or {}).get("aliases", ())) for key, value in listed.items()},
        {key: value["ipv4_address"] for key, value in listed.items() if value and "ipv4_address" in value},
        tuple(test[1:]) if test[0] == "CMD" else (),
        tuple(content.get("depends_on", ())),
        bool(content.get("read_only")),
        content.get("restart", "no") != "no",
    )


def _words(command: str | list[str]) -> list[str]:
    return shlex.split(command) if isinstance(command, str) else command


def _volume(text: str) -> Mount:
    source, target, *options = text.split(":")
    return Mount(target, (ROOT / source).resolve(), ",".join(options))


def _tmpfs(text: str) -> Mount:
    target, _, options = text.partition(":")
    return Mount(target, None, options)


def _filled(value: Any, variables: Mapping[str, str]) -> Any:
    """`value` with ${NAME:-default} and $$ replaced in every string of it."""
    if isinstance(value, dict):
        return {key: _filled(item, variables) for key, item in value.items()}
    if isinstance(value, list):
        return [_filled(item, variables) for item in value]
    if not isinstance(value, str):
        return value

    def one(found: re.Match[str]) -> str:
        return "$" if found[1] else variables.get(found[2]) or found[3] or ""

    return _VARIABLE.sub(one, value)
