"""Masking, corruption and the three losses of the fusion transformer (section 4.2, E.5, F.5, eq. 2 to 5).

Every loss is a mean over a person's tokens, then over the N people of the batch:

    L_mask   person's mean over masked present tokens of the mean squared error over their dimensions
    L_recon  the same over present tokens that are not masked
    L_NCE    person's mean over modalities of eq. 2
    L        (1 - lambda) (L_mask + L_recon) + lambda L_NCE                                        (eq. 3)

A person without such a token (or with one modality, for L_NCE) counts 0 in the mean and is not left out of N.
So L_mask and L_recon add over people: N sites with their people as weights give the pooled gradient. L_NCE
does not: its negatives are the other people of the batch, hence of one site.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from pm1_core.errors import ConfigError
from pm1_core.fields import TOKENS_OF, Modality
from pm1_core.model.fusion import TOKEN_COUNT, Corruption, FusionTransformer, Tokens
from pm1_core.validate import refusal, require_choice, require_range

Network = Callable[..., Any]
MASKINGS = ("E.5", "F.5")
REDUCTIONS = ("tokens", "modalities")


@dataclass(frozen=True)
class FusionObjective:
    """What the fusion transformer is trained for; the defaults are the readings of docs/model.md.

    masking: "E.5" hides a genotype token with probability 1/66, the phenotype token with 1/3, an eye with
        1/6 (eq. 4, 5); "F.5" hides every token with 1/2
    whole_modality: probability that a person with two or more modalities loses one of them entirely, drawn
        uniformly, on top of `masking`: without it all 22 genotype tokens practically never go together
    corruption: probabilities of {nothing, noise, dropout, both} per person
    noise: sigma of the Gaussian noise on projected tokens
    dropout: probability that a dimension of a token is dropped
    contrast: lambda of eq. 3; temperature: tau of eq. 2
    reduction: "tokens" averages over a person's tokens; "modalities" averages within each modality first,
        as the sum over m of eq. 3 has it, so that 22 genotype tokens weigh as much as one phenotype token
    """

    masking: str = "E.5"
    whole_modality: float = 0.0
    corruption: tuple[float, float, float, float] = (0.20, 0.25, 0.25, 0.30)
    noise: float = 0.08
    dropout: float = 0.4
    contrast: float = 0.5
    temperature: float = 0.03
    reduction: str = "tokens"

    def __post_init__(self) -> None:
        require_choice("objective.masking", self.masking, MASKINGS, ConfigError)
        require_choice("objective.reduction", self.reduction, REDUCTIONS, ConfigError)
        for name in ("whole_modality", "contrast"):
            require_range(f"objective.{name}", getattr(self, name), 0.0, 1.0, ConfigError)
        require_range("objective.dropout", self.dropout, 0.0, 0.999, ConfigError)
        require_range("objective.noise", self.noise, 0.0, error=ConfigError)
        require_range("objective.temperature", self.temperature, 1e-4, error=ConfigError)
        shares = tuple(self.corruption)
        if len(shares) != 4 or min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
            raise ConfigError(
                refusal("objective.corruption", f"found {shares}", "give four probabilities that sum to 1")
            )

    def probabilities(self) -> Tensor:
        """Masking probability per token, float [25]."""
        chances = torch.full((TOKEN_COUNT,), 0.5)
        if self.masking == "E.5":
            for places in TOKENS_OF.values():
                chances[places] = 1 / (len(TOKENS_OF) * (places.stop - places.start))
        return chances


@dataclass(frozen=True)
class FusionLosses:
    """Scalars of one batch, in the graph: `total` (eq. 3) and its parts.

    each: squared errors (mean over dimensions) of tokens, float [n, 25]
    chosen: bool [n, 25], which of them "mask" and "recon" are about
    terms, anchored: of `info_nce`
    """

    total: Tensor
    mask: Tensor
    recon: Tensor
    contrast: Tensor
    each: Tensor
    chosen: Mapping[str, Tensor]
    terms: Tensor
    anchored: Tensor

    @property
    def errors(self) -> dict[str, tuple[float, int]]:
        """Sum of squared errors and number of tokens by "mask.genotype", "recon.fundus" ...

        Their quotient is 1 for a model that answers the training mean.
        """
        return {
            f"{part}.{modality}": (
                float(torch.where(where[:, places], self.each[:, places], 0.0).sum()),
                int(where[:, places].sum()),
            )
            for part, where in self.chosen.items()
            for modality, places in TOKENS_OF.items()
        }

    @property
    def anchors(self) -> tuple[float, int]:
        """Sum of eq. 2 over anchors, and their number."""
        return float(self.terms.sum()), int(self.anchored.sum())


def draw_masks(present: Tensor, objective: FusionObjective, draws: torch.Generator) -> Tensor:
    """Which present tokens the objective hides, bool [n, 25] on the device of `present`.

    Drawn anew at every call, on the generator's device, for all tokens whether present or not, so that a
    person's draw does not depend on what others have.
    """
    n = len(present)
    chances = objective.probabilities().to(draws.device)
    masked = torch.rand(n, TOKEN_COUNT, generator=draws, device=draws.device) < chances
    masked = masked.to(present.device)
    if objective.whole_modality > 0:
        loses = torch.rand(n, generator=draws, device=draws.device) < objective.whole_modality
        order = torch.rand(n, len(TOKENS_OF), generator=draws, device=draws.device).to(present.device)
        has = torch.stack([present[:, places].any(1) for places in TOKENS_OF.values()], 1)  # n, 3
        chosen = torch.where(has, order, -1.0).argmax(1)
        hit = loses.to(present.device) & (has.sum(1) > 1)
        for index, places in enumerate(TOKENS_OF.values()):
            masked[:, places] |= (hit & (chosen == index)).unsqueeze(1)
    return masked & present


def draw_corruption(
    n: int, width: int, objective: FusionObjective, draws: torch.Generator, device: torch.device
) -> Corruption:
    """One of four modes per person: nothing, noise, dropout of dimensions, both (F.5).

    Kept dimensions are scaled by 1 / (1 - dropout), as dropout does, so that evaluation needs no correction.
    """
    modes = torch.multinomial(
        torch.tensor(objective.corruption, device=draws.device), n, replacement=True, generator=draws
    ).view(n, 1, 1)
    shape = (n, TOKEN_COUNT, width)
    noise = torch.randn(shape, generator=draws, device=draws.device) * objective.noise
    noise = torch.where((modes == 1) | (modes == 3), noise, 0.0)
    kept = torch.rand(shape, generator=draws, device=draws.device) >= objective.dropout
    scale = torch.where(modes >= 2, kept / (1 - objective.dropout), 1.0)
    return Corruption(noise.to(device), scale.to(device))


def info_nce(pooled: Tensor, has: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Eq. 2 for every anchor: float [n, 3], 0 where there is none, and bool [n, 3], where there is one.

    pooled: float [n, 3, h], a person's average output per modality, L2-normalised here
    has: bool [n, 3]
    Both may have dimensions in front, of groups whose people are no negatives of each other's.

    The positives of anchor (j, m) are (j, m') with m' != m; its negatives are all (k, m') with k != j, of any
    modality that k has. People with one modality have no positive and are no anchors, but they are negatives.
    """
    n, modalities = has.shape[-2:]
    unit = F.normalize(pooled, dim=-1).flatten(-3, -2)  # 3n, h
    similarity = unit @ unit.mT / temperature  # 3n, 3n
    exists = has.flatten(-2)
    person = torch.arange(n, device=pooled.device).repeat_interleave(modalities)
    same = person[:, None] == person[None, :]
    itself = torch.eye(len(person), dtype=torch.bool, device=pooled.device)
    pairs = exists[..., :, None] & exists[..., None, :] & ~itself
    positives = pairs & same
    anchors = positives.any(-1)
    # A row without a pair would give -inf - -inf: such rows are filled with 0 and dropped below.
    everything = similarity.masked_fill(~pairs, float("-inf")).masked_fill(~anchors[..., None], 0.0)
    matching = similarity.masked_fill(~positives, float("-inf")).masked_fill(~anchors[..., None], 0.0)
    terms = torch.logsumexp(everything, -1) - torch.logsumexp(matching, -1)
    shape = (*has.shape[:-2], n, modalities)
    return torch.where(anchors, terms, 0.0).view(shape), anchors.view(shape)


