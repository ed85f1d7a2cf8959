"""The peers of PM1's parts: the same architectures written down directly in PyTorch, layer by layer."""

from __future__ import annotations

from itertools import pairwise
from math import gcd

import torch
from torch import Tensor, nn
from torch.nn import functional

from pm1_core.model.fundus_encoder import FundusEncoder
from pm1_core.model.fusion import FusionConfig, FusionTransformer
from pm1_core.model.genotype_vae import GenotypeVAEConfig
from pm1_core.model.phenotype_autoencoder import PhenotypeAutoencoderConfig


class PlainFusion(FusionTransformer):
    """The fusion transformer with torch's own encoder for its layers; missing tokens are masked as keys."""

    def __init__(self, config: FusionConfig, device: str | torch.device = "cpu") -> None:
        super().__init__(config, device=device)
        layer = nn.TransformerEncoderLayer(
            config.width,
            config.heads,
            config.feedforward,
            dropout=0.0,
            batch_first=True,
            norm_first=True,
            device=device,
        )
        self.layers = nn.ModuleList()
        self.encoder = nn.TransformerEncoder(layer, config.layers, enable_nested_tensor=False)

    def contextualise(self, stream: Tensor, keys: Tensor, active: Tensor | None = None) -> Tensor:
        """The layers alone, float [n, 26, h] twice; every token is computed."""
        hidden: Tensor = self.encoder(stream, src_key_padding_mask=~keys)
        return hidden


class _PlainSublayer(nn.Module):
    """Four convolutions along the chromosome, then two over channels, on [B, C, L]."""

    def __init__(self, width: int, config: GenotypeVAEConfig) -> None:
        super().__init__()
        inner, wide = round(width * config.convolution_multiplier), round(width * config.mlp_multiplier)
        steps = ((width, width), (width, inner), (inner, width), (width, width))
        convolutions: list[nn.Module] = []
        for a, b in steps:
            kernel = config.kernel
            convolutions += [nn.Conv1d(a, b, kernel, padding=kernel // 2, groups=gcd(a, b)), nn.GELU()]
        self.tokens = nn.Sequential(*convolutions[:-1])
        self.channels = nn.Sequential(nn.Conv1d(width, wide, 1), nn.GELU(), nn.Conv1d(wide, width, 1))

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, L] -> [B, C, L]."""
        x = x + self.tokens(x)
        mixed: Tensor = x + self.channels(x)
        return mixed


class PlainVAE(nn.Module):
    """The genotype VAE of one chromosome with torch's one-dimensional convolutions and an embedding."""

    def __init__(self, config: GenotypeVAEConfig, n_snps: int) -> None:
        super().__init__()
        self.length = config.padded(n_snps)
        self.n_snps, widths, rate = n_snps, config.widths(), config.rate
        self.tokens, self.positions = nn.Embedding(4, widths[0]), nn.Embedding(self.length, widths[0])
        encoder: list[nn.Module] = []
        decoder: list[nn.Module] = []
        for before, after in pairwise(widths):
            encoder += [_PlainSublayer(before, config) for _ in range(config.depth)]
            encoder.append(nn.Conv1d(before, after, rate, rate))
        for before, after in pairwise(widths[::-1]):
            decoder.append(nn.ConvTranspose1d(before, after, rate, rate))
            decoder += [_PlainSublayer(after, config) for _ in range(config.depth)]
        self.encoder, self.decoder = nn.Sequential(*encoder), nn.Sequential(*decoder)
        self.narrow = widths[-1]
        flat = self.length // rate**config.blocks * self.narrow
        self.posterior, self.expand = nn.Linear(flat, 2 * config.latent), nn.Linear(config.latent, flat)
        self.unembed = nn.Conv1d(widths[0], 3, 1)

    def forward(self, dosages: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[B, S] -> logits [B, 3, S], mean and log variance [B, latent]; the latent is drawn."""
        padded = functional.pad(dosages.long(), (0, self.length - self.n_snps), value=3)
        x = (self.tokens(padded) + self.positions.weight).transpose(1, 2)
        mean, log_variance = self.posterior(self.encoder(x).flatten(1)).chunk(2, dim=1)
        z = mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)
        x = self.decoder(self.expand(z).view(len(z), self.narrow, -1))
        return self.unembed(x)[:, :, : self.n_snps], mean, log_variance


def plain_autoencoder(config: PhenotypeAutoencoderConfig, features: int) -> nn.Sequential:
    """The phenotype auto-encoder as one row of layers."""
    widths = config.widths(features)
    layers: list[nn.Module] = []
    for before, after in pairwise([*widths, *widths[-2::-1]]):
        layers += [nn.Linear(before, after), nn.LeakyReLU(config.slope)]
    return nn.Sequential(*layers[:-1])


class _PlainLoRA(nn.Module):
    """W x + (alpha / rank) B A dropout(x), W frozen."""

    def __init__(self, base: nn.Linear, rank: int, alpha: float, dropout: float) -> None:
        super().__init__()
        self.base, self.dropout, self.scale = base, nn.Dropout(dropout), alpha / rank
        self.a = nn.Parameter(torch.randn(rank, base.in_features) * base.in_features**-0.5)
        self.b = nn.Parameter(torch.zeros(base.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        adapted = functional.linear(functional.linear(self.dropout(x), self.a), self.b)
        whole: Tensor = self.base(x) + self.scale * adapted
        return whole


def plain_lora(encoder: FundusEncoder) -> FundusEncoder:
    """Adapters on the attention of timm's blocks, in place, without peft."""
    config = encoder.config
    encoder.requires_grad_(False)
    for block in encoder.blocks:
        for name in ("qkv", "proj"):
            base = getattr(block.attn, name)
            adapted = _PlainLoRA(base, config.lora_rank, config.lora_alpha, config.lora_dropout)
            setattr(block.attn, name, adapted)
    return encoder
