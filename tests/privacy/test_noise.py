"""Noise is normal, independent, from AES, and on a grid that does not depend on what it hides."""

from __future__ import annotations

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from randomgen import AESCounter
from scipy import stats

from pm1_core.errors import InputError, PrivacyError
from pm1_core.privacy.noise import gaussian, gaussian_each, grid, poisson_sample, secret_generator

_RARE = 1e-6
"""A true null hypothesis is rejected this often: these tests draw what nobody can seed."""


def test_the_generator_is_aes_in_counter_mode_as_others_write_it():
    """Block i is AES-128 of the number i, little-endian; `cryptography` computes the same."""
    ours = AESCounter(key=int.from_bytes(bytes(range(16)), "little"), counter=0).random_raw(64)
    encryptor = Cipher(algorithms.AES(bytes(range(16))), modes.ECB()).encryptor()
    theirs = encryptor.update(b"".join(block.to_bytes(16, "little") for block in range(32)))
    assert ours.astype("<u8").tobytes() == theirs


def test_no_two_generators_agree_and_none_follows_a_seed():
    np.random.seed(1)  # noqa: NPY002 - what must not matter
    first = secret_generator().random(8)
    np.random.seed(1)  # noqa: NPY002
    second = secret_generator().random(8)
    assert not np.isin(first, second).any()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("sensitivity", "multiplier"), [(1.0, 1.0), (0.37, 4.0), (50.0, 0.3)])
def test_noise_is_normal_with_a_little_more_than_the_claimed_deviation(
    dtype: type, sensitivity: float, multiplier: float
):
    values = np.full((50, 4000), 3.25 * sensitivity, dtype)
    noised = gaussian(values, sensitivity, multiplier, secret_generator())
    assert noised.shape == values.shape
    assert noised.dtype == values.dtype
    deviation = sensitivity * multiplier * (1 + 2**-10)
    found = (noised - values).ravel().astype(np.float64) / deviation
    assert stats.kstest(found, "norm").pvalue > _RARE
    assert abs(stats.kurtosis(found)) < 6 * np.sqrt(24 / found.size)


def test_noise_is_independent_along_an_array_and_between_arrays():
    secret = secret_generator()
    first, second = (gaussian(np.zeros(1 << 18), 1.0, 1.0, secret) for _ in range(2))
    bound = 6 / np.sqrt(first.size)
    for one, other in ((first[1:], first[:-1]), (first[7:], first[:-7]), (first, second)):
        assert abs(np.corrcoef(one, other)[0, 1]) < bound
        assert abs(np.corrcoef(one**2, other**2)[0, 1]) < bound


@pytest.mark.parametrize("sensitivity", [1.0, 1.99, 0.003, 777.0])
def test_what_leaves_is_on_the_grid_whatever_it_hides(sensitivity: float):
    generator = np.random.default_rng(0)
    values = generator.normal(size=4096) * sensitivity * generator.choice([1e-12, 1e-3, 1.0, 1e3], 4096)
    step = grid(sensitivity)
    assert step <= sensitivity * 2**-26
    steps = gaussian(values, sensitivity, 1.0, secret_generator()) / step
    assert (steps == np.rint(steps)).all()
    assert len(np.unique(steps % 4)) == 4


def _low_bits_tell(release: object) -> float:
    """How often the low bits of small outcomes differ between hiding 0 and hiding 1: 0 if they tell nothing."""
    finer = []
    for hidden in (0.0, 1.0):
        outcomes = np.concatenate([release(np.full(4096, hidden)) for _ in range(20)])  # type: ignore[operator]
        small = outcomes[np.abs(outcomes) < 2**-6]
        assert len(small) > 100
        finer.append(np.mean(small * 2.0**54 != np.rint(small * 2.0**54)))
    return float(abs(finer[0] - finer[1]))


def test_low_bits_tell_nothing_where_plain_addition_gives_the_value_away():
    secret = secret_generator()
    assert _low_bits_tell(lambda values: values + secret.normal(0.0, 1.0, values.shape)) > 0.5
    assert _low_bits_tell(lambda values: gaussian(values, 1.0, 1.0, secret)) == 0.0


def test_rounding_never_moves_neighbours_further_apart_than_the_enlarged_noise_covers():
    generator = np.random.default_rng(3)
    step = grid(1.0)
    values = generator.normal(size=1 << 20)
    move = generator.normal(size=values.size)
    other = values + move / np.linalg.norm(move)
    moved = np.linalg.norm(np.rint(values / step) * step - np.rint(other / step) * step)
    assert 1.0 < moved + 1e-6 <= 1 + step * np.sqrt(values.size) + 1e-6 <= 1 + 2**-10


def test_values_that_are_no_numbers_or_beyond_all_bounds_still_get_noise():
    noised = gaussian(np.array([np.nan, np.inf, -np.inf, 1e300]), 1.0, 1.0, secret_generator())
    assert np.isfinite(noised).all()
    assert abs(noised[0]) < 10


@pytest.mark.parametrize(
    ("sensitivity", "multiplier"),
    [(0.0, 1.0), (1.0, 0.0), (1.0, -1.0), (np.inf, 1.0), (1.0, np.nan), (1.0, 1e12)],
)
def test_a_release_without_noise_or_without_a_bound_is_refused(sensitivity: float, multiplier: float):
    with pytest.raises(PrivacyError, match=r"sensitivity|noise multiplier"):
        gaussian(np.zeros(3), sensitivity, multiplier, secret_generator())


def test_poisson_sampling_takes_each_by_itself_with_the_claimed_rate():
    secret = secret_generator()
    steps, people, rate = 4000, 300, 0.1
    taken = np.stack([poisson_sample(people, rate, secret) for _ in range(steps)])
    assert taken.dtype == np.bool_
    sizes = taken.sum(1)
    # A batch of fixed size, or a shuffled pass, would have no spread, or one that is too small.
    assert abs(sizes.mean() - people * rate) < 6 * np.sqrt(people * rate * (1 - rate) / steps)
    spread = sizes.var() / (people * rate * (1 - rate))
    assert abs(spread - 1) < 6 * np.sqrt(2 / steps)
    assert abs(taken.mean(0) - rate).max() < 6 * np.sqrt(rate * (1 - rate) / steps)
    correlations = np.corrcoef(taken[:, :40].T)[np.triu_indices(40, 1)]
    assert abs(correlations).max() < 6 / np.sqrt(steps)


def test_poisson_sampling_at_its_ends():
    secret = secret_generator()
    assert not poisson_sample(100, 0.0, secret).any()
    assert poisson_sample(100, 1.0, secret).all()
    with pytest.raises(InputError, match="sampling rate"):
        poisson_sample(10, 1.5, secret)


def test_threads_draw_noise_apart_from_each_other():
    values = np.zeros(1 << 18, np.float32)
    found = gaussian_each([values], 1.0, 1.0, secret_generator(), threads=3)[0] / (1 + 2**-10)
    assert stats.kstest(found, "norm").pvalue > _RARE
    parts = np.array_split(found, 3)
    for first, second in ((0, 1), (1, 2), (0, 2)):
        size = min(len(parts[first]), len(parts[second]))
        assert not (parts[first][:size] == parts[second][:size]).all()
        assert abs(np.corrcoef(parts[first][:size], parts[second][:size])[0, 1]) < 5 / np.sqrt(size)
