"""The same bytes are not opened over sets of sites from which a sum over fewer than three can be worked out."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pm1_core.errors import PrivacyError
from pm1_core.privacy.opened import MOST_SETS, Openings, fewest

_ALL = frozenset("abcdefgh")


def test_the_difference_of_two_sums_over_sets_that_differ_by_one_site_is_that_sites_vector():
    """What the rule is against, with numbers."""
    generator = np.random.default_rng(0)
    vectors = {site: generator.normal(size=5) for site in _ALL}
    first, second = (sum(vectors[s] for s in sites) for sites in (_ALL, _ALL - {"c"}))
    assert np.allclose(first - second, vectors["c"])


@pytest.mark.parametrize("gone", ["a", "h", "ab", "gh"])
def test_a_second_set_that_lacks_one_or_two_sites_is_refused(gone: str):
    opened = Openings({}).with_opened("plain", _ALL)
    with pytest.raises(PrivacyError, match=f"tells a sum over {len(gone)}"):
        opened.with_opened("plain", _ALL - set(gone))
    # The other order tells the same.
    opened = Openings({}).with_opened("plain", _ALL - set(gone))
    with pytest.raises(PrivacyError, match=f"tells a sum over {len(gone)}"):
        opened.with_opened("plain", _ALL)


def test_one_site_in_place_of_another_is_refused():
    opened = Openings({}).with_opened("plain", _ALL - {"a"})
    with pytest.raises(PrivacyError, match="tells a sum over 2"):
        opened.with_opened("plain", _ALL - {"b"})


def test_the_same_set_other_bytes_and_sets_that_are_far_apart_are_let_through():
    opened = Openings({}).with_opened("plain", _ALL)
    assert opened.with_opened("plain", sorted(_ALL)) == opened
    assert len(opened.with_opened("other", _ALL - {"a"}).sets) == 2
    assert len(opened.with_opened("plain", _ALL - set("abc")).sets["plain"]) == 2


def test_three_sets_that_are_pairwise_far_apart_may_still_tell_one_site():
    """S1 + S2 - S3 of the sets below is twice site a, though any two differ by four sites or more."""
    one, two, three = frozenset("abcd"), frozenset("aefg"), frozenset("bcdefg")
    opened = Openings({}).with_opened("plain", one).with_opened("plain", two)
    with pytest.raises(PrivacyError, match="tells a sum over 1"):
        opened.with_opened("plain", three)


def test_with_site_level_privacy_nothing_is_opened_twice():
    opened = Openings({}).with_opened("plain", _ALL, once=True)
    for sites in (_ALL, _ALL - set("abc")):
        with pytest.raises(PrivacyError, match="opened before"):
            opened.with_opened("plain", sites, once=True)


def test_the_number_of_sets_is_bounded():
    sites = [frozenset(str(10 * i + j) for j in range(9)) for i in range(MOST_SETS + 1)]
    opened = Openings({})
    for chosen in sites[:-1]:
        opened = opened.with_opened("plain", chosen)
    with pytest.raises(PrivacyError, match=f"over {MOST_SETS} sets"):
        opened.with_opened("plain", sites[-1])


@given(st.lists(st.frozensets(st.sampled_from("abcdef")), max_size=3))
def test_the_fewest_sites_are_those_of_a_search_over_small_coefficients(sets: list[frozenset[str]]):
    """Determinants of 0-1 matrices of three rows are at most 2, so coefficients up to 2 reach every least one."""
    matrix = np.array([[site in chosen for site in "abcdef"] for chosen in sets], int).reshape(len(sets), 6)
    supports = [
        np.count_nonzero(np.array(c) @ matrix)
        for c in product(range(-2, 3), repeat=len(sets))
        if (np.array(c) @ matrix).any()
    ]
    assert fewest(sets) == min(supports, default=0)


@given(
    st.dictionaries(st.text(max_size=5), st.lists(st.frozensets(st.text(max_size=4)), max_size=3), max_size=3)
)
def test_openings_go_through_their_file(sets: dict[str, list[frozenset[str]]]):
    held = Openings({plain: tuple(chosen) for plain, chosen in sets.items()})
    assert Openings.from_bytes(held.to_bytes()) == held
    assert Openings.from_bytes(b"") == Openings({})


@pytest.mark.parametrize(
    "content", [b"{", b"[]", b'{"opened":[]}', b'{"opened":{"a":[1]}}', b'{"opened":{"a":1}}']
)
def test_a_damaged_file_opens_nothing(content: bytes):
    with pytest.raises(PrivacyError):
        Openings.from_bytes(content)
