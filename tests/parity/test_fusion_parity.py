"""The fusion transformer against torch's encoder, equation 2 in loops, and what gradients may reach."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pm1_core.fields import TOKENS_OF, Modality
from pm1_core.model.fusion import FusionConfig, FusionTransformer
from pm1_core.model.fusion_objectives import (
    FusionObjective,
    draw_corruption,
    draw_masks,
    fusion_losses,
    info_nce,
    person_means,
)

SIZES = {"genotype_width": 6, "phenotype_width": 10, "fundus_width": 8}
CONFIG = FusionConfig(width=32, layers=3, heads=4, feedforward=64, **SIZES)
PATHS = {
    "everything": {"predict_missing": True},
    "without missing tokens": {"predict_missing": False},
    "person by person": {"predict_missing": False, "per_person": True},
}


def draws(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def model(final_norm: bool = False) -> FusionTransformer:
    """With biases and norms that are not those of the start."""
    found = FusionTransformer(FusionConfig(**{**vars(CONFIG), "final_norm": final_norm}), seed=1)
    for parameter in found.parameters():
        parameter.data.add_(torch.randn(parameter.shape, generator=draws(2)), alpha=0.1)
    return found


def people(n: int, dtype: torch.dtype = torch.float32) -> tuple[dict[Modality, Tensor], Tensor, Tensor]:
    """Tokens, which are present, and which of these are masked."""
    generator = draws(3)
    tokens = {
        m: torch.randn(n, s.stop - s.start, CONFIG.token_width(m), generator=generator).to(dtype)
        for m, s in TOKENS_OF.items()
    }
    present = torch.rand(n, 25, generator=generator) < 0.6
    present[:, 22] |= ~present.any(1)
    return tokens, present, draw_masks(present, FusionObjective(masking="F.5"), generator)


def torchs(ours: FusionTransformer) -> tuple[nn.TransformerEncoder, dict[nn.Parameter, nn.Parameter]]:
    """torch's encoder with the weights of `ours`, and which of its parameters is which of ours."""
    config = ours.config
    layer = nn.TransformerEncoderLayer(
        config.width, config.heads, config.feedforward, 0.0, "relu", batch_first=True, norm_first=True
    )
    norm = nn.LayerNorm(config.width) if config.final_norm else None
    theirs = nn.TransformerEncoder(layer, config.layers, norm, enable_nested_tensor=False)
    same: dict[nn.Parameter, nn.Parameter] = {}
    pairs: Any = zip(ours.layers, theirs.layers, strict=True)
    for mine, other in pairs:
        same |= {other.self_attn.in_proj_weight: mine.qkv.weight, other.self_attn.in_proj_bias: mine.qkv.bias}
        for a, b in (
            (mine.attention_norm, other.norm1),
            (mine.feedforward_norm, other.norm2),
            (mine.attention_out, other.self_attn.out_proj),
            (mine.expand, other.linear1),
            (mine.contract, other.linear2),
        ):
            same |= {b.weight: a.weight, b.bias: a.bias}
    if norm is not None:
        same |= {norm.weight: ours.norm.weight, norm.bias: ours.norm.bias}  # type: ignore[dict-item]
    theirs.to(next(ours.parameters()).dtype)
    for parameter, mine in same.items():
        parameter.data.copy_(mine)
    assert len(same) == len(list(theirs.parameters()))
    return theirs, same


@pytest.mark.parametrize("final_norm", [False, True])
@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("path", PATHS)
def test_outputs_and_gradients_are_those_of_torchs_pre_norm_encoder(
    path: str, dtype: torch.dtype, close: float, final_norm: bool
) -> None:
    ours = model(final_norm).to(dtype)
    theirs, same = torchs(ours)
    tokens, present, masked = people(7, dtype)
    stream = torch.cat([ours.inputs[m](tokens[m]) for m in Modality], 1)
    stream = torch.where((present & ~masked).unsqueeze(-1), stream, ours.mask)
    stream = torch.cat([ours.cls.expand(7, 1, -1), stream], 1) + ours.positions
    keys = torch.cat([torch.ones(7, 1, dtype=torch.bool), present], 1)
    expected = theirs(stream, src_key_padding_mask=~keys)
    found = ours(tokens, present, masked, **PATHS[path])
    looked_at = torch.ones_like(keys) if path == "everything" else keys
    torch.testing.assert_close(found[looked_at], expected[looked_at], rtol=close, atol=close)

    weigh = torch.randn(found.shape, generator=draws(5)).to(dtype) * looked_at.unsqueeze(-1)
    shared = [p for name, p in ours.named_parameters() if not name.startswith(("layers", "norm", "outputs"))]
    mine = torch.autograd.grad((found * weigh).sum(), [*shared, *same.values()])
    other = torch.autograd.grad((expected * weigh).sum(), [*shared, *same])
    for a, b in zip(mine, other, strict=True):
        torch.testing.assert_close(a, b, rtol=close, atol=close * max(1.0, float(b.abs().max())))


