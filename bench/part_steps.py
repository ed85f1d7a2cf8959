"""A training step of each part beside a plain, direct PyTorch implementation of the same architecture.

python -m bench.part_steps
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from bench.plain_parts import PlainFusion, PlainVAE, plain_autoencoder, plain_lora
from bench.report import keep, machine, show
from configs import compose
from pm1_core.fields import TOKENS, TOKENS_OF, Modality
from pm1_core.model.fundus_encoder import FundusEncoder, FundusEncoderConfig
from pm1_core.model.fundus_lora import attach_lora, lora_parameters, set_draws
from pm1_core.model.fusion import FusionConfig, FusionTransformer
from pm1_core.model.fusion_objectives import FusionObjective, fusion_losses
from pm1_core.model.genotype_vae import GenotypeVAE, GenotypeVAEConfig
from pm1_core.model.objectives import genotype_losses, phenotype_loss
from pm1_core.model.phenotype_autoencoder import PhenotypeAutoencoder, PhenotypeAutoencoderConfig, copy_mask
from pm1_core.training.loop import Losses, train_epochs
from pm1_core.training.order import Order

STEPS, REPEATS, RATE, CLIP = 2, 7, 1e-4, 10.0
WEIGHTS = (0.5, 1.0, 2.0)
SHARES = {Modality.GENOTYPE: 0.842, Modality.PHENOTYPE: 0.914, Modality.FUNDUS: 0.219}
"""People of the paper's cohort who have each modality (table 2, E.5)."""


@dataclass(frozen=True)
class Pair:
    """What is trained on both sides, and the loss of one batch of people."""

    people: int
    ours: nn.Module
    trained: dict[str, nn.Parameter]
    our_loss: Callable[[torch.Generator], Tensor]
    plain: nn.Module
    plain_loss: Callable[[], Tensor]


def fusion(complete: bool, width: int = 512, layers: int = 6, people: int = 64) -> Pair:
    """The fusion transformer, narrower than the paper's; everybody has all, or people lack what the paper's do."""
    config = FusionConfig(width, layers, 8, 2 * width, width, width, width // 2)
    rng = np.random.default_rng(0)
    present = torch.ones(people, len(TOKENS), dtype=torch.bool)
    for modality, share in () if complete else SHARES.items():
        present[:, TOKENS_OF[modality]] = torch.from_numpy(rng.random((people, 1)) < share)
    present[~present.any(1), TOKENS_OF[Modality.PHENOTYPE].start] = True
    tokens = {m: torch.randn(people, s.stop - s.start, config.token_width(m)) for m, s in TOKENS_OF.items()}
    ours, plain, objective = FusionTransformer(config), PlainFusion(config), FusionObjective()
    draws = torch.Generator().manual_seed(0)
    return _pair(
        people,
        ours,
        lambda draws: fusion_losses(ours, tokens, present, objective, draws).total,
        plain,
        lambda: fusion_losses(plain, tokens, present, objective, draws).total,
    )


def genotype(snps: int = 4096, people: int = 8) -> Pair:
    """The genotype VAE at the paper's widths on a short chromosome."""
    config = GenotypeVAEConfig(**compose.load("simulation", ["model=paper"])["model"]["genotype"])
    dosages = torch.from_numpy(np.random.default_rng(0).integers(0, 4, (people, snps), np.uint8))
    weights, ours, plain = torch.tensor(WEIGHTS), GenotypeVAE(config, snps), PlainVAE(config, snps)

    def our_loss(draws: torch.Generator) -> Tensor:
        logits, mean, log_variance = ours(dosages, draws)
        return genotype_losses(logits, mean, log_variance, dosages, weights, config.beta).total.mean()

    def plain_loss() -> Tensor:
        logits, mean, log_variance = plain(dosages)
        wanted = dosages.long()
        errors = functional.cross_entropy(logits, wanted, weights, ignore_index=3, reduction="none")
        kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1)
        return (errors.sum(1) / (wanted < 3).sum(1) + config.beta / snps * kl).mean()

    return _pair(people, ours, our_loss, plain, plain_loss)


def phenotype(features: int = 3421, people: int = 512) -> Pair:
    """The phenotype auto-encoder at the paper's size."""
    config = PhenotypeAutoencoderConfig(**compose.load("simulation", ["model=paper"])["model"]["phenotype"])
    values = torch.randn(people, features)
    known, binary = torch.rand(people, features) < 0.8, torch.arange(features) % 3 > 0
    values = torch.where(binary, (values > 0).float(), values)
    ours, plain = PhenotypeAutoencoder(config, features), plain_autoencoder(config, features)

    def our_loss(draws: torch.Generator) -> Tensor:
        visible = copy_mask(known, draws, config.copy_mask)
        return phenotype_loss(ours(torch.where(visible, values, 0.0)), values, known, binary).total

    def plain_loss() -> Tensor:
        donors = known[torch.randperm(people)] | (torch.rand(people, 1) > config.copy_mask)
        output = plain(torch.where(known & donors, values, 0.0))
        chosen = known & ~binary
        squares = (output[chosen] - values[chosen]).square().mean()
        chosen = known & binary
        return squares + functional.binary_cross_entropy_with_logits(output[chosen], values[chosen])

    return _pair(people, ours, our_loss, plain, plain_loss)


