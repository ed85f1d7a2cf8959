"""Known answers of every primitive, from the documents that define them."""

from __future__ import annotations

import hashlib
import hmac

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given
from hypothesis import strategies as st

from pm1_core.errors import PrivacyError
from pm1_core.privacy.primitives import (
    Keystream,
    agree,
    apply,
    canonical,
    derive,
    join,
    public_of,
    seal,
    signed_by,
    split,
    unseal,
)
from pm1_core.signing import Signer


def _hex(text: str) -> bytes:
    return bytes.fromhex(text.replace(" ", ""))


def test_agreement_is_x25519_of_rfc_7748_section_6_1():
    alice = _hex("77076d0a7318a57d3c16c17251b26645 df4c2f87ebc0992ab177fba51db92c2a")
    bob = _hex("5dab087e624a8a4b79e17f8b83800ee6 6f3bb1292618b6fd1c2f8b27ff88e0eb")
    assert public_of(alice) == _hex("8520f0098930a754748b7ddcb43ef75a 0dbf3a0d26381af4eba4a98eaa9b4e6a")
    assert public_of(bob) == _hex("de9edb7d7b7dc1b4d35b61c2ece43537 3f8343c85b78674dadfc7e146f882b4f")
    shared = _hex("4a5d9d5ba4ce2de1728e3bf480350f25 e07e21c947d19e3376f09b3c1e161742")
    assert agree(alice, public_of(bob)) == agree(bob, public_of(alice)) == shared


@pytest.mark.parametrize("point", [0, 1])
def test_a_public_key_of_small_order_is_no_agreement(point: int):
    with pytest.raises(ValueError, match="key"):
        agree(bytes(range(32)), point.to_bytes(32, "little"))


