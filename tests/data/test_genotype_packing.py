"""Two bits a SNP lose nothing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pm1_core.data.chromosome_file import ChromosomeWriter
from pm1_core.data.genotype import pack, packed_width, unpack
from pm1_core.data.genotype_blocks import block_of, remove, replace, turn
from pm1_core.errors import InputError

matrices = st.tuples(st.integers(0, 5), st.integers(0, 21)).flatmap(
    lambda shape: arrays(np.uint8, shape, elements=st.integers(0, 3))
)


@given(matrices)
def test_unpacking_undoes_packing(dosages: np.ndarray) -> None:
    packed = pack(dosages)
    assert packed.shape == (len(dosages), packed_width(dosages.shape[1]))
    np.testing.assert_array_equal(unpack(packed, dosages.shape[1]), dosages)


@pytest.mark.parametrize("snps", [300_000, 300_001, 299_999])
def test_long_chromosomes_come_back_whole_at_a_sixteenth_of_int32(snps: int) -> None:
    dosages = np.random.default_rng(snps).integers(0, 4, (3, snps), dtype=np.uint8)
    packed = pack(dosages)
    np.testing.assert_array_equal(unpack(packed, snps), dosages)
    np.testing.assert_array_equal(unpack(packed[::2], snps), dosages[::2])
    assert packed.nbytes * 16 - dosages.astype(np.int32).nbytes <= 3 * 4 * 3  # of the last byte of a person


def test_snp_i_of_a_byte_stands_at_two_i() -> None:
    assert pack(np.array([[1, 2, 3, 0, 2]], np.uint8)).tolist() == [[0b00_11_10_01, 0b11_11_11_10]]


def test_a_value_above_three_is_refused() -> None:
    with pytest.raises(InputError, match="found 4"):
        pack(np.array([[4]], np.uint8))


def test_a_wrong_width_is_refused() -> None:
    with pytest.raises(InputError, match="found 1 bytes a person; give 2"):
        unpack(np.zeros((2, 1), np.uint8), 5)


@given(st.permutations(range(11)), st.integers(1, 11))
def test_blocks_in_any_order_fill_a_chromosome(tmp_path_factory, order, size) -> None:
    path = tmp_path_factory.mktemp("chromosome") / "chr1.npy"
    dosages = np.random.default_rng(0).integers(0, 4, (3, 13), dtype=np.uint8)
    writer = ChromosomeWriter(path, 3, 13)
    for start in range(0, 11, size):
        snps = np.array(order[start : start + size])
        writer.put(block_of(1, snps, dosages[:, snps]))
    writer.finish()
    dosages[:, 11:] = 3  # never written
    np.testing.assert_array_equal(unpack(np.load(path), 13), dosages)


@given(st.integers(1, 5), st.integers(1, 21), st.randoms(use_true_random=False))
def test_a_block_counts_missing_calls_and_finds_snps_of_one_value(people: int, snps: int, chance) -> None:
    rng = np.random.default_rng(chance.randrange(2**32))
    dosages = rng.integers(0, 4, (people, snps), dtype=np.uint8)
    chosen = 4 * rng.integers(0, 3) + np.flatnonzero(rng.random(snps) < 0.7)
    if not len(chosen):
        return
    block = block_of(1, chosen, dosages[:, : len(chosen)])
    assert block.snps.tolist() == chosen.tolist()
    missing, constant = block.statistics()
    ours = dosages[:, : len(chosen)]
    assert missing.tolist() == (ours == 3).sum(1).tolist()
    alike = [len(set(column[column < 3].tolist())) < 2 for column in ours.T]
    assert (block.first + np.flatnonzero(constant)).tolist() == chosen[alike].tolist()


def test_packed_snps_are_turned_removed_and_replaced_alone() -> None:
    dosages = np.random.default_rng(0).integers(0, 4, (50, 12), dtype=np.uint8)
    packed, here = pack(dosages), np.zeros(12, bool)
    here[[1, 6]] = True
    turn(packed, here)
    expected = dosages.copy()
    expected[:, here] = np.array([2, 1, 0, 3], np.uint8)[dosages[:, here]]
    np.testing.assert_array_equal(unpack(packed, 12), expected)
    remove(packed, np.roll(here, 1))
    expected[:, [2, 7]] = 3
    np.testing.assert_array_equal(unpack(packed, 12), expected)
    replace(packed, 9, dosages[:, 0])
    expected[:, 9] = dosages[:, 0]
    np.testing.assert_array_equal(unpack(packed, 12), expected)
