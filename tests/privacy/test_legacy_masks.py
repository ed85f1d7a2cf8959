"""Why masks need the whole key: an update under masks of Flower 1.41's older construction is found by search.

There a mask is a Mersenne Twister that is seeded with at most 32 bits: the exclusive or of the words of a key
of 256 bits (`flwr.common.secure_aggregation.secaggplus_utils.pseudo_rand_gen`). Whoever holds all masks of a
site but one tries all seeds: the right one leaves small numbers, every other one leaves noise. A coordinator
comes to hold all but one

- of a site that is counted as lost and whose words come all the same: the shares of its mask key are
revealed, so that
  only its own mask is left;
- of a site all of whose neighbours but one collude: its own mask is revealed like everybody's, and the
colluders'
  masks are known.

Here 10 of the 32 bits are given, so that a search over the others ends in seconds; a search over all of them
takes 2^10 times as long, about half an hour on one core: `test_legacy_the_whole_search_is_within_reach`
measures it.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterable

import numpy as np
import pytest
from flwr.common.secure_aggregation.ndarrays_arithmetic import (
    factor_combine,
    parameters_addition,
    parameters_mod,
    parameters_subtraction,
)
from flwr.common.secure_aggregation.quantization import dequantize, quantize
from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen
from secure_sites import Sum, terms

from pm1_core.privacy import secure_view
from pm1_core.privacy.primitives import Keystream, apply

_MODULUS = 1 << 32
_CLIP = 1.0
_TARGET = 1 << 20
_WEIGHT = 300
_KNOWN_BITS = 10
_AT_ONCE = 1 << 14
_LOOK = 8
"""Words that are looked at: noise passes for small numbers in all of them once in 2^(12 * 8) seeds."""
_SITES = 4

Heads = Callable[[np.ndarray, int], np.ndarray]
"""Of seeds, uint32 [n], and a number of words: how the masks of these seeds begin, int64 [n, words]."""


def _search(masked: np.ndarray, heads: Heads, seeds: range, sign: int = 1) -> int | None:
    """The attack. The seed whose mask, taken off, leaves small numbers in the first words; None if there is
    none.

    masked: words of a site with all masks but one taken off, int64 modulo 2^32; sign: of that mask in them
    """
    for start in range(seeds.start, seeds.stop, _AT_ONCE):
        batch = np.arange(start, min(start + _AT_ONCE, seeds.stop), dtype=np.uint64).astype(np.uint32)
        for look in (2, _LOOK):  # two words leave few seeds to look at more closely
            left = (masked[:look] - sign * heads(batch, look)) % _MODULUS
            # Encoded from zero on, or around zero in two's complement.
            batch = batch[(np.minimum(left, _MODULUS - left) <= _TARGET).all(1)]
        if batch.size:
            return int(batch[0])
    return None


def _twister_heads(seeds: np.ndarray, words: int) -> np.ndarray:
    """The first outputs of the Mersenne Twister (Matsumoto and Nishimura 1998) of many seeds at once.

    An output takes three words of the state, and the state's first 397 + `words` words are made one from the
    other. Flower's bounded numbers are these outputs, but for 2^32 - 1, which is drawn again: once in 2^32.
    """
    first, last = [], []
    state = seeds.astype(np.uint32)
    for place in range(397 + words):
        if place:
            state = np.uint32(1812433253) * (state ^ state >> np.uint32(30)) + np.uint32(place)
        if place <= words:
            first.append(state)
        elif place >= 397:
            last.append(state)
    out = np.empty((seeds.size, words), np.int64)
    for j in range(words):
        y = first[j] & np.uint32(0x80000000) | first[j + 1] & np.uint32(0x7FFFFFFF)
        y = last[j] ^ y >> np.uint32(1) ^ (y & np.uint32(1)) * np.uint32(0x9908B0DF)
        y ^= y >> np.uint32(11)
        y ^= y << np.uint32(7) & np.uint32(0x9D2C5680)
        y ^= y << np.uint32(15) & np.uint32(0xEFC60000)
        out[:, j] = y ^ y >> np.uint32(18)
    return out


def _legacy_mask(seed: int, words: int) -> np.ndarray:
    """A vector's mask as Flower makes it: the first array is the factor, a number; the second the update."""
    return np.concatenate(pseudo_rand_gen(seed.to_bytes(4, "little"), _MODULUS, [(1,), (words - 1,)]))


@pytest.mark.parametrize("seed", [0, 1, 5489, 0xDEADBEEF, 2**32 - 1])
def test_legacy_masks_begin_as_the_search_computes_them(seed: int):
    assert (_twister_heads(np.array([seed], np.uint32), _LOOK)[0] == _legacy_mask(seed, 20)[:_LOOK]).all()


def _folded(key: bytes) -> int:
    """What is left of a key of 256 bits."""
    return int(np.bitwise_xor.reduce(np.frombuffer(key, "<u4")))