def fundus(depth: int = 6, people: int = 8) -> Pair:
    """Masked auto-encoding with adapters at the paper's widths, of fewer blocks; a photograph each."""
    sizes = compose.load("simulation", ["model=paper"])["model"]["fundus"]
    config = FundusEncoderConfig(**{**sizes, "depth": depth, "decoder_depth": 2})
    photographs = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (people, 224, 224, 3), np.uint8))
    ours, plain = attach_lora(FundusEncoder(config)), plain_lora(FundusEncoder(config))
    draws = torch.Generator().manual_seed(0)

    def loss(encoder: FundusEncoder, draws: torch.Generator) -> Tensor:
        images = encoder.prepare(photographs)
        return encoder.reconstruction_errors(images, encoder.draw_hidden(people, draws)).mean()

    def our_loss(draws: torch.Generator) -> Tensor:
        set_draws(ours, draws)
        return loss(ours, draws)

    return _pair(people, ours, our_loss, plain, lambda: loss(plain, draws), lora_parameters(ours))


PARTS: dict[str, Callable[[], Pair]] = {
    "fusion, all tokens": lambda: fusion(True),
    "fusion, tokens missing as in the paper": lambda: fusion(False),
    "genotype": genotype,
    "phenotype": phenotype,
    "fundus": fundus,
}


def _pair(
    people: int,
    ours: nn.Module,
    our_loss: Callable[[torch.Generator], Tensor],
    plain: nn.Module,
    plain_loss: Callable[[], Tensor],
    trained: dict[str, nn.Parameter] | None = None,
) -> Pair:
    trained = dict(ours.named_parameters()) if trained is None else trained
    theirs = [parameter for parameter in plain.parameters() if parameter.requires_grad]
    sizes = [sum(p.numel() for p in side) for side in (trained.values(), theirs)]
    # A transposed convolution has one bias where our upsampling has one for each of its two positions.
    assert abs(sizes[0] / sizes[1] - 1) < 1e-3, (
        f"{sizes[0]} parameters are trained, {sizes[1]} of the plain one"
    )
    return Pair(people, ours, trained, our_loss, plain, plain_loss)


def part_steps() -> dict[str, Any]:
    """By part: seconds of a step as the training loop takes it, and of the plain one, in turns, the best."""
    found: dict[str, Any] = {}
    for name, make in PARTS.items():
        pair = make()
        best = {"PM1": float("inf"), "plain": float("inf")}
        for _ in range(REPEATS):
            best["PM1"] = min(best["PM1"], _ours(pair))
            best["plain"] = min(best["plain"], _plain(pair))
        size = sum(parameter.numel() for parameter in pair.trained.values())
        found[name] = {
            "people": pair.people,
            "parameters": size,
            "seconds": best,
            "ratio": best["PM1"] / best["plain"],
        }
    return {"threads": torch.get_num_threads(), "parts": found}


def _ours(pair: Pair) -> float:
    optimiser = {"name": "adamw", "learning_rate": RATE, "weight_decay": 0.01, "clip_norm": CLIP}
    loop = {
        "batch_size": pair.people,
        "epochs": STEPS,
        "keep_moments": False,
        "device": "cpu",
        "optimiser": optimiser,
    }
    order = Order("bench", "bench", 1, 1, 0, {"loop": loop})
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        train_epochs(
            pair.ours,
            pair.trained,
            order,
            Path(folder),
            pair.people,
            lambda _, draws, __: Losses(pair.our_loss(draws)),
        )
        return (time.perf_counter() - began) / STEPS


def _plain(pair: Pair) -> float:
    pair.plain.train()
    began = time.perf_counter()
    # A new one, as a round of ours has it.
    optimiser = torch.optim.AdamW([p for p in pair.plain.parameters() if p.requires_grad], RATE)
    for _ in range(STEPS):
        optimiser.zero_grad(set_to_none=True)
        loss = pair.plain_loss()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(pair.plain.parameters(), CLIP)
        optimiser.step()
        loss.item()
    return (time.perf_counter() - began) / STEPS


if __name__ == "__main__":
    machine()
    outcome = part_steps()
    keep("part_steps", outcome)
    show(outcome)
