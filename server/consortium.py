"""A coordinator's folder: the consortium's authority, its keys, and the sites that are enrolled.

    consortium.json                 name, address of the gateway, when it was made
    ca/ca.key ca.crt ca.crl         the authority, and the list of certificates that are no longer good
    gateway/server.key server.crt   what the gateway shows
    coordinator/client.key client.crt       the coordinator's own certificate, for the control API
    keys/checkpoint.pem .pub        the key that checkpoints, proposals and kits are signed with
    keys/executor.secret            what the executor of ServerApps shows to the SuperLink
    sites/NAME/request.json certificate.pem node.pub identity.pub status.json
    kits/NAME.kit                   what goes back to the site
    log.jsonl                       who was enrolled and revoked, when, by which fingerprint

Of a site there is one good certificate at a time, and after a renewal the earlier one, of the same keys, until it
runs out. What is revoked is on the list before the command returns; the gateway sees that the list has changed.
"""

from __future__ import annotations

import json
import os
import re
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cryptography import x509

from pm1_core import atomic, certificates
from pm1_core.certificates import COORDINATOR, SITE, Authority
from pm1_core.enrolment import Kit, Request, today
from pm1_core.errors import InputError, StateError
from pm1_core.signing import Signer, public_file
from pm1_core.validate import refusal

FOLDER = "PM1_CONSORTIUM"
EXECUTOR = "keys/executor.secret"
"""What the executor of ServerApps shows to the SuperLink."""
ENROLLED, REVOKED = "enrolled", "revoked"
DAYS = 397
"""How long a certificate is good, unless said otherwise: thirteen months, so that a renewal a year is in time."""
_LOCAL = ("localhost", "127.0.0.1", "superlink", "gateway")
"""Under which services of one machine, or of its containers, reach each other."""
_ADDRESS = re.compile(r"(?P<host>[A-Za-z0-9.-]{1,253}|\[[0-9a-fA-F:.]+\]):(?P<port>[0-9]{1,5})")


@dataclass(frozen=True)
class Enrolled:
    """A site as the coordinator knows it.

    serial: of its certificate; until: when that runs out, ISO; fingerprint: of the request that was compared
    earlier: serials of certificates of the same keys that it had before, and until when they are good
    """

    site: str
    status: str
    serial: int
    since: str
    until: str
    fingerprint: str
    reason: str = ""
    earlier: Mapping[str, str] = field(default_factory=dict)

    @property
    def overlapping(self) -> dict[str, str]:
        """`earlier`, without what has run out."""
        now = datetime.now(UTC)
        return {one: until for one, until in self.earlier.items() if datetime.fromisoformat(until) > now}

    @property
    def days_left(self) -> int:
        """Whole days for which its certificate is still good, below 0 if it is not."""
        return (datetime.fromisoformat(self.until) - datetime.now(UTC)).days


