"""What PM1 has to beat: a linear projection and a shallow VAE of genotypes (supplementary figure 9), and
logistic regression on pooled phenotypes.

The genotype baselines have the interface of GenotypeVAE, so that the same task trains them over sites.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn

from pm1_core.errors import ConfigError, DataError
from pm1_core.model.genotype_vae import DOSAGES, GenotypeVAE, GenotypeVAEConfig, sample
from pm1_core.validate import refusal, require_choice

ARCHITECTURES = ("convolutional", "linear", "shallow")


def _one_hot(dosages: torch.Tensor) -> torch.Tensor:
    """Integers [B, S] -> float32 [B, 3 S], all zeros where missing."""
    classes = torch.arange(DOSAGES, device=dosages.device, dtype=dosages.dtype)
    return (dosages.unsqueeze(-1) == classes).flatten(1).float()


class LinearGenotypeAutoencoder(nn.Module):
    """One linear map to the latent and one back: a principal component analysis with a cross-entropy.

    The map starts from dosages one-hot, so that a heterozygote need not lie half-way.
    """

    def __init__(self, latent: int, n_snps: int) -> None:
        super().__init__()
        self.n_snps = n_snps
        self.project = nn.Linear(DOSAGES * n_snps, latent)
        self.restore = nn.Linear(latent, DOSAGES * n_snps)

    def encode(self, dosages: torch.Tensor) -> tuple[torch.Tensor, None]:
        """Integers [B, S] -> latent [B, latent], and None: there is no posterior variance."""
        return self.project(_one_hot(dosages)), None

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        """[B, latent] -> logits [B, S, 3]."""
        logits: torch.Tensor = self.restore(z)
        return logits.reshape(len(z), self.n_snps, DOSAGES)

    def forward(
        self, dosages: torch.Tensor, generator: torch.Generator | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, None]:
        """[B, S] -> logits [B, S, 3], latent [B, latent], None."""
        z, _ = self.encode(dosages)
        return self.decode(z), z, None


class ShallowGenotypeVAE(nn.Module):
    """A VAE with one hidden layer of `hidden` units on each side and no notion of neighbourhood."""

    def __init__(self, latent: int, hidden: int, n_snps: int) -> None:
        super().__init__()
        self.n_snps = n_snps
        self.encoder = nn.Sequential(
            nn.Linear(DOSAGES * n_snps, hidden), nn.GELU(), nn.Linear(hidden, 2 * latent)
        )
        self.decoder = nn.Sequential(
            nn.Linear(latent, hidden), nn.GELU(), nn.Linear(hidden, DOSAGES * n_snps)
        )

    def encode(self, dosages: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Integers [B, S] -> mean and log variance [B, latent]."""
        mean, log_variance = self.encoder(_one_hot(dosages)).chunk(2, dim=-1)
        return mean, log_variance

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        """[B, latent] -> logits [B, S, 3]."""
        logits: torch.Tensor = self.decoder(z)
        return logits.reshape(len(z), self.n_snps, DOSAGES)

    def forward(
        self, dosages: torch.Tensor, generator: torch.Generator | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """[B, S] -> logits, mean, log variance, as GenotypeVAE."""
        mean, log_variance = self.encode(dosages)
        z = mean if generator is None else sample(mean, log_variance, generator)
        return self.decode(z), mean, log_variance


GenotypeModel = GenotypeVAE | LinearGenotypeAutoencoder | ShallowGenotypeVAE


def build_genotype_model(architecture: str, config: GenotypeVAEConfig, n_snps: int) -> GenotypeModel:
    """The model of one chromosome by name: "convolutional" is PM1's, "linear" and "shallow" are baselines.

    All have `config.latent` latents; the shallow VAE's hidden layer is twice as wide. Raises ConfigError on
    another name.
    """
    require_choice("genotype model, architecture", architecture, ARCHITECTURES, ConfigError)
    if architecture == "linear":
        return LinearGenotypeAutoencoder(config.latent, n_snps)
    if architecture == "shallow":
        return ShallowGenotypeVAE(config.latent, 2 * config.latent, n_snps)
    return GenotypeVAE(config, n_snps)


@dataclass(frozen=True)
class LogisticBaseline:
    """A fitted logistic regression: weights float64 [F] and intercept, over standardised inputs."""

    weights: np.ndarray
    intercept: float

    def logits(self, inputs: np.ndarray) -> np.ndarray:
        """Log odds of a case, float64 [n], for inputs [n, F]."""
        odds: np.ndarray = inputs.astype(np.float64) @ self.weights + self.intercept
        return odds


def fit_logistic(inputs: np.ndarray, cases: np.ndarray, penalty: float = 1.0) -> LogisticBaseline:
    """Logistic regression of a target on rows pooled over the sites, with an L2 penalty.

    inputs: [n, F] standardised, zero where missing or hidden; cases: bool [n], people whose target was
    observed; penalty: scikit-learn's 1 / C, relative to a sum over people.

    Raises DataError if there are no cases or no controls.
    """
    cases = cases.astype(bool)
    if not (0 < cases.sum() < len(cases)):
        found = f"found {int(cases.sum())} cases among {len(cases)} people"
        raise DataError(refusal("logistic regression", found, "give both cases and controls"))
    fitted = LogisticRegression(C=1 / penalty, max_iter=5000).fit(inputs.astype(np.float64), cases)
    return LogisticBaseline(fitted.coef_[0].copy(), float(fitted.intercept_[0]))
