"""The phenotype auto-encoder against AutoComplete (An et al. 2023), the paper's baseline: golden/autocomplete.json.

Three steps of its own training script. What differs is kept outside: it shifts binary inputs to -0.5 and 0.5, where
the paper has 0 and 1 (appendix F.2), and its loss counts every missing binary entry as log 2.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from golden_numbers import AUTOCOMPLETE, phenotypes, read

from pm1_core.model.objectives import phenotype_loss
from pm1_core.model.phenotype_autoencoder import (
    PhenotypeAutoencoder,
    PhenotypeAutoencoderConfig,
    copy_mask,
)
from pm1_core.training.optimisers import OptimiserConfig, build_optimiser

GOLDEN = read("autocomplete")
STEPS = range(AUTOCOMPLETE.steps)
BINARY = torch.arange(AUTOCOMPLETE.features) >= AUTOCOMPLETE.features - AUTOCOMPLETE.binary


def network() -> PhenotypeAutoencoder:
    config = PhenotypeAutoencoderConfig(latent=AUTOCOMPLETE.latent, depth=AUTOCOMPLETE.depth)
    model = PhenotypeAutoencoder(config, AUTOCOMPLETE.features)
    layers = [layer for part in (model.encoder, model.decoder) for layer in part]
    start = AUTOCOMPLETE.start()
    for place, layer in enumerate(layers):
        if isinstance(layer, torch.nn.Linear):
            layer.weight.data = torch.from_numpy(start.pop(f"{place}.weight")).float()
            layer.bias.data = torch.from_numpy(start.pop(f"{place}.bias")).float()
    assert not start
    return model


def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Values, 0 where missing, and which are observed: [rows, features] of the people of a step."""
    values = torch.from_numpy(phenotypes()[0][GOLDEN["rows"][step]]).float()
    return values.nan_to_num(), ~values.isnan()


def shown(step: int) -> torch.Tensor:
    return torch.tensor(GOLDEN["inputs"][step])


def loss_of(step: int, output: torch.Tensor) -> torch.Tensor:
    values, observed = batch(step)
    return phenotype_loss(output, values, observed, BINARY).total


def excess(step: int) -> float:
    """What AutoComplete's loss counts of missing binary entries, which move nothing."""
    observed = batch(step)[1][:, BINARY]
    return math.log(2) * float((~observed).sum() / observed.sum())


def test_the_same_weights_give_autocompletes_output() -> None:
    with torch.no_grad():
        found = network()(shown(0))
    torch.testing.assert_close(found, torch.tensor(GOLDEN["outputs"][0]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("step", STEPS)
def test_the_same_donors_hide_the_same_entries(step: int) -> None:
    everybody = torch.from_numpy(~np.isnan(phenotypes()[0]))
    values, observed = batch(step)
    donors: list[Any] = GOLDEN["donors"][step]
    assert any(donor is None for donor in donors)
    assert any(donor is not None for donor in donors)
    for row, donor in enumerate(donors):
        pool = everybody[[donor or 0]]
        gate = 0.0 if donor is None else 1.0
        visible = copy_mask(observed[row : row + 1], torch.Generator().manual_seed(0), gate, pool)
        found = torch.where(visible, values[row] - 0.5 * BINARY, 0.0)
        assert torch.equal(found[0], shown(step)[row])


def test_the_loss_is_autocompletes_less_log_2_of_missing_binary_entries() -> None:
    found = float(loss_of(0, torch.tensor(GOLDEN["outputs"][0])))
    assert found == pytest.approx(GOLDEN["losses"][0] - excess(0), abs=1e-6)


def test_training_takes_autocompletes_steps() -> None:
    model = network()
    optimiser = build_optimiser(
        model.parameters(), OptimiserConfig("sgd", learning_rate=0.1, momentum=0.9, clip_norm=10.0)
    )
    for step in STEPS:
        output = model(shown(step))
        torch.testing.assert_close(output, torch.tensor(GOLDEN["outputs"][step]), rtol=0, atol=2e-6)
        loss = loss_of(step, output)
        assert float(loss.detach()) == pytest.approx(GOLDEN["losses"][step] - excess(step), abs=2e-6)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimiser.step()
