"""Clipped gradients: the same as unit by unit; who comes, goes or changes moves the sum by the bound at most."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pm1_core.errors import ConfigError
from pm1_core.fields import TOKENS_OF, Modality
from pm1_core.model.baselines import build_genotype_model
from pm1_core.model.fundus_encoder import FundusEncoder, FundusEncoderConfig
from pm1_core.model.fundus_lora import attach_lora, lora_parameters, set_draws
from pm1_core.model.fusion import FusionConfig, FusionTransformer
from pm1_core.model.fusion_objectives import FusionObjective, fusion_losses, group_losses, info_nce
from pm1_core.model.genotype_vae import GenotypeVAE, GenotypeVAEConfig
from pm1_core.model.objectives import genotype_losses
from pm1_core.model.phenotype_autoencoder import PhenotypeAutoencoder, PhenotypeAutoencoderConfig
from pm1_core.model.rows import PerRow
from pm1_core.training.clipping import ClippedGradients, Rows

Losses = Callable[[], Tensor]
Gradients = Mapping[str, Tensor]
ROOM = 1 - 2.0**-10


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def one_by_one(trained: Mapping[str, nn.Parameter], losses: Losses, clip: float) -> dict[str, Tensor]:
    """The sum of cut gradients, from a backward pass for each unit; what is not finite counts as zero."""
    total = {name: torch.zeros_like(parameter) for name, parameter in trained.items()}
    for unit in range(len(losses())):
        found = torch.autograd.grad(losses()[unit], list(trained.values()), allow_unused=True)
        gradients = [
            torch.zeros_like(p) if g is None else g for g, p in zip(found, trained.values(), strict=True)
        ]
        norm = torch.stack([g.double().square().sum() for g in gradients]).sum().sqrt()
        if not torch.isfinite(norm):
            continue
        scale = min(1.0, clip * ROOM / max(1e-30, float(norm)))
        for name, gradient in zip(trained, gradients, strict=True):
            total[name] += scale * gradient
    return total


def clipped(
    module: nn.Module, trained: Mapping[str, nn.Parameter], losses: Losses, rows: Rows, clip: float
) -> dict:
    ClippedGradients(module, trained).step(losses, rows, clip)
    return {name: parameter.grad.clone() for name, parameter in trained.items() if parameter.grad is not None}


def assert_same(found: Gradients, wanted: Gradients) -> None:
    assert set(found) == set(wanted)
    for name, gradient in wanted.items():
        scale = max(1e-6, float(gradient.abs().max()))
        torch.testing.assert_close(found[name] / scale, gradient / scale, atol=2e-4, rtol=2e-4, msg=name)


def distance(first: Gradients, second: Gradients) -> float:
    return float(torch.stack([(first[n] - second[n]).double().square().sum() for n in first]).sum().sqrt())


def genotype() -> tuple[nn.Module, Losses, Rows]:
    model = GenotypeVAE(GenotypeVAEConfig(latent=4, width=8, depth=1, position_bias=True), 21)
    dosages = torch.randint(0, 4, (5, 21), generator=draws(), dtype=torch.uint8)

    def losses() -> Tensor:
        logits, mean, log_variance = model(dosages, draws(1))
        return genotype_losses(logits, mean, log_variance, dosages, torch.tensor([1.0, 2.0, 5.0]), 0.1).total

    return model, losses, Rows(5)


def phenotype() -> tuple[nn.Module, Losses, Rows]:
    model = PhenotypeAutoencoder(PhenotypeAutoencoderConfig(latent=4, depth=2), 9)
    values = torch.randn(6, 9, generator=draws())
    return model, lambda: (model(values) - values).square().sum(1), Rows(6)


def baseline(architecture: str) -> tuple[nn.Module, Losses, Rows]:
    model = build_genotype_model(architecture, GenotypeVAEConfig(latent=4), 21)
    dosages = torch.randint(0, 4, (5, 21), generator=draws(), dtype=torch.uint8)

    def losses() -> Tensor:
        logits, mean, log_variance = model(dosages, draws(1))
        return genotype_losses(logits, mean, log_variance, dosages, torch.tensor([1.0, 2.0, 5.0]), 0.1).total

    return model, losses, Rows(5)


def fundus() -> tuple[nn.Module, Losses, Rows]:
    config = FundusEncoderConfig(
        image=32, width=16, depth=2, heads=2, decoder_width=16, decoder_depth=1, decoder_heads=2
    )
    model = attach_lora(FundusEncoder(config)).train()
    for name, parameter in lora_parameters(model).items():
        if name.endswith("lora_B"):
            nn.init.normal_(parameter, std=0.1, generator=draws(5))
    images = torch.randn(6, 3, 32, 32, generator=draws())

    def losses() -> Tensor:
        set_draws(model, draws(2))
        order = model.draw_hidden(6, draws(3))
        return model.reconstruction_errors(images, order).view(3, 2).sum(1)  # a person has two rows

    return model, losses, Rows(3)


def fusion(shares: tuple[int, ...] = (3, 0, 2, 1), missing: bool = False) -> tuple[nn.Module, Losses, Rows]:
    widths = {"genotype_width": 5, "phenotype_width": 4, "fundus_width": 3}
    config = FusionConfig(width=16, layers=2, heads=2, feedforward=32, final_norm=True, **widths)
    model, people = FusionTransformer(config), sum(shares)
    tokens = {
        m: torch.randn(people, span.stop - span.start, config.token_width(m), generator=draws(i))
        for i, (m, span) in enumerate(TOKENS_OF.items())
    }
    present = torch.rand(people, 25, generator=draws(7)) < 0.7
    if missing:
        present[:, TOKENS_OF[Modality.GENOTYPE]] = False
    objective = FusionObjective()
    return (
        model,
        lambda: group_losses(model, tokens, present, objective, draws(8), shares),
        Rows(len(shares), shares),
    )


def trained_of(module: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("clip", [1e-3, 0.3, 1e3])
@pytest.mark.parametrize(
    "made",
    [
        genotype,
        lambda: baseline("linear"),
        lambda: baseline("shallow"),
        phenotype,
        fundus,
        fusion,
        lambda: fusion((2, 2, 2)),
        lambda: fusion(missing=True),
    ],
    ids=[
        "genotype",
        "linear genotypes",
        "shallow genotypes",
        "phenotype",
        "fundus",
        "fusion",
        "fusion, even groups",
        "fusion, nobody's genotypes",
    ],
)
def test_the_clipped_sum_is_that_of_units_one_by_one(made: Callable[[], tuple], clip: float) -> None:
    torch.manual_seed(0)
    module, losses, rows = made()
    trained = trained_of(module)
    assert_same(clipped(module, trained, losses, rows, clip), one_by_one(trained, losses, clip))


class Layers(nn.Module):
    """Every kind of layer, one parameter that is used twice, and one that belongs to no layer."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(4, 6, (3, 3), stride=2, padding=1, groups=2)
        self.pointwise = nn.Conv2d(6, 4, 1, bias=False)
        self.norm = nn.LayerNorm([4, 4, 4])
        self.shared = nn.Linear(16, 16)
        self.shift = nn.Parameter(torch.randn(4, 16))
        self.per_row = PerRow()

    def forward(self, images: Tensor) -> Tensor:
        """[n, 4, 8, 8] -> [n, 4, 16]."""
        x = self.norm(self.pointwise(torch.tanh(self.convolution(images)))).flatten(2)
        x = self.shared(x + self.per_row(self.shift, len(x)))
        mixed: Tensor = self.shared(torch.tanh(x)) * self.per_row(self.shift, len(x))
        return mixed


