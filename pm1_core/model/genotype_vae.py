"""The genotype variational auto-encoder of one chromosome (section 4.1, appendix F.1, figure 12).

    dosages [B, S] -> tokens + positions [B, L, 64]          L = S padded to a multiple of 2^3
      -> 3 x (3 residual sub-layers, downsampling)           widths 64, 32, 16 and 8 at the end
      -> mean, log variance [B, 2048] -> z
      -> 3 x (upsampling, 3 residual sub-layers)             widths 16, 32, 64
      -> un-embedding -> logits [B, S, 3]

A sub-layer mixes tokens with four depthwise convolutions, then channels with an MLP; both are residual and
nothing is normalised (appendix F.1 saw batch norm diverge).

Everything is kept [batch, position, channel] in memory. Convolutions see it as a channels-last image of
height 1: torch's grouped conv1d is two to four times slower on a CPU for the same numbers, and changing
resolution by a stride-2 convolution of width 2 is then one matrix product on a reshaped view.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd

import torch
from torch import nn
from torch.nn import functional

from pm1_core.errors import ConfigError
from pm1_core.fields import MISSING_DOSAGE
from pm1_core.model.rows import PerRow
from pm1_core.validate import refusal, require_choice, require_range

DOSAGES = 3
_ACTIVATIONS: dict[str, type[nn.Module]] = {"gelu": nn.GELU, "leaky_relu": nn.LeakyReLU, "silu": nn.SiLU}

_CHOICES = {
    "activation": tuple(_ACTIVATIONS),
    "token": ("mean", "sample"),
    "reconstruction": ("mean", "sum"),
    "kl_scale": ("snp", "latent", "person"),
    "weights": ("chromosome", "snp", "none"),
}
_LOWEST = {
    "latent": 1,
    "width": 1,
    "blocks": 1,
    "depth": 0,
    "rate": 2,
    "kernel": 1,
    "convolution_multiplier": 1.0,
    "mlp_multiplier": 1.0,
    "beta": 0.0,
    "kl_anneal_steps": 0,
    "weight_cap": 1.0,
}


@dataclass(frozen=True)
class GenotypeVAEConfig:
    """Sizes of the genotype VAE; the defaults are the paper's.

    latent: width of the token, d_latent
    width: channels at full resolution, d_model
    blocks, depth: residual blocks per side, and sub-layers in each (num_blocks, block_depth)
    rate: factor of length and of width at each change of resolution (seq_change_rate)
    convolution_multiplier, mlp_multiplier: inner widths of the two mixers (conv_mult, mlp_mult)
    kernel: positions that a convolution sees, odd; not given in the paper
    activation: gelu, silu or leaky_relu; not given in the paper
    position_bias: add a learned logit per SNP and dosage to the output; not in the paper, off
    token: "mean" feeds the mean to the fusion transformer, "sample" a draw from the posterior
    beta, kl_anneal_steps: final weight of the KL term (beta_kl), reached linearly in so many steps
    reconstruction, kl_scale: how the two terms are summed, see objectives.genotype_loss
    weights, weight_cap: what class weights belong to and their cap, see objectives.dosage_weights

    Raises ConfigError on a size out of bounds.
    """

    latent: int = 2048
    width: int = 64
    blocks: int = 3
    depth: int = 3
    rate: int = 2
    convolution_multiplier: float = 1.5
    mlp_multiplier: float = 2.0
    kernel: int = 3
    activation: str = "gelu"
    position_bias: bool = False
    token: str = "mean"
    beta: float = 0.0913
    kl_anneal_steps: int = 1000
    reconstruction: str = "mean"
    kl_scale: str = "snp"
    weights: str = "chromosome"
    weight_cap: float = 10.0

    def __post_init__(self) -> None:
        for name, low in _LOWEST.items():
            require_range(f"genotype model, {name}", getattr(self, name), low, error=ConfigError)
        for name, choices in _CHOICES.items():
            require_choice(f"genotype model, {name}", getattr(self, name), choices, ConfigError)
        if self.kernel % 2 == 0:
            raise ConfigError(refusal("genotype model, kernel", f"found {self.kernel}", "use an odd number"))
        if self.width % self.rate**self.blocks:
            remedy = f"use a multiple of rate^blocks = {self.rate**self.blocks}"
            raise ConfigError(refusal("genotype model, width", f"found {self.width}", remedy))

    def widths(self) -> tuple[int, ...]:
        """Channels from full resolution to the last.

        >>> GenotypeVAEConfig().widths()
        (64, 32, 16, 8)
        """
        return tuple(self.width // self.rate**level for level in range(self.blocks + 1))

    def padded(self, n_snps: int) -> int:
        """The length that `n_snps` is padded to.

        >>> GenotypeVAEConfig().padded(230)
        232
        """
        unit = int(self.rate**self.blocks)
        return -(-n_snps // unit) * unit


class TokenMixer(nn.Module):
    """Four convolutions along the chromosome: C -> C -> 1.5 C -> C -> C, [B, L, C] -> [B, L, C].

    The outer two are depthwise. The inner two change the width, where depthwise is undefined: they have
    gcd(in, out) groups, the most that divide both (32 of 2 -> 3 channels at width 64).
    """

    def __init__(self, width: int, config: GenotypeVAEConfig) -> None:
        super().__init__()
        inner = max(width, round(width * config.convolution_multiplier))
        steps = ((width, width), (width, inner), (inner, width), (width, width))
        self.convolutions = nn.ModuleList(
            nn.Conv2d(
                before, after, (1, config.kernel), padding=(0, config.kernel // 2), groups=gcd(before, after)
            )
            for before, after in steps
        )
        self.activation = _ACTIVATIONS[config.activation]()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Mix positions. The permutation is a view: NCHW with channels-last strides."""
        x = x.transpose(1, 2).unsqueeze(2)  # [B, C, 1, L]
        *inner, last = self.convolutions
        for convolution in inner:
            x = self.activation(convolution(x))
        x = last(x)
        return x.squeeze(2).transpose(1, 2)  # [B, L, C]


class ChannelMixer(nn.Module):
    """A perceptron of three layers of units (C, 2 C, C) on every position, [B, L, C] -> [B, L, C]."""

    def __init__(self, width: int, config: GenotypeVAEConfig) -> None:
        super().__init__()
        inner = round(width * config.mlp_multiplier)
        self.widen = nn.Linear(width, inner)
        self.activation = _ACTIVATIONS[config.activation]()
        self.last = nn.Linear(inner, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Mix channels at each position."""
        mixed: torch.Tensor = self.last(self.activation(self.widen(x)))
        return mixed


class ResidualSublayer(nn.Module):
    """x + tokens mixed, then + channels mixed."""

    def __init__(self, width: int, config: GenotypeVAEConfig) -> None:
        super().__init__()
        self.tokens = TokenMixer(width, config)
        self.channels = ChannelMixer(width, config)
        # Without normalisation the variance of the stream grows with every branch: scaling each branch's
        # last layer by 1 / sqrt(branches) keeps it near one at the start (Child 2020, section 3.2).
        scale = (2 * config.blocks * config.depth) ** -0.5
        with torch.no_grad():
            for layer in (self.tokens.convolutions[-1], self.channels.last):
                for parameter in layer.parameters():
                    parameter.mul_(scale)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, L, C] -> [B, L, C]."""
        x = x + self.tokens(x)
        mixed: torch.Tensor = x + self.channels(x)
        return mixed


class Downsample(nn.Module):
    """A convolution of width and stride `rate`: [B, L, C] -> [B, L / rate, C / rate]."""

    def __init__(self, before: int, after: int, rate: int) -> None:
        super().__init__()
        self.rate = rate
        self.project = nn.Linear(before * rate, after)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Join `rate` neighbours and project them."""
        batch, length, width = x.shape
        joined: torch.Tensor = self.project(x.reshape(batch, length // self.rate, width * self.rate))
        return joined


class Upsample(nn.Module):
    """A transposed convolution of width and stride `rate`: [B, L, C] -> [B, L * rate, C * rate]."""

    def __init__(self, before: int, after: int, rate: int) -> None:
        super().__init__()
        self.rate = rate
        self.project = nn.Linear(before, after * rate)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Project each position to `rate` neighbours."""
        batch, length, _ = x.shape
        spread: torch.Tensor = self.project(x)
        return spread.reshape(batch, length * self.rate, -1)


class GenotypeVAE(nn.Module):
    """Encoder and decoder of one chromosome of `n_snps` SNPs.

    Dosages are integers 0, 1, 2 and 3 for missing. Missing genotypes and padding enter as the fourth token;
    the reconstruction at padding is thrown away, and the objective leaves missing genotypes out.
    """

    def __init__(self, config: GenotypeVAEConfig, n_snps: int) -> None:
        super().__init__()
        require_range("chromosome, number of SNPs", n_snps, 1, error=ConfigError)
        self.config, self.n_snps = config, n_snps
        self.length = config.padded(n_snps)
        widths, rate = config.widths(), config.rate
        # A Linear on one-hot tokens is an embedding whose gradient is a matrix product; the gradient of a
        # lookup in four rows is a scatter in which every element collides.
        self.tokens = nn.Linear(MISSING_DOSAGE + 1, config.width, bias=False)
        self.positions = nn.Embedding(self.length, config.width)
        self.per_row = PerRow()
        nn.init.normal_(self.tokens.weight)
        nn.init.normal_(self.positions.weight, std=0.1)
        encoder: list[nn.Module] = []
        decoder: list[nn.Module] = []
        for level in range(config.blocks):
            encoder += [ResidualSublayer(widths[level], config) for _ in range(config.depth)]
            encoder.append(Downsample(widths[level], widths[level + 1], rate))
        for level in reversed(range(config.blocks)):
            decoder.append(Upsample(widths[level + 1], widths[level], rate))
            decoder += [ResidualSublayer(widths[level], config) for _ in range(config.depth)]
        self.encoder, self.decoder = nn.Sequential(*encoder), nn.Sequential(*decoder)
        self.flat = self.length // rate**config.blocks * widths[-1]
        self.posterior = nn.Linear(self.flat, 2 * config.latent)
        self.expand = nn.Linear(config.latent, self.flat)
        self.unembed = nn.Linear(config.width, DOSAGES)
        self.bias = nn.Parameter(torch.zeros(n_snps, DOSAGES)) if config.position_bias else None

    def encode(self, dosages: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Integers [B, S] -> mean [B, latent], log variance [B, latent], float32."""
        padding = self.length - self.n_snps
        if padding:
            dosages = functional.pad(dosages, (0, padding), value=MISSING_DOSAGE)
        vocabulary = torch.arange(MISSING_DOSAGE + 1, device=dosages.device, dtype=dosages.dtype)
        one_hot = (dosages.unsqueeze(-1) == vocabulary).to(self.tokens.weight.dtype)  # [B, L, 4]
        x = self.tokens(one_hot) + self.per_row(self.positions.weight, len(dosages))
        x = self.encoder(x)  # [B, L / 8, C / 8]
        mean, log_variance = self.posterior(x.flatten(1)).chunk(2, dim=-1)
        return mean, log_variance

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        """Latents [B, latent] -> logits of dosages 0, 1, 2 [B, S, 3]."""
        x = self.expand(z).reshape(len(z), -1, self.config.widths()[-1])
        x = self.decoder(x)
        logits: torch.Tensor = self.unembed(x)[:, : self.n_snps]
        return logits if self.bias is None else logits + self.per_row(self.bias, len(logits))

    def forward(
        self, dosages: torch.Tensor, generator: torch.Generator | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """[B, S] -> logits [B, S, 3], mean [B, latent], log variance [B, latent].

        The latent is drawn with `generator`, or is the mean where none is given.
        """
        mean, log_variance = self.encode(dosages)
        z = mean if generator is None else sample(mean, log_variance, generator)
        return self.decode(z), mean, log_variance

    def token(self, dosages: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        """The chromosome's token [B, latent] for the fusion transformer, as `config.token` says."""
        mean, log_variance = self.encode(dosages)
        if self.config.token == "mean":
            return mean
        if generator is None:
            remedy = 'pass a generator, or set token to "mean"'
            raise ConfigError(refusal("genotype model, token", "found 'sample' without a generator", remedy))
        return sample(mean, log_variance, generator)


def sample(mean: torch.Tensor, log_variance: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Reparameterised draw from N(mean, exp(log_variance)), of their shape.

    The noise is drawn on the generator's device, so that a seed means the same on CPU and GPU.
    """
    noise = torch.randn(mean.shape, generator=generator, device=generator.device, dtype=torch.float32)
    return mean + torch.exp(0.5 * log_variance) * noise.to(mean)