def in_loops(pooled: Tensor, has: Tensor, temperature: float) -> dict[tuple[int, int], Tensor]:
    """Equation 2 of every anchor."""
    n, modalities = has.shape
    unit = pooled / pooled.norm(dim=-1, keepdim=True)
    found = {}
    for j in range(n):
        for m in range(modalities):
            others = [o for o in range(modalities) if o != m and has[j, o]]
            if not (has[j, m] and others):
                continue
            strangers = [(k, o) for k in range(n) for o in range(modalities) if k != j and has[k, o]]
            positive = sum((unit[j, m] @ unit[j, o] / temperature).exp() for o in others)
            negative = sum((unit[j, m] @ unit[k, o] / temperature).exp() for k, o in strangers)
            found[j, m] = -torch.log(torch.as_tensor(positive / (negative + positive)))
    return found


@settings(max_examples=25)
@given(
    st.integers(1, 6),
    st.integers(0, 2**20),
    st.sampled_from([0.03, 0.5]),
    st.sampled_from([(torch.float32, 1e-4), (torch.float64, 1e-10)]),
)
def test_info_nce_and_its_gradient_are_equation_2_in_float64_loops(
    n: int, seed: int, temperature: float, precision: tuple[torch.dtype, float]
) -> None:
    dtype, close = precision
    generator = draws(seed)
    wide = torch.randn(n, 3, 5, generator=generator).double().requires_grad_()
    has = torch.rand(n, 3, generator=generator) < 0.6
    narrow = wide.detach().to(dtype).requires_grad_()
    terms, anchors = info_nce(narrow, has, temperature)
    expected = in_loops(wide, has, temperature)
    assert {(int(j), int(m)) for j, m in anchors.nonzero()} == set(expected)
    assert (terms[~anchors] == 0).all()
    if not expected:
        return
    for (j, m), value in expected.items():
        torch.testing.assert_close(terms[j, m].double(), value, rtol=close, atol=close)
    (mine,) = torch.autograd.grad(terms.sum(), narrow)
    (theirs,) = torch.autograd.grad(torch.stack(list(expected.values())).sum(), wide)
    torch.testing.assert_close(mine.double(), theirs, rtol=close, atol=close * 100)


@pytest.mark.parametrize("reduction", ["tokens", "modalities"])
def test_the_loss_feels_a_masked_token_only_as_its_own_target_and_a_missing_one_not_at_all(
    reduction: str,
) -> None:
    ours = model()
    tokens, present, _ = people(12)
    objective = FusionObjective(masking="F.5", reduction=reduction)
    leaves: Mapping[Modality, Tensor] = {m: t.clone().requires_grad_() for m, t in tokens.items()}
    felt = torch.autograd.grad(
        fusion_losses(ours, leaves, present, objective, draws(4)).total, [leaves[m] for m in Modality]
    )
    generator = draws(4)
    masked = draw_masks(present, objective, generator)
    corruption = draw_corruption(12, CONFIG.width, objective, generator, present.device)
    with torch.no_grad():
        rebuilt = ours.reconstruct(ours(tokens, present, masked, corruption, predict_missing=False))
    errors = torch.cat([(rebuilt[m] - leaves[m]).square().mean(-1) for m in Modality], 1)
    alone = (1 - objective.contrast) * person_means(errors, masked, reduction).mean()
    as_target = torch.autograd.grad(alone, [leaves[m] for m in Modality])
    for found, expected, places in zip(felt, as_target, TOKENS_OF.values(), strict=True):
        hidden, absent = masked[:, places], ~present[:, places]
        torch.testing.assert_close(found[hidden], expected[hidden], rtol=1e-5, atol=1e-8)
        assert (found[absent] == 0).all()
        assert (found[~hidden & ~absent].abs().sum(-1) > 0).all()
