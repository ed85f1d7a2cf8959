"""What the genotype and the phenotype auto-encoders minimise (section 4.1, eq. 1, appendices F.1 and F.2).

Every objective here is a mean over people of a figure per person, with no constant taken from the batch.
A full-batch step on N sites, averaged with the numbers of people as weights, is then the step on the pooled
people.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional

from pm1_core.errors import ConfigError
from pm1_core.fields import MISSING_DOSAGE
from pm1_core.validate import require_choice


@dataclass(frozen=True)
class GenotypeLosses:
    """What is minimised, the reconstruction term and the KL divergence in nats: scalars, or [B] of each person."""

    total: torch.Tensor
    cross_entropy: torch.Tensor
    kl: torch.Tensor


def dosage_weights(counts: torch.Tensor, cap: float, per: str = "chromosome") -> torch.Tensor:
    """Class weights of the dosages: inverse frequencies, capped, scaled to a mean of one over genotypes.

    counts: people per SNP and dosage [S, 3], from the training people of all sites
    cap: no weight exceeds `cap` times that of equally frequent dosages (before scaling)
    per: "chromosome" gives float32 [3], "snp" [S, 3], "none" ones [3]

    >>> dosage_weights(torch.tensor([[60.0, 30.0, 10.0]]), cap=10.0)
    tensor([0.5556, 1.1111, 3.3333])
    >>> dosage_weights(torch.tensor([[989.0, 10.0, 1.0]]), cap=10.0).round(decimals=2)
    tensor([ 0.7600, 22.5600, 22.5600])
    """
    # Noised counts may be below zero.
    counts = counts.clamp_min(0).to(torch.float64)
    if per == "none":
        return torch.ones(counts.shape[-1])
    if per == "chromosome":
        counts = counts.sum(0)
    frequencies = counts / counts.sum(-1, keepdim=True).clamp_min(1)
    weights = (1 / (counts.shape[-1] * frequencies.clamp_min(1e-12))).clamp_max(cap)
    mean = (frequencies * weights).sum(-1, keepdim=True)
    return (weights / torch.where(mean > 0, mean, 1.0)).float()


def weighted_cross_entropy(
    logits: torch.Tensor, dosages: torch.Tensor, weights: torch.Tensor, reduction: str = "mean"
) -> torch.Tensor:
    """Weighted cross-entropy per person [B] over the SNPs where a genotype was observed.

    logits [B, S, 3]; dosages [B, S], integers, 3 = missing; weights [3] or [S, 3]; reduction "mean" or "sum"
    over observed SNPs. The mean divides by their number, not by their weights: a weight says how much a
    genotype counts, and does so alike in everybody. A person without any genotype adds zero.
    """
    targets = dosages.long()
    # Classes first: a softmax over a last dimension of three is four times slower.
    classes_first = logits.transpose(1, 2).contiguous()
    shared = weights if weights.ndim == 1 else None
    losses = functional.cross_entropy(
        classes_first, targets, weight=shared, ignore_index=MISSING_DOSAGE, reduction="none"
    )
    observed = targets != MISSING_DOSAGE
    if shared is None:
        # The weight of a missing genotype is looked up too, and multiplied by its loss of zero.
        index = targets.clamp_max(weights.shape[1] - 1).unsqueeze(-1)
        losses = losses * weights.expand(len(targets), -1, -1).gather(2, index).squeeze(-1)
    summed = losses.sum(1)
    return summed / observed.sum(1).clamp_min(1) if reduction == "mean" else summed


def kl_divergence(mean: torch.Tensor, log_variance: torch.Tensor) -> torch.Tensor:
    """KL(N(mean, exp(log_variance)) || N(0, 1)) in nats per person [B], summed over latents [B, latent]."""
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(-1)


def annealing(step: int, steps: int) -> float:
    """Share of the final KL weight at a step from 0, reached linearly after `steps` (appendix F.1).

    >>> annealing(0, 1000), annealing(250, 1000), annealing(5000, 1000), annealing(0, 0)
    (0.0, 0.25, 1.0, 1.0)
    """
    return min(1.0, step / steps) if steps else 1.0


def genotype_loss(
    logits: torch.Tensor,
    mean: torch.Tensor,
    log_variance: torch.Tensor | None,
    dosages: torch.Tensor,
    weights: torch.Tensor,
    beta: float,
    reconstruction: str = "mean",
    kl_scale: str = "snp",
) -> GenotypeLosses:
    """Weighted cross-entropy plus `beta` times KL, each a mean over people (appendix F.1).

    The paper does not say whether the cross-entropy is summed over SNPs. `reconstruction` is "mean" or "sum"
    over a person's observed SNPs; the KL divergence is always summed over latents, and then divided by
    `kl_scale`: the number of SNPs ("snp"), of latents ("latent"), or nothing ("person").
      sum, person: the beta-VAE's bound itself (Higgins et al. 2016)
      mean, snp: that bound per SNP, so that rates, clipping and annealing mean the same for chromosomes
        of 9,000 and of 54,000 SNPs. The default
      mean, person: one nat costs `beta` while a whole chromosome gains about one; the posterior collapses

    `log_variance` is None for a deterministic auto-encoder, which has no KL term.
    """
    each = genotype_losses(logits, mean, log_variance, dosages, weights, beta, reconstruction, kl_scale)
    return GenotypeLosses(each.total.mean(), each.cross_entropy.mean(), each.kl.mean())


def genotype_losses(
    logits: torch.Tensor,
    mean: torch.Tensor,
    log_variance: torch.Tensor | None,
    dosages: torch.Tensor,
    weights: torch.Tensor,
    beta: float,
    reconstruction: str = "mean",
    kl_scale: str = "snp",
) -> GenotypeLosses:
    """`genotype_loss` of each person, [B]."""
    cross_entropy = weighted_cross_entropy(logits, dosages, weights, reconstruction)
    if log_variance is None:
        return GenotypeLosses(cross_entropy, cross_entropy, torch.zeros_like(cross_entropy))
    kl = kl_divergence(mean, log_variance)
    divisor = {"snp": dosages.shape[1], "latent": mean.shape[1], "person": 1}
    scale = divisor[require_choice("genotype model, kl_scale", kl_scale, divisor, ConfigError)]
    return GenotypeLosses(cross_entropy + beta / scale * kl, cross_entropy, kl)


@dataclass(frozen=True)
class PhenotypeLosses:
    """Scalars: what is minimised, and the parts of continuous and binary features that it is the sum of."""

    total: torch.Tensor
    continuous: torch.Tensor
    binary: torch.Tensor


def phenotype_errors(output: torch.Tensor, values: torch.Tensor, binary: torch.Tensor) -> torch.Tensor:
    """Error of every entry [B, K]: squared where continuous, cross-entropy from logits where binary [K]."""
    squared = (output - values).square()
    entropy = functional.binary_cross_entropy_with_logits(output, values, reduction="none")
    return torch.where(binary, entropy, squared)


def phenotype_loss(
    output: torch.Tensor,
    values: torch.Tensor,
    targets: torch.Tensor,
    binary: torch.Tensor,
    reduction: str = "kind",
    expected: tuple[float, float] | None = None,
) -> PhenotypeLosses:
    """Mixed reconstruction loss over the entries in `targets` (eq. 1).

    output, values: [B, K], z-scores where continuous, logits and 0/1 where binary
    targets: bool [B, K], every entry that was observed before copy masking
    binary: bool [K]
    reduction: "sum" is eq. 1, a plain sum over entries and mean over people; "kind" averages each kind over
        its observed entries, so that 3,000 binary features do not drown 400 continuous ones
    expected: observed (continuous, binary) entries that a person has on average in the whole federation. With
        it, "kind" divides by people x expected instead of by the entries that happen to be in this batch;
        over all people that is the same number, and only so does the loss add up over sites
    """
    require_choice("phenotype model, reduction", reduction, ("kind", "sum"), ConfigError)
    errors = torch.where(targets, phenotype_errors(output, values, binary), 0.0)
    people = max(1, len(output))
    parts: list[torch.Tensor] = []
    for position, kind in enumerate((~binary, binary)):
        summed = (errors * kind).sum()
        if reduction == "sum":
            parts.append(summed / people)
        elif expected is not None:
            parts.append(summed / (people * expected[position]) if expected[position] > 0 else summed * 0)
        else:
            parts.append(summed / (targets & kind).sum().clamp_min(1))
    continuous, binary_part = parts
    return PhenotypeLosses(continuous + binary_part, continuous, binary_part)


def phenotype_losses(
    output: torch.Tensor,
    values: torch.Tensor,
    targets: torch.Tensor,
    binary: torch.Tensor,
    reduction: str,
    expected: tuple[float, float],
) -> torch.Tensor:
    """`phenotype_loss` of each person [B], whose mean it is."""
    errors = torch.where(targets, phenotype_errors(output, values, binary), 0.0)
    if reduction == "sum":
        return errors.sum(1)
    continuous, binaries = (1 / share if share > 0 else 0.0 for share in expected)
    return (errors * torch.where(binary, binaries, continuous)).sum(1)
