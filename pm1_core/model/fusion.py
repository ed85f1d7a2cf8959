"""The fusion transformer F: 25 tokens of three modalities and a CLS token in one stream (section 4.2, F.5).

    tokens [n, 22, dG], [n, 1, dP], [n, 2, dI]
      -> input projections            [n, 25, h]
      -> [MASK] where missing or masked, noise, dropout of dimensions
      -> CLS in front, positions      [n, 26, h]
      -> pre-norm layers              [n, 26, h]      "hidden"
      -> output projections           [n, 22, dG], [n, 1, dP], [n, 2, dI]

A *missing* token was never measured: it is replaced by [MASK] and no token attends to it, but it may ask, so
that its output is a prediction of it. A *masked* token was measured and is hidden by the objective: replaced
by [MASK] as well, it stays a key.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pm1_core.errors import ConfigError
from pm1_core.fields import TOKENS, TOKENS_OF, Modality
from pm1_core.model.rows import PerRow
from pm1_core.validate import refusal, require_range

TOKEN_COUNT = len(TOKENS)
POSITIONS = TOKEN_COUNT + 1
POSITION_STD = 0.02

Tokens = Mapping[Modality, Tensor]


@dataclass(frozen=True)
class FusionConfig:
    """Sizes of the fusion transformer; the defaults are the paper's.

    width: h; layers, heads, feedforward: of the encoder, feedforward is 2h, which fits the published size
    genotype_width, phenotype_width, fundus_width: of the tokens that come in and go out
    final_norm: LayerNorm after the last layer; off gives the paper's 1,095,502,848 parameters
    """

    width: int = 2048
    layers: int = 32
    heads: int = 8
    feedforward: int = 4096
    genotype_width: int = 2048
    phenotype_width: int = 2048
    fundus_width: int = 1024
    final_norm: bool = False

    def __post_init__(self) -> None:
        for name in ("width", "layers", "heads", "feedforward", *(f"{m}_width" for m in Modality)):
            require_range(f"fusion.{name}", getattr(self, name), 1, error=ConfigError)
        if self.width % self.heads:
            raise ConfigError(
                refusal("fusion.heads", f"found {self.heads} heads for width {self.width}", "use a divisor")
            )

    def token_width(self, modality: Modality) -> int:
        """d_m, the width of a modality's tokens."""
        return int(getattr(self, f"{modality}_width"))


@dataclass(frozen=True)
class Corruption:
    """What is done to the tokens that stay visible: one row per person (F.5).

    noise: float [n, 25, h], added to the projected tokens
    scale: float [n, 25, h], multiplied afterwards: 0 for a dropped dimension, 1 / (1 - p) for a kept one
    """

    noise: Tensor
    scale: Tensor

    def apply(self, projected: Tensor) -> Tensor:
        """The corrupted stream, [n, 25, h]."""
        return (projected + self.noise) * self.scale


class _Layer(nn.Module):
    """Pre-norm self-attention and feed-forward with ReLU; linear maps see only the active tokens."""

    def __init__(self, config: FusionConfig, device: torch.device) -> None:
        super().__init__()
        self.heads = config.heads
        self.attention_norm = nn.LayerNorm(config.width, device=device)
        self.qkv = nn.Linear(config.width, 3 * config.width, device=device)
        self.attention_out = nn.Linear(config.width, config.width, device=device)
        self.feedforward_norm = nn.LayerNorm(config.width, device=device)
        self.expand = nn.Linear(config.width, config.feedforward, device=device)
        self.contract = nn.Linear(config.feedforward, config.width, device=device)

    def forward(
        self, x: Tensor, active: Tensor | None, grid: tuple[int, int], allowed: Tensor | None
    ) -> Tensor:
        """Map x [a, h], the active tokens of n people -> [a, h].

        active: int64 [a], where they stand in the grid of n people by t positions, or None if they fill it
        grid: (n, t)
        allowed: bool [n, 1, 1, t], the keys, or None if every token is one
        """
        n, t = grid
        qkv = self.qkv(self.attention_norm(x))  # a, 3h
        if active is not None:
            qkv = qkv.new_zeros(n * t, qkv.shape[1]).index_copy(0, active, qkv)
        query, key, value = (
            # Chunks rather than one permuted view: their gradients meet in one contiguous copy.
            part.view(n, t, self.heads, -1).transpose(1, 2)
            for part in qkv.chunk(3, dim=1)
        )
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=allowed)  # n, heads, t, h/heads
        mixed = mixed.transpose(1, 2).reshape(n * t, -1)
        x = x + self.attention_out(mixed if active is None else mixed.index_select(0, active))
        grown: Tensor = self.contract(F.relu(self.expand(self.feedforward_norm(x))))
        return x + grown


class FusionTransformer(nn.Module):
    """The transformer encoder F with its projections.

    seed: of the random start; two instances of one seed are equal and no global random state is touched.
        None leaves the parameters to be loaded
    device: "meta" builds shapes without memory
    """

    def __init__(
        self, config: FusionConfig, seed: int | None = 0, device: str | torch.device = "cpu"
    ) -> None:
        super().__init__()
        self.config = config
        # Built without memory first: the constructors of torch would draw from the global generator. The device
        # is handed down, because `with torch.device(...)` would change it for every thread of the process.
        meta = torch.device("meta")
        width = config.width
        self.cls = nn.Parameter(torch.empty(width, device=meta))
        self.mask = nn.Parameter(torch.empty(width, device=meta))
        self.positions = nn.Parameter(torch.empty(POSITIONS, width, device=meta))
        self.per_row = PerRow()
        widths = {m: config.token_width(m) for m in Modality}
        self.inputs = nn.ModuleDict({m: nn.Linear(d, width, device=meta) for m, d in widths.items()})
        self.outputs = nn.ModuleDict({m: nn.Linear(width, d, device=meta) for m, d in widths.items()})
        self.layers = nn.ModuleList(_Layer(config, meta) for _ in range(config.layers))
        self.norm = nn.LayerNorm(width, device=meta) if config.final_norm else nn.Identity()
        if torch.device(device).type != "meta":
            self.to_empty(device="cpu")
            if seed is not None:
                self.reset(torch.Generator().manual_seed(seed))
            self.to(device)

    @torch.no_grad()
    def reset(self, draws: torch.Generator) -> None:
        """Draw every parameter from `draws` (a CPU generator).

        Positions, CLS and [MASK] come from a normal distribution of std 0.02 cut at two of them: the bounds
        are passed because torch's defaults (-2, 2) would not cut here. Linear maps are Xavier-uniform with zero
        biases; what a layer adds to the stream is scaled by 1 / sqrt(2 layers), so that without a final norm its
        variance does not grow with depth, and output projections by 0.3, so that the first answer is near the
        training mean. The paper gives no more than the positions.
        """
        bound = 2 * POSITION_STD
        for parameter in (self.cls, self.mask, self.positions):
            nn.init.trunc_normal_(parameter, 0.0, POSITION_STD, -bound, bound, generator=draws)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight, generator=draws)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.LayerNorm):
                module.reset_parameters()
        for module in self.modules():
            if isinstance(module, _Layer):
                module.attention_out.weight.div_((2 * self.config.layers) ** 0.5)
                module.contract.weight.div_((2 * self.config.layers) ** 0.5)
        for output in self.outputs.values():
            cast(nn.Linear, output).weight.mul_(0.3)

    def project(self, tokens: Tokens) -> Tensor:
        """Standardised tokens {modality: [n, T_m, d_m]} -> [n, 25, h]."""
        return torch.cat([self.inputs[m](tokens[m]) for m in Modality], dim=1)

    def forward(
        self,
        tokens: Tokens,
        present: Tensor,
        masked: Tensor | None = None,
        corruption: Corruption | None = None,
        predict_missing: bool = True,
        per_person: bool = False,
    ) -> Tensor:
        """Contextualised representations, float [n, 26, h], CLS first.

        tokens: {modality: float [n, T_m, d_m]}, standardised; missing ones hold any finite number
        present: bool [n, 25], measured; masked: bool [n, 25], hidden by the objective
        corruption: of the tokens that stay visible; a [MASK] carries nothing that could be corrupted
        predict_missing: False leaves the rows of missing tokens at zero and saves their arithmetic, which
            training uses because no loss looks at them
        per_person: save only what nobody in the batch has, so that a person's rows stay beside each other, and
            everybody's are equally many: what gradients by person need
        """
        visible = present if masked is None else present & ~masked
        stream = self.project(tokens)
        if corruption is not None:
            stream = corruption.apply(stream)
        n = len(stream)
        mask, cls = self.per_row(self.mask, n).unsqueeze(1), self.per_row(self.cls, n).unsqueeze(1)
        stream = torch.where(visible.unsqueeze(-1), stream, mask)  # n, 25, h
        stream = torch.cat([cls, stream], 1) + self.per_row(self.positions, n)
        keys = F.pad(present, (1, 0), value=True)  # n, 26: CLS is always attended
        active = None if predict_missing else keys
        if active is not None and per_person:
            active = active.any(0).expand_as(active)
        return self.contextualise(stream, keys, active)

    def contextualise(self, stream: Tensor, keys: Tensor, active: Tensor | None = None) -> Tensor:
        """The layers alone: stream float [n, 26, h] -> float [n, 26, h].

        keys: bool [n, 26], tokens that others may attend to
        active: bool [n, 26], tokens to compute (at least the keys); None computes all, others stay zero
        """
        grid, keys_here, where = stream, keys, None
        columns = None if active is None else active.any(0).nonzero().squeeze(1)
        if active is not None and columns is not None and not bool(active.all()):
            # Positions that nobody here has fall away first: a site of photographs runs on three columns.
            grid, keys_here, active = stream[:, columns], keys[:, columns], active[:, columns]
            where = None if bool(active.all()) else active.flatten().nonzero().squeeze(1)
        n, length, width = grid.shape
        allowed = None if bool(keys_here.all()) else keys_here[:, None, None, :]
        x = grid.reshape(n * length, width)
        if where is not None:
            x = x.index_select(0, where)
        for layer in self.layers:
            x = layer(x, where, (n, length), allowed)
        x = self.norm(x)
        if where is not None:
            x = x.new_zeros(n * length, width).index_copy(0, where, x)
        x = x.view(n, length, width)
        if columns is not None and length < stream.shape[1]:
            x = torch.zeros_like(stream).index_copy(1, columns, x)
        return x

    def reconstruct(self, hidden: Tensor) -> dict[Modality, Tensor]:
        """Hidden [n, 26, h] -> standardised tokens {modality: [n, T_m, d_m]}."""
        return {m: self.outputs[m](hidden[:, 1:][:, TOKENS_OF[m]]) for m in Modality}

    @staticmethod
    def pool(hidden: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        """Average of each modality's present tokens: float [n, 3, h] (zero where none), bool [n, 3]."""
        pooled, has = [], []
        for places in TOKENS_OF.values():
            weights = present[:, places].to(hidden.dtype).unsqueeze(-1)  # n, T_m, 1
            total = weights.sum(1)
            pooled.append((hidden[:, 1:][:, places] * weights).sum(1) / total.clamp(min=1))
            has.append(total.squeeze(-1) > 0)
        return torch.stack(pooled, 1), torch.stack(has, 1)


def multiply_accumulates(config: FusionConfig, batch: int) -> int:
    """Multiply-accumulates of a forward pass with nothing missing: 3.61e12 for the paper at batch 128."""
    h, f, t = config.width, config.feedforward, POSITIONS
    layer = t * (4 * h * h + 2 * h * f) + 2 * t * t * h
    widths: int = sum((s.stop - s.start) * config.token_width(m) for m, s in TOKENS_OF.items())
    return batch * (config.layers * layer + 2 * h * widths)
