"""What a site and a coordinator hand each other on the first day: a request, and the kit that answers it.

Both are JSON that may go by mail: nothing in them is secret. Both are signed, which says that they are whole and
not whose they are; for that two people compare a fingerprint by telephone.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self, cast

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from pm1_core import certificates
from pm1_core.certificates import SITE
from pm1_core.errors import CheckpointError, InputError
from pm1_core.signing import Signer, Trust
from pm1_core.validate import refusal, require_keys

FORMAT = 1
MOST_BYTES = 1 << 20
_NAME = re.compile(r"[a-z0-9]([a-z0-9_-]{0,38}[a-z0-9])?")
_HOST = re.compile(r"[A-Za-z0-9.-]{1,253}|\[[0-9a-fA-F:.]{2,45}\]")
_RESERVED = ("coordinator", "gateway")


def require_name(where: object, name: object) -> str:
    """`name` if it can be that of a site: a host's, a file's and a certificate's. Raises InputError."""
    if not isinstance(name, str) or not _NAME.fullmatch(name) or name in _RESERVED:
        remedy = "use up to 40 of a-z, 0-9, _ and -, a letter or digit first and last"
        raise InputError(refusal(where, f"found the name {name!r}"[:90], remedy))
    return name


def grouped(fingerprint: str) -> str:
    """A fingerprint as it is read out: groups of four digits.

    >>> grouped("0123456789abcdef")
    '0123 4567 89ab cdef'
    """
    return " ".join(fingerprint[i : i + 4] for i in range(0, len(fingerprint), 4))


def same(fingerprint: str, heard: str) -> bool:
    """Whether somebody read out `fingerprint`: its first 16 digits at least, spaced as they like."""
    digits = re.sub(r"[\s:]", "", heard).lower()
    return len(digits) >= 16 and fingerprint.startswith(digits)


class _Signed:
    """What both have in common: JSON with a signature over all else, under a name of its own."""

    signature: str

    @property
    def signed_bytes(self) -> bytes:
        """What the signature is over."""
        content = {key: value for key, value in asdict(cast(Any, self)).items() if key != "signature"}
        return json.dumps([type(self).__name__, content], sort_keys=True).encode()

    def signed(self, signer: Signer) -> Self:
        """This under a signature."""
        return cast(Self, replace(cast(Any, self), signature=signer.sign(self.signed_bytes)))

    def to_json(self) -> str:
        """Text with sorted keys."""
        return json.dumps(asdict(cast(Any, self)), indent=1, sort_keys=True) + "\n"


@dataclass(frozen=True)
class Request(_Signed):
    """A site asks to be enrolled.

    csr: signing request for the key of its TLS connections; node: public key of its SuperNode (ECDSA P-384)
    identity: public key (Ed25519) that signs its part in secure sums, and this; all in PEM
    """

    site: str
    csr: str
    node: str
    identity: str
    created: str
    signature: str = ""
    format: int = FORMAT

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all that is signed, in hex."""
        return hashlib.sha256(self.signed_bytes).hexdigest()

    @property
    def signing_request(self) -> x509.CertificateSigningRequest:
        """The CSR."""
        return certificates.request_of("request", self.csr)

    @staticmethod
    def from_json(text: str, where: object) -> Request:
        """Read what `to_json` wrote. Raises InputError on whatever a coordinator should not sign."""
        made = Request(**_texts(where, text, Request))
        require_name(where, made.site)
        asked = certificates.request_of(where, made.csr)
        if certificates.named(asked) != (made.site, SITE):
            raise InputError(refusal(where, "its signing request has another name", "write it again"))
        node, identity = certificates.public_key(where, made.node), ed25519(where, made.identity)
        _require_plain(where, made.csr, certificates.pem(asked))
        _require_plain(where, made.node, certificates.public_pem(node))
        _require_plain(where, made.identity, certificates.public_pem(identity))
        _require_signature(where, made, identity)
        return made


@dataclass(frozen=True)
class Kit(_Signed):
    """A coordinator's answer: all that a site needs to connect and to check what it gets.

    gateway: HOST:PORT; authority, certificate: PEM, of the consortium's CA and of this site
    coordinator: public key (Ed25519, PEM) that checkpoints, proposals and this are signed with
    peers: site -> its identity key, of everybody enrolled when it was written, this site among them
    """

    consortium: str
    site: str
    gateway: str
    authority: str
    certificate: str
    coordinator: str
    peers: Mapping[str, str]
    created: str
    signature: str = ""
    format: int = FORMAT

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the authority and the coordinator's key: of the consortium, alike for all its sites."""
        return hashlib.sha256(f"{self.authority}\n{self.coordinator}".encode()).hexdigest()

    @staticmethod
    def from_json(text: str, where: object) -> Kit:
        """Read what `to_json` wrote. Raises InputError on whatever a site should not install."""
        made = Kit(**_texts(where, text, Kit))
        require_name(where, made.site)
        _require_address(where, made.gateway)
        if not made.consortium.isprintable() or not 0 < len(made.consortium) <= 80:
            raise InputError(refusal(where, "the consortium has no usable name", "ask for another kit"))
        if not isinstance(made.peers, dict) or made.site not in made.peers:
            raise InputError(refusal(where, "its list of peers lacks this site", "ask for another kit"))
        for name, key in made.peers.items():
            require_name(f"{where}, peers", name)
            if not isinstance(key, str):
                raise InputError(refusal(f"{where}, peer {name}", "found no key", "ask for another kit"))
            _require_plain(where, key, certificates.public_pem(ed25519(f"{where}, peer {name}", key)))
        own, authority = (certificates.certificate(where, one) for one in (made.certificate, made.authority))
        _require_plain(where, made.certificate, certificates.pem(own))
        _require_plain(where, made.authority, certificates.pem(authority))
        certificates.require_issued(where, own, authority)
        if certificates.named(own) != (made.site, SITE):
            raise InputError(refusal(where, "its certificate is for another name", "ask for another kit"))
        coordinator = ed25519(where, made.coordinator)
        _require_plain(where, made.coordinator, certificates.public_pem(coordinator))
        _require_signature(where, made, coordinator)
        return made


