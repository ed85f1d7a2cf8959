"""Schedules against torch's own, optimisers as torch builds them, and their state carried from round to round."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, CyclicLR, LinearLR, SequentialLR
from whole import Part

from pm1_core.data.store import Store
from pm1_core.errors import ConfigError
from pm1_core.training.optimisers import OptimiserConfig, build_optimiser, learning_rate

GENOTYPE = OptimiserConfig(
    "adam", 1.21e-6, betas=(0.5, 0.999), schedule="cyclic", peak=3e-6, half_cycle=2000, clip_norm=1.0
)
FUSION = OptimiserConfig(
    "qhadam", 5e-5, weight_decay=1e-4, schedule="cosine", warmup_epochs=10, warmup_start=0.1, floor=1e-6
)


def some_weight() -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.zeros(3))


def test_the_cyclic_schedule_is_torchs_triangular_one_with_adams_first_beta_left_alone() -> None:
    theirs = torch.optim.Adam([some_weight()], 1.0, betas=(0.5, 0.999))
    schedule = CyclicLR(theirs, 1.21e-6, 3e-6, step_size_up=2000, mode="triangular", cycle_momentum=False)
    rates = []
    for _ in range(9000):
        rates.append(schedule.get_last_lr()[0])
        theirs.step()
        schedule.step()
    ours = [learning_rate(GENOTYPE, step, 0, 20) for step in range(9000)]
    np.testing.assert_allclose(ours, rates, rtol=1e-9)
    assert theirs.param_groups[0]["betas"] == (0.5, 0.999)


def test_the_cosine_schedule_is_torchs_linear_warm_up_and_then_cosine_annealing() -> None:
    theirs = torch.optim.SGD([some_weight()], 5e-5)
    warm = LinearLR(theirs, start_factor=0.1, total_iters=10)
    schedule = SequentialLR(theirs, [warm, CosineAnnealingLR(theirs, 15, eta_min=1e-6)], milestones=[10])
    rates = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # SequentialLR calls its own schedules in a deprecated way
        for _ in range(25):
            rates.append(schedule.get_last_lr()[0])
            theirs.step()
            schedule.step()
    ours = [learning_rate(FUSION, 0, epoch, 25) for epoch in range(25)]
    np.testing.assert_allclose(ours, rates, rtol=1e-9)
    assert ours[0] == pytest.approx(5e-6)
    assert ours[10] == pytest.approx(5e-5)
    assert min(ours[10:]) >= 1e-6


@pytest.mark.parametrize(
    ("name", "kind", "given"),
    [
        ("adam", torch.optim.Adam, {"betas": (0.5, 0.999), "weight_decay": 0.1}),
        ("adamw", torch.optim.AdamW, {"betas": (0.8, 0.99), "weight_decay": 0.1}),
        ("sgd", torch.optim.SGD, {"momentum": 0.8, "weight_decay": 0.1}),
    ],
)
def test_optimisers_are_torchs_with_what_was_configured(name: str, kind: type, given: dict) -> None:
    found = build_optimiser([some_weight()], OptimiserConfig(name, 0.01, **given))
    assert type(found) is kind
    assert {key: found.defaults[key] for key in given} == given
    assert found.defaults["lr"] == 0.01


@pytest.mark.parametrize(
    "optimiser",
    [
        {"name": "adam", "betas": [0.5, 0.999]},
        {"name": "adamw", "weight_decay": 1e-2},
        {"name": "qhadam", "nus": [0.7, 1.0]},
        {"name": "sgd", "momentum": 0.8},
        {"name": "adam", "schedule": "cyclic", "peak": 3e-3, "half_cycle": 3},
        {"name": "qhadam", "schedule": "cosine", "warmup_epochs": 1, "floor": 1e-6},
    ],
    ids=lambda given: f"{given['name']}-{given.get('schedule', 'constant')}",
)
def test_two_rounds_of_one_epoch_are_one_round_of_two(
    optimiser: dict, whole: dict[str, Part], north: Store, tmp_path: Path
) -> None:
    def part(rounds: int, epochs: int) -> Part:
        made = whole["phenotype"].with_loop(
            batch_size=16, epochs=epochs, optimiser={"learning_rate": 1e-3, **optimiser}
        )
        return replace(made, order=replace(made.order, rounds=rounds))

    once = part(1, 2).train(north, tmp_path / "once")
    first = part(2, 1).train(north, tmp_path / "twice")
    second = part(2, 1)
    second = replace(second, tensors=first.tensors, order=replace(second.order, round=2))
    twice = second.train(north, tmp_path / "twice")
    for name, array in once.tensors.items():
        np.testing.assert_array_equal(twice.tensors[name], array, err_msg=name)


def test_steps_beyond_a_norm_are_skipped_and_counted_and_others_are_clipped(
    whole: dict[str, Part], north: Store, tmp_path: Path
) -> None:
    part = whole["phenotype"].with_loop(optimiser={"skip_norm": 1e-9})
    none = part.train(north, tmp_path / "skipped")
    assert none.metrics["steps"] == 0
    assert none.metrics["skipped_steps"] > 0
    for name, array in part.tensors.items():
        np.testing.assert_array_equal(none.tensors[name], array)
    plain = {"name": "sgd", "learning_rate": 1.0, "momentum": 0.0, "weight_decay": 0.0}
    short = whole["phenotype"].with_loop(batch_size=0, epochs=1, optimiser={**plain, "clip_norm": 1e-3})
    moved = short.train(north, tmp_path / "clipped").tensors
    length = sum(float(((moved[n] - a) ** 2).sum()) for n, a in short.tensors.items()) ** 0.5
    assert length == pytest.approx(1e-3, rel=1e-3)


def test_a_cycle_whose_peak_is_below_its_base_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"optimiser\.peak"):
        OptimiserConfig("adam", 1e-3, schedule="cyclic", peak=1e-4)
