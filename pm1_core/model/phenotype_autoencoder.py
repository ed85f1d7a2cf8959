"""The phenotype auto-encoder and its corruptions (section 4.1, appendix F.2, after AutoComplete).

    values [B, 3421] -> 3146 -> 2871 -> 2597 -> 2322 -> token [B, 2048] -> 2322 -> ... -> [B, 3421]

Inputs are z-scores where continuous and 0/1 where binary, zero where missing or hidden. Outputs are z-scores
where continuous and logits where binary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import nn

from pm1_core.errors import ConfigError
from pm1_core.validate import require_choice, require_range


@dataclass(frozen=True)
class PhenotypeAutoencoderConfig:
    """Sizes and corruptions of the phenotype auto-encoder; the defaults are the paper's.

    latent, depth: width of the token, and layers per side, whose widths decrease linearly
    slope: of LeakyReLU, on every layer but the decoder's last
    copy_mask: probability that a row gets a donor's missing entries on top of its own
    hide_targets: probability that all columns related to one random target are hidden from a row as well, as
        they are when that target is evaluated (appendix F.2); not in the paper's training, off
    reduction: "kind" or "sum", see objectives.phenotype_loss

    Raises ConfigError on a value out of bounds.
    """

    latent: int = 2048
    depth: int = 5
    slope: float = 0.01
    copy_mask: float = 0.3
    hide_targets: float = 0.0
    reduction: str = "kind"

    def __post_init__(self) -> None:
        require_range("phenotype model, latent", self.latent, 1, error=ConfigError)
        require_range("phenotype model, depth", self.depth, 1, error=ConfigError)
        for name in ("slope", "copy_mask", "hide_targets"):
            require_range(f"phenotype model, {name}", getattr(self, name), 0.0, 1.0, ConfigError)
        require_choice("phenotype model, reduction", self.reduction, ("kind", "sum"), ConfigError)

    def widths(self, n_features: int) -> tuple[int, ...]:
        """Widths from the input to the token, decreasing linearly and rounded down.

        >>> PhenotypeAutoencoderConfig().widths(3421)
        (3421, 3146, 2871, 2597, 2322, 2048)
        """
        # In whole numbers: a fraction just below an integer would lose a unit to rounding.
        steps = range(self.depth + 1)
        return tuple((n_features * (self.depth - i) + self.latent * i) // self.depth for i in steps)


class PhenotypeAutoencoder(nn.Module):
    """Fully connected encoder and mirrored decoder over `n_features` features."""

    def __init__(self, config: PhenotypeAutoencoderConfig, n_features: int) -> None:
        super().__init__()
        require_range("study, number of phenotype features", n_features, 1, error=ConfigError)
        self.config, self.n_features = config, n_features
        widths = config.widths(n_features)
        encoder: list[nn.Module] = []
        for before, after in pairwise(widths):
            encoder += [nn.Linear(before, after), nn.LeakyReLU(config.slope)]
        decoder: list[nn.Module] = []
        for before, after in pairwise(widths[::-1]):
            decoder += [nn.Linear(before, after), nn.LeakyReLU(config.slope)]
        self.encoder, self.decoder = nn.Sequential(*encoder), nn.Sequential(*decoder[:-1])

    def encode(self, values: torch.Tensor) -> torch.Tensor:
        """[B, K] with zeros where missing -> token [B, latent]."""
        token: torch.Tensor = self.encoder(values)
        return token

    def decode(self, token: torch.Tensor) -> torch.Tensor:
        """Token [B, latent] -> z-scores and logits [B, K]."""
        output: torch.Tensor = self.decoder(token)
        return output

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """[B, K] -> [B, K]."""
        return self.decode(self.encode(values))


def standardise(
    values: torch.Tensor,
    observed: torch.Tensor,
    mean: torch.Tensor,
    std: torch.Tensor,
    kept: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Study units [B, K] to the auto-encoder's inputs, and which entries [B, K] it knows.

    mean, std: [K], 0 and 1 for binary features; kept: [K], 0 for a feature with a single value in the whole
    federation, which is treated as missing everywhere (appendix E.3). Zero where not observed.
    """
    known = observed & (kept > 0)
    return torch.where(known, (values - mean) / std, 0.0), known


def copy_mask(
    observed: torch.Tensor,
    generator: torch.Generator,
    probability: float,
    donors: torch.Tensor | None = None,
) -> torch.Tensor:
    """Entries that stay visible [B, K]: with `probability` a row also misses what a random donor misses.

    The gate is drawn per row, and the whole pattern is a donor's, so that what is hidden together is what is
    missing together in real records (An et al. 2023; appendix F.2).

    observed: bool [B, K]
    donors: bool [D, K], patterns to copy; None takes the other rows of the batch, which are themselves a
        random draw from the training set
    """
    rows = len(observed)
    gate = torch.rand(rows, generator=generator, device=generator.device) < probability
    if donors is None:
        donors = observed
        # Never the row itself, where there is another one.
        shift = torch.randint(1, max(2, rows), (rows,), generator=generator, device=generator.device)
        chosen = (torch.arange(rows, device=generator.device) + shift) % max(1, rows)
    else:
        chosen = torch.randint(len(donors), (rows,), generator=generator, device=generator.device)
    gate, chosen = gate.to(observed.device), chosen.to(observed.device)
    return observed & (donors[chosen] | ~gate.unsqueeze(1))


def hide_groups(
    visible: torch.Tensor, groups: torch.Tensor, generator: torch.Generator, probability: float
) -> torch.Tensor:
    """`visible` [B, K] without one random group of columns in a share `probability` of the rows.

    groups: bool [G, K], the columns that belong together, one row per target of the study
    """
    if not len(groups) or probability == 0:
        return visible
    rows = len(visible)
    gate = torch.rand(rows, generator=generator, device=generator.device) < probability
    chosen = torch.randint(len(groups), (rows,), generator=generator, device=generator.device)
    gate, chosen = gate.to(visible.device), chosen.to(visible.device)
    return visible & ~(groups[chosen] & gate.unsqueeze(1))


@torch.no_grad()
def predict_target(
    module: PhenotypeAutoencoder,
    values: torch.Tensor,
    observed: torch.Tensor,
    target: Sequence[int],
    masked: Sequence[int],
) -> torch.Tensor:
    """Decoder output [n, len(target)] of the target's features, predicted from everything unrelated to it.

    values, observed: [n, K] of `standardise`
    target, masked: features to predict, and features hidden at the input (appendix F.2); the targets are
        hidden even if `masked` leaves them out

    Logits where the feature is binary, z-scores where continuous.
    """
    visible = observed.clone()
    visible[:, [*target, *masked]] = False
    output: torch.Tensor = module(torch.where(visible, values, 0.0))
    return output[:, list(target)]
