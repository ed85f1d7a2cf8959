"""The benchmark of the paper's steps on a GPU, on the CPU at size tiny: what it would say there is true here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bench import gpu
from pm1_core.fields import TOKENS_OF
from pm1_core.model.fusion import POSITIONS, FusionConfig

TINY = ["model=tiny", "study.phases.fusion.loop.batch_size=8", "study.phases.genotype.loop.batch_size=8"]
CPU = torch.device("cpu")


def products(config: FusionConfig, people: int) -> int:
    """Operations of the linear maps of a step on complete people, and of InfoNCE's similarities."""
    layers = config.layers * POSITIONS * (4 * config.width**2 + 2 * config.width * config.feedforward)
    projections = config.width * sum((s.stop - s.start) * config.token_width(m) for m, s in TOKENS_OF.items())
    similarities = (3 * people) ** 2 * config.width
    # Forwards, and a product for each of the two gradients; of tokens nobody asks for one.
    return 2 * (3 * people * layers + (2 + 3) * people * projections + 3 * similarities)


def test_a_steps_operations_are_those_of_its_layers() -> None:
    work = gpu.fusion(gpu.order_of("fusion", 1, "cpu", TINY), 8)()
    assert gpu.flops_of(work) == products(FusionConfig(**work.order.parameters["model"]), 8)
    assert all(parameter.grad is None for parameter in work.module.parameters())


def test_it_trains_by_the_papers_order_but_for_the_size() -> None:
    loop = gpu.order_of("fusion", 25, "cuda").parameters["loop"]
    assert (loop["batch_size"], loop["optimiser"]["name"], loop["optimiser"]["nus"]) == (
        128,
        "qhadam",
        [0.7, 1.0],
    )
    assert gpu.order_of("fusion", 25, "cuda").parameters["model"]["layers"] == 32


def check(found: dict[str, Any], steps: int) -> None:
    assert found["steps"] == steps
    exact, half = (found["precisions"][name] for name in ("float32", "bfloat16"))
    assert exact["apart from float32"] == {"at most": 0.0, "at the end": 0.0}
    assert 0 < half["apart from float32"]["at most"] < 0.05
    assert half["losses"][0] == pytest.approx(exact["losses"][0], rel=0.02)
    for precision in found["precisions"].values():
        share = precision["teraflops a step"] * precision["people a second"] / found["batch"]
        assert precision["share of the matrix rate"] == pytest.approx(
            share / precision["matrix teraflops a second"]
        )
        assert len(precision["losses"]) == steps


def test_fusion() -> None:
    check(gpu.part(gpu.fusion(gpu.order_of("fusion", 3, "cpu", TINY), 16), 100.0, 64), 6)


def test_genotypes(tmp_path: Path) -> None:
    order = gpu.order_of("genotype.1", 3, "cpu", [*TINY, "study.phases.genotype.chromosomes=[1]"])
    work = gpu.genotype(order, 40, 64, tmp_path)
    check(gpu.part(work, 100.0, 64), 3 * (work().people // 8))


def test_works_start_alike() -> None:
    make = gpu.fusion(gpu.order_of("fusion", 2, "cpu", TINY), 16)
    first, _ = gpu.trained(make())
    assert gpu.trained(make())[0] == first


def test_infonce_is_far_off_in_16_bits_only() -> None:
    found = gpu.contrast_errors(32, 256)
    assert found["float32"]["gradient"] < 1e-5
    assert found["bfloat16"]["gradient"] > 100 * found["float32"]["gradient"]


def test_the_matrix_rate_is_a_rate() -> None:
    assert np.isfinite(gpu.matrix_rate(torch.float32, CPU, 16, 2))
