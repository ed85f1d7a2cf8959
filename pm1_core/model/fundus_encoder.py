"""The fundus encoder: a vision transformer pre-trained as a masked autoencoder, adapted by LoRA (4.1, F.3).

The encoder is timm's VisionTransformer. The decoder follows He et al., "Masked autoencoders are scalable
vision learners", CVPR 2022. Parameter names are those of the MAE and RETFound checkpoints (`cls_token`,
`pos_embed`, `patch_embed.proj`, `blocks.N`, `norm`, `mask_token`, `decoder_embed`, `decoder_pos_embed`,
`decoder_blocks.N`, `decoder_norm`, `decoder_pred`), so that such a file loads by key.

    photographs uint8 [B, H, W, 3] -> prepare -> float [B, 3, S, S]
      -> encode:                the token [B, width]
      -> reconstruction_errors: hide 75% of the patches, encode the others, predict the hidden  [B]
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from pm1_core.errors import ConfigError
from pm1_core.validate import refusal, require_choice, require_range

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
TOKEN_READOUTS = ("cls", "mean")
_LAYER_NORM = partial(nn.LayerNorm, eps=1e-6)


@dataclass(frozen=True)
class FundusEncoderConfig:
    """Sizes of the encoder, its decoder and its adapters; the defaults are ViT-L/16 as in the paper.

    image, patch: side of the network's input and of a patch, pixels
    mask_ratio: share of patches that the encoder does not see
    norm_pix_loss: predict patches standardised by their own mean and variance instead of normalised pixels
    token: "cls" reads the CLS position, "mean" the average of the patches
    lora_rank, lora_alpha, lora_dropout: of the adapters on `blocks.N.attn.qkv` and `.attn.proj`
    base: file of a pre-trained encoder and decoder, or None for a random start
    base_sha256: of that file; another file is refused, so that all sites adapt the same base
    base_seed: of the random start where there is no file
    """

    image: int = 224
    patch: int = 16
    width: int = 1024
    depth: int = 24
    heads: int = 16
    decoder_width: int = 512
    decoder_depth: int = 8
    decoder_heads: int = 16
    mask_ratio: float = 0.75
    norm_pix_loss: bool = False
    token: str = "cls"
    lora_rank: int = 8
    lora_alpha: float = 16
    lora_dropout: float = 0.1
    base: str | None = None
    base_sha256: str | None = None
    base_seed: int = 0

    def __post_init__(self) -> None:
        require_choice("fundus.token", self.token, TOKEN_READOUTS, ConfigError)
        for name in ("image", "patch", "depth", "decoder_depth", "lora_rank"):
            require_range(f"fundus.{name}", getattr(self, name), 1, error=ConfigError)
        require_range("fundus.lora_dropout", self.lora_dropout, 0.0, 0.999, ConfigError)
        for value, divisor, name in (
            (self.image, self.patch, "patch"),
            (self.width, self.heads, "heads"),
            (self.decoder_width, self.decoder_heads, "decoder_heads"),
            (self.width, 4, "width (sine and cosine positions of two axes)"),
            (self.decoder_width, 4, "decoder_width (sine and cosine positions of two axes)"),
        ):
            if divisor < 1 or value % divisor:
                raise ConfigError(
                    refusal(f"fundus.{name}", f"found {value} / {divisor}", "choose sizes that divide")
                )
        if not 1 <= self.visible < self.patches:
            bounds = f"hide at least 1 and leave at least 1 of {self.patches} patches"
            raise ConfigError(refusal("fundus.mask_ratio", f"found {self.mask_ratio}", bounds))

    @property
    def patches(self) -> int:
        """Patches of an image."""
        return (self.image // self.patch) ** 2

    @property
    def visible(self) -> int:
        """Patches that the encoder sees in training."""
        return int(self.patches * (1 - self.mask_ratio))


def sine_positions(width: int, side: int) -> Tensor:
    """The fixed two-dimensional positions of MAE with a zero row for CLS, float32 [1, 1 + side^2, width].

    The first half of the width encodes the column, the second the row, each as sines then cosines of
    frequencies 10000^(-2i / (width / 2)).
    """
    frequencies = 10000.0 ** (-torch.arange(width // 4, dtype=torch.float64) / (width / 4))
    angles = torch.arange(side, dtype=torch.float64)[:, None] * frequencies  # side, width/4
    axis = torch.cat([angles.sin(), angles.cos()], 1)  # side, width/2
    columns = axis[None, :, :].expand(side, side, -1)
    rows = axis[:, None, :].expand(side, side, -1)
    grid = torch.cat([columns, rows], -1).reshape(side * side, width)
    return torch.cat([grid.new_zeros(1, width), grid])[None].float()


class FundusEncoder(VisionTransformer):
    """A masked autoencoder over photographs.

    seed: of the random start; no global random state is touched. `start` says in words which start it had
    device: "meta" builds shapes without memory
    """

    cls_token: nn.Parameter  # timm allows None, for networks without them
    pos_embed: nn.Parameter

    def __init__(
        self, config: FundusEncoderConfig, seed: int = 0, device: str | torch.device = "cpu"
    ) -> None:
        # Built without memory first: the constructors of timm would draw from the global generator.
        meta = torch.device("meta")
        super().__init__(
            img_size=config.image,
            patch_size=config.patch,
            embed_dim=config.width,
            depth=config.depth,
            num_heads=config.heads,
            num_classes=0,
            norm_layer=_LAYER_NORM,
            weight_init="skip",
            device=meta,
        )
        self.config = config
        self.start = f"random start, seed {seed}"
        width = config.decoder_width
        self.mask_token = nn.Parameter(torch.empty(1, 1, width, device=meta))
        self.decoder_embed = nn.Linear(config.width, width, device=meta)
        self.decoder_pos_embed = nn.Parameter(torch.empty(1, 1 + config.patches, width, device=meta))
        self.decoder_blocks = nn.ModuleList(
            Block(
                width,
                config.decoder_heads,
                qkv_bias=True,
                norm_layer=_LAYER_NORM,  # type: ignore[arg-type]
                device=meta,
            )
            for _ in range(config.decoder_depth)
        )
        self.decoder_norm = nn.LayerNorm(width, eps=1e-6, device=meta)
        self.decoder_pred = nn.Linear(width, config.patch**2 * 3, device=meta)
        if torch.device(device).type != "meta":
            self.to_empty(device="cpu")
            self.reset(torch.Generator().manual_seed(seed))
            self.to(device)
        for fixed in (self.pos_embed, self.decoder_pos_embed):
            fixed.requires_grad_(False)

    @torch.no_grad()
    def reset(self, draws: torch.Generator) -> None:
        """The start of He et al.: Xavier-uniform maps, zero biases, tokens of std 0.02, fixed positions."""
        side = self.config.image // self.config.patch
        self.pos_embed.copy_(sine_positions(self.config.width, side))
        self.decoder_pos_embed.copy_(sine_positions(self.config.decoder_width, side))
        for token in (self.cls_token, self.mask_token):
            nn.init.normal_(token, std=0.02, generator=draws)
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                # A patch embedding is a linear map of flattened patches, and is drawn as one.
                nn.init.xavier_uniform_(module.weight.view(len(module.weight), -1), generator=draws)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.LayerNorm):
                module.reset_parameters()

    def prepare(self, photographs: Tensor) -> Tensor:
        """uint8 [B, H, W, 3] (sRGB) -> float [B, 3, image, image] with ImageNet's mean and variance.

        Resized, where H or W differ from `image`, by the antialiased bilinear filter of torchvision.
        """
        pixels = photographs.to(self.cls_token.device).permute(0, 3, 1, 2).float() / 255
        size = (self.config.image, self.config.image)
        if pixels.shape[2:] != size:
            pixels = F.interpolate(pixels, size, mode="bilinear", antialias=True, align_corners=False)
        mean = pixels.new_tensor(IMAGENET_MEAN).view(1, 3, 1, 1)
        return (pixels - mean) / pixels.new_tensor(IMAGENET_STD).view(1, 3, 1, 1)

    def encode(self, photographs: Tensor) -> Tensor:
        """The token of each photograph: uint8 [B, H, W, 3] -> float [B, width] (after the last LayerNorm)."""
        features = self.forward_features(self.prepare(photographs))  # B, 1 + patches, width
        return features[:, 0] if self.config.token == "cls" else features[:, 1:].mean(1)

    def patchify(self, images: Tensor) -> Tensor:
        """Cut float [B, 3, S, S] -> [B, patches, patch * patch * 3], row by row, channels last as in MAE."""
        p, side = self.config.patch, self.config.image // self.config.patch
        grid = images.reshape(len(images), 3, side, p, side, p)
        return torch.einsum("nchpwq->nhwpqc", grid).reshape(len(images), side * side, p * p * 3)

    def draw_hidden(self, n: int, draws: torch.Generator) -> Tensor:
        """A random order of patches per image, int64 [n, patches]; the first `config.visible` are seen."""
        noise = torch.rand(n, self.config.patches, generator=draws, device=draws.device)
        return noise.argsort(1).to(self.cls_token.device)

    def encode_visible(self, images: Tensor, order: Tensor) -> Tensor:
        """Encode CLS and the visible patches only: float [B, 3, S, S] -> [B, 1 + visible, width]."""
        x = self.patch_embed(images) + self.pos_embed[:, 1:]  # B, patches, width
        seen = order[:, : self.config.visible, None].expand(-1, -1, x.shape[2])
        cls = (self.cls_token + self.pos_embed[:, :1]).expand(len(x), -1, -1)
        x = torch.cat([cls, x.gather(1, seen)], 1)
        return cast(Tensor, self.norm(self.blocks(x)))

    def decode(self, latent: Tensor, order: Tensor) -> Tensor:
        """Predict every patch from the visible ones: [B, 1 + visible, width] -> [B, patches, patch^2 * 3]."""
        x = self.decoder_embed(latent)
        hidden = self.mask_token.expand(len(x), self.config.patches - self.config.visible, -1)
        patches = torch.cat([x[:, 1:], hidden], 1)
        back = order.argsort(1)[:, :, None].expand(-1, -1, patches.shape[2])
        x = torch.cat([x[:, :1], patches.gather(1, back)], 1) + self.decoder_pos_embed
        for block in self.decoder_blocks:
            x = block(x)
        return cast(Tensor, self.decoder_pred(self.decoder_norm(x))[:, 1:])

    def reconstruction_errors(self, images: Tensor, order: Tensor) -> Tensor:
        """Mean squared error over the hidden patches of each image, float [B]; visible ones do not count.

        images: float [B, 3, S, S] as `prepare` gives them; order: int64 [B, patches] as `draw_hidden` does
        """
        target = self.patchify(images)
        if self.config.norm_pix_loss:
            mean, variance = target.mean(-1, keepdim=True), target.var(-1, keepdim=True)
            target = (target - mean) / (variance + 1e-6).sqrt()
        predicted = self.decode(self.encode_visible(images, order), order)
        errors = (predicted - target).square().mean(-1)  # B, patches
        return errors.gather(1, order[:, self.config.visible :]).mean(1)