@pytest.mark.parametrize("shares", [None, (1, 3, 0, 2)])
def test_every_kind_of_layer_and_a_parameter_used_twice(shares: tuple[int, ...] | None) -> None:
    torch.manual_seed(1)
    module, images = Layers(), torch.randn(6, 4, 8, 8)

    def losses() -> Tensor:
        each = module(images).square().sum((1, 2))
        if shares is None:
            return each.view(3, 2).sum(1)
        return torch.stack([part.sum() for part in torch.split(each, list(shares))])

    trained, rows = trained_of(module), Rows(3) if shares is None else Rows(len(shares), shares)
    assert_same(clipped(module, trained, losses, rows, 2.0), one_by_one(trained, losses, 2.0))


@settings(max_examples=25)
@given(
    seed=st.integers(0, 2**20), clip=st.floats(1e-3, 10), size=st.integers(1, 4), scale=st.floats(1e-3, 1e4)
)
def test_a_unit_that_is_added_or_removed_moves_the_sum_by_no_more_than_the_bound(
    seed: int, clip: float, size: int, scale: float
) -> None:
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.LayerNorm(5), nn.Linear(5, 2))
    data, trained = scale * torch.randn(4 * size, 3), trained_of(module)

    def at(rows: Tensor) -> Gradients:
        units = len(rows) // size
        return clipped(
            module, trained, lambda: module(rows).square().sum(1).view(units, size).sum(1), Rows(units), clip
        )

    everybody = at(data)
    assert distance(everybody, at(data[size:])) <= clip
    changed = data.clone()
    changed[:size] = scale * torch.randn(size, 3)
    assert distance(everybody, at(changed)) <= 2 * clip


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e30])
def test_a_unit_whose_gradient_is_not_finite_counts_as_zero_and_spoils_nobody(bad: float) -> None:
    torch.manual_seed(0)
    module, values = PhenotypeAutoencoder(PhenotypeAutoencoderConfig(latent=4, depth=2), 9), torch.randn(4, 9)
    values[1] = bad
    trained, rest = trained_of(module), values[[0, 2, 3]]
    found = clipped(module, trained, lambda: (module(values) - values).square().sum(1), Rows(4), 0.5)
    wanted = clipped(module, trained, lambda: (module(rest) - rest).square().sum(1), Rows(3), 0.5)
    assert_same(found, wanted)


