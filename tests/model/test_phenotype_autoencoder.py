import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pm1_core.errors import ConfigError
from pm1_core.model.objectives import phenotype_loss
from pm1_core.model.phenotype_autoencoder import (
    PhenotypeAutoencoder,
    PhenotypeAutoencoderConfig,
    copy_mask,
    hide_groups,
    predict_target,
    standardise,
)


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def some_rows(rows: int, features: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = draws(seed)
    binary = torch.arange(features) % 2 == 1
    values = torch.randn(rows, features, generator=generator)
    values = torch.where(binary, (values > 0).float(), values)
    return values, torch.rand(rows, features, generator=generator) < 0.7, binary


def test_paper_size_has_76_099_959_parameters() -> None:
    with torch.device("meta"):
        model = PhenotypeAutoencoder(PhenotypeAutoencoderConfig(), 3421)
    assert sum(parameter.numel() for parameter in model.parameters()) == 76_099_959
    assert model(torch.zeros(2, 3421, device="meta")).shape == (2, 3421)
    assert model.encode(torch.zeros(2, 3421, device="meta")).shape == (2, 2048)


def test_every_layer_but_the_decoders_last_is_followed_by_leaky_relu() -> None:
    model = PhenotypeAutoencoder(PhenotypeAutoencoderConfig(latent=4, depth=3), 10)
    assert [type(layer).__name__ for layer in model.encoder] == ["Linear", "LeakyReLU"] * 3
    assert [type(layer).__name__ for layer in model.decoder] == ["Linear", "LeakyReLU"] * 2 + ["Linear"]
    assert {layer.negative_slope for layer in model.encoder if hasattr(layer, "negative_slope")} == {0.01}


@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 9))
def test_widths_run_linearly_from_features_to_token(features: int, latent: int, depth: int) -> None:
    widths = PhenotypeAutoencoderConfig(latent=latent, depth=depth).widths(features)
    assert (widths[0], widths[-1], len(widths)) == (features, latent, depth + 1)
    exact = np.linspace(features, latent, depth + 1)
    assert all(0 <= line - width < 1 + 1e-9 for line, width in zip(exact, widths, strict=True))


@settings(deadline=None)
@given(st.integers(1, 12), st.integers(1, 9), st.floats(0, 1), st.integers(0, 2**31))
def test_copy_mask_hides_a_donors_pattern_of_missing_entries(
    rows: int, features: int, probability: float, seed: int
) -> None:
    observed = torch.rand(rows, features, generator=draws(seed)) < 0.6
    visible = copy_mask(observed, draws(seed + 1), probability)
    assert not (visible & ~observed).any()
    for row in range(rows):
        patterns = [observed[row] & observed[donor] for donor in range(rows)]
        assert any(torch.equal(visible[row], pattern) for pattern in patterns)
    assert torch.equal(visible, copy_mask(observed, draws(seed + 1), probability))


def test_copy_mask_gates_rows_and_never_takes_a_row_as_its_own_donor() -> None:
    # Row i misses entry i alone, so that what is hidden names the donor.
    observed = ~torch.eye(400, dtype=torch.bool)
    hidden = observed & ~copy_mask(observed, draws(), 0.3)
    assert set(hidden.sum(1).tolist()) == {0, 1}
    assert float((hidden.sum(1) == 1).float().mean()) == pytest.approx(0.3, abs=0.07)
    everyone = observed & ~copy_mask(observed, draws(), 1.0)
    assert (everyone.sum(1) == 1).all()


def test_copy_mask_takes_patterns_from_a_pool() -> None:
    pool = torch.tensor([[True, False, True]])
    visible = copy_mask(torch.ones(4, 3, dtype=torch.bool), draws(), 1.0, pool)
    assert torch.equal(visible, pool.expand(4, 3))


def test_hidden_groups_are_whole_and_in_the_share_of_rows_asked_for() -> None:
    groups = torch.tensor([[True, True, False, False], [False, False, False, True]])
    visible = torch.ones(2000, 4, dtype=torch.bool)
    hidden = ~hide_groups(visible, groups, draws(), 0.4)
    assert {tuple(row) for row in hidden.tolist()} == {(False,) * 4, *map(tuple, groups.tolist())}
    assert float(hidden.any(1).float().mean()) == pytest.approx(0.4, abs=0.05)
    assert hide_groups(visible, groups[:0], draws(), 1.0) is visible


@pytest.mark.parametrize("how", ["kind", "kind, expected", "sum"])
def test_loss_equals_float64_loops(how: str) -> None:
    values, targets, binary = some_rows(6, 9)
    output = torch.randn(6, 9, generator=draws(3))
    sums, entries = [0.0, 0.0], [0, 0]
    for i in range(6):
        for k in range(9):
            if not targets[i, k]:
                continue
            o, x = float(output[i, k]), float(values[i, k])
            likelihood = 1 / (1 + np.exp(-o))
            entropy = -x * np.log(likelihood) - (1 - x) * np.log(1 - likelihood)
            sums[int(binary[k])] += entropy if binary[k] else (o - x) ** 2
            entries[int(binary[k])] += 1
    expected = {
        "kind": [sums[0] / entries[0], sums[1] / entries[1]],
        "kind, expected": [sums[0] / (6 * 3.5), sums[1] / (6 * 2.5)],
        "sum": [sums[0] / 6, sums[1] / 6],
    }[how]
    given_expected = (3.5, 2.5) if how == "kind, expected" else None
    losses = phenotype_loss(output, values, targets, binary, how.split(",")[0], given_expected)
    assert [float(losses.continuous), float(losses.binary)] == pytest.approx(expected, rel=1e-5)
    assert float(losses.total) == pytest.approx(sum(expected), rel=1e-5)


def test_unobserved_entries_give_no_gradient_even_where_extreme() -> None:
    values, targets, binary = some_rows(5, 6)
    output = torch.full((5, 6), 1e30).masked_fill(targets, 0.5).requires_grad_()
    phenotype_loss(output, values, targets, binary).total.backward()
    assert output.grad is not None
    assert torch.isfinite(output.grad).all()
    assert output.grad[~targets].abs().sum() == 0


def test_a_kind_that_nobody_has_adds_zero() -> None:
    values, targets, binary = some_rows(4, 6)
    losses = phenotype_loss(torch.zeros(4, 6), values, targets & ~binary, binary)
    assert float(losses.binary) == 0
    assert float(losses.total) == float(losses.continuous)
    assert float(phenotype_loss(torch.zeros(4, 6), values, targets, binary, "kind", (1.0, 0.0)).binary) == 0


def test_standardised_entries_are_z_scores_and_dropped_features_are_missing() -> None:
    values = torch.tensor([[3.0, 1.0, 7.0], [5.0, 0.0, 7.0]])
    observed = torch.tensor([[True, True, True], [True, False, True]])
    scaled, known = standardise(
        values, observed, torch.tensor([4.0, 0, 0]), torch.tensor([2.0, 1, 1]), torch.tensor([1.0, 1, 0])
    )
    assert scaled.tolist() == [[-0.5, 1.0, 0.0], [0.5, 0.0, 0.0]]
    assert known.tolist() == [[True, True, False], [True, False, False]]


def test_a_prediction_does_not_see_its_target_nor_what_is_masked() -> None:
    values, observed, _ = some_rows(8, 6)
    observed[:] = True
    model = PhenotypeAutoencoder(PhenotypeAutoencoderConfig(latent=3, depth=2), 6)
    before = predict_target(model, values, observed, [1], [2])
    assert before.shape == (8, 1)
    changed = values.clone()
    changed[:, [1, 2]] += 100
    assert torch.equal(before, predict_target(model, changed, observed, [1], [2]))
    changed[:, 0] += 1
    assert not torch.equal(before, predict_target(model, changed, observed, [1], [2]))


def test_it_learns_to_impute_a_feature_from_its_relatives() -> None:
    # Six features of one cause: hiding some must leave the others to tell.
    generator = draws(5)
    cause = torch.randn(512, 1, generator=generator)
    values = cause + 0.3 * torch.randn(512, 6, generator=generator)
    binary = torch.tensor([False] * 4 + [True] * 2)
    values = torch.where(binary, (values > 0).float(), values)
    observed = torch.rand(512, 6, generator=generator) < 0.85
    torch.manual_seed(0)
    model = PhenotypeAutoencoder(PhenotypeAutoencoderConfig(latent=3, depth=2), 6)
    optimiser = torch.optim.SGD(model.parameters(), 0.0478, momentum=0.8)
    losses = []
    for _ in range(300):
        visible = copy_mask(observed, generator, 0.3)
        loss = phenotype_loss(model(torch.where(visible, values, 0.0)), values, observed, binary).total
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert np.mean(losses[-20:]) < 0.6 * losses[0]
    logits = predict_target(model, values, observed, [5], [5])[:, 0]
    assert float(((logits > 0) == (values[:, 5] > 0)).float().mean()) > 0.8


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"copy_mask": 1.5}, "copy_mask"),
        ({"reduction": "kinds"}, "did you mean 'kind'"),
        ({"depth": 0}, "depth"),
    ],
)
def test_wrong_values_are_refused_by_name(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PhenotypeAutoencoderConfig(**wrong)
