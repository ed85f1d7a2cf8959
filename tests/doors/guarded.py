"""A deployment of real processes in which every SuperNode is behind its site's door.

A SuperLink with TLS and registered SuperNode keys stands for the coordinator's gateway.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from deployment import COORDINATOR, ROOT, Deployment
from places import founded, joined
from ports import free_ports

from client.services import approvals, audit, public_key


class Guarded(Deployment):
    """As Deployment. stores: site -> prepared store; policies: site -> text of policy.yaml"""

    def __init__(
        self, folder: Path, stores: Mapping[str, Path], policies: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(folder, {site: {} for site in stores})
        self.consortium = founded(folder / "consortium", self._ports[COORDINATOR])
        self.places = {
            site: joined(self.consortium, folder / "sites" / site, site, store)
            for site, store in stores.items()
        }
        for site, text in (policies or {}).items():
            (self.places[site].path / "policy.yaml").write_text(text)
        self._addresses = {site: self._own(site) for site in stores}

    def __enter__(self) -> Guarded:
        try:
            self.start(COORDINATOR)
            self.connect()
            for site, place in self.places.items():
                public = self.folder / f"{site}.pub"
                key = serialization.load_pem_public_key(public_key(place.file("keys/node.key")))
                form = serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
                public.write_bytes(key.public_bytes(*form))
                self._flwr("supernode", "register", str(public), "here")
                self.start(site)
        except BaseException:
            self.close()
            raise
        self._sampler.start()
        return self

    def start(self, owner: str, wait: bool = True) -> None:
        """Start the SuperLink, or the door and the SuperNode of a site."""
        if owner == COORDINATOR:
            command = ["flower-superlink", "--port", str(self._ports[owner]), "--enable-supernode-auth"]
            command += ["--ssl-certfile", str(self.consortium.folder / "gateway/server.crt")]
            command += ["--ssl-keyfile", str(self.consortium.folder / "gateway/server.key")]
            command += ["--ssl-ca-certfile", str(self.consortium.folder / "ca/ca.crt")]
            command += ["--disable-runtime-dependency-installation"]
            command += ["--database", str(self.folder / "superlink.db")]
            self._started[owner] = self._launch(owner, command)
        else:
            for service in ("door", "supernode"):
                self.start_service(owner, service)
        if wait:
            self._await_ready(owner)

    def start_service(self, site: str, service: str) -> None:
        """Start the door or the SuperNode of a site."""
        folder = str(self.places[site].path)
        process = self._launch(site, ["pm1-site", "start", service, "--folder", folder])
        self._started[f"{site} {service}"] = self._started[site] = process

    def approve(self, site: str, proposal: Path) -> None:
        """As pm1-site approve does."""
        held = approvals(self.places[site])
        held.approve(held.checked(proposal))

    def audit(self, site: str) -> list[dict[str, object]]:
        """Lines of a site's log."""
        return audit(self.places[site]).lines()

    def connect(self) -> None:
        """Tell the operator's Flower where the SuperLink is."""
        connection = f'[superlink.here]\naddress = "127.0.0.1:{self._ports[COORDINATOR]}"\n'
        connection += f'root-certificates = "{self.consortium.folder / "ca/ca.crt"}"\n'
        (self._home("operator") / "config.toml").write_text(connection)

    def submit(self, run_config: Mapping[str, str], app: Path = ROOT) -> str:
        """Start an app as a run and return the run's id."""
        config = " ".join(f'{key}="{value}"' for key, value in run_config.items())
        options = ["--run-config", config] if config else []
        answer = self._flwr("run", str(app), "here", *options)
        return str(answer["run-id"])

    def _variables(self, owner: str) -> dict[str, str]:
        return {**super()._variables(owner), **getattr(self, "_addresses", {}).get(owner, {})}

    def _own(self, site: str) -> dict[str, str]:
        names = ("PM1_DOOR", "PM1_TICKETS")
        ports = free_ports(len(names))
        found = {name: f"127.0.0.1:{port}" for name, port in zip(names, ports, strict=True)}
        return found | {"PM1_RUNTIME": f"127.0.0.1:{self._ports[site]}"}
