"""A consortium's certificates and a site's folder, as init and join leave them."""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from client.folder import SiteFolder
from client.policy import DEFAULT
from pm1_core.signing import Signer, public_file


@dataclass(frozen=True)
class Authority:
    """A CA: its key and its certificate."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @staticmethod
    def create(name: str) -> Authority:
        """A new one."""
        key = ec.generate_private_key(ec.SECP384R1())
        usage = x509.BasicConstraints(ca=True, path_length=0)
        return Authority(key, _certificate(name, key, name, key, [(usage, True)]))

    def issue(self, folder: Path, name: str, hosts: Sequence[str] = ()) -> None:
        """Write FOLDER/NAME.key and NAME.crt, for a server of `hosts` or for a client."""
        key = ec.generate_private_key(ec.SECP384R1())
        names: list[x509.GeneralName] = []
        for host in hosts:
            address = host.replace(".", "").isdecimal()
            names.append(x509.IPAddress(ipaddress.ip_address(host)) if address else x509.DNSName(host))
        extensions = [(x509.SubjectAlternativeName(names), False)] if names else []
        issuer = self.certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value
        made = _certificate(name, key, str(issuer), self.key, extensions)
        write_key(folder / f"{name}.key", key)
        (folder / f"{name}.crt").write_bytes(made.public_bytes(serialization.Encoding.PEM))

    @property
    def pem(self) -> bytes:
        """The certificate."""
        return self.certificate.public_bytes(serialization.Encoding.PEM)


def write_key(file: Path, key: ec.EllipticCurvePrivateKey, ssh: bool = False) -> None:
    """A private key, mode 0600; with `ssh` in OpenSSH's form, and the public one beside it as NAME.pub."""
    form = serialization.PrivateFormat.OpenSSH if ssh else serialization.PrivateFormat.PKCS8
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()))
    file.chmod(0o600)
    if ssh:
        public = key.public_key().public_bytes(
            serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
        )
        file.with_name(file.name + ".pub").write_bytes(public)


def site_folder(
    path: Path, site: str, gateway: str, consortium: Authority, coordinator: Path, store: Path | None = None
) -> SiteFolder:
    """A site that has joined. coordinator: its public key; store: where the prepared data are"""
    write_key(path / "keys" / "node.key", ec.generate_private_key(ec.SECP384R1()), ssh=True)
    Signer.create(path / "keys" / "identity.pem")
    here = Authority.create("this machine")
    here.issue(path / "local", "door", ("localhost", "127.0.0.1", "door"))
    (path / "local" / "ca.crt").write_bytes(here.pem)
    consortium.issue(path, "client")
    (path / "client.key").rename(path / "keys" / "tls.key")
    (path / "ca.crt").write_bytes(consortium.pem)
    (path / "coordinator.pub").write_bytes(coordinator.read_bytes())
    (path / "policy.yaml").write_text(DEFAULT)
    for name in ("approvals", "state", "peers"):
        (path / name).mkdir()
    facts = {"site": site, "gateway": gateway, "consortium": "test"}
    (path / "site.json").write_text(json.dumps(facts))
    if store:
        (path / "store").symlink_to(store)
    return SiteFolder(path)


def coordinator_key(folder: Path) -> Path:
    """A new key; returns the public one."""
    Signer.create(folder / "checkpoint.pem")
    return public_file(folder / "checkpoint.pem")


def _certificate(
    name: str,
    key: ec.EllipticCurvePrivateKey,
    issuer: str,
    signer: ec.EllipticCurvePrivateKey,
    extensions: Sequence[tuple[x509.ExtensionType, bool]],
) -> x509.Certificate:
    now = datetime.now(UTC)
    built = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), False)
    )
    for extension, critical in extensions:
        built = built.add_extension(extension, critical)
    return built.sign(signer, hashes.SHA384())