class Consortium:
    """The consortium in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @staticmethod
    def default() -> Path:
        """Where commands look if nobody says."""
        return Path(os.environ.get(FOLDER, "consortium"))

    @staticmethod
    def create(folder: Path, name: str, address: str, days: int = DAYS) -> Consortium:
        """Make authority, certificates and keys in `folder`, all of it or nothing.

        address: HOST:PORT under which sites reach the gateway
        Raises InputError if there is a consortium already, or name or address cannot be used.
        """
        if not name.isprintable() or not 0 < len(name) <= 80:
            raise InputError(
                refusal("consortium, name", f"found {name!r}"[:90], "use up to 80 printable characters")
            )
        host = _host(address)
        if folder.exists() and any(folder.iterdir()):
            found = "a consortium" if (folder / "consortium.json").exists() else "files"
            raise InputError(refusal(folder, f"found {found}", "use it, or choose another folder"))
        with atomic.whole_folder(folder) as made:
            authority = Authority.create(name)
            certificates.write_key(_made(made / "ca") / "ca.key", authority.key, encrypted=True)
            atomic.write_text(made / "ca/ca.crt", certificates.pem(authority.certificate))
            atomic.write_text(made / "ca/ca.crl", certificates.pem(authority.revoked([], 1)))
            for key in ("gateway/server.key", "coordinator/client.key"):
                _made((made / key).parent)
                certificates.write_key(made / key, certificates.new_key(), encrypted=False)
            _certify(made, authority, host, days)
            Signer.create(_made(made / "keys") / "checkpoint.pem")
            atomic.write_bytes(made / EXECUTOR, secrets.token_hex(32).encode())
            for name_ in ("sites", "kits", "proposals", "public", "run", "runs"):
                _made(made / name_)
            facts = {"name": name, "address": address, "created": today()}
            atomic.write_json(made / "consortium.json", facts)
        return Consortium(folder)

    def renew(self, days: int = DAYS, address: str | None = None) -> None:
        """Sign the certificates of gateway and coordinator anew, for the keys that there are.

        address: HOST:PORT if sites are to reach the gateway elsewhere; they learn of it by a new kit
        """
        with self._locked():
            facts = {**self.facts, "address": address or self.facts["address"]}
            host = _host(facts["address"])
            _certify(self.folder, self._authority(), host, days)
            atomic.write_json(self.folder / "consortium.json", facts)
            self._log("renewed", address=facts["address"])

    @property
    def days_left(self) -> int:
        """Whole days for which the certificates of gateway and coordinator are both good."""
        files = (self.folder / "gateway/server.crt", self.folder / "coordinator/client.crt")
        until = min(certificates.read_certificate(file).not_valid_after_utc for file in files)
        return (until - datetime.now(UTC)).days

    @property
    def facts(self) -> dict[str, str]:
        """consortium.json. Raises StateError if there is none."""
        file = self.folder / "consortium.json"
        if not file.exists():
            raise StateError(refusal(self.folder, "found no consortium", "make one with pm1-server init"))
        content = atomic.read_json(file)
        if not isinstance(content, dict) or not {"name", "address"} <= content.keys():
            raise StateError(refusal(file, "found no name and address", "put your backup back"))
        return {key: str(value) for key, value in content.items()}

    @property
    def signer(self) -> Signer:
        """The key of checkpoints, proposals and kits."""
        return Signer.load(self.folder / "keys/checkpoint.pem")

    @property
    def fingerprint(self) -> str:
        """Of the consortium, as every kit of it has it, in hex."""
        return self._kit("fingerprint", "").fingerprint

    def sites(self) -> list[Enrolled]:
        """Everybody who was ever enrolled, by name."""
        files = sorted(self.folder.glob("sites/*/status.json"))
        return [_enrolled(file) for file in files]

    def enrol(self, request: Request, days: int = DAYS, replace: bool = False) -> Path:
        """Sign a site's certificate and write its kit, whose path is returned.

        replace: the site is enrolled already. Its earlier certificate stays good until it runs out if the request
            is of the same keys, and is revoked if not

        Raises InputError if the site is enrolled and is not to be replaced.
        """
        self._owned()
        with self._locked():
            before = next((one for one in self.sites() if one.site == request.site), None)
            earlier: dict[str, str] = {}
            if before and before.status == ENROLLED:
                if not replace:
                    found = f"it is enrolled since {before.since[:10]}"
                    remedy = "use --replace if that is a renewal, or its keys are new"
                    raise InputError(refusal(f"site {request.site!r}", found, remedy))
                if all(self._kept(request)):
                    earlier = {**before.overlapping, str(before.serial): before.until}
                else:
                    self._strike(before)
                    self._log("revoked", site=request.site, reason="replaced")
            elif before and any(self._kept(request)):  # whoever has it would be let in again
                remedy = "have the site make new ones: pm1-site init in another folder"
                raise InputError(refusal(f"site {request.site!r}", "its keys were revoked", remedy))
            made = self._authority().client(_key(request), request.site, SITE, days)
            site = _made(self.folder / "sites" / request.site)
            atomic.write_text(site / "request.json", request.to_json())
            atomic.write_text(site / "certificate.pem", certificates.pem(made))
            atomic.write_text(site / "node.pub", request.node)
            atomic.write_text(site / "identity.pub", request.identity)
            until = made.not_valid_after_utc.isoformat()
            facts = (today(), until, request.fingerprint)
            status = Enrolled(request.site, ENROLLED, made.serial_number, *facts, earlier=earlier)
            atomic.write_json(site / "status.json", asdict(status))
            what = "renewed" if earlier else "enrolled"
            self._log(what, site=request.site, fingerprint=request.fingerprint, until=until)
        return self.kit(request.site)

    def kit(self, site: str) -> Path:
        """Write the kit of an enrolled site anew, with all peers of today. Raises InputError without such."""
        one = self.site(site)
        if one.status != ENROLLED:
            raise InputError(
                refusal(f"site {site!r}", f"it was revoked on {one.since[:10]}", "enrol it again")
            )
        certificate = (self.folder / "sites" / site / "certificate.pem").read_text()
        file = _made(self.folder / "kits") / f"{site}.kit"
        atomic.write_text(file, self._kit(site, certificate).signed(self.signer).to_json())
        return file

    def site(self, name: str) -> Enrolled:
        """Raises InputError naming those there are."""
        found = {one.site: one for one in self.sites()}
        if name not in found:
            raise InputError(
                refusal(f"site {name!r}", "it is not enrolled", f"known: {', '.join(found) or 'nobody'}")
            )
        return found[name]

    def revoke(self, name: str, reason: str) -> Enrolled:
        """Shut a site out: its certificates are on the list when this returns. Raises InputError if it is out."""
        with self._locked():
            one = self.site(name)
            if one.status == REVOKED:
                raise InputError(
                    refusal(f"site {name!r}", f"it was revoked on {one.since[:10]}", "nothing is to be done")
                )
            return self._revoke(one, reason)

    def _strike(self, one: Enrolled) -> None:
        """Put a site's certificates on the list; a second time does no harm."""
        authority, file = self._authority(), self.folder / "ca/ca.crl"
        before = x509.load_pem_x509_crl(file.read_bytes())
        number = before.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
        serials = [entry.serial_number for entry in before] + [one.serial, *map(int, one.earlier)]
        atomic.write_text(file, certificates.pem(authority.revoked(serials, number + 1)))

    def _revoke(self, one: Enrolled, reason: str) -> Enrolled:
        self._strike(one)
        gone = replace(one, status=REVOKED, since=today(), reason=reason)
        atomic.write_json(self.folder / "sites" / one.site / "status.json", asdict(gone))
        (self.folder / "kits" / f"{one.site}.kit").unlink(missing_ok=True)
        self._log("revoked", site=one.site, reason=reason)
        return gone

    def _kept(self, request: Request) -> list[bool]:
        """Of each key of `request`, whether the site had it before."""
        file = self.folder / "sites" / request.site / "request.json"
        before = Request.from_json(file.read_text(), file)
        return [had == has for had, has in zip(_keys(before), _keys(request), strict=True)]

    def _kit(self, site: str, certificate: str) -> Kit:
        facts = self.facts
        peers = {
            one.site: (self.folder / "sites" / one.site / "identity.pub").read_text()
            for one in self.sites()
            if one.status == ENROLLED
        }
        coordinator = public_file(self.folder / "keys/checkpoint.pem").read_text()
        authority = (self.folder / "ca/ca.crt").read_text()
        return Kit(facts["name"], site, facts["address"], authority, certificate, coordinator, peers, today())

    def _authority(self) -> Authority:
        key = certificates.read_key(self.folder / "ca/ca.key")
        return Authority(key, certificates.read_certificate(self.folder / "ca/ca.crt"))

    def _owned(self) -> None:
        """Raise before anything is written if a key cannot be used."""
        self._authority()
        _ = self.signer

    def _locked(self) -> Any:
        _ = self.facts
        return atomic.locked(self.folder / "lock", "wait until the other command has ended")

    def _log(self, what: str, **facts: object) -> None:
        line = json.dumps({"when": today(), "what": what, **facts}, sort_keys=True)
        atomic.append_lines(self.folder / "log.jsonl", [line])


