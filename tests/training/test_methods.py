"""What stays at a site, what it remembers, what is refused; that guides follow their papers is in test_guides."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from quadratics import (
    MEAN,
    NORM,
    PEOPLE,
    RATE,
    START,
    STEPS,
    STUDY,
    ZERO,
    QuadraticTask,
    W,
    close,
    content,
    evaluate,
    files,
    loss_of,
    order,
    task,
    train,
)

from pm1_core.data.store import Store
from pm1_core.errors import ConfigError, InputError, StateError
from pm1_core.fields import Split
from pm1_core.training import methods
from pm1_core.training.guide import UNGUIDED, Guide
from pm1_core.training.local import train_locally
from pm1_core.training.order import Order
from pm1_core.training.parts import State
from pm1_core.update import Tensors, Update

# ---- tensors that stay at a site ----------------------------------------------------------------------------


def test_local_tensors_stay_and_outlive_a_restart(tmp_path: Path) -> None:
    method = {"local": ["*.norm"]}
    first = train(order(method), START, tmp_path)
    assert set(first.tensors) == {W}
    # The second round is trained by new objects that know the folder only, from other received values.
    received = {W: first.tensors[W], NORM: np.array([50, 50], np.float32)}
    second = train(order(method, 2), received, tmp_path)
    assert set(second.tensors) == {W}
    plain = train(order(rounds=5), START, tmp_path / "plain").tensors
    again = train(order(round_number=2), plain, tmp_path / "plain").tensors
    figures = evaluate(order(method, 3), {W: again[W], NORM: received[NORM]}, tmp_path)
    assert figures["loss"] == pytest.approx(loss_of(again), rel=1e-6)


def test_a_site_without_local_tensors_starts_from_the_received_ones(tmp_path: Path) -> None:
    method = {"local": ["*.norm"]}
    assert evaluate(order(method), START, tmp_path)["loss"] == pytest.approx(loss_of(START))


def test_figures_after_a_round_use_what_that_round_left(tmp_path: Path) -> None:
    method = {"local": ["*.norm"]}
    before = evaluate(order(method), START, tmp_path)
    plain = train(order(), START, tmp_path / "plain").tensors
    received = {W: train(order(method), START, tmp_path).tensors[W], NORM: START[NORM]}
    assert evaluate(order(method), START, tmp_path) == before
    assert evaluate(order(method), received, tmp_path, after=True)["loss"] == pytest.approx(loss_of(plain))
    given: Any = (task(), PEOPLE.store, order(method), {}, received, tmp_path, Split.TEST)
    np.testing.assert_array_equal(methods.scores(*given)["scores.norm"], START[NORM])
    np.testing.assert_array_equal(methods.scores(*given, after=True)["scores.norm"], plain[NORM])


def test_local_tensors_have_neither_a_pull_nor_a_variate(tmp_path: Path) -> None:
    method = {"local": ["*.norm"], "proximal": 3.0, "control": True}
    sent = {**START, "control." + W: ZERO["control." + W]}
    update = train(order(method), sent, tmp_path)
    assert set(update.tensors) == {W, "control." + W}
    plain = train(order(), START, tmp_path / "plain").tensors
    figures = evaluate(order(method, 2), {W: plain[W], NORM: START[NORM]}, tmp_path)
    assert figures["loss"] == pytest.approx(loss_of(plain))


def test_what_was_remembered_of_another_model_is_refused(tmp_path: Path) -> None:
    train(order({"local": ["*.norm"]}), START, tmp_path)
    with pytest.raises(StateError, match=r"quadratic\.norm.*fresh folder"):
        train(order({"local": ["*.norm"]}, 2), {**START, NORM: np.ones(3, np.float32)}, tmp_path)


# ---- Ditto --------------------------------------------------------------------------------------------------


def test_a_personal_model_is_trained_by_hand_and_never_leaves(tmp_path: Path) -> None:
    strength, received = 0.5, dict(START)
    mine = {name: array.astype(np.float64) for name, array in START.items()}
    for round_number in (1, 2):
        asked = order({"personal": strength}, round_number)
        update = train(asked, received, tmp_path)
        plain = train(order(round_number=round_number), received, tmp_path / "plain")
        assert content(update) == content(plain)
        for name in START:
            for _ in range(STEPS):
                mine[name] = mine[name] - RATE * (
                    (mine[name] - MEAN[name]) + strength * (mine[name] - received[name])
                )
        figures = evaluate(asked, received, tmp_path, after=True)
        assert figures["loss"] == pytest.approx(loss_of(received), rel=1e-6)
        expected = loss_of({name: array.astype(np.float32) for name, array in mine.items()})
        assert figures["personal.loss"] == pytest.approx(expected, rel=1e-5)
        received = {name: array + np.float32(0.5) for name, array in update.tensors.items()}


def test_a_site_without_a_personal_model_reports_the_received_one(tmp_path: Path) -> None:
    figures = evaluate(order({"personal": 0.5}), START, tmp_path)
    assert figures["personal.loss"] == figures["loss"]
    assert "personal.examples" not in figures


# ---- what a site remembers ----------------------------------------------------------------------------------

METHODS: list[dict[str, Any]] = [
    {},
    {"proximal": 0.1},
    {"control": True},
    {"local": ["*.norm"]},
    {"personal": 0.3},
    {"proximal": 0.1, "control": True, "local": ["*.norm"], "personal": 0.3},
]


def with_variates(method: dict[str, Any], tensors: Tensors) -> Tensors:
    return {**tensors, **ZERO} if method.get("control") else tensors


@pytest.mark.parametrize("method", METHODS, ids=lambda method: "+".join(method) or "plain")
@pytest.mark.parametrize("optimiser", ["adam", "qhadam"])
def test_a_repeated_round_reads_and_writes_the_same_bytes(
    optimiser: str, method: dict[str, Any], tmp_path: Path
) -> None:
    tensors: Tensors = START
    for round_number in (1, 2, 3):
        asked = order(method, round_number, name=optimiser, batch_size=3)
        first = train(asked, with_variates(method, tensors), tmp_path)
        left = files(tmp_path)
        again = train(asked, with_variates(method, tensors), tmp_path)
        assert content(first) == content(again)
        assert left == files(tmp_path)
        tensors = {**tensors, **{name: first.tensors[name] for name in START if name in first.tensors}}


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "qhadam"])
def test_moments_from_the_disk_are_those_of_a_training_without_interruption(
    name: str, tmp_path: Path
) -> None:
    optimiser = {"name": name, "momentum": 0.8, "batch_size": 3}
    whole = train(order(rounds=1, epochs=3, **optimiser), START, tmp_path / "whole")
    tensors: Tensors = START
    for round_number in (1, 2, 3):
        tensors = train(
            order(round_number=round_number, rounds=3, epochs=1, **optimiser), tensors, tmp_path
        ).tensors
    assert content(whole) == {name: array.tobytes() for name, array in tensors.items()}


def test_a_site_that_missed_a_round_goes_on_with_the_moments_on_its_disk(tmp_path: Path) -> None:
    momentum = {"momentum": 0.9, "epochs": 1}
    first = train(order(**momentum), START, tmp_path).tensors
    later = train(order(round_number=4, **momentum), first, tmp_path).tensors
    fresh = train(order(round_number=4, **momentum, keep_moments=False), first, tmp_path).tensors
    for name, start in START.items():
        gradient = start - MEAN[name]
        close(later[name], first[name] - RATE * (0.9 * gradient + (first[name] - MEAN[name])))
        close(fresh[name], first[name] - RATE * (first[name] - MEAN[name]))


def test_a_coordinator_that_was_set_back_meets_no_state_of_later_rounds(tmp_path: Path) -> None:
    momentum = {"momentum": 0.9, "epochs": 1}
    undisturbed = train(order(**momentum), START, tmp_path)
    for round_number in (2, 3, 4):
        train(order(round_number=round_number, **momentum), undisturbed.tensors, tmp_path)
    assert content(train(order(**momentum), START, tmp_path)) == content(undisturbed)
    assert len(files(tmp_path)) == 1


# ---- refusals -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ({"proximl": 0.1}, "did you mean 'proximal'"),
        ({"proximal": -1}, "proximal: found -1"),
        ({"proximal": float("inf")}, "proximal: found inf"),
        ({"proximal": "0.1"}, "proximal: found '0.1'"),
        ({"personal": None}, "personal: found None"),
        ({"control": 1}, "control: found 1"),
        ({"local": "*.norm"}, "local: found '\\*.norm'"),
    ],
)
def test_a_method_that_is_not_known_is_refused_by_name(
    method: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        train(order(method), START, tmp_path)
    with pytest.raises(ConfigError, match=message):
        evaluate(order(method), START, tmp_path)


class OwnLoop(QuadraticTask):
    """Says that it takes no guide."""

    guided: ClassVar[bool] = False


class Deaf(QuadraticTask):
    """Takes a guide and does not hand it on."""

    def train(
        self,
        store: Store,
        order: Order,
        state: State,
        tensors: Tensors,
        folder: Path,
        guide: Guide = UNGUIDED,
    ) -> Update:
        return super().train(store, order, state, tensors, folder)


@pytest.mark.parametrize("kind", [OwnLoop, Deaf])
@pytest.mark.parametrize("method", [{"proximal": 1.0}, {"control": True}, {"personal": 1.0}])
def test_a_task_that_ignores_guides_is_refused_by_strategies_that_need_one(
    kind: type[QuadraticTask], method: dict[str, Any], tmp_path: Path
) -> None:
    sent = with_variates(method, START)
    with pytest.raises(ConfigError, match=r"takes no guide.*fedavg"):
        methods.train(kind({}, STUDY), PEOPLE.store, order(method), {}, sent, tmp_path)


def test_a_task_that_ignores_guides_still_keeps_tensors_at_the_site(tmp_path: Path) -> None:
    given: Any = (PEOPLE.store, order({"local": ["*.norm"]}), {}, START, tmp_path)
    assert set(methods.train(OwnLoop({}, STUDY), *given).tensors) == {W}


class Adding(QuadraticTask):
    """Stands for statistics."""

    aggregation = "sum"


def test_methods_do_not_apply_to_sums(tmp_path: Path) -> None:
    summing, asked = Adding({}, STUDY), order({"proximal": 5.0, "local": ["*"]})
    update = methods.train(summing, PEOPLE.store, asked, {}, START, tmp_path)
    assert content(update) == content(train(order(), START, tmp_path / "plain"))


@pytest.mark.parametrize("counts", [{"genotype": -1.0}, {"genotype": float("nan")}])
def test_an_update_with_a_false_number_of_examples_is_refused(counts: dict[str, float]) -> None:
    with pytest.raises(InputError, match="genotype"):
        Update({}, 1.0, {}, counts)


# ---- one site -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS, ids=lambda method: "+".join(method) or "plain")
def test_local_training_equals_a_federation_of_one(method: dict[str, Any], tmp_path: Path) -> None:
    """Rounds by hand, with SCAFFOLD's common variate renewed as for one site of one: c + (c_i+ - c_i)."""
    orders = [order(method, number, 3, batch_size=4, momentum=0.5) for number in (1, 2, 3)]
    tensors, common = dict(START), dict(ZERO)
    for asked in orders:
        sent = {**tensors, **common} if method.get("control") else tensors
        update = train(asked.at(PEOPLE.site), sent, tmp_path / "federated")
        for name, array in update.tensors.items():
            if name in common:
                common[name] = common[name] + array
            else:
                tensors[name] = array
    alone = train_locally(task(), PEOPLE.store, orders, {}, tmp_path / "alone")
    for name in START:
        close(alone[name], tensors[name])
