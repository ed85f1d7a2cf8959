"""What a coordinator sees of the words is uniform, whatever they hold; the same tests reject masks that are not."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats
from secure_sites import Sum, sum_of, terms

from pm1_core.privacy import secure_view
from pm1_core.privacy.primitives import Keystream, apply

_WORDS = 1 << 15
_SITES = 5
_RARE = 1e-7
"""A true null hypothesis is rejected this often: keys come from the operating system."""

Words = NDArray[np.unsignedinteger]


def _structured(bits: int) -> dict[str, Words]:
    """What is furthest from uniform: zeros, ones, a ramp, few values, the same vector twice."""
    dtype = np.dtype(f"<u{bits // 8}")
    ramp = np.arange(_WORDS).astype(dtype)
    vectors = [np.zeros(_WORDS, dtype), np.full(_WORDS, -1, "i8").astype(dtype), ramp, ramp, ramp % 3]
    return {f"site{i:02d}": words for i, words in enumerate(vectors)}


def _p_values(words: Words) -> dict[str, float]:
    """Tests of independent uniform words."""
    bits = 8 * words.dtype.itemsize
    counts = np.bincount(words.view(np.uint8), minlength=256)
    unit = words.astype(np.float64) / 2.0**bits
    centred = (unit - 0.5) * np.sqrt(12)
    found = {
        "bytes": stats.chisquare(counts).pvalue,
        "words": stats.kstest(unit, "uniform").pvalue,
        "bits": stats.binomtest(int(np.unpackbits(words.view(np.uint8)).sum()), bits * words.size).pvalue,
    }
    for lag in (1, 2, 7, 64, 4096):
        z = float(centred[lag:] @ centred[:-lag]) / np.sqrt(words.size - lag)
        found[f"serial, {lag}"] = 2 * stats.norm.sf(abs(z))
    return found


def _pair(one: Words, other: Words) -> float:
    """That two vectors have nothing to do with each other: of their correlation, and of their difference."""
    scale = 2.0 ** (8 * one.dtype.itemsize)
    x, y = (words.astype(np.float64) / scale - 0.5 for words in (one, other))
    correlated = 2 * stats.norm.sf(abs(float(x @ y) * 12) / np.sqrt(one.size))
    return float(min(correlated, *_p_values(one - other).values()))


def _view(round_: Sum) -> dict[str, Words]:
    """The words as they came, and as they are once everything that is revealed has been taken off them."""
    seen = dict(round_.sent)
    for site, secret in round_.collector._secrets["own"].items():
        own = Keystream(secure_view.self_key(round_.terms, site, bytes.fromhex(secret)), round_.terms.bits)
        seen[f"{site} without its own mask"] = apply(round_.sent[site].copy(), 0, [], [own])
    for lost, secret in round_.collector._secrets["mask"].items():
        for site in round_.collector.survivors:
            key = round_.collector._require_roll().mask_key(bytes.fromhex(secret), lost, site)
            name = f"{site} without its own mask"
            plus, minus = ([], [Keystream(key, round_.terms.bits)])
            if site > lost:
                plus, minus = minus, plus
            apply(seen[name], 0, plus, minus)
    bare = [name for name in seen if name.endswith("mask") and name[:6] in round_.collector.survivors]
    for left_out in bare:
        seen[f"sum but {left_out}"] = sum_of([seen[name] for name in bare if name != left_out])
    return seen


def _least(round_: Sum) -> float:
    seen = _view(round_)
    own = min(min(_p_values(words).values()) for words in seen.values())
    names = [name for name in seen if name in round_.sent]
    pairs = min(_pair(seen[a], seen[b]) for a in names for b in names if a < b)
    return min(own, pairs)


@pytest.mark.parametrize("bits", [16, 32, 64])
@pytest.mark.parametrize("lost", [{}, {"input": ["site02"]}])
def test_a_coordinators_view_is_uniform(bits: int, lost: dict[str, list[str]]):
    """Each site's words, also without all masks that can be taken off them; and every sum of all sites but one."""
    round_ = Sum(terms(_SITES, _WORDS, bits), _structured(bits))
    assert (round_.run(lost) == round_.expected()).all()
    assert _least(round_) > _RARE


def _weak(round_: Sum, stream: Callable[[bytes, int, int], Words], monkeypatch: pytest.MonkeyPatch) -> float:
    """The least p-value of the same round with `stream` in place of AES."""

    def applied(words: Words, offset: int, added: list, subtracted: list = ()) -> Words:  # type: ignore[assignment,type-arg]
        for keys, sign in ((added, 1), (subtracted, -1)):
            for key in keys:
                part = stream(key.words(0, 4).tobytes(), offset, words.size).astype(words.dtype)
                words += part if sign > 0 else -part
        return words

    monkeypatch.setattr("pm1_core.privacy.secure_member.apply", applied)
    monkeypatch.setattr("pm1_core.privacy.secure_collector.apply", applied)
    monkeypatch.setattr("test_secure_transcript.apply", applied)
    assert (round_.run() == round_.expected()).all()
    return _least(round_)


def _drawn(key: bytes, largest: int, size: int) -> Words:
    generator = np.random.default_rng(int.from_bytes(key[:8], "little"))
    return generator.integers(0, largest, size, np.uint64)


def _nothing(key: bytes, offset: int, size: int) -> Words:
    return np.zeros(size, np.uint64)


def _constant(key: bytes, offset: int, size: int) -> Words:
    return np.full(size, _drawn(key, 2**63, 1)[0])


def _counting(key: bytes, offset: int, size: int) -> Words:
    return _drawn(key, 2**63, 1)[0] + np.arange(offset, offset + size, dtype=np.uint64)


def _short_period(key: bytes, offset: int, size: int) -> Words:
    return _drawn(key, 2**63, 64)[np.arange(offset, offset + size) % 64]


def _few_bits(key: bytes, offset: int, size: int) -> Words:
    return _drawn(key, 2**12, offset + size)[offset:]


_BROKEN = {broken.__name__: broken for broken in (_nothing, _constant, _counting, _short_period, _few_bits)}


@pytest.mark.parametrize("name", list(_BROKEN))
def test_the_same_tests_reject_broken_masks(name: str, monkeypatch: pytest.MonkeyPatch):
    """Masks that cancel as they should, so that the sum is right, but do not hide."""
    round_ = Sum(terms(_SITES, _WORDS, 32), _structured(32))
    assert _weak(round_, _BROKEN[name], monkeypatch) < _RARE


def test_the_same_tests_reject_masks_that_serve_twice():
    """Differences of two rounds with the same keys are differences of what is hidden."""
    round_ = Sum(terms(_SITES, _WORDS, 32), _structured(32))
    round_.run()
    first = {site: words - round_.vector(site) for site, words in round_.sent.items()}
    again = {site: mask + round_.vector("site02") for site, mask in first.items()}
    assert min(_pair(again[site], round_.sent[site]) for site in again) < _RARE
