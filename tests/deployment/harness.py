"""A profile of docker-compose.yml as processes on this machine, without an engine.

    with Harness(folder, "demo", {"PM1_DEMO": str(demo), "PM1_CONSORTIUM": str(demo / "coordinator")}) as harness:
        harness.run("demo-setup")
        harness.start()
        harness.exec("leeds-door", "pm1-site", "status")

What it cannot show stands in docs/containers.md.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType

from composed import Composed, Service
from namespaces import Container, Switch


class Harness:
    """Services of `profile`, with the compose file's `variables`; logs and roots appear below `folder`.

    environment: further variables in every container
    idle: no service does anything, so that one can look at what surrounds it
    """

    def __init__(
        self,
        folder: Path,
        profile: str,
        variables: Mapping[str, str],
        environment: Mapping[str, str] | None = None,
        idle: bool = False,
    ) -> None:
        self.folder = folder
        self._variables = dict(variables)
        self.composed = Composed.read(variables)
        self.services = self.composed.of(profile)
        if idle:
            nothing = ("sleep", "infinity")
            self.services = [replace(service, command=nothing, health=("true",)) for service in self.services]
        self.containers: dict[str, Container] = {}
        self._environment = dict(environment or {})
        self._killed: set[str] = set()
        self._cables: dict[tuple[str, str], str] = {}
        networks = {name for service in self.services for name in service.networks}
        self.switch = Switch({name: self.composed.networks[name] for name in networks})
        # Every service has its addresses before the first starts, so that all names are known to all.
        self._addresses = {
            service.name: {
                network: service.addresses.get(network) or self.switch.address(network)
                for network in service.networks
            }
            for service in self.services
        }

    def __enter__(self) -> Harness:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End every process."""
        for container in self.containers.values():
            container.kill()
        self.switch.close()

    def start(self, *names: str, seconds: float = 180) -> None:
        """Start services, all of the profile if none is named, and return when all are healthy.

        Raises TimeoutError with what their health checks say, and the ends of their logs.
        """
        chosen = [service for service in self.services if not names or service.name in names]
        self._killed -= {service.name for service in chosen}
        for service in chosen:
            self.containers[service.name] = self._container(service)
        waiting = [service.name for service in chosen if service.health]

        def healthy() -> bool:
            for name in list(waiting):
                if self.containers[name].healthy():
                    waiting.remove(name)
            return not waiting

        try:
            self.await_("health", healthy, seconds)
        except TimeoutError:
            said = [self.containers[name].run(self.containers[name].service.health) for name in waiting]
            told = "\n".join(done.stdout + done.stderr for done in said)
            raise TimeoutError(f"{waiting} are not healthy\n{told}{self.tail(*waiting)}") from None

    def await_(self, what: str, condition: Callable[[], bool], seconds: float) -> None:
        """Return as soon as `condition` holds; services that end by themselves are started again meanwhile.

        Raises TimeoutError naming `what`, with the ends of all logs.
        """
        end = time.monotonic() + seconds
        while not condition():
            for name, container in self.containers.items():
                if container.code is not None and name not in self._killed and container.service.restarts:
                    self.containers[name] = self._container(container.service)
            if time.monotonic() > end:
                raise TimeoutError(f"{what} did not come in {seconds:.0f} s\n{self.tail()}")
            time.sleep(0.2)

    def run(self, name: str, *command: str, seconds: float = 300, **variables: str) -> str:
        """What `docker compose run --rm NAME COMMAND` does; what it printed. Raises AssertionError if it fails.

        variables: of the compose file, for this one
        """
        service = Composed.read({**self._variables, **variables}).services[name]
        if command:
            service = replace(service, command=(*_entrypoint(self.composed, service), *command))
        log = self.folder / f"{name}.log"
        log.unlink(missing_ok=True)
        addresses = {network: self.switch.address(network) for network in service.networks}
        container = self._container(service, addresses)
        try:
            code = container.wait(seconds)
        finally:
            container.kill()
        assert code == 0, f"{name} {command} ended with {code}\n{self.tail(name)}"
        return log.read_text()

    def exec(self, name: str, *command: str) -> subprocess.CompletedProcess[str]:
        """What `docker compose exec NAME COMMAND` does."""
        return self.containers[name].run(command)

    def kill(self, name: str) -> None:
        """SIGKILL to a service and all that it started; it is not started again."""
        self._killed.add(name)
        self.containers[name].kill()

    def plug(self, name: str, network: str, state: str) -> None:
        """Set the cable between a service and a network "up" or "down"."""
        self.switch.plug(self._cables[name, network], state)

    def address(self, name: str, network: str) -> str:
        """Of a service in a network."""
        return self._addresses[name][network]

    def tail(self, *names: str, characters: int = 2000) -> str:
        """The ends of logs, of all services if none is named."""
        return "\n".join(
            f"--- {log.stem}\n{log.read_text(errors='replace')[-characters:]}"
            for log in sorted(self.folder.glob("*.log"))
            if not names or log.stem in names
        )

    def _container(self, service: Service, addresses: Mapping[str, str] | None = None) -> Container:
        own = addresses or self._addresses.get(service.name, {})

        def connect(pid: int) -> None:
            for network, address in own.items():
                routed = network not in self.composed.internal
                self._cables[service.name, network] = self.switch.join(pid, network, address, routed)

        return Container(service, self.folder, self._hosts(service, own), connect, self._environment)

    def _hosts(self, service: Service, own: Mapping[str, str]) -> str:
        """What the engine's name server would answer: names of those who are in a network with the service."""
        lines = ["127.0.0.1 localhost"]
        known = {**self._addresses, service.name: own}
        for other, addresses in known.items():
            for network, address in addresses.items():
                if network in own:
                    aliases = self.composed.services[other].networks[network]
                    lines.append(" ".join((address, *aliases, other)))
        return "\n".join(lines) + "\n"


def _entrypoint(composed: Composed, service: Service) -> tuple[str, ...]:
    """A service's command line without its own command."""
    own = composed.raw["services"][service.name].get("command", [])
    return service.command[: len(service.command) - len(own)]