def person_means(errors: Tensor, chosen: Tensor, reduction: str) -> Tensor:
    """Each person's mean error over the chosen tokens, float [n]; 0 for a person with none.

    errors: float [n, 25]; chosen: bool [n, 25]
    """
    spans = [slice(0, TOKEN_COUNT)] if reduction == "tokens" else list(TOKENS_OF.values())
    total, parts = errors.new_zeros(len(errors)), errors.new_zeros(len(errors))
    for span in spans:
        count = chosen[:, span].sum(1)
        total = total + torch.where(chosen[:, span], errors[:, span], 0.0).sum(1) / count.clamp(min=1)
        parts = parts + (count > 0)
    return total / parts.clamp(min=1)


def fusion_losses(
    model: FusionTransformer,
    tokens: Tokens,
    present: Tensor,
    objective: FusionObjective,
    draws: torch.Generator,
    corrupt: bool = True,
    over: Callable[[Network], Network] = lambda network: network,
) -> FusionLosses:
    """One forward pass and its losses (eq. 3).

    tokens: {modality: float [n, T_m, d_m]}, standardised; present: bool [n, 25]
    draws: masks first, then corruption, so that both can be repeated
    corrupt: False leaves visible tokens as they are, which validation does
    over: gives a network that computes the same rows, over several GPUs for one
    """
    n = len(present)
    masked = draw_masks(present, objective, draws)
    corruption = draw_corruption(n, model.config.width, objective, draws, present.device) if corrupt else None
    hidden = over(model)(tokens, present, masked, corruption, predict_missing=False)
    rebuilt = over(model.reconstruct)(hidden)
    errors = torch.cat([(rebuilt[m] - tokens[m]).square().mean(-1) for m in Modality], 1)  # n, 25
    visible = present & ~masked
    mask = person_means(errors, masked, objective.reduction).mean()
    recon = person_means(errors, visible, objective.reduction).mean()
    # Similarities are divided by a small temperature: rounded to half precision they would lose too much.
    with torch.autocast(hidden.device.type, enabled=False):
        terms, anchors = info_nce(*model.pool(hidden.float(), present), objective.temperature)
    contrast = (terms.sum(1) / anchors.sum(1).clamp(min=1)).mean()
    total = (1 - objective.contrast) * (mask + recon) + objective.contrast * contrast
    return FusionLosses(
        total,
        mask,
        recon,
        contrast,
        errors.detach(),
        {"mask": masked, "recon": visible},
        terms.detach(),
        anchors,
    )


