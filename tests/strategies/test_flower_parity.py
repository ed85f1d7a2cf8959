"""The same updates through Flower's own classes, in memory: the same numbers, or a difference that is explained."""

from __future__ import annotations

import gc

import flwr.serverapp.strategy as flower
import numpy as np
import pytest
from flwr.app import Array, ArrayRecord
from folded import fold

from pm1_core.update import Tensors, Update
from strategies import Gathered, build
from strategies.bulyan import selected_by_krum
from strategies.flower_rules import reply

ROUNDS = 5
SHAPES = {"a": (3, 4), "b": (5,)}


def start(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}


def drawn(rng: np.random.Generator, model: Tensors, sites: int = 7, equal: bool = False) -> dict[str, Update]:
    """Updates near the model, of different numbers of examples unless `equal`."""
    updates = {}
    for i in range(sites):
        tensors = {n: (a + rng.normal(size=a.shape)).astype(np.float32) for n, a in model.items()}
        updates[f"site{i:02}"] = Update(tensors, 1.0 if equal else float(rng.integers(1, 100)))
    return updates


def by_flower(rule: flower.FedAvg, updates: dict[str, Update], number: int) -> dict[str, np.ndarray]:
    """One round of Flower's strategy."""
    arrays, _ = rule.aggregate_train(number, [reply(u.tensors, u.weight) for u in updates.values()])
    assert arrays is not None
    return {name: array.numpy() for name, array in arrays.items()}


def assert_close(ours: Tensors, theirs: Tensors) -> None:
    for name, array in theirs.items():
        np.testing.assert_allclose(ours[name], array, atol=1e-6, err_msg=name)


@pytest.fixture(autouse=True)
def _no_collections(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower's Bulyan collects garbage once for each reply, which takes a second in a process of many objects."""
    monkeypatch.setattr(gc, "collect", lambda: 0)


@pytest.mark.parametrize(
    ("options", "rule", "equal"),
    [
        ({"name": "fedavg"}, flower.FedAvg(), False),
        ({"name": "fedprox", "mu": 0.1}, flower.FedProx(proximal_mu=0.1), False),
        ({"name": "median"}, flower.FedMedian(), False),
        ({"name": "trimmed_mean", "trim": 0.3}, flower.FedTrimmedAvg(beta=0.3), False),
        # Flower weighs those whom multi-Krum selects by the examples that they claim; ours does not.
        ({"name": "krum", "malicious": 2}, flower.Krum(num_malicious_nodes=2), False),
        (
            {"name": "krum", "malicious": 1, "select": 3},
            flower.MultiKrum(num_malicious_nodes=1, num_nodes_to_select=3),
            True,
        ),
        ({"name": "bulyan", "malicious": 0}, flower.Bulyan(num_malicious_nodes=0), False),
    ],
)
def test_rules_that_remember_nothing_give_the_numbers_of_flower(
    options: dict, rule: flower.FedAvg, equal: bool
) -> None:
    rng = np.random.default_rng(1)
    for number in range(2):
        updates = drawn(rng, start(number), equal=equal)
        assert_close(fold(build(options), start(number), Gathered(updates)), by_flower(rule, updates, number))


@pytest.mark.parametrize("sites", [7, 11])
def test_bulyan_is_flowers_but_for_how_krum_takes_sites_out(sites: int) -> None:
    """Flower takes the theta best of one ranking, the paper one after another: given the latter, all is equal."""
    malicious = (sites - 3) // 4

    def one_after_another(contents: list, malicious: int, count: int) -> list:
        flat = [np.concatenate([a.numpy().ravel() for a in c["arrays"].values()]) for c in contents]
        rows = np.stack(flat).astype(np.float64)
        squares = np.square(rows[:, None] - rows[None, :]).sum(axis=-1)
        chosen = selected_by_krum(squares, malicious)
        assert len(chosen) == count
        return [contents[row] for row in chosen]

    rule = flower.Bulyan(num_malicious_nodes=malicious, selection_rule=one_after_another)
    rng = np.random.default_rng(2)
    for number in range(2):
        updates = drawn(rng, start(), sites)
        ours = fold(build({"name": "bulyan", "malicious": malicious}), start(), Gathered(updates))
        assert_close(ours, by_flower(rule, updates, number))


def record(model: Tensors) -> ArrayRecord:
    return ArrayRecord({name: Array(array) for name, array in model.items()})


def test_momentum_is_flowers_over_rounds() -> None:
    strategy = build({"name": "fedavgm", "momentum": 0.7, "server_learning_rate": 0.5})
    rule = flower.FedAvgM(server_momentum=0.7, server_learning_rate=0.5)
    rule.current_arrays = record(start())
    tensors: Tensors = {**start(), **strategy.initial(start())}
    rng = np.random.default_rng(3)
    for number in range(1, ROUNDS + 1):
        updates = drawn(rng, start())
        tensors = fold(strategy, tensors, Gathered(updates), number)
        assert_close(tensors, by_flower(rule, updates, number))


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("fedadagrad", flower.FedAdagrad(eta=0.1, tau=1e-2)),
        ("fedyogi", flower.FedYogi(eta=0.1, tau=1e-2)),
        ("fedadam", flower.FedAdam(eta=0.1, tau=1e-2)),
    ],
)
def test_fedopt_is_flowers_over_rounds_from_the_second_moment_that_flower_begins_with(
    name: str, rule: flower.FedAvg
) -> None:
    """Flower begins with v = 0, the paper with tau^2. Its FedAdam corrects a bias, which is 1 in late rounds."""
    late = 10**6
    strategy = build({"name": name, "server_learning_rate": 0.1, "tau": 1e-2})
    tensors: Tensors = {**start(), **strategy.initial(start())}
    tensors = {n: np.zeros_like(a) if n.startswith("server.") else a for n, a in tensors.items()}
    rng = np.random.default_rng(4)
    for number in range(late, late + ROUNDS):
        model = {n: tensors[n] for n in SHAPES}
        updates = drawn(rng, model)
        rule.current_arrays = model
        tensors = fold(strategy, tensors, Gathered(updates), number)
        assert_close(tensors, by_flower(rule, updates, number))


