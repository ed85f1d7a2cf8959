"""Low-rank adapters of the fundus encoder: they travel and are trained, the base stays and is frozen (F.3).

Hu et al., "LoRA: low-rank adaptation of large language models", ICLR 2022, through peft. Adapted are
`blocks.N.attn.qkv` and `blocks.N.attn.proj` of the encoder: 48 modules and 1,179,648 parameters at ViT-L/16
and rank 8. The bare names "qkv" and "proj" would also hit the patch embedding and the decoder.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from pm1_core.errors import StateError
from pm1_core.model.fundus_encoder import FundusEncoder, FundusEncoderConfig
from pm1_core.validate import refusal

if TYPE_CHECKING:
    from peft.tuners.lora import LoraLayer

ADAPTED = r"blocks\.\d+\.attn\.(qkv|proj)"
_ADAPTER = "default"


class DrawnDropout(nn.Module):
    """Dropout that draws from a generator handed over as `draws`, never from the global one.

    count, rows: of a batch, and which of them are seen here where others see the rest; all are drawn for
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability
        self.draws: torch.Generator | None = None
        self.count = 0
        self.rows: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Zero each entry with the probability and scale the others; the identity outside training."""
        if not self.training or self.probability == 0:
            return x
        if self.draws is None:
            raise StateError(refusal("LoRA dropout", "found no generator", "call set_draws before training"))
        shape = x.shape if self.rows is None else (self.count, *x.shape[1:])
        chance = torch.rand(shape, generator=self.draws, device=self.draws.device)
        chance = (chance if self.rows is None else chance[self.rows]).to(x.device)
        return x * (chance >= self.probability) / (1 - self.probability)


def attach_lora(encoder: FundusEncoder, seed: int = 0) -> FundusEncoder:
    """Freeze `encoder` and put trainable adapters on its attention, in place.

    The adapters are `initial_lora` by `seed`: the adapted encoder starts as the base.
    """
    # Imported here: peft brings transformers along, two seconds that only the fundus phase should pay.
    from peft import LoraConfig, inject_adapter_in_model

    config = encoder.config
    encoder.requires_grad_(False)
    lora = LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,  # type: ignore[arg-type]
        lora_dropout=config.lora_dropout,
        target_modules=ADAPTED,
    )
    # peft draws a start from the global generator, which is put back; ours follows below. Its way of building
    # without memory changes torch's default device for every thread of the process.
    before = torch.random.get_rng_state()
    inject_adapter_in_model(lora, encoder, _ADAPTER)
    torch.random.set_rng_state(before)
    for _, layer in lora_layers(encoder):
        layer.lora_dropout[_ADAPTER] = DrawnDropout(config.lora_dropout)
    device = encoder.cls_token.device
    if device.type != "meta":
        for _, layer in lora_layers(encoder):
            layer.lora_A[_ADAPTER].to_empty(device=device)
            layer.lora_B[_ADAPTER].to_empty(device=device)
        load_lora(encoder, initial_lora(config, seed))
    encoder.train(encoder.training)  # new modules take over the mode of the others
    return encoder


def initial_lora(config: FundusEncoderConfig, seed: int) -> dict[str, Tensor]:
    """Adapters before training, by travelling name; built without the base.

    A is uniform within +-1 / sqrt(in), which is peft's Kaiming start, drawn from `seed`; B is zero.
    """
    draws = torch.Generator().manual_seed(seed)
    shapes = attach_lora(FundusEncoder(config, device="meta"))
    return {
        name: torch.zeros(own.shape)
        if name.endswith("lora_B")
        else nn.init.uniform_(torch.empty(own.shape), -(own.shape[1] ** -0.5), own.shape[1] ** -0.5, draws)
        for name, own in lora_parameters(shapes).items()
    }


def lora_layers(encoder: FundusEncoder) -> list[tuple[str, LoraLayer]]:
    """Adapted layers by name, in the order of the network."""
    from peft.tuners.lora import LoraLayer

    return [(name, module) for name, module in encoder.named_modules() if isinstance(module, LoraLayer)]


def lora_parameters(encoder: FundusEncoder) -> dict[str, nn.Parameter]:
    """The adapters by travelling name: `blocks.N.attn.qkv.lora_A` [rank, in], `.lora_B` [out, rank]."""
    return {
        f"{name}.{side}": getattr(layer, side)[_ADAPTER].weight
        for name, layer in lora_layers(encoder)
        for side in ("lora_A", "lora_B")
    }


def lora_tensors(encoder: FundusEncoder) -> dict[str, Tensor]:
    """Copies of the adapters on the CPU, float32, by their travelling names."""
    return {
        name: parameter.detach().to("cpu", torch.float32, copy=True)
        for name, parameter in lora_parameters(encoder).items()
    }


@torch.no_grad()
def load_lora(encoder: FundusEncoder, tensors: dict[str, Tensor]) -> None:
    """Copy adapters into `encoder`. Raises StateError if a name or a shape is not its own."""
    parameters = lora_parameters(encoder)
    wrong = sorted(set(parameters) ^ set(tensors))
    wrong += [
        name for name, own in parameters.items() if name in tensors and own.shape != tensors[name].shape
    ]
    if wrong:
        found = f"found {len(wrong)} adapters that do not fit, the first is {wrong[0]!r}"
        raise StateError(refusal("fundus adapters", found, "use the model configuration of the study"))
    for name, parameter in parameters.items():
        parameter.copy_(tensors[name])


def set_draws(
    encoder: FundusEncoder, draws: torch.Generator, count: int = 0, rows: Tensor | None = None
) -> None:
    """Let the adapters' dropout draw from `draws` from now on, for all rows or for `rows` of a batch of `count`."""
    for _, layer in lora_layers(encoder):
        dropout = cast(DrawnDropout, layer.lora_dropout[_ADAPTER])
        dropout.draws, dropout.count, dropout.rows = draws, count, rows


def merge_lora(encoder: FundusEncoder) -> FundusEncoder:
    """Fold the adapters into the base weights, in place: W + (alpha / rank) B A, as after training in F.3.

    The result is a plain encoder again, with the parameter names of the base.
    """
    for name, layer in lora_layers(encoder):
        layer.merge()
        encoder.set_submodule(name, layer.get_base_layer())
    return encoder
