"""Two processes that share every batch take the steps of one: gloo on the CPU, started by torch's launcher.

Tolerance: the gradients are sums of the same float32 terms in another order. After some steps parameters differ by
at most 1e-5, where the steps have moved them by more than 1e-3. Descent is plain here: adaptive optimisers would
magnify the rounding of gradients that are near zero.
"""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from whole import PARTS, Part

from pm1_core.data.store import Store
from pm1_core.errors import ConfigError, StateError, StoreError
from pm1_core.training import launch, processes
from pm1_core.training.memory import Memory
from pm1_core.update import Update

SGD = {"name": "sgd", "momentum": 0.8, "learning_rate": 0.05, "schedule": "constant", "clip_norm": 10.0}
# Batches that two do not divide.
LOOP = {"batch_size": 7, "epochs": 2, "optimiser": SGD}


def trained(parts: dict[str, Part], store: Store, folder: Path) -> dict[str, Update]:
    torch.set_num_threads(1)
    return {name: part.train(store, folder / name) for name, part in parts.items()}


def fail_by_two(store: Store) -> None:
    """The second process finds nothing; the first waits for it in vain."""
    if processes.rank():
        Store.open(store.path / "elsewhere")
    processes.add_up([counted()])


def counted() -> torch.nn.Parameter:
    parameter = torch.nn.Parameter(torch.zeros(1))
    parameter.grad = torch.ones(1)
    return parameter


def end_by_two() -> None:
    """The second process is killed, as the system does when memory is short."""
    if processes.rank():
        os.kill(os.getpid(), signal.SIGKILL)
    processes.add_up([counted()])


def listening() -> list[str]:
    """Addresses at which this process waits for others."""
    processes.add_up([counted()])
    return [c.laddr.ip for c in psutil.Process().net_connections("inet") if c.status == psutil.CONN_LISTEN]


@pytest.fixture(scope="module")
def plain(whole: dict[str, Part]) -> dict[str, Part]:
    return {name: whole[name].with_loop(**LOOP) for name in PARTS}


@pytest.fixture(scope="module")
def alone(
    plain: dict[str, Part], north: Store, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Update]:
    return trained(plain, north, tmp_path_factory.mktemp("alone"))


@pytest.fixture(scope="module")
def both(
    plain: dict[str, Part], north: Store, tmp_path_factory: pytest.TempPathFactory
) -> dict[int, dict[str, Update]]:
    return dict(enumerate(launch.together(2, trained, plain, north, tmp_path_factory.mktemp("both"))))


@pytest.mark.parametrize("name", PARTS)
def test_two_processes_take_the_steps_of_one(
    name: str, plain: dict[str, Part], alone: dict[str, Update], both: dict[int, dict[str, Update]]
) -> None:
    one, moved = alone[name], 0.0
    for found in both.values():
        two = found[name]
        assert set(two.tensors) == set(one.tensors)
        for tensor, array in one.tensors.items():
            np.testing.assert_allclose(two.tensors[tensor], array, atol=1e-5, err_msg=tensor)
            moved = max(moved, float(np.abs(array - plain[name].tensors[tensor]).max()))
        assert two.metrics == pytest.approx(one.metrics, rel=1e-4)
    assert moved > 1e-3


@pytest.mark.parametrize("name", PARTS)
def test_processes_agree_to_the_bit(name: str, both: dict[int, dict[str, Update]]) -> None:
    first, second = (both[number][name] for number in (0, 1))
    assert first.metrics == second.metrics
    for tensor, array in first.tensors.items():
        np.testing.assert_array_equal(array, second.tensors[tensor])


def test_negatives_are_of_the_whole_batch(
    plain: dict[str, Part],
    alone: dict[str, Update],
    both: dict[int, dict[str, Update]],
    north: Store,
    tmp_path: Path,
) -> None:
    halves = plain["fusion"].with_loop(batch_size=4).train(north, tmp_path)
    whole = alone["fusion"].metrics["contrast"]
    assert both[0]["fusion"].metrics["contrast"] == pytest.approx(whole, rel=1e-4)
    assert halves.metrics["contrast"] < 0.95 * whole, "fewer negatives are easier to tell apart"


@pytest.mark.slow
def test_a_round_by_several_processes_is_remembered_once(
    plain: dict[str, Part], alone: dict[str, Update], north: Store, tmp_path: Path
) -> None:
    part = plain["phenotype"]
    update = launch.train(2, part.task, north, part.order, part.state, part.tensors, tmp_path)
    for tensor, array in alone["phenotype"].tensors.items():
        np.testing.assert_allclose(update.tensors[tensor], array, atol=1e-5)
    moments = Memory(tmp_path, replace(part.order, round=2)).load("moments")
    assert moments is not None
    assert moments["/step"] == update.metrics["steps"]
    wrong = {name: array[:1] for name, array in part.tensors.items()}
    with pytest.raises(StateError, match="use the model configuration of the study"):
        launch.train(2, part.task, north, part.order, part.state, wrong, tmp_path)


def test_without_others_nothing_is_divided() -> None:
    assert (processes.size(), processes.rank()) == (1, 0)
    assert processes.divided(len) is len


@pytest.mark.slow
def test_the_sentence_of_the_one_that_failed_is_raised_and_nobody_waits_for_it(north: Store) -> None:
    with pytest.raises(StoreError, match=r"elsewhere: found no store; prepare the site again"):
        launch.together(2, fail_by_two, north)


@pytest.mark.slow
def test_a_killed_process_is_a_sentence() -> None:
    with pytest.raises(StateError, match=r"a training process: .*; see the site's log, or set processes=1"):
        launch.together(2, end_by_two)


@pytest.mark.slow
def test_processes_listen_on_the_loopback_only() -> None:
    for addresses in launch.together(2, listening):
        assert set(addresses) == {"127.0.0.1"}


def test_more_processes_than_gpus_are_refused_by_name(
    plain: dict[str, Part], north: Store, tmp_path: Path
) -> None:
    part = plain["phenotype"].with_loop(device="cuda")
    with pytest.raises(ConfigError, match=r"site's processes: found 4096 for \d+ GPUs"):
        launch.train(4096, part.task, north, part.order, part.state, part.tensors, tmp_path)
