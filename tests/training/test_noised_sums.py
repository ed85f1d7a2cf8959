"""Statistics under record-level terms: what one person moves, what noise leaves of them, and what is public."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from pm1_core.data.store import Store
from pm1_core.data.summary import Column, StudySummary
from pm1_core.errors import ConfigError, InputError
from pm1_core.fields import Modality
from pm1_core.privacy.noise import secret_generator
from pm1_core.privacy.terms import RecordTerms, to_order
from pm1_core.training.bounded import BoundedSums
from pm1_core.training.order import Order
from pm1_core.training.tasks import build_task, noised_sums
from pm1_core.training.tasks.reference import pin_reference

STUDY = StudySummary(
    "three",
    "GRCh38",
    (
        Column("age", "continuous", "years", range=(0, 120)),
        Column("pressure", "continuous", "mmHg", range=(50, 250)),
        Column("sex", "binary"),
    ),
    (),
    (),
    {22: 9},
)
QUIET = to_order(RecordTerms(noise_multiplier=1e-6))


def exact(sums: BoundedSums, shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """The sums with noise of a millionth of a bound."""
    return sums.released(1e-6, secret_generator(), shapes)


def moved(sums: BoundedSums, others: BoundedSums, shapes: dict[str, tuple[int, ...]]) -> float:
    """How far two sets of sums lie apart, each block in units of its bound."""
    one, two = exact(sums, shapes), exact(others, shapes)
    squares = [np.sum((one[block] - two[block]) ** 2) / bound**2 for block, bound in sums.bounds.items()]
    return float(np.sqrt(np.sum(squares)))


numbers = st.floats(-1e9, 1e9, width=32) | st.just(float("nan")) | st.just(float("inf"))


@given(
    values=st.lists(st.tuples(numbers, numbers, st.sampled_from([0.0, 1.0])), min_size=1, max_size=5),
    round_number=st.sampled_from([1, 2]),
    seed=st.integers(0, 99),
)
def test_adding_a_person_moves_the_statistics_by_no_more_than_their_sensitivity(
    values: list[tuple[float, float, float]], round_number: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    people = np.array(values, np.float32)
    observed, mean = rng.random(people.shape) < 0.8, rng.normal(100, 1000, 3)
    shares = noised_sums.dosage_shares(rng.integers(0, 4, (len(people), 9)))[:, None]
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(("observed", "value", "square"), (3,))
    shapes["dosage"] = (1, 3)
    found = []
    for rows in (slice(None), slice(1, None)):  # everybody, and all but the first
        sums = noised_sums.statistics_sums(STUDY, round_number, 1)
        with np.errstate(all="ignore"):
            chunk = [(people[rows], observed[rows])]
            noised_sums.add_phenotypes(sums, STUDY, chunk, mean, round_number)
        if round_number == 1:
            sums.add("dosage", shares[rows])
        found.append(sums)
    assert moved(*found, shapes) <= len(found[0].bounds) ** 0.5 * 1.001


@given(scale=st.floats(0, 1e6), round_number=st.sampled_from([1, 2]), seed=st.integers(0, 99))
def test_adding_a_person_moves_token_statistics_by_no_more_than_their_sensitivity(
    scale: float, round_number: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    widths = {Modality.GENOTYPE: 2, Modality.PHENOTYPE: 3, Modality.FUNDUS: 4}
    shapes: dict[str, tuple[int, ...]] = {"present": (25,)}
    one, two = (noised_sums.token_sums(widths, round_number) for _ in range(2))
    for modality, places in ((Modality.GENOTYPE, 22), (Modality.PHENOTYPE, 1), (Modality.FUNDUS, 2)):
        rows = noised_sums.bounded_tokens(scale * rng.normal(size=(4, places, widths[modality])))
        shapes[str(modality)] = (places, widths[modality]) if round_number == 1 else (places,)
        if round_number == 2:
            mean = scale * rng.normal(size=(places, widths[modality]))
            rows = noised_sums.squared_deviations(rows, mean, np.ones((4, places), bool))
        one.add(str(modality), rows)
        two.add(str(modality), rows[1:])
    if round_number == 1:
        one.add("present", np.ones((4, 25)))
        two.add("present", np.ones((3, 25)))
    assert moved(one, two, shapes) <= len(one.bounds) ** 0.5 * 1.001


def statistics(store: Store, privacy: dict, tmp_path: Path) -> dict[str, np.ndarray]:
    """Both rounds of the task at one site."""
    order = Order("statistics", "statistics", 1, 2, 0, privacy=privacy)
    task = build_task(order, store.study)
    state, tensors = {}, dict(task.initial({}, 0))
    for number in (1, 2):
        update = task.train(store, replace(order, round=number), state, tensors, tmp_path)
        tensors = dict(task.advance(number, tensors, update.tensors))
    return tensors


def test_noised_statistics_are_the_exact_ones_but_for_noise(
    hospitals: dict[str, Path], tmp_path: Path
) -> None:
    store = Store.open(hospitals["north"])
    without, noised = statistics(store, {}, tmp_path), statistics(store, QUIET, tmp_path)
    for name in ("count", "mean", "std"):
        name = f"statistics.phenotype.{name}"
        np.testing.assert_allclose(noised[name], without[name], rtol=0.02, atol=1e-3, err_msg=name)
    counts = noised["statistics.genotype.3.counts"]
    assert (counts == counts[0]).all()  # nothing of a SNP leaves
    shares = without["statistics.genotype.3.counts"].sum(0)
    np.testing.assert_allclose(counts[0] / counts[0].sum(), shares / shares.sum(), atol=0.01)


def test_noise_is_drawn_anew_whatever_the_seed_of_the_order(
    hospitals: dict[str, Path], tmp_path: Path
) -> None:
    store, terms = Store.open(hospitals["north"]), to_order(RecordTerms(noise_multiplier=1.0))
    name = "statistics.phenotype.count"
    found = [statistics(store, terms, tmp_path)[name] for _ in range(2)]
    assert (found[0] != found[1]).all()


def test_a_column_without_a_range_cannot_be_noised() -> None:
    bare = replace(STUDY, columns=(Column("age", "continuous", "years"),))
    with pytest.raises(ConfigError, match="'age': noised sums need a range; give `range:"):
        noised_sums.ranges(bare)


def test_a_variance_that_noise_brings_below_zero_is_that_of_the_range() -> None:
    task = build_task(Order("statistics", "statistics", 2, 2, 0), STUDY)
    before = {name: np.full(array.shape, 50, np.float32) for name, array in task.initial({}, 0).items()}
    after = {name: np.full(array.shape, -1, np.float32) for name, array in before.items()}
    found = task.advance(2, before, after)
    np.testing.assert_allclose(found["statistics.phenotype.std"], [12, 20, 1])
    np.testing.assert_allclose(found["statistics.phenotype.kept"], 1)


def reference(tmp_path: Path, study: StudySummary) -> dict[str, np.ndarray]:
    """A file of public statistics."""
    rng = np.random.default_rng(0)
    wanted = build_task(Order("statistics", "statistics", 1, 1, 0), study).initial({}, 0)
    tensors = {n: rng.random(array.shape).astype(np.float32) for n, array in wanted.items()}
    safetensors.numpy.save_file(tensors, tmp_path / "panel.safetensors")
    return tensors


def test_public_statistics_are_those_of_the_file_and_sites_add_nothing(
    hospitals: dict[str, Path], tmp_path: Path
) -> None:
    store = Store.open(hospitals["north"])
    tensors = reference(tmp_path, store.study)
    parameters = {"kind": "statistics", **pin_reference(tmp_path / "panel.safetensors")}
    order = Order("statistics", "reference", 1, 1, 0, parameters, privacy=QUIET)
    task = build_task(order, store.study)
    start = task.initial({}, 0)
    update = task.train(store, order, {}, start, tmp_path)
    assert task.mechanisms(order) == ()
    assert not any(array.any() for array in update.tensors.values())
    for name, array in task.advance(1, start, update.tensors).items():
        np.testing.assert_array_equal(array, tensors[name])


def test_a_reference_that_was_changed_or_is_of_another_study_is_refused(tmp_path: Path) -> None:
    tensors, file = reference(tmp_path, STUDY), tmp_path / "panel.safetensors"
    task = build_task(Order("s", "reference", 1, 1, 0, {"kind": "statistics", **pin_reference(file)}), STUDY)
    tensors.pop("statistics.phenotype.std")
    safetensors.numpy.save_file(tensors, file)
    with pytest.raises(InputError, match="it is not the file that the study names"):
        task.initial({}, 0)
    again = build_task(Order("s", "reference", 1, 1, 0, {"kind": "statistics", **pin_reference(file)}), STUDY)
    with pytest.raises(InputError, match=r"'statistics.phenotype.std': found none; give float32 of shape"):
        again.initial({}, 0)
    with pytest.raises(ConfigError, match="name a safetensors file"):
        pin_reference(tmp_path / "none.safetensors")
