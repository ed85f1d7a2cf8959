"""Ed25519 signatures under global checkpoints: who may publish, and what a site may load.

The private key is a PKCS#8 PEM file that only its owner can read, encrypted where a passphrase is given (the
environment variable PM1_KEY_PASSPHRASE); the public key lies beside it as NAME.pub, the file that sites get.
Both can be read by openssl. Ed25519 is deterministic: signing the same bytes twice gives the same signature.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from pm1_core import atomic
from pm1_core.errors import CheckpointError, InputError
from pm1_core.validate import refusal

PASSPHRASE = "PM1_KEY_PASSPHRASE"


@dataclass(frozen=True)
class Signer:
    """A private key."""

    key: Ed25519PrivateKey

    def sign(self, message: bytes) -> str:
        """The signature in hex."""
        return self.key.sign(message).hex()

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the public key, in hex."""
        return fingerprint(self.key.public_key())

    @staticmethod
    def create(path: Path) -> Signer:
        """Make a key pair at `path` and `path`.pub. Raises InputError if a key is there already."""
        if path.exists():
            raise InputError(refusal(path, "found a key", "use it, or choose another file"))
        key = Ed25519PrivateKey.generate()
        passphrase = os.environ.get(PASSPHRASE)
        protection: serialization.KeySerializationEncryption = serialization.NoEncryption()
        if passphrase:
            protection = serialization.BestAvailableEncryption(passphrase.encode())
        private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, protection)
        public = key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        atomic.write_bytes(public_file(path), public)
        public_file(path).chmod(0o644)
        atomic.write_bytes(path, private)  # mkstemp gives it mode 0600
        return Signer(key)

    @staticmethod
    def at(path: Path) -> Signer:
        """The key at `path`, made now if there is none: for runs whose coordinator and sites are one person."""
        return Signer.load(path) if path.exists() else Signer.create(path)

    @staticmethod
    def load(path: Path) -> Signer:
        """Read a private key. Raises InputError if it is absent, readable by others, or no Ed25519 key."""
        content = _read(path, "make one, or name the coordinator's key file")
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode & 0o077:
            raise InputError(refusal(path, f"its mode is {mode:04o}", "close it to others: chmod 600"))
        passphrase = os.environ.get(PASSPHRASE)
        try:
            key = serialization.load_pem_private_key(content, passphrase.encode() if passphrase else None)
        except (ValueError, TypeError) as error:
            remedy = f"use an Ed25519 key in PEM; an encrypted one needs {PASSPHRASE}"
            raise InputError(refusal(path, f"cannot be read ({error})", remedy)) from None
        if not isinstance(key, Ed25519PrivateKey):
            raise InputError(refusal(path, f"found a {type(key).__name__}", "use an Ed25519 key"))
        return Signer(key)


@dataclass(frozen=True)
class Trust:
    """The public keys whose signatures are accepted."""

    keys: Sequence[Ed25519PublicKey]

    def require(self, where: object, message: bytes, signature: str) -> str:
        """The fingerprint of the key that signed `message`. Raises CheckpointError if none of them did."""
        for key in self.keys:
            try:
                key.verify(bytes.fromhex(signature), message)
            except (InvalidSignature, ValueError, TypeError):  # TypeError: no text
                continue
            return fingerprint(key)
        raise CheckpointError(
            refusal(where, "its signature is not the coordinator's", "do not load it; ask the coordinator")
        )

    @staticmethod
    def load(*paths: Path) -> Trust:
        """Read public keys. Raises InputError if one is absent or no Ed25519 key."""
        keys = []
        for path in paths:
            content = _read(path, "name the coordinator's public key file")
            try:
                key = serialization.load_pem_public_key(content)
            except ValueError as error:
                raise InputError(refusal(path, f"cannot be read ({error})", "use the .pub file")) from None
            if not isinstance(key, Ed25519PublicKey):
                raise InputError(refusal(path, f"found a {type(key).__name__}", "use an Ed25519 key"))
            keys.append(key)
        return Trust(keys)


def public_file(path: Path) -> Path:
    """Where the public half of the key at `path` lies."""
    return path.with_name(path.name + ".pub")


def fingerprint(key: Ed25519PublicKey) -> str:
    """SHA-256 of the raw public key, in hex: what two people compare by telephone."""
    raw = key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    digest = hashes.Hash(hashes.SHA256())
    digest.update(raw)
    return digest.finalize().hex()


def _read(path: Path, remedy: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(refusal(path, f"cannot be read ({error.strerror or error})", remedy)) from None
