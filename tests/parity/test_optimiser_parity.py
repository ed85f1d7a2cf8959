"""QHAdam against its authors' release, golden/qhoptim.json, and at nu 1 against Adam.

The tolerance is that of float32: ours keeps the weights of its averages as float32, whatever the parameters are.

Ma J, Yarats D (2019) "Quasi-hyperbolic momentum and Adam for deep learning", ICLR.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from golden_numbers import QHADAM, read, weights

from pm1_core.training.optimisers import OptimiserConfig, build_optimiser

EXACT = {"rtol": 0.0, "atol": 2e-8}


def path(name: str, settings: dict[str, object]) -> np.ndarray:
    """Where ten steps on given gradients lead, float64 [10, 5]."""
    start = torch.nn.Parameter(torch.from_numpy(weights("start", 5)))
    named = {"learning_rate" if key == "lr" else key: value for key, value in settings.items()}
    optimiser = build_optimiser([start], OptimiserConfig(name, **named))  # type: ignore[arg-type]
    found = []
    for step in range(10):
        start.grad = torch.from_numpy(weights(f"gradient {step}", 5))
        optimiser.step()
        found.append(start.detach().numpy().copy())
    return np.stack(found)


@pytest.mark.parametrize("name", QHADAM)
def test_qhadam_takes_its_authors_steps(name: str) -> None:
    np.testing.assert_allclose(path("qhadam", QHADAM[name]), read("qhoptim")[name], **EXACT)


def test_qhadam_at_nu_1_is_adam() -> None:
    settings = QHADAM["nu 1"]
    np.testing.assert_allclose(path("qhadam", settings), path("adam", settings), **EXACT)