def today() -> str:
    """Now, as requests and kits have it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def read(file: Path) -> str:
    """A request or kit that was sent; no more of it is read than one can have. Raises InputError."""
    try:
        with file.open("rb") as stream:
            content = stream.read(MOST_BYTES + 1)
    except OSError as error:
        reason = f"cannot be read ({error.strerror or error})"
        raise InputError(refusal(file, reason, "name the file that was sent")) from None
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise InputError(refusal(file, "found no text", "name the file that was sent")) from None


def ed25519(where: object, pem: str) -> Ed25519PublicKey:
    """Raises InputError unless `pem` is one Ed25519 public key."""
    try:
        key = serialization.load_pem_public_key(pem.encode())
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise InputError(refusal(where, "found no public key", "use the file as it was written")) from None
    if not isinstance(key, Ed25519PublicKey):
        raise InputError(refusal(where, f"found a {type(key).__name__}", "use an Ed25519 key"))
    return key


def _texts(where: object, text: str, kind: type[Request] | type[Kit]) -> dict[str, Any]:
    """The fields of a request or kit; all but peers and format are texts."""
    remedy = "use the file as it was written"
    if len(text) > MOST_BYTES:
        raise InputError(refusal(where, f"found {len(text)} characters, not {MOST_BYTES} at most", remedy))
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        raise InputError(refusal(where, "found no JSON", remedy)) from None
    given = dict(require_keys(where, content, tuple(kind.__dataclass_fields__)))
    if given["format"] != FORMAT or isinstance(given["format"], bool):
        found = f"found format {given['format']!r}, not {FORMAT}"[:90]
        raise InputError(refusal(where, found, "use the same version at both ends"))
    for key, value in given.items():
        if key not in ("peers", "format") and not isinstance(value, str):
            raise InputError(refusal(f"{where}, key {key!r}", "found no text", remedy))
    return given


def _require_plain(where: object, given: str, written: str) -> None:
    """Raise InputError unless PEM is as we write it: other programs may read more in it than we do."""
    if given != written:
        raise InputError(
            refusal(where, "a key or certificate is not in the plain form", "use what pm1 writes")
        )


def _require_signature(where: object, made: Request | Kit, key: Ed25519PublicKey) -> None:
    try:
        Trust([key]).require(where, made.signed_bytes, made.signature)
    except CheckpointError:
        raise InputError(
            refusal(where, "its signature is not good: it was changed", "have it sent again")
        ) from None


def _require_address(where: object, text: str) -> None:
    host, _, port = text.rpartition(":")
    good = _HOST.fullmatch(host) and port.isascii() and port.isdecimal()
    if not good or not 0 < int(port) < 65536:
        raise InputError(refusal(f"{where}, gateway", f"found {text!r}"[:90], "write HOST:PORT"))
