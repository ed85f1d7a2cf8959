"""The consortium's own certificates (X.509, RFC 5280): who may connect to whom.

One authority per consortium, kept by the coordinator, signs three kinds: of the gateway (a server), of the
coordinator (a client, unit "coordinator") and of sites (clients, unit "site", the site's name as common name).
Whoever is revoked is on a list that the gateway reads. Keys are ECDSA on P-384, certificates are signed with
SHA-384; `openssl x509` and `openssl verify -crl_check` read all of it.

Private keys are PKCS#8 PEM files of mode 0600, encrypted if PM1_KEY_PASSPHRASE is set and the program that reads
them can ask for it; those that nginx or Flower read by themselves are not.
"""

from __future__ import annotations

import ipaddress
import os
import stat
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.utils import CryptographyDeprecationWarning
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from pm1_core import atomic
from pm1_core.errors import InputError
from pm1_core.signing import PASSPHRASE
from pm1_core.validate import refusal

Key = ec.EllipticCurvePrivateKey
PublicKey = ec.EllipticCurvePublicKey
COORDINATOR, SITE, GATEWAY = "coordinator", "site", "gateway"
"""Units: what the holder of a certificate may do."""

_HASH = hashes.SHA384()
_EARLIER = timedelta(hours=1)  # clocks of sites differ
_BAD = (
    ValueError,
    TypeError,
    InvalidSignature,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    CryptographyDeprecationWarning,
)
"""What cryptography raises on bytes that somebody sent."""
_LIST_DAYS = 3650  # a list is replaced at each revocation; one that ran out would shut everybody out


@dataclass(frozen=True)
class Authority:
    """A CA: its key and its own certificate."""

    key: Key
    certificate: x509.Certificate

    @staticmethod
    def create(name: str, days: int = 3650) -> Authority:
        """A new authority that signs nothing but end entities."""
        key = new_key()
        builder = _builder(_name(name, "authority"), _name(name, "authority"), key.public_key(), days)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        builder = builder.add_extension(_usage(sign=False, authority=True), critical=True)
        return Authority(key, builder.sign(key, _HASH))

    def client(self, key: PublicKey, name: str, unit: str, days: int) -> x509.Certificate:
        """A certificate with which its holder may connect as `name`, of `unit`."""
        return self._issued(key, name, unit, days, ExtendedKeyUsageOID.CLIENT_AUTH, ())

    def server(self, key: PublicKey, hosts: Sequence[str], days: int) -> x509.Certificate:
        """A certificate for a server that is reached under `hosts`, names or addresses."""
        return self._issued(key, hosts[0], GATEWAY, days, ExtendedKeyUsageOID.SERVER_AUTH, hosts)

    def revoked(self, serials: Iterable[int], number: int) -> x509.CertificateRevocationList:
        """The signed list of all certificates that are no longer good. number: higher than of the list before."""
        now = datetime.now(UTC)
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.certificate.subject)
            .last_update(now - _EARLIER)
            .next_update(now + timedelta(days=_LIST_DAYS))
            .add_extension(x509.CRLNumber(number), critical=False)
        )
        for serial in sorted(set(serials)):
            entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now)
            builder = builder.add_revoked_certificate(entry.build())
        return builder.sign(self.key, _HASH)

    def _issued(
        self,
        key: PublicKey,
        name: str,
        unit: str,
        days: int,
        purpose: x509.ObjectIdentifier,
        hosts: Sequence[str],
    ) -> x509.Certificate:
        builder = _builder(_name(name, unit), self.certificate.subject, key, days)
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        builder = builder.add_extension(_usage(sign=True, authority=False), critical=True)
        builder = builder.add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.certificate.public_key())  # type: ignore[arg-type]
        builder = builder.add_extension(issuer, critical=False)
        if hosts:
            names = [_host(host) for host in hosts]
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return builder.sign(self.key, _HASH)


def require_issued(
    where: object, certificate: x509.Certificate, authority: x509.Certificate, now: datetime | None = None
) -> None:
    """Raise InputError unless `authority` signed `certificate` and both are good `now`."""
    try:
        certificate.verify_directly_issued_by(authority)
    except _BAD:
        raise InputError(
            refusal(where, "another authority signed it", "ask the coordinator for a kit")
        ) from None
    now = now or datetime.now(UTC)
    for one in (certificate, authority):
        if not one.not_valid_before_utc <= now < one.not_valid_after_utc:
            found = f"good from {one.not_valid_before_utc:%Y-%m-%d} to {one.not_valid_after_utc:%Y-%m-%d}"
            raise InputError(refusal(where, found, "look at this machine's clock, or ask for a new one"))


def named(certificate: x509.Certificate | x509.CertificateSigningRequest) -> tuple[str, str]:
    """Common name and unit of the subject, "" where it has none."""

    def one(kind: x509.ObjectIdentifier) -> str:
        found = certificate.subject.get_attributes_for_oid(kind)
        return str(found[0].value) if len(found) == 1 else ""

    return one(NameOID.COMMON_NAME), one(NameOID.ORGANIZATIONAL_UNIT_NAME)


def new_key() -> Key:
    """A fresh private key."""
    return ec.generate_private_key(ec.SECP384R1())


def signing_request(key: Key, site: str) -> x509.CertificateSigningRequest:
    """What a site sends to have its public key certified under its name."""
    return x509.CertificateSigningRequestBuilder().subject_name(_name(site, SITE)).sign(key, _HASH)


def write_key(path: Path, key: Key, *, encrypted: bool) -> None:
    """Write a private key, mode 0600. Raises InputError if there is one.

    encrypted: with PM1_KEY_PASSPHRASE, if that is set
    """
    if path.exists():
        raise InputError(refusal(path, "found a key", "use it, or choose another folder"))
    secret = os.environ.get(PASSPHRASE) if encrypted else None
    protection: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if secret:
        protection = serialization.BestAvailableEncryption(secret.encode())
    form = serialization.PrivateFormat.PKCS8
    atomic.write_bytes(path, key.private_bytes(serialization.Encoding.PEM, form, protection))


def read_key(path: Path) -> Key:
    """Read a private key. Raises InputError if it is absent, readable by others, or no key on P-384."""
    content = _read(path)
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        raise InputError(refusal(path, f"its mode is {mode:04o}", "close it to others: chmod 600"))
    secret = os.environ.get(PASSPHRASE)
    for passphrase in (secret.encode(), None) if secret else (None,):
        try:
            key = serialization.load_pem_private_key(content, passphrase)
        except _BAD as error:
            reason = str(error)
            continue
        if isinstance(key, Key) and isinstance(key.curve, ec.SECP384R1):
            return key
        reason = f"found a {type(key).__name__}"
    remedy = f"use an ECDSA key on P-384 in PEM; an encrypted one needs {PASSPHRASE}"
    raise InputError(refusal(path, f"cannot be used ({reason})", remedy))


def public_key(where: object, pem: str) -> PublicKey:
    """Raises InputError unless `pem` is one public key on P-384."""
    try:
        key = serialization.load_pem_public_key(pem.encode())
    except _BAD:
        raise InputError(refusal(where, "found no public key", "write the request again")) from None
    if not isinstance(key, PublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise InputError(refusal(where, f"found a {type(key).__name__}", "use ECDSA on P-384"))
    return key


def public_pem(key: PublicKey | Ed25519PublicKey) -> str:
    """PEM of a public key."""
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_bytes(serialization.Encoding.PEM, form).decode()


def pem(thing: x509.Certificate | x509.CertificateSigningRequest | x509.CertificateRevocationList) -> str:
    """PEM of a certificate, a signing request or a revocation list."""
    return thing.public_bytes(serialization.Encoding.PEM).decode()


def certificate(where: object, text: str) -> x509.Certificate:
    """Raises InputError unless `text` is one certificate in PEM."""
    try:
        with warnings.catch_warnings():
            # Forms that RFC 5280 forbids, and that a next release of cryptography cannot read.
            warnings.simplefilter("error", CryptographyDeprecationWarning)
            (found,) = x509.load_pem_x509_certificates(text.encode())
            # Read now, so that what cannot be read is refused here and not where it is used.
            _ = found.subject, found.public_key(), found.not_valid_before_utc, found.not_valid_after_utc
    except _BAD:
        raise InputError(refusal(where, "found no certificate", "use the file as it was written")) from None
    return found


def read_certificate(path: Path) -> x509.Certificate:
    """The certificate in a file. Raises InputError."""
    return certificate(path, _read(path).decode("utf-8", "replace"))


def request_of(where: object, text: str) -> x509.CertificateSigningRequest:
    """Raises InputError unless `text` is a signing request on P-384 that its own key signed."""
    try:
        found = x509.load_pem_x509_csr(text.encode())
        good, key, _ = found.is_signature_valid, found.public_key(), found.subject
    except _BAD:
        raise InputError(refusal(where, "found no signing request", "write the request again")) from None
    if not good or not isinstance(key, PublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise InputError(refusal(where, "its own key did not sign it", "write the request again"))
    return found


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        remedy = "look at the folder that you named"
        raise InputError(refusal(path, f"cannot be read ({error.strerror or error})", remedy)) from None


def _name(name: str, unit: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, unit),
            x509.NameAttribute(NameOID.COMMON_NAME, name),
        ]
    )


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host.strip("[]")))
    except ValueError:
        return x509.DNSName(host)


def _usage(*, sign: bool, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )


def _builder(subject: x509.Name, issuer: x509.Name, key: PublicKey, days: int) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _EARLIER)
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )
