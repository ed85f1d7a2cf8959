import math

import pytest
import torch

from pm1_core.errors import ConfigError
from pm1_core.fields import TOKENS_OF, Modality
from pm1_core.model.fusion import FusionConfig, FusionTransformer, multiply_accumulates
from pm1_core.model.fusion_objectives import (
    FusionObjective,
    draw_corruption,
    draw_masks,
    fusion_losses,
    person_means,
)

CONFIG = FusionConfig(
    width=32, layers=3, heads=4, feedforward=64, genotype_width=6, phenotype_width=10, fundus_width=8
)
CPU = torch.device("cpu")


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def some_people(n: int, seed: int = 0) -> tuple[dict[Modality, torch.Tensor], torch.Tensor]:
    generator = draws(seed)
    tokens = {
        m: torch.randn(n, places.stop - places.start, CONFIG.token_width(m), generator=generator)
        for m, places in TOKENS_OF.items()
    }
    present = torch.ones(n, 25, dtype=torch.bool)
    for places in TOKENS_OF.values():
        present[:, places] &= torch.rand(n, 1, generator=generator) < 0.7
    present[:, 23:] &= torch.rand(n, 2, generator=generator) < 0.7
    present[:, 22] |= ~present.any(1)
    return tokens, present


def with_other_content(
    tokens: dict[Modality, torch.Tensor], where: torch.Tensor
) -> dict[Modality, torch.Tensor]:
    return {m: torch.where(where[:, s, None], tokens[m] * -3 + 100, tokens[m]) for m, s in TOKENS_OF.items()}


@pytest.mark.parametrize(("final_norm", "count"), [(False, 1_095_502_848), (True, 1_095_506_944)])
def test_paper_size_has_the_parameters_of_the_paper(final_norm: bool, count: int) -> None:
    model = FusionTransformer(FusionConfig(final_norm=final_norm), device="meta")
    assert sum(parameter.numel() for parameter in model.parameters()) == count


def test_paper_size_takes_3_61_tera_multiply_accumulates_at_batch_128() -> None:
    assert multiply_accumulates(FusionConfig(), 128) / 1e12 == pytest.approx(3.61, abs=0.005)


def test_skipping_missing_tokens_changes_no_present_one() -> None:
    model = FusionTransformer(CONFIG, seed=1)
    tokens, present = some_people(40)
    masked = draw_masks(present, FusionObjective(masking="F.5"), draws(1))
    with torch.no_grad():
        everything = model(tokens, present, masked)
        skipped = model(tokens, present, masked, predict_missing=False)
    computed = torch.cat([torch.ones(40, 1, dtype=torch.bool), present], 1)
    torch.testing.assert_close(skipped[computed], everything[computed], atol=1e-5, rtol=1e-5)
    assert (skipped[~computed] == 0).all()
    only_eyes = torch.zeros_like(present)
    only_eyes[:, 24] = True
    with torch.no_grad():
        torch.testing.assert_close(
            model(tokens, only_eyes, predict_missing=False)[:, [0, 25]],
            model(tokens, only_eyes)[:, [0, 25]],
            atol=1e-5,
            rtol=1e-5,
        )


@pytest.mark.parametrize("predict_missing", [False, True])
def test_missing_tokens_reach_no_output(predict_missing: bool) -> None:
    model = FusionTransformer(CONFIG, seed=1)
    tokens, present = some_people(12)
    leaves = {m: t.clone().requires_grad_() for m, t in tokens.items()}
    hidden = model(leaves, present, predict_missing=predict_missing)
    torch.autograd.backward(hidden.square().sum())
    for modality, places in TOKENS_OF.items():
        slope = leaves[modality].grad
        assert slope is not None
        assert (slope[~present[:, places]] == 0).all()
        assert (slope[present[:, places]].abs().sum(-1) > 0).all()
    changed = model(with_other_content(tokens, ~present), present, predict_missing=predict_missing)
    assert torch.equal(hidden, changed)


def test_a_missing_token_is_no_key_and_a_masked_one_is() -> None:
    model = FusionTransformer(CONFIG, seed=1)
    tokens, present = some_people(6)
    present[:] = True
    hide = torch.zeros_like(present)
    hide[:, 22] = True
    with torch.no_grad():
        as_masked, as_missing = model(tokens, present, hide), model(tokens, present & ~hide)
    assert not torch.allclose(as_masked[:, 0], as_missing[:, 0], atol=1e-4)


def test_the_content_of_masked_tokens_never_leaks() -> None:
    model = FusionTransformer(CONFIG, seed=1)
    tokens, present = some_people(12)
    objective = FusionObjective(masking="F.5")
    masked = draw_masks(present, objective, draws(1))
    corruption = draw_corruption(12, 32, objective, draws(2), CPU)
    leaves = {m: t.clone().requires_grad_() for m, t in tokens.items()}
    hidden = model(leaves, present, masked, corruption)
    torch.autograd.backward(hidden.square().sum())
    for modality, places in TOKENS_OF.items():
        slope = leaves[modality].grad
        assert slope is not None
        assert (slope[masked[:, places]] == 0).all()
    assert torch.equal(hidden, model(with_other_content(tokens, masked), present, masked, corruption))


def test_one_person_never_changes_another() -> None:
    model = FusionTransformer(CONFIG, seed=1)
    tokens, present = some_people(8)
    with torch.no_grad():
        together = model(tokens, present)
        alone = model({m: t[3:4] for m, t in tokens.items()}, present[3:4])
    torch.testing.assert_close(together[3:4], alone, atol=1e-5, rtol=1e-5)


def test_positions_are_cut_at_two_standard_deviations() -> None:
    positions = FusionTransformer(FusionConfig(**{**vars(CONFIG), "width": 1024}), seed=5).positions.detach()
    assert positions.abs().max() <= 0.04
    assert positions.abs().max() > 0.039
    # The standard deviation of a standard normal cut at +-2 is 0.8796.
    assert positions.std() == pytest.approx(0.02 * 0.8796, rel=0.02)


def test_a_seed_gives_the_same_model_and_leaves_the_global_generator_alone() -> None:
    before = torch.random.get_rng_state()
    first, second = FusionTransformer(CONFIG, seed=4), FusionTransformer(CONFIG, seed=4)
    assert torch.equal(before, torch.random.get_rng_state())
    for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(("masking", "expected"), [("E.5", (1 / 66, 1 / 3, 1 / 6)), ("F.5", (0.5, 0.5, 0.5))])
def test_masks_have_the_probabilities_of_their_reading(
    masking: str, expected: tuple[float, float, float]
) -> None:
    n = 40_000
    masked = draw_masks(torch.ones(n, 25, dtype=torch.bool), FusionObjective(masking=masking), draws(1))
    for places, chance in zip(TOKENS_OF.values(), expected, strict=True):
        found = masked[:, places].float().mean(0)
        tolerance = 5 * math.sqrt(chance * (1 - chance) / n)
        assert (found - chance).abs().max() < tolerance
    if masking == "E.5":
        untouched = (1 - 1 / 66) ** 22 * (2 / 3) * (5 / 6) ** 2
        assert (~masked.any(1)).float().mean() == pytest.approx(untouched, abs=0.015)


def test_whole_modalities_go_together_and_never_the_only_one() -> None:
    n = 6_000
    present = torch.ones(n, 25, dtype=torch.bool)
    objective = FusionObjective(whole_modality=0.6)
    masked = draw_masks(present, objective, draws(1))
    for places in TOKENS_OF.values():
        if places.stop - places.start == 22:
            assert masked[:, places].all(1).float().mean() == pytest.approx(0.2, abs=0.02)
    present[:, 22:] = False
    assert not draw_masks(present, objective, draws(1)).all(1).any()
    assert not (draw_masks(present, objective, draws(1)) & ~present).any()


def test_corruption_has_four_modes_with_their_shares() -> None:
    n, width = 4_000, 16
    corruption = draw_corruption(n, width, FusionObjective(), draws(3), CPU)
    noisy = (corruption.noise != 0).flatten(1).any(1)
    dropped = (corruption.scale != 1).flatten(1).any(1)
    for mode, share in zip(
        (~noisy & ~dropped, noisy & ~dropped, ~noisy & dropped, noisy & dropped),
        (0.20, 0.25, 0.25, 0.30),
        strict=True,
    ):
        assert mode.float().mean() == pytest.approx(share, abs=0.035)
    assert corruption.noise[noisy].std() == pytest.approx(0.08, rel=0.01)
    assert (corruption.scale[dropped] == 0).float().mean() == pytest.approx(0.4, abs=0.005)
    assert corruption.scale[dropped].mean() == pytest.approx(1.0, abs=0.01)


def test_people_with_one_modality_contribute_no_contrast_and_no_nan() -> None:
    model = FusionTransformer(CONFIG, seed=1)
    tokens, present = some_people(5)
    present[:] = False
    present[:, 24] = True
    losses = fusion_losses(model, tokens, present, FusionObjective(), draws(1))
    assert float(losses.contrast.detach()) == 0
    torch.autograd.backward(losses.total)
    for parameter in model.parameters():
        assert parameter.grad is None or torch.isfinite(parameter.grad).all()


def test_equation_3_weighs_the_parts_by_lambda() -> None:
    model = FusionTransformer(CONFIG, seed=1)
    tokens, present = some_people(20)
    with torch.no_grad():
        parts = fusion_losses(model, tokens, present, FusionObjective(contrast=0.25), draws(1))
    assert float(parts.total) == pytest.approx(
        0.75 * float(parts.mask + parts.recon) + 0.25 * float(parts.contrast), rel=1e-5
    )


def test_losses_look_only_at_present_tokens() -> None:
    model = FusionTransformer(CONFIG, seed=1)
    tokens, present = some_people(20)
    with torch.no_grad():
        first = fusion_losses(model, tokens, present, FusionObjective(), draws(1))
        other = fusion_losses(
            model, with_other_content(tokens, ~present), present, FusionObjective(), draws(1)
        )
    assert float(first.total) == float(other.total)
    assert first.errors == other.errors


def test_token_losses_add_over_people_so_that_sites_can_be_averaged() -> None:
    model = FusionTransformer(CONFIG, seed=1)
    tokens, present = some_people(30)
    masked = draw_masks(present, FusionObjective(masking="F.5"), draws(1))
    with torch.no_grad():
        rebuilt = model.reconstruct(model(tokens, present, masked))
    errors = torch.cat([(rebuilt[m] - tokens[m]).square().mean(-1) for m in Modality], 1)
    for reduction in ("tokens", "modalities"):
        pooled = person_means(errors, masked, reduction).mean()
        sites = [person_means(errors[s], masked[s], reduction).mean() for s in (slice(0, 11), slice(11, 30))]
        assert float(pooled) == pytest.approx(float(sites[0] * 11 + sites[1] * 19) / 30, rel=1e-5)


def test_reductions_differ_in_what_a_phenotype_token_weighs() -> None:
    errors, chosen = torch.zeros(1, 25), torch.ones(1, 25, dtype=torch.bool)
    errors[0, 22] = 1
    assert float(person_means(errors, chosen, "tokens")) == pytest.approx(1 / 25)
    assert float(person_means(errors, chosen, "modalities")) == pytest.approx(1 / 3)
    assert float(person_means(errors, ~chosen, "modalities")) == 0


def test_a_transformer_learns_to_predict_one_modality_from_another() -> None:
    generator = draws(1)
    hidden_cause = torch.randn(128, 4, generator=generator)
    tokens = {
        m: (hidden_cause @ torch.randn(4, (s.stop - s.start) * CONFIG.token_width(m), generator=generator) / 2)
        .view(128, s.stop - s.start, -1)
        for m, s in TOKENS_OF.items()
    }  # fmt: skip
    present = torch.ones(128, 25, dtype=torch.bool)
    model = FusionTransformer(CONFIG, seed=1)
    optimiser = torch.optim.Adam(model.parameters(), 4e-3)
    for _ in range(100):
        optimiser.zero_grad()
        losses = fusion_losses(model, tokens, present, FusionObjective(contrast=0.1), generator)
        torch.autograd.backward(losses.total)
        optimiser.step()
    with torch.no_grad():
        losses = fusion_losses(model, tokens, present, FusionObjective(), generator, corrupt=False)
    total, count = losses.errors["mask.phenotype"]
    assert total / count < 0.25


@pytest.mark.parametrize(
    "wrong",
    [
        {"masking": "G.5"},
        {"reduction": "sum"},
        {"corruption": (0.5, 0.5, 0.5, 0.5)},
        {"temperature": 0.0},
        {"contrast": 1.5},
    ],
)
def test_a_wrong_objective_is_refused_by_name(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        FusionObjective(**wrong)  # type: ignore[arg-type]


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ConfigError, match=r"fusion\.heads"):
        FusionConfig(width=30, heads=4)
