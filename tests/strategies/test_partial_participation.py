"""A tensor is averaged over those who trained it, by the examples that they trained it with."""

from __future__ import annotations

import numpy as np
import pytest
from folded import EVERY, assert_same_bytes, drawn, fold, scalars

from pm1_core.errors import FederationError
from pm1_core.update import Update
from strategies import Gathered, Summation, build

VALUES = {"leeds": 1.0, "oxford": 2.0, "york": 4.0}
EXAMPLES = {"leeds": 10.0, "oxford": 30.0, "york": 60.0}
ZERO = {"w": np.zeros(1, np.float32)}


def test_the_weight_is_the_number_of_examples() -> None:
    mean = fold(build({"name": "fedavg"}), ZERO, scalars(VALUES, EXAMPLES))["w"]
    assert mean[0] == np.float32((10 * 1 + 30 * 2 + 60 * 4) / 100)


def test_a_tensor_of_one_modality_is_averaged_over_those_who_have_it() -> None:
    """Oxford has no photographs: of 30 people none is behind the photographs' tensor."""
    photographs = {"leeds": 10.0, "oxford": 0.0, "york": 60.0}
    updates = {
        site: Update(
            {
                "fusion.cls": np.array([value], np.float32),
                "fusion.input.fundus": np.array([value], np.float32),
            },
            EXAMPLES[site],
            {},
            {"fundus": photographs[site]},
        )
        for site, value in VALUES.items()
    }
    gathered = Gathered(
        updates, lambda update, name: update.examples["fundus"] if "fundus" in name else update.weight
    )
    previous = {"fusion.cls": ZERO["w"], "fusion.input.fundus": ZERO["w"]}
    after = fold(build({"name": "fedavg"}), previous, gathered)
    assert after["fusion.cls"][0] == np.float32((10 * 1 + 30 * 2 + 60 * 4) / 100)
    assert after["fusion.input.fundus"][0] == np.float32((10 * 1 + 60 * 4) / 70)


@pytest.mark.parametrize("name", EVERY)
def test_what_nobody_trained_stays_as_it_was(name: str) -> None:
    strategy, previous, updates = drawn(name, 0)
    assert_same_bytes(fold(strategy, previous, Gathered(updates, lambda *_: 0.0)), previous)


@pytest.mark.parametrize("name", EVERY)
def test_what_nobody_trained_stays_beside_what_somebody_trained(name: str) -> None:
    strategy, previous, updates = drawn(name, 0)
    after = fold(strategy, previous, Gathered(updates, lambda update, tensor: float(tensor.endswith("a"))))
    still = [n for n in previous if n.endswith("b.norm")]
    assert_same_bytes(after, {**after, **{n: previous[n] for n in still}})
    assert not np.array_equal(after["a"], previous["a"])


@pytest.mark.parametrize("name", EVERY)
def test_tensors_come_out_by_name_with_the_model_first_as_float32_in_their_shape(name: str) -> None:
    strategy = build({"name": name})
    model = {"a.scalar": np.zeros((), np.float32), "b.none": np.zeros((0, 3), np.float32)}
    model["c.matrix"] = np.zeros((2, 3), np.float32)
    previous = {**model, **strategy.initial(model)}
    travelling = {n: array + np.float32(1) for n, array in previous.items() if not n.startswith("server.")}
    updates = Gathered({f"site{i}": Update(travelling, 1.0) for i in range(7)})
    pairs = list(strategy.aggregate(1, previous, updates))
    assert [n for n, _ in pairs] == [*sorted(model), *sorted(set(previous) - set(model))]
    for n, array in pairs:
        assert (array.shape, array.dtype) == (previous[n].shape, np.float32)


def test_sums_do_not_look_at_weights() -> None:
    after = fold(Summation(), ZERO, scalars(VALUES, {"leeds": 0.0, "oxford": 5.0, "york": 1.0}))
    assert after["w"][0] == 7.0


def test_sums_of_many_small_numbers_are_added_in_float64() -> None:
    updates = scalars({f"s{i:04}": 0.1 if i else 2.0**24 for i in range(1001)})
    assert fold(Summation(), ZERO, updates)["w"][0] == np.float32(2**24 + 1000 * float(np.float32(0.1)))


@pytest.mark.parametrize(
    ("updates", "sentence"),
    [
        ({}, "found no update; wait for at least one site"),
        ({"a": ["w"], "b": ["w", "v"]}, "update of site 'b': tensor 'v' differs from 'a'"),
    ],
)
def test_updates_that_cannot_be_folded_together_are_refused(
    updates: dict[str, list[str]], sentence: str
) -> None:
    with pytest.raises(FederationError, match=sentence):
        Gathered({s: Update(dict.fromkeys(names, ZERO["w"]), 1.0) for s, names in updates.items()})


def test_updates_of_different_shapes_are_refused() -> None:
    shapes = {"a": (2,), "b": (1, 2)}
    with pytest.raises(FederationError, match=r"site 'b', tensor 'w': shape \(1, 2\); send \(2,\)"):
        Gathered({s: Update({"w": np.zeros(shape, np.float32)}, 1.0) for s, shape in shapes.items()})