class _Legacy:
    """One site under the older construction, with everybody's keys at hand."""

    def __init__(self, words: int) -> None:
        generator = np.random.default_rng(1)
        self.update = generator.normal(size=words).astype(np.float32) * 0.1
        self.own = secrets.token_bytes(32)
        self.pairs = [secrets.token_bytes(32) for _ in range(_SITES - 1)]
        vector = factor_combine(_WEIGHT, quantize([self.update], _CLIP, _TARGET))
        shapes = [array.shape for array in vector]
        vector = parameters_addition(vector, pseudo_rand_gen(self.own, _MODULUS, shapes))
        for place, key in enumerate(self.pairs):
            mask = pseudo_rand_gen(key, _MODULUS, shapes)
            vector = (parameters_addition if place % 2 else parameters_subtraction)(vector, mask)
        self.sent = np.concatenate(parameters_mod(vector, _MODULUS)).astype(np.int64)

    def without(self, known: Iterable[bytes]) -> np.ndarray:
        """The words with all masks taken off whose keys the coordinator holds."""
        left = self.sent.copy()
        for key in known:
            sign = 1 if key == self.own or self.pairs.index(key) % 2 else -1
            left -= sign * _legacy_mask(_folded(key), left.size)
        return left % _MODULUS


def _half_known(seed: int) -> range:
    """All seeds that begin with the bits that are given."""
    start = seed >> _KNOWN_BITS << _KNOWN_BITS
    return range(start, start + (1 << 32 - _KNOWN_BITS))


def _read(site: _Legacy, left: np.ndarray, key: bytes, sign: int = 1) -> np.ndarray:
    """What the coordinator reads once the seed is found."""
    seed = _search(left, _twister_heads, _half_known(_folded(key)), sign)
    assert seed is not None
    plain = (left - sign * _legacy_mask(seed, left.size)) % _MODULUS
    assert plain[0] == _WEIGHT
    return dequantize([plain[1:]], _CLIP, _TARGET)[0]


def test_legacy_the_update_of_a_site_that_was_counted_as_lost_after_its_upload_is_read():
    site = _Legacy(20_000)
    found = _read(site, site.without(site.pairs), site.own)
    assert np.abs(found - np.clip(site.update, -_CLIP, _CLIP)).max() <= 2 * _CLIP / _TARGET * 1.01


def test_legacy_the_update_of_a_site_with_one_honest_neighbour_is_read():
    site = _Legacy(20_000)
    honest = site.pairs[1]
    known = [site.own, *(key for key in site.pairs if key != honest)]
    found = _read(site, site.without(known), honest)
    assert np.abs(found - np.clip(site.update, -_CLIP, _CLIP)).max() <= 2 * _CLIP / _TARGET * 1.01


def test_legacy_two_unknown_masks_are_not_found_by_a_search_over_one():
    """The search finds what is there, not anything: with two masks left nothing looks like an update."""
    site = _Legacy(1000)
    left = site.without(site.pairs[1:])
    assert _search(left, _twister_heads, _half_known(_folded(site.own))) is None


def test_legacy_the_whole_search_is_within_reach():
    """A sample of seeds, timed: all 2^32 of them take well under 12 hours on one core, and divide among
    cores."""
    site = _Legacy(1000)
    left = site.without(site.pairs)
    start = time.perf_counter()
    count = 1 << 20
    assert _search(left, _twister_heads, range(count)) in (None, _folded(site.own))
    hours = (time.perf_counter() - start) / count * 2**32 / 3600
    assert hours < 12


@pytest.fixture(scope="module")
def ours() -> tuple[np.ndarray, bytes, np.ndarray]:
    """Our words in the same position: all masks but the own one taken off, that one's key, and the plain
    words."""
    plain = np.random.default_rng(2).integers(0, _TARGET, 1000).astype("<u4")
    round_ = Sum(terms(_SITES, plain.size), {"site00": plain}).until("agree")
    member = round_.members["site00"]
    plus, minus = member._masks()
    left = apply(round_.sent["site00"].copy(), 0, minus, plus[1:])
    own = secure_view.self_key(round_.terms, "site00", member._secret("secret"))
    assert (apply(left.copy(), 0, [], [Keystream(own, 32)]) == plain).all()
    return left.astype(np.int64), own, plain


def _aes_heads(seeds: np.ndarray, words: int) -> np.ndarray:
    """How the streams begin of keys that are nothing but a seed."""
    return (
        np.stack([Keystream(int(seed).to_bytes(32, "little"), 32).words(0, words) for seed in seeds]).astype(
            np.int64
        )
        if seeds.size
        else np.empty((0, words), np.int64)
    )


def test_the_same_search_finds_nothing_under_ours(ours: tuple[np.ndarray, bytes, np.ndarray]):
    """Neither with the older masks nor with AES under seeds of 32 bits, around the folded key or from zero."""
    left, own, _ = ours
    for start in (_half_known(_folded(own)).start, 0):
        assert _search(left, _twister_heads, range(start, start + (1 << 32 - _KNOWN_BITS))) is None
        assert _search(left, _aes_heads, range(start, start + (1 << 14))) is None


def test_the_same_search_would_find_an_aes_key_of_32_bits(ours: tuple[np.ndarray, bytes, np.ndarray]):
    """It is the length of the key that keeps it out, not that it could not read our words."""
    _, _, plain = ours
    seed = secrets.randbits(32)
    hidden = apply(plain.copy(), 0, [Keystream(seed.to_bytes(32, "little"), 32)]).astype(np.int64)
    near = range(max(0, seed - 5000), min(2**32, seed + 5000))
    assert _search(hidden, _aes_heads, near) == seed