def _hkdf(secret: bytes, salt: bytes, info: bytes, length: int) -> bytes:
    """RFC 5869, section 2, written out."""
    key = hmac.digest(salt or bytes(32), secret, hashlib.sha256)
    out, block = b"", b""
    while len(out) < length:
        block = hmac.digest(key, block + info + bytes([len(out) // 32 + 1]), hashlib.sha256)
        out += block
    return out[:length]


def test_derivation_is_hkdf_sha256_of_rfc_5869():
    # Appendix A.1 and A.3 hold the formula above to account, and it holds `derive`.
    first = _hkdf(b"\x0b" * 22, bytes(range(13)), bytes(range(0xF0, 0xFA)), 42)
    assert first == _hex(
        "3cb25f25faacd57a90434f64d0362f2a 2d2d0a90cf1a5a4c5db02d56ecc4c5bf 34007208d5b887185865"
    )
    third = _hkdf(b"\x0b" * 22, b"", b"", 42)
    assert third == _hex(
        "8da4e775a563c18f715f802a063c5a31 b8a11f5c5ee1879ec3454e5f3c738d2d 9d201395faa4b61a96c8"
    )
    context = {"pair": ["a", "b"], "attempt": 3}
    assert derive(b"\x0b" * 32, context) == _hkdf(b"\x0b" * 32, b"", canonical(context), 32)


_KEY = _hex("603deb1015ca71be2b73aef0857d7781 1f352c073b6108d72d9810a30914dff4")


def test_the_cipher_is_aes_256_in_counter_mode_of_sp_800_38a_f_5_5():
    counter = int.from_bytes(bytes(range(0xF0, 0x100)), "big")
    plain = _hex(
        "6bc1bee22e409f96e93d7e117393172a ae2d8a571e03ac9c9eb76fac45af8e51"
        "30c81c46a35ce411e5fbc1191a0a52ef f69f2445df4f9b17ad2b417be66c3710"
    )
    hidden = _hex(
        "601ec313775789a5b7a7f504bbf3d228 f443e3ca4d62b59aca84e990cacaf5c5"
        "2b0930daa23de94ce87017ba2d84988d dfc9c58db67aada613c2dd08457941a6"
    )
    assert Keystream(_KEY, 32).from_block(counter).update(plain) == hidden


@pytest.mark.parametrize("bits", [16, 32, 64])
def test_a_stream_is_the_cipher_of_a_counter_from_zero_read_as_little_endian_words(bits: int):
    blocks = b"".join(i.to_bytes(16, "big") for i in range(64))
    expected = Cipher(algorithms.AES(_KEY), modes.ECB()).encryptor().update(blocks)
    found = Keystream(_KEY, bits).words(0, 64 * 128 // bits)
    assert found.tobytes() == expected


@given(st.sampled_from([16, 32, 64]), st.integers(0, 300_000), st.integers(0, 300_000))
def test_a_part_of_a_stream_is_that_part_of_the_whole(bits: int, start: int, count: int):
    stream = Keystream(_KEY, bits)
    whole = stream.words(0, start + count)
    assert (stream.words(start, count) == whole[start:]).all()


def test_streams_far_along_do_not_repeat():
    stream = Keystream(_KEY, 32)
    near, far = stream.words(0, 4096), stream.words(2**40 + 2, 4096)
    assert len(np.intersect1d(near, far)) < 8
    assert (stream.words(2**40, 4098)[2:] == far).all()


def test_what_is_added_and_subtracted_leaves_nothing():
    one, other = Keystream(_KEY, 16), Keystream(bytes(32), 16)
    words = np.arange(70_000).astype("<u2")
    hidden = apply(words.copy(), 5, [one], [other])
    assert (hidden == words).mean() < 0.001
    assert (apply(hidden, 5, [other], [one]) == words).all()


def test_envelopes_are_chacha20_poly1305_of_rfc_8439_section_2_8_2():
    plain = (
        b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the future, "
        b"sunscreen would be it."
    )
    hidden = _hex(
        "d31a8d34648e60db7b86afbc53ef7ec2 a4aded51296e08fea9e2b5a736ee62d6 3dbea45e8ca9671282fafb69da92728b"
        "1a71de0a9e060b2905d6a5b67ecd3b36 92ddbd7f2d778b8c9803aee328091b58 fab324e4fad675945585808b4831d7bc"
        "3ff4def08e4b7a9de576d26586cec64b 6116 1ae10b594f09e26a7e902ecbd0600691"
    )
    key, nonce, about = (
        bytes(range(0x80, 0xA0)),
        _hex("070000004041424344454647"),
        _hex("50515253c0c1c2c3c4c5c6c7"),
    )
    assert unseal(key, nonce + hidden, about) == plain


@given(st.binary(max_size=80), st.integers(0, 10**6))
def test_an_envelope_opens_whole_or_not_at_all(plain: bytes, place: int):
    key, about = bytes(32), b"from a to b"
    envelope = seal(key, plain, about)
    assert unseal(key, envelope, about) == plain
    flipped = bytearray(envelope)
    flipped[place // 8 % len(flipped)] ^= 1 << place % 8
    for wrong in (
        (key, bytes(flipped), about),
        (b"\1" * 32, envelope, about),
        (key, envelope, b"from b to a"),
    ):
        with pytest.raises(ValueError, match="envelope"):
            unseal(*wrong)


def test_no_two_envelopes_are_alike():
    assert len({seal(bytes(32), b"same", b"") for _ in range(50)}) == 50


def test_signatures_are_ed25519_of_rfc_8032_section_7_1():
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    secret = _hex("9d61b19deffd5a60ba844af492ec2cc4 4449c5697b326919703bac031cae7f60")
    public = _hex("d75a980182b10ab7d54bfed3c964073a 0ee172f3daa62325af021a68f707511a")
    signature = _hex(
        "e5564300c360ac729086e2cc806e828a 84877f1eb8e5d974d873e06522490155"
        "5fb8821590a33bacc61e39701cf9b46b d25bf5f0595bbe24655141438e7a100b"
    )
    assert Signer(Ed25519PrivateKey.from_private_bytes(secret)).sign(b"") == signature.hex()
    assert signed_by(public, b"", signature)
    assert not signed_by(public, b"x", signature)
    assert not signed_by(public, b"", signature[:-1] + b"\0")
    assert not signed_by(bytes(32), b"", signature)


def _times(one: int, other: int) -> int:
    """Product in GF(2^128) of polynomials modulo x^128 + x^7 + x^2 + x + 1, written out."""
    product = 0
    for bit in range(128):
        if other >> bit & 1:
            product ^= one << bit
    for bit in range(255, 127, -1):
        if product >> bit & 1:
            product ^= (1 << 128 | 0x87) << bit - 128
    return product


def _inverse(one: int) -> int:
    """Fermat: x^(2^128 - 2)."""
    result, power = 1, one
    for _ in range(127):
        power = _times(power, power)
        result = _times(result, power)
    return result


def _interpolated(shares: dict[int, int]) -> int:
    """Lagrange at zero."""
    total = 0
    for point, share in shares.items():
        term = share
        for other in shares:
            if other != point:
                term = _times(term, _times(other, _inverse(other ^ point)))
        total ^= term
    return total


def test_joining_is_shamirs_line_through_two_points_worked_out_by_hand():
    # Secret 5, slope 3: 5 + 3 at 1, 5 + 2 * 3 at 2; in characteristic 2 the sum is xor, and 2 * 3 is x (x + 1) = 6.
    shares = {1: (5 ^ 3).to_bytes(16, "big") * 2, 2: (5 ^ 6).to_bytes(16, "big") * 2}
    assert join(shares) == (5).to_bytes(16, "big") * 2


@pytest.mark.parametrize(("threshold", "count"), [(2, 3), (3, 4), (5, 6), (14, 20)])
def test_sharing_is_polynomials_over_gf_2_128_as_interpolated_by_another_hand(threshold: int, count: int):
    secret = bytes(range(100, 132))
    shares = split(secret, threshold, count)
    chosen = np.random.default_rng(threshold).permutation(count)[:threshold] + 1
    for half in (slice(0, 16), slice(16, 32)):
        points = {int(i): int.from_bytes(shares[i - 1][half], "big") for i in chosen}
        assert _interpolated(points).to_bytes(16, "big") == secret[half]
    assert join({int(i): shares[i - 1] for i in chosen}) == secret
    assert join({int(i): shares[i - 1] for i in chosen[:-1]}) != secret


def test_the_two_halves_of_a_secret_have_polynomials_of_their_own():
    for share in split(b"same half twice." * 2, 3, 5):
        assert share[:16] != share[16:]


@pytest.mark.parametrize(
    ("secret", "threshold", "count"), [(31, 2, 3), (32, 1, 3), (32, 4, 3), (32, 2, 1 << 17)]
)
def test_shares_that_cannot_be_are_refused(secret: int, threshold: int, count: int):
    with pytest.raises(PrivacyError, match="shares"):
        split(bytes(secret), threshold, count)
