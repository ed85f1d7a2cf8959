"""SCAFFOLD's server equals its paper, and finds the common optimum where averaging drifts."""

from __future__ import annotations

import numpy as np
import pytest
from folded import fold

from pm1_core.update import Tensors, Update
from strategies import Gathered, build

CURVATURE = {"a": 4.0, "b": 1.0, "c": 0.25, "d": 2.0}
CENTRE = {"a": -2.0, "b": 1.0, "c": 6.0, "d": 3.0}
EXAMPLES = {"a": 10.0, "b": 40.0, "c": 30.0, "d": 20.0}
STEPS, RATE = 20, 0.05


def optimum(weights: dict[str, float]) -> float:
    """Of the sum over sites of weight * a/2 (x - b)^2."""
    whole = sum(weights[s] * CURVATURE[s] for s in weights)
    return sum(weights[s] * CURVATURE[s] * CENTRE[s] for s in weights) / whole


class Clients:
    """Sites as in algorithm 1 with option II, that keep their control variates."""

    def __init__(self) -> None:
        self.variates = dict.fromkeys(CURVATURE, 0.0)

    def train(self, site: str, tensors: Tensors) -> Update:
        """One site's round: `STEPS` corrected steps; what travels is float32."""
        x, c, own = float(tensors["w"][0]), float(tensors.get("control.w", [0.0])[0]), self.variates[site]
        y = x
        for _ in range(STEPS):
            y -= RATE * (CURVATURE[site] * (y - CENTRE[site]) - own + c)
        self.variates[site] = own - c + (x - y) / (STEPS * RATE)
        sent = {"w": np.array([y], np.float32)}
        if "control.w" in tensors:
            sent["control.w"] = np.array([self.variates[site] - own], np.float32)
        return Update(sent, EXAMPLES[site])


def absent(present: list[str]) -> dict[str, float]:
    """The others of the phase with their examples."""
    return {site: count for site, count in EXAMPLES.items() if site not in present}


def run(options: dict, rounds: int, attendance: list[list[str]] | None = None) -> dict[str, np.ndarray]:
    """A study of some rounds; who answers in each, by default everybody."""
    strategy, clients = build(options), Clients()
    model = {"w": np.array([10.0], np.float32)}
    tensors: dict[str, np.ndarray] = {**model, **strategy.initial(model)}
    for number in range(rounds):
        sites = attendance[number] if attendance else list(CURVATURE)
        if "control.w" not in tensors:
            clients = Clients()
        updates = {site: clients.train(site, tensors) for site in sites}
        tensors = fold(strategy, tensors, Gathered(updates, absent=absent(sites)), number + 1)
    return tensors


@pytest.mark.parametrize("weighting", ["uniform", "examples"])
def test_it_finds_the_common_optimum_where_averaging_many_local_steps_does_not(weighting: str) -> None:
    weights = EXAMPLES if weighting == "examples" else dict.fromkeys(EXAMPLES, 1.0)
    scaffold = run({"name": "scaffold", "weighting": weighting}, 60)
    assert scaffold["w"][0] == pytest.approx(optimum(weights), abs=1e-4)
    assert scaffold["control.w"][0] == pytest.approx(0, abs=1e-4)
    assert abs(run({"name": "fedavg"}, 60)["w"][0] - optimum(EXAMPLES)) > 0.3


@pytest.mark.parametrize("weighting", ["uniform", "examples"])
def test_it_finds_it_with_half_of_the_sites_in_a_round(weighting: str) -> None:
    weights = EXAMPLES if weighting == "examples" else dict.fromkeys(EXAMPLES, 1.0)
    rng = np.random.default_rng(3)
    attendance = [sorted(rng.choice(list(CURVATURE), 2, replace=False)) for _ in range(300)]
    after = run({"name": "scaffold", "weighting": weighting}, 300, attendance)
    assert after["w"][0] == pytest.approx(optimum(weights), abs=1e-3)


def test_the_server_equals_algorithm_1_of_karimireddy_et_al_with_absent_sites() -> None:
    attendance = [["a", "c"], ["b"], ["a", "b", "d"], ["a", "b", "c", "d"], ["d"]]
    strategy, clients = (
        build({"name": "scaffold", "weighting": "uniform", "server_learning_rate": 0.7}),
        Clients(),
    )
    model = {"w": np.array([10.0], np.float32)}
    tensors: dict[str, np.ndarray] = {**model, **strategy.initial(model)}
    x, c = 10.0, 0.0
    for number, sites in enumerate(attendance, start=1):
        updates = {site: clients.train(site, tensors) for site in sites}
        changes = [float(update.tensors["w"][0]) - x for update in updates.values()]
        variates = [float(update.tensors["control.w"][0]) for update in updates.values()]
        x += 0.7 * sum(changes) / len(sites)
        c += len(sites) / 4 * (sum(variates) / len(sites))
        tensors = fold(strategy, tensors, Gathered(updates, absent=absent(sites)), number)
        assert tensors["w"][0] == pytest.approx(x, abs=1e-5)
        assert tensors["control.w"][0] == pytest.approx(c, abs=1e-5)
        assert c == pytest.approx(sum(clients.variates.values()) / 4, abs=1e-5)


@pytest.mark.parametrize(
    ("weighting", "model", "control"),
    [
        ("examples", (10 * 1 + 30 * 5) / 40, 1 + (10 * 2 + 30 * 6) / 100),
        ("uniform", (1 + 5) / 2, 1 + 2 / 4 * (2 + 6) / 2),
    ],
)
def test_two_of_four_sites_by_hand(weighting: str, model: float, control: float) -> None:
    sent = {"a": (1.0, 2.0, 10.0), "b": (5.0, 6.0, 30.0)}
    updates = {
        site: Update({"w": np.array([y], np.float32), "control.w": np.array([d], np.float32)}, n)
        for site, (y, d, n) in sent.items()
    }
    previous = {"w": np.zeros(1, np.float32), "control.w": np.ones(1, np.float32)}
    gathered = Gathered(updates, absent={"c": 25.0, "d": 35.0})
    after = fold(build({"name": "scaffold", "weighting": weighting}), previous, gathered)
    assert (after["w"][0], after["control.w"][0]) == (np.float32(model), np.float32(control))


def test_a_tensor_of_one_modality_takes_its_control_variate_from_those_who_trained_it() -> None:
    """Of four sites that all answered two trained it: c is their mean, not half of it."""
    updates = {
        site: Update({n: np.array([2.0], np.float32) for n in ("f", "control.f", "w", "control.w")}, 1.0)
        for site in "abcd"
    }
    few = {"a": 1.0, "b": 1.0}
    gathered = Gathered(
        {
            site: Update(update.tensors, 1.0, {}, few if site in few else {})
            for site, update in updates.items()
        },
        lambda update, name: float(len(update.examples) > 0 or name == "w"),
    )
    previous = {n: np.zeros(1, np.float32) for n in ("f", "control.f", "w", "control.w")}
    after = fold(build({"name": "scaffold"}), previous, gathered)
    assert after["control.f"][0] == after["control.w"][0] == 2.0