def identities(consortium: Consortium) -> Iterator[tuple[str, str]]:
    """Site and PEM of the SuperNode's public key, of everybody enrolled."""
    for one in consortium.sites():
        if one.status == ENROLLED:
            yield one.site, (consortium.folder / "sites" / one.site / "node.pub").read_text()


def _certify(folder: Path, authority: Authority, host: str, days: int) -> None:
    """Sign the certificates of the gateway, reached under `host`, and of the coordinator."""
    server, own = (
        certificates.read_key(folder / key).public_key()
        for key in ("gateway/server.key", "coordinator/client.key")
    )
    shown = authority.server(server, [host, *_LOCAL], days)
    atomic.write_text(folder / "gateway/server.crt", certificates.pem(shown))
    client = authority.client(own, COORDINATOR, COORDINATOR, days)
    atomic.write_text(folder / "coordinator/client.crt", certificates.pem(client))


def _enrolled(file: Path) -> Enrolled:
    """What a status.json says. Raises StateError."""
    try:
        return Enrolled(**atomic.read_json(file))
    except TypeError:
        raise StateError(refusal(file, "it is damaged", "put your backup back")) from None


def _keys(request: Request) -> tuple[object, ...]:
    return _key(request).public_numbers(), request.node, request.identity


def _key(request: Request) -> certificates.PublicKey:
    key = request.signing_request.public_key()
    assert isinstance(key, certificates.PublicKey)  # `Request.from_json` has looked
    return key


def _host(address: str) -> str:
    """The host of HOST:PORT. Raises InputError."""
    found = _ADDRESS.fullmatch(address)
    if not found or not 0 < int(found["port"]) < 65536:
        remedy = "write HOST:PORT as sites reach it, such as pm1.example.org:8443"
        raise InputError(refusal("consortium, address", f"found {address!r}"[:90], remedy))
    return found["host"].strip("[]")


def _made(folder: Path) -> Path:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder
