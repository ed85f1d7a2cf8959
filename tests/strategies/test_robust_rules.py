"""Robust rules stay with the honest sites whatever the others send, and refuse where they could not."""

from __future__ import annotations

import numpy as np
import pytest
from folded import fold, scalars
from hypothesis import given, settings
from hypothesis import strategies as st

from pm1_core.errors import FederationError
from pm1_core.update import Update
from strategies import Gathered, build, folding

ZERO = {"w": np.zeros(1, np.float32)}
LIES = st.floats(width=32, allow_nan=False, allow_infinity=False)


@pytest.mark.parametrize(
    ("options", "honest", "liars"),
    [
        ({"name": "median"}, 4, 3),
        ({"name": "median"}, 3, 1),
        ({"name": "trimmed_mean", "trim": 0.2}, 8, 2),
        ({"name": "trimmed_mean", "trim": 0.34}, 4, 2),
    ],
)
@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_every_coordinate_stays_within_honest_values(
    options: dict, honest: int, liars: int, data: st.DataObject
) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 2**31)))
    truths = rng.normal(size=(honest, 3)).astype(np.float32)
    lies = np.array(
        data.draw(st.lists(st.lists(LIES, min_size=3, max_size=3), min_size=liars, max_size=liars))
    )
    after = fold(build(options), {"w": np.zeros(3, np.float32)}, _among(truths, lies.astype(np.float32)))["w"]
    assert (after >= truths.min(axis=0)).all()
    assert (after <= truths.max(axis=0)).all()


@pytest.mark.parametrize("select", [1, 3])
@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_krum_never_chooses_who_lies_far_away(select: int, data: st.DataObject) -> None:
    """Two of eight, each further from every honest site than these are from each other; alike or not."""
    rng = np.random.default_rng(data.draw(st.integers(0, 2**31)))
    truths = rng.uniform(-1, 1, size=(6, 3)).astype(np.float32)
    far = st.floats(30, 2.0**127, width=32) | st.floats(-(2.0**127), -30, width=32)
    lie = data.draw(st.lists(far, min_size=3, max_size=3))
    other = data.draw(st.just(lie) | st.lists(far, min_size=3, max_size=3))
    options = {"name": "krum", "malicious": 2, "select": select}
    lies = np.array([lie, other], np.float32)
    after = fold(build(options), {"w": np.zeros(3, np.float32)}, _among(truths, lies))["w"]
    assert (after >= truths.min(axis=0)).all()
    assert (after <= truths.max(axis=0)).all()
    assert select > 1 or any(np.array_equal(after, truth) for truth in truths)


@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_bulyan_stays_within_twice_the_range_of_honest_values(data: st.DataObject) -> None:
    """The values nearest to a median of mostly honest ones are no further from it than an honest one is."""
    rng = np.random.default_rng(data.draw(st.integers(0, 2**31)))
    truths = rng.normal(size=(9, 3)).astype(np.float32)
    lies = np.array(data.draw(st.lists(st.lists(LIES, min_size=3, max_size=3), min_size=2, max_size=2)))
    updates = _among(truths, lies.astype(np.float32))
    after = fold(build({"name": "bulyan", "malicious": 2}), {"w": np.zeros(3, np.float32)}, updates)["w"]
    low, high = truths.min(axis=0), truths.max(axis=0)
    assert (after >= low - (high - low)).all()
    assert (after <= high + (high - low)).all()


@pytest.mark.parametrize(
    ("options", "values", "result"),
    [
        ({"name": "median"}, [1, 2, 9, -50, 3], 2),
        ({"name": "median"}, [1, 2, 4, 900], 3),
        ({"name": "trimmed_mean", "trim": 0.2}, [1, 2, 9, -50, 3], 2),
        ({"name": "trimmed_mean", "trim": 0.0}, [1, 2, 9], 4),
        # n = 5, f = 1: the two nearest others. Scores of 1, 2, 3, 4.5, 100: 5, 2, 3.25, 8.5, 18145.25.
        ({"name": "krum"}, [1, 2, 3, 4.5, 100], 2),
        ({"name": "krum", "select": 2}, [1, 2, 3, 4.5, 100], 2.5),
        # n = 7, f = 1: two of the ends go, then the three nearest to the median of five.
        ({"name": "bulyan"}, [0, 1, 2, 3, 4, 90, -90], 2),
        ({"name": "bulyan", "malicious": 0}, [0, 1, 5], 2),
    ],
)
def test_results_by_hand(options: dict, values: list[float], result: float) -> None:
    sites = {f"site{i}": value for i, value in enumerate(values)}
    claims = {site: float(10 ** (i % 3)) for i, site in enumerate(sites)}
    assert fold(build(options), ZERO, scalars(sites, claims))["w"][0] == pytest.approx(result)


@pytest.mark.parametrize(
    ("options", "count", "sentence"),
    [
        (
            {"name": "median"},
            2,
            r"tensor 'w': 2 sites trained it .*site0, site1.*, median needs at least 3; wait",
        ),
        (
            {"name": "trimmed_mean"},
            4,
            r"trimmed_mean with trim=0.2 needs at least 5; .* raise trim, or use median",
        ),
        (
            {"name": "krum"},
            4,
            r"krum with malicious=1, select=1 needs at least 5; wait .* or lower malicious",
        ),
        ({"name": "krum", "malicious": 2}, 6, r"krum with malicious=2, select=1 needs at least 7"),
        ({"name": "krum", "select": 3}, 5, r"krum with malicious=1, select=3 needs at least 6; .* or select"),
        ({"name": "bulyan"}, 6, r"bulyan with malicious=1 needs at least 7; .* or use krum or median"),
    ],
)
def test_too_few_sites_for_the_bound_are_refused_and_one_more_is_not(
    options: dict, count: int, sentence: str
) -> None:
    values = {f"site{i}": float(i) for i in range(count + 1)}
    assert build(options).fewest_sites == len(values)
    fold(build(options), ZERO, scalars(values))
    values.popitem()
    with pytest.raises(FederationError, match=sentence):
        fold(build(options), ZERO, scalars(values))


@pytest.mark.parametrize("name", ["krum", "bulyan"])
def test_tensors_that_other_sites_trained_are_chosen_among_those(name: str) -> None:
    """Seven sites trained the photographs' tensor, nine the rest; who is far off in one is none in the other."""
    rng = np.random.default_rng(5)
    values = rng.normal(size=(9, 2)).astype(np.float32)
    values[3, 0], values[5, 1] = 500, -500
    updates = {
        f"site{i}": Update(
            {"fundus": values[i, :1], "rest": values[i, 1:]}, 1.0, {}, {"fundus": float(i < 7)}
        )
        for i in range(9)
    }
    gathered = Gathered(updates, lambda u, n: u.examples["fundus"] if n == "fundus" else u.weight)
    previous = {"fundus": ZERO["w"], "rest": ZERO["w"]}
    both = fold(build({"name": name}), previous, gathered)
    for tensor, count in (("fundus", 7), ("rest", 9)):
        alone = Gathered(
            {f"site{i}": Update({"w": updates[f"site{i}"].tensors[tensor]}, 1.0) for i in range(count)}
        )
        assert fold(build({"name": name}), ZERO, alone)["w"] == both[tensor]


@pytest.mark.parametrize("name", ["median", "trimmed_mean", "krum", "bulyan"])
def test_reading_a_tensor_in_several_passes_changes_no_number(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(1)
    shape = (13, 7)
    previous = {"w": np.zeros(shape, np.float32)}
    updates = Gathered(
        {f"s{i}": Update({"w": rng.normal(size=shape).astype(np.float32)}, 1.0) for i in range(7)}
    )
    whole = fold(build({"name": name}), previous, updates)["w"]
    monkeypatch.setattr(folding, "STACK_BYTES", 7 * 4 * 10)
    monkeypatch.setattr(folding, "STACK_BLOCK", 7 * 3)
    np.testing.assert_array_equal(fold(build({"name": name}), previous, updates)["w"], whole)


def test_krum_tells_sites_apart_that_differ_in_their_last_digits() -> None:
    """Updates near 1000 that differ by 1e-4: in float32 the expanded square would be all rounding."""
    base = np.full(1000, 1000.0, np.float32)
    steps = [0.0, 1e-4, 2e-4, 3e-4, 0.5]
    updates = Gathered({f"s{i}": Update({"w": base + np.float32(step)}, 1.0) for i, step in enumerate(steps)})
    after = fold(build({"name": "krum"}), {"w": base}, updates)["w"]
    assert after[0] in (base + np.float32(1e-4)) or after[0] in (base + np.float32(2e-4))


def _among(truths: np.ndarray, lies: np.ndarray) -> Gathered:
    """Liars first and last by name, with many examples."""
    rows = [*lies[: len(lies) // 2], *truths, *lies[len(lies) // 2 :]]
    return Gathered({f"s{i:02}": Update({"w": row}, 1e6 if i else 1.0) for i, row in enumerate(rows)})