def group_losses(
    model: FusionTransformer,
    tokens: Tokens,
    present: Tensor,
    objective: FusionObjective,
    draws: torch.Generator,
    shares: Sequence[int],
) -> Tensor:
    """Eq. 3 as a sum over the people of each group, float [groups]: nobody outside a group has a part in its loss.

    tokens, present: as for `fusion_losses`, people of a group beside each other
    shares: people of each group; one without any has loss 0
    """
    if not len(present):
        return present.new_zeros(len(shares), dtype=torch.float32)
    masked = draw_masks(present, objective, draws)
    corruption = draw_corruption(len(present), model.config.width, objective, draws, present.device)
    hidden = model(tokens, present, masked, corruption, predict_missing=False, per_person=True)
    rebuilt = model.reconstruct(hidden)
    errors = torch.cat([(rebuilt[m] - tokens[m]).square().mean(-1) for m in Modality], 1)
    mask = person_means(errors, masked, objective.reduction)
    recon = person_means(errors, present & ~masked, objective.reduction)
    pooled, has = (
        # Groups side by side, filled up with people who have nothing.
        pad_sequence([*torch.split(part, list(shares))], batch_first=True)
        for part in model.pool(hidden, present)
    )
    terms, anchors = info_nce(pooled, has, objective.temperature)
    contrast = (terms.sum(-1) / anchors.sum(-1).clamp(min=1)).sum(-1)
    recovered = torch.stack([own.sum() for own in torch.split(mask + recon, list(shares))])
    return (1 - objective.contrast) * recovered + objective.contrast * contrast