def test_flowers_fedadam_differs_by_the_bias_correction_one_round_ahead() -> None:
    strategy = build({"name": "fedadam", "server_learning_rate": 0.1})
    state = {n: np.zeros_like(a) for n, a in strategy.initial(start()).items()}
    updates = drawn(np.random.default_rng(5), start())
    rule = flower.FedAdam(eta=0.1, beta_1=0.9, beta_2=0.99)
    rule.current_arrays = start()
    theirs = by_flower(rule, updates, 1)
    ours = fold(strategy, {**start(), **state}, Gathered(updates))
    factor = np.sqrt(1 - 0.99**2) / (1 - 0.9**2)
    for name, before in start().items():
        np.testing.assert_allclose(theirs[name] - before, factor * (ours[name] - before), atol=1e-6)


def test_where_sites_share_large_weights_only_ours_keeps_a_liar_out() -> None:
    """Flower expands the square of whole weights in float32; ours takes what sites changed, in float64."""
    model = {"w": np.full(1000, 1000.0, np.float32)}
    rng = np.random.default_rng(6)
    moved = {"ours": 0, "theirs": 0}
    for _ in range(10):
        steps = {f"site{i}": rng.normal(0, 0.01, 1000).astype(np.float32) for i in range(6)}
        steps["liar"] = rng.normal(0, 0.1, 1000).astype(np.float32)
        updates = {site: Update({"w": model["w"] + step}, 1.0) for site, step in steps.items()}
        ours = fold(build({"name": "krum", "select": 4}), model, Gathered(updates))["w"]
        rule = flower.MultiKrum(num_malicious_nodes=1, num_nodes_to_select=4)
        theirs = by_flower(rule, updates, 1)["w"]
        moved["ours"] += int(np.std(ours - model["w"]) > 0.01)
        moved["theirs"] += int(np.std(theirs - model["w"]) > 0.01)
    assert moved["ours"] == 0
    assert moved["theirs"] > 0
