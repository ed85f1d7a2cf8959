"""The primitives of secure sums, each from a library that others keep.

    agreement     X25519 (RFC 7748), `cryptography`
    derivation    HKDF with SHA-256 (RFC 5869), `cryptography`; the context is canonical JSON, so that no two
                  contexts are written alike
    masks         AES-256 in counter mode (NIST SP 800-38A), `cryptography`: the whole key, and any part of the
                  stream without what is before it
    envelopes     ChaCha20-Poly1305 (RFC 8439), `cryptography`, with a random nonce sharing       Shamir 1979
    over GF(2^128), `pycryptodome`: a secret of 32 bytes as two halves of 16, each with
                  a polynomial of its own, so that fewer shares than the threshold tell nothing at all
    signatures    Ed25519 (RFC 8032), `cryptography`, by `pm1_core.signing`

Nothing here keeps time constant beyond what these libraries do: who can measure a site's processor is not
kept out.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from Crypto.Protocol.SecretSharing import Shamir
from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

from pm1_core.errors import PrivacyError
from pm1_core.validate import refusal

SECRET = 32
"""Bytes of every key and secret."""
MOST_SHARES = 1 << 16
_HALF = 16
_NONCE = 12
_BLOCK = 16
_AT_ONCE = 1 << 18
"""Bytes of a stream made at once: they stay in the cache until they are added."""
_ZEROS = bytes(_AT_ONCE)


def canonical(content: Any) -> bytes:
    r"""`content` as JSON in the one form that is signed and hashed: keys sorted, no spaces, ASCII.

    >>> canonical({"b": [1, "ü"], "a": None})
    b'{"a":null,"b":[1,"\\u00fc"]}'
    """
    return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def digest(content: Any) -> str:
    """SHA-256 of the canonical form, in hex."""
    state = hashes.Hash(hashes.SHA256())
    state.update(canonical(content))
    return state.finalize().hex()


def fresh_secret() -> bytes:
    """32 bytes from the operating system."""
    return secrets.token_bytes(SECRET)


def public_of(private: bytes) -> bytes:
    """The X25519 public key, 32 bytes, of a private key, 32 bytes."""
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def agree(private: bytes, public: bytes) -> bytes:
    """The X25519 secret that two sites have in common, 32 bytes; feed it to `derive`.

    Raises ValueError if the public key is of small order, which would make it the same for everybody.
    """
    return X25519PrivateKey.from_private_bytes(private).exchange(X25519PublicKey.from_public_bytes(public))


def derive(secret: bytes, context: Mapping[str, Any]) -> bytes:
    """A key of 32 bytes for one purpose: HKDF-SHA256 without salt, the canonical form of `context` as info."""
    return HKDF(hashes.SHA256(), SECRET, salt=None, info=canonical(context)).derive(secret)


def seal(key: bytes, plain: bytes, about: bytes) -> bytes:
    """`plain` in an envelope that only `key` opens; `about` is bound to it but not carried. 28 bytes longer."""
    nonce = secrets.token_bytes(_NONCE)
    return nonce + ChaCha20Poly1305(key).encrypt(nonce, plain, about)


def unseal(key: bytes, envelope: bytes, about: bytes) -> bytes:
    """What `seal` closed. Raises ValueError if one bit of it, of the key or of `about` is another."""
    try:
        return ChaCha20Poly1305(key).decrypt(envelope[:_NONCE], envelope[_NONCE:], about)
    except InvalidTag:
        raise ValueError("the envelope was changed, or is not for this key") from None


def signed_by(public: bytes, message: bytes, signature: bytes) -> bool:
    """Whether `signature` is that of the Ed25519 key `public` under `message`."""
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def split(secret: bytes, threshold: int, shares: int) -> list[bytes]:
    """Shares of a secret of 32 bytes, 32 bytes each, at the points 1 to `shares`; `threshold` give it back.

    Raises PrivacyError if there cannot be so many.
    """
    if len(secret) != SECRET or not 2 <= threshold <= shares <= MOST_SHARES:
        found = f"{threshold} of {shares} shares of {len(secret)} bytes"
        remedy = f"share {SECRET} bytes among at most {MOST_SHARES}, of whom at least 2"
        raise PrivacyError(refusal("shares of a secret", found, remedy))
    halves = [Shamir.split(threshold, shares, secret[i : i + _HALF], ssss=False) for i in (0, _HALF)]
    return [first + second for (_, first), (_, second) in zip(*halves, strict=True)]


def join(shares: Mapping[int, bytes]) -> bytes:
    """The secret of which these are shares by point. With too few, or wrong ones, it is another 32 bytes."""
    return b"".join(
        Shamir.combine([(point, share[i : i + _HALF]) for point, share in shares.items()], ssss=False)
        for i in (0, _HALF)
    )


class Keystream:
    """The words that a key stands for, little-endian, at any place.

    key: 32 bytes, used for nothing else: the counter starts at zero
    bits: 16, 32 or 64, of a word
    """

    def __init__(self, key: bytes, bits: int) -> None:
        self.dtype = np.dtype(f"<u{bits // 8}")
        self._algorithm = algorithms.AES(key)

    def from_block(self, block: int) -> CipherContext:
        """The cipher from the `block`th block of 16 bytes on."""
        return Cipher(self._algorithm, modes.CTR(block.to_bytes(_BLOCK, "big"))).encryptor()

    def words(self, offset: int, count: int) -> NDArray[Any]:
        """`count` words from word `offset` on, as a new array."""
        return apply(np.zeros(count, self.dtype), offset, [self])


def apply(
    words: NDArray[Any], offset: int, added: Sequence[Keystream], subtracted: Sequence[Keystream] = ()
) -> NDArray[Any]:
    """Add and subtract streams from word `offset` on, in place, modulo the size of a word; gives `words` back.

    words: one-dimensional and contiguous, of the streams' type; nothing of its size is made beside it
    """
    size = words.dtype.itemsize
    block, skip = divmod(offset * size, _BLOCK)
    buffer = bytearray(_AT_ONCE + _BLOCK)
    stream = np.frombuffer(buffer, words.dtype, _AT_ONCE // size)
    ciphers: list[tuple[CipherContext, np.ufunc]] = [(keys.from_block(block), np.add) for keys in added]
    ciphers += [(keys.from_block(block), np.subtract) for keys in subtracted]
    for cipher, _ in ciphers if skip else ():
        cipher.update(_ZEROS[:skip])
    step = _AT_ONCE // size
    for place in range(0, words.size, step):
        part = words[place : place + step]
        zeros = _ZEROS if part.size == step else _ZEROS[: part.size * size]
        for cipher, operation in ciphers:
            cipher.update_into(zeros, buffer)
            operation(part, stream[: part.size], out=part)
    return words
