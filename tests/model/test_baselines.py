import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from pm1_core.errors import ConfigError, DataError
from pm1_core.model.baselines import (
    ARCHITECTURES,
    build_genotype_model,
    fit_logistic,
)
from pm1_core.model.genotype_vae import GenotypeVAEConfig
from pm1_core.model.objectives import genotype_loss

CONFIG = GenotypeVAEConfig(latent=4, width=8, depth=1)


def rank_two(people: int, snps: int, seed: int) -> np.ndarray:
    """Dosages in which two hidden factors decide every SNP."""
    factors = np.random.default_rng(seed).integers(0, 2, (people, 2))
    loads = np.random.default_rng(1).integers(0, 2, (2, snps))
    return (factors @ loads).astype(np.uint8)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_has_the_same_interface(architecture: str) -> None:
    model = build_genotype_model(architecture, CONFIG, 11)
    dosages = torch.randint(4, (5, 11), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    logits, mean, log_variance = model(dosages, torch.Generator().manual_seed(1))
    assert logits.shape == (5, 11, 3)
    assert mean.shape == (5, 4)
    assert (log_variance is None) == (architecture == "linear")
    torch.testing.assert_close(model.encode(dosages)[0], mean)
    losses = genotype_loss(logits, mean, log_variance, dosages, torch.ones(3), 0.1)
    losses.total.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_an_unknown_architecture_is_refused() -> None:
    with pytest.raises(ConfigError, match="did you mean 'linear'"):
        build_genotype_model("liner", CONFIG, 11)


def test_the_linear_projection_is_linear() -> None:
    model = build_genotype_model("linear", CONFIG, 6)
    a, b = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    zero = model.decode(torch.zeros(3, 4))
    torch.testing.assert_close(model.decode(a + b) - zero, model.decode(a) + model.decode(b) - 2 * zero)


def test_logistic_baseline_gives_scikit_learns_log_odds() -> None:
    generator = np.random.default_rng(0)
    inputs = generator.normal(size=(200, 5)).astype(np.float32)
    cases = inputs @ [2.0, -1, 0, 0, 0.5] + generator.logistic(size=200) > 0.3
    baseline = fit_logistic(inputs, cases, penalty=2.0)
    reference = LogisticRegression(C=0.5, max_iter=5000).fit(inputs.astype(np.float64), cases)
    np.testing.assert_allclose(
        baseline.logits(inputs), reference.decision_function(inputs.astype(np.float64)), rtol=1e-9
    )


@pytest.mark.parametrize("cases", [np.zeros(4, bool), np.ones(4, bool)])
def test_logistic_baseline_refuses_one_class(cases: np.ndarray) -> None:
    with pytest.raises(DataError, match="both cases and controls"):
        fit_logistic(np.zeros((4, 2), np.float32), cases)