def test_cutting_each_persons_share_of_a_contrast_bounds_nobody_and_cutting_groups_does() -> None:
    """One person who looks like three others in three modalities turns the gradients of all three."""
    module, clip, width = nn.Linear(6, 6, bias=False), 0.01, 6
    nn.init.eye_(module.weight)
    trained, axes = trained_of(module), torch.eye(width)
    likeness = torch.stack([axes[:3], *(axes[k].repeat(3, 1) for k in range(4))])  # person, modality, width
    likeness = likeness + 0.2 * torch.randn(likeness.shape, generator=draws())

    def terms(people: Tensor) -> Tensor:
        """Eq. 2 of each person among these."""
        return info_nce(module(people), torch.ones(people.shape[:-1], dtype=torch.bool), 0.03)[0].sum(-1)

    with_her = one_by_one(trained, lambda: terms(likeness), clip)
    without = one_by_one(trained, lambda: terms(likeness[1:]), clip)
    assert distance(with_her, without) > 1.7 * clip  # and the accountant of such a step would have said 1

    def grouped(first: Tensor, second: Tensor) -> Gradients:
        rows = Rows(2, (len(first), len(second)))
        both = torch.cat([first, second])

        def losses() -> Tensor:
            mapped = torch.split(module(both), list(rows.shares or ()))
            everything = (torch.ones(group.shape[:-1], dtype=torch.bool) for group in mapped)
            return torch.stack(
                [info_nce(group, has, 0.03)[0].sum() for group, has in zip(mapped, everything, strict=True)]
            )

        return clipped(module, trained, losses, rows, clip)

    moved = distance(grouped(likeness[:3], likeness[3:]), grouped(likeness[1:3], likeness[3:]))
    assert moved <= 2 * clip


def test_a_layer_that_mixes_people_and_a_parameter_of_no_layer_are_refused() -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    with pytest.raises(ConfigError, match="layer '1': BatchNorm1d mixes people; use LayerNorm"):
        ClippedGradients(module, trained_of(module))

    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.scale = nn.Linear(3, 3), nn.Parameter(torch.ones(3))

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) * self.scale

    attention = nn.MultiheadAttention(4, 2)  # its weights are used by a function, not by its layers
    engine = ClippedGradients(attention, trained_of(attention))
    with pytest.raises(ConfigError, match="parameter 'in_proj_bias': its layer cannot be clipped"):
        engine.step(
            lambda: attention(*[torch.randn(3, 2, 4, requires_grad=True)] * 3)[0].sum((0, 2)), Rows(2), 1.0
        )

    bare = Bare()
    engine = ClippedGradients(bare, trained_of(bare))
    with pytest.raises(ConfigError, match="parameter 'scale': its layer cannot be clipped"):
        engine.step(lambda: bare(torch.randn(2, 3)).sum(1), Rows(2), 1.0)
    with pytest.raises(ConfigError, match=r"private loss: found shape \(\)"):
        engine.step(lambda: bare(torch.randn(2, 3)).sum(), Rows(2), 1.0)
    assert bare.scale.requires_grad


def test_groups_in_which_nobody_is_add_nothing() -> None:
    module, losses, rows = fusion((0, 0))
    found = clipped(module, trained_of(module), losses, rows, 1.0)
    assert not any(bool(gradient.any()) for gradient in found.values())


def test_groups_add_up_to_the_plain_loss_where_nobody_is_coupled() -> None:
    """Without contrast, eq. 3 of a batch is the mean over people of what groups add up."""
    model, _, rows = fusion((3, 0, 2, 1))
    assert rows.shares
    people, objective = sum(rows.shares), FusionObjective(contrast=0.0)
    tokens = {
        m: torch.randn(people, span.stop - span.start, model.config.token_width(m))  # type: ignore[union-attr,operator]
        for m, span in TOKENS_OF.items()
    }
    present = torch.rand(people, 25, generator=draws(7)) < 0.7
    whole = fusion_losses(model, tokens, present, objective, draws(4)).total  # type: ignore[arg-type]
    groups = group_losses(model, tokens, present, objective, draws(4), rows.shares)  # type: ignore[arg-type]
    torch.testing.assert_close(groups.sum() / people, whole)
    assert float(groups[1].detach()) == 0.0
