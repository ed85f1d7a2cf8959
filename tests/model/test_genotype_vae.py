import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score

from pm1_core.errors import ConfigError, InputError
from pm1_core.evaluation.genotype import (
    balanced_accuracy,
    dosage_confusion,
    plain_accuracy,
    weighted_accuracy,
)
from pm1_core.model.genotype_vae import GenotypeVAE, GenotypeVAEConfig, TokenMixer, sample
from pm1_core.model.objectives import (
    annealing,
    dosage_weights,
    genotype_loss,
    kl_divergence,
    weighted_cross_entropy,
)

TINY = GenotypeVAEConfig(latent=4, width=8, depth=1)


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def some_dosages(people: int, snps: int, seed: int = 0, classes: int = 4) -> torch.Tensor:
    return torch.randint(classes, (people, snps), generator=draws(seed), dtype=torch.uint8)


def parameters_of(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def ld_blocks(people: int, snps: int, seed: int, founders: int = 6) -> torch.Tensor:
    """Dosages of people whose two haplotypes copy founders, switching every 16 SNPs."""
    generator = np.random.default_rng(seed)
    pool = np.random.default_rng(99).random((founders, snps)) < 0.35
    chosen = generator.integers(founders, size=(2, people, -(-snps // 16))).repeat(16, axis=2)[:, :, :snps]
    return torch.from_numpy(pool[chosen, np.arange(snps)].sum(0).astype(np.uint8))


def test_latent_head_of_chromosome_1_has_217_million_parameters() -> None:
    with torch.device("meta"):
        model = GenotypeVAE(GenotypeVAEConfig(), 52_979)
    assert parameters_of(model.posterior) == 4096 * (52_984 + 1) == 217_026_560
    assert model.flat == model.length == 52_984
    assert parameters_of(model) < 400e6


def test_paper_size_forward_has_the_papers_shapes() -> None:
    with torch.device("meta"):
        model = GenotypeVAE(GenotypeVAEConfig(), 54_000)
        mean, log_variance = model.encode(torch.zeros(32, 54_000, dtype=torch.uint8))
        assert mean.shape == log_variance.shape == (32, 2048)
        assert model.decode(mean).shape == (32, 54_000, 3)


def test_token_mixer_is_depthwise_outside_and_grouped_where_the_width_changes() -> None:
    convolutions = TokenMixer(64, GenotypeVAEConfig()).convolutions
    shapes = [(c.in_channels, c.out_channels, c.groups) for c in convolutions]
    assert shapes == [(64, 64, 64), (64, 96, 32), (96, 64, 32), (64, 64, 64)]


def test_token_mixer_equals_grouped_conv1d() -> None:
    mixer = TokenMixer(8, TINY)
    x = torch.randn(3, 21, 8, generator=draws())
    expected = x.transpose(1, 2)
    for position, layer in enumerate(mixer.convolutions):
        expected = torch.nn.functional.conv1d(
            expected,
            layer.weight.squeeze(2),
            layer.bias,
            padding=1,
            groups=layer.groups,
        )
        expected = torch.nn.functional.gelu(expected) if position < 3 else expected
    torch.testing.assert_close(mixer(x), expected.transpose(1, 2))


@settings(deadline=None, max_examples=15)
@given(st.integers(1, 40), st.sampled_from([2, 3]), st.integers(1, 2), st.sampled_from([1, 3, 5]))
def test_every_number_of_snps_comes_back(snps: int, rate: int, blocks: int, kernel: int) -> None:
    config = GenotypeVAEConfig(latent=3, width=rate**blocks, blocks=blocks, depth=1, rate=rate, kernel=kernel)
    model = GenotypeVAE(config, snps)
    logits, mean, log_variance = model(some_dosages(2, snps), draws())
    assert logits.shape == (2, snps, 3)
    assert mean.shape == log_variance.shape == (2, 3)
    assert model.length % rate**blocks == 0
    assert snps <= model.length < snps + rate**blocks


def test_padding_never_reaches_the_loss() -> None:
    model = GenotypeVAE(TINY, 13)
    decoded: list[torch.Tensor] = []

    def keep(module: torch.nn.Module, inputs: object, output: torch.Tensor) -> None:
        output.retain_grad()
        decoded.append(output)

    model.unembed.register_forward_hook(keep)
    model(some_dosages(2, 13))[0].square().sum().backward()
    gradient = decoded[0].grad
    assert gradient is not None
    assert gradient.shape == (2, 16, 3)
    assert gradient[:, :13].abs().sum() > 0
    assert gradient[:, 13:].abs().sum() == 0


def test_dosages_of_any_integer_type_encode_alike() -> None:
    model, dosages = GenotypeVAE(TINY, 20), some_dosages(5, 20)
    torch.testing.assert_close(model.encode(dosages)[0], model.encode(dosages.long())[0], rtol=0, atol=0)


def test_missing_is_a_token_of_its_own() -> None:
    model, dosages = GenotypeVAE(TINY, 20), some_dosages(1, 20, classes=3)
    means = []
    for token in range(4):
        dosages[0, 7] = token
        means.append(model.encode(dosages)[0])
    assert all(not torch.equal(means[3], mean) for mean in means[:3])


def test_missing_genotypes_give_no_gradient_and_do_not_change_the_loss() -> None:
    dosages = some_dosages(6, 30)
    logits = torch.randn(6, 30, 3, generator=draws(), requires_grad=True)
    weights = torch.tensor([0.5, 1.0, 3.0])
    weighted_cross_entropy(logits, dosages, weights).sum().backward()
    assert logits.grad is not None
    missing = dosages == 3
    assert logits.grad[missing].abs().sum() == 0
    assert (logits.grad[~missing].abs().sum(-1) > 0).all()


def test_a_person_without_genotypes_adds_zero() -> None:
    dosages = torch.full((1, 5), 3, dtype=torch.uint8)
    loss = weighted_cross_entropy(torch.randn(1, 5, 3, generator=draws()), dosages, torch.ones(3))
    assert loss.tolist() == [0.0]


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("per_snp", [False, True])
def test_loss_equals_float64_loops(reduction: str, per_snp: bool) -> None:
    people, snps, latent, beta = 5, 11, 3, 0.0913
    generator = draws(4)
    logits = torch.randn(people, snps, 3, generator=generator)
    mean, log_variance = torch.randn(2, people, latent, generator=generator)
    dosages = some_dosages(people, snps, 2)
    weights = torch.rand((snps, 3) if per_snp else (3,), generator=generator) + 0.1
    total = 0.0
    for i in range(people):
        entropies = []
        for s in range(snps):
            d = int(dosages[i, s])
            if d == 3:
                continue
            row = logits[i, s].double().numpy()
            weight = float(weights[s, d] if per_snp else weights[d])
            entropies.append(weight * (np.log(np.exp(row).sum()) - row[d]))
        kl = 0.0
        for m, v in zip(mean[i].double().numpy(), log_variance[i].double().numpy(), strict=True):
            kl += 0.5 * (m * m + np.exp(v) - 1 - v)
        reconstruction = np.mean(entropies) if reduction == "mean" else np.sum(entropies)
        total += (reconstruction + beta * kl / snps) / people
    losses = genotype_loss(logits, mean, log_variance, dosages, weights, beta, reduction, "snp")
    assert float(losses.total) == pytest.approx(total, rel=1e-5)


def test_default_loss_is_the_bound_divided_by_the_number_of_snps() -> None:
    dosages = some_dosages(4, 12, classes=3)
    logits, mean, variance = torch.randn(4, 12, 3), torch.randn(4, 2), torch.randn(4, 2)
    per_snp = genotype_loss(logits, mean, variance, dosages, torch.ones(3), 0.1, "mean", "snp")
    bound = genotype_loss(logits, mean, variance, dosages, torch.ones(3), 0.1, "sum", "person")
    torch.testing.assert_close(per_snp.total * 12, bound.total)


def test_kl_divergence_equals_torch_distributions() -> None:
    mean, log_variance = torch.randn(2, 7, 5, generator=draws())
    posterior = torch.distributions.Normal(mean, (0.5 * log_variance).exp())
    expected = torch.distributions.kl_divergence(posterior, torch.distributions.Normal(0.0, 1.0)).sum(-1)
    torch.testing.assert_close(kl_divergence(mean, log_variance), expected)


def test_annealing_rises_linearly_and_stays() -> None:
    shares = [annealing(step, 1000) for step in range(0, 3000, 100)]
    assert shares[0] == 0
    np.testing.assert_allclose(np.diff(shares)[:10], 0.1)
    assert set(shares[10:]) == {1.0}


def test_draws_follow_the_posterior_and_the_seed() -> None:
    mean, log_variance = torch.full((20_000, 2), 3.0), torch.full((20_000, 2), float(np.log(4.0)))
    z = sample(mean, log_variance, draws(1))
    assert float(z.mean()) == pytest.approx(3.0, abs=0.05)
    assert float(z.std()) == pytest.approx(2.0, abs=0.05)
    assert torch.equal(z, sample(mean, log_variance, draws(1)))


def test_without_a_generator_the_mean_is_decoded() -> None:
    model, dosages = GenotypeVAE(TINY, 9), some_dosages(3, 9)
    logits, mean, _ = model(dosages)
    torch.testing.assert_close(logits, model.decode(mean))
    torch.testing.assert_close(model.token(dosages), mean)
    with pytest.raises(ConfigError, match="without a generator"):
        GenotypeVAE(GenotypeVAEConfig(latent=4, width=8, depth=1, token="sample"), 9).token(dosages)


@given(st.lists(st.tuples(*[st.integers(0, 500)] * 3), min_size=1, max_size=6), st.floats(1, 20))
def test_class_weights_average_to_one_and_never_favour_the_common(
    rows: list[tuple[int, int, int]], cap: float
) -> None:
    counts = torch.tensor(rows, dtype=torch.float32)
    total = counts.sum(0)
    weights = dosage_weights(counts, cap)
    if total.sum() > 0:
        assert float((total / total.sum()) @ weights) == pytest.approx(1, rel=1e-4)
    order = torch.argsort(total, descending=True)
    assert (weights[order].diff() >= -1e-6).all()
    # A dosage rarer than 1 in 3 cap meets the cap, the commonest is at least 1/3 of all.
    assert float(weights.max() / weights.min()) <= 3 * cap * (1 + 1e-5)
    assert dosage_weights(counts, cap, "snp").shape == counts.shape


def test_noised_counts_below_zero_give_finite_weights() -> None:
    assert torch.isfinite(dosage_weights(torch.tensor([[-3.0, 5.0, -1.0], [0.0, 0.0, 0.0]]), 10, "snp")).all()


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 40), st.integers(1, 6), st.integers(0, 2**31))
@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true", "ignore:A single label was found")
def test_balanced_accuracy_per_snp_is_scikit_learns(people: int, snps: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    true = generator.integers(0, 4, (people, snps)).astype(np.uint8)
    predicted = generator.integers(0, 3, (people, snps))
    confusion = dosage_confusion(true, predicted)
    expected = []
    for s in range(snps):
        seen = true[:, s] != 3
        expected.append(
            balanced_accuracy_score(true[seen, s], predicted[seen, s]) if seen.any() else float("nan")
        )
    np.testing.assert_allclose(balanced_accuracy(confusion), expected)
    if seen_any := (true != 3).any():
        assert weighted_accuracy(confusion) == pytest.approx(np.nanmean(expected))
        assert plain_accuracy(confusion) == pytest.approx((true == predicted)[true != 3].mean())
    assert seen_any or np.isnan(weighted_accuracy(confusion))


def test_confusions_of_two_sites_add_up_to_the_pooled_one() -> None:
    true, predicted = some_dosages(10, 4).numpy(), some_dosages(10, 4, 1, 3).numpy()
    pooled = dosage_confusion(true, predicted)
    parts = dosage_confusion(true[:3], predicted[:3]) + dosage_confusion(true[3:], predicted[3:])
    np.testing.assert_array_equal(pooled, parts)
    with pytest.raises(InputError, match="shape"):
        dosage_confusion(true, predicted[:, :2])


def test_it_learns_linkage() -> None:
    train, test = ld_blocks(256, 96, 0), ld_blocks(64, 96, 1)
    torch.manual_seed(0)
    model = GenotypeVAE(GenotypeVAEConfig(latent=24, width=16, depth=1), 96)
    weights = dosage_weights(torch.stack([(train == d).sum(0) for d in range(3)], 1), 10)
    optimiser = torch.optim.Adam(model.parameters(), 3e-3, (0.5, 0.999))
    generator = draws()

    def held_out() -> float:
        with torch.no_grad():
            predicted = model(test)[0].argmax(-1)
        return weighted_accuracy(dosage_confusion(test.numpy(), predicted.numpy()))

    before, losses = held_out(), []
    for step in range(200):
        batch = train[torch.randint(len(train), (64,), generator=generator)]
        loss = genotype_loss(*model(batch, generator), batch, weights, 0.0913 * annealing(step, 100)).total
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        losses.append(float(loss.detach()))
    assert np.mean(losses[-20:]) < 0.75 * np.mean(losses[:5])
    assert held_out() > before + 0.2


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"width": 12}, "multiple of rate"),
        ({"kernel": 4}, "odd"),
        ({"latent": 0}, "latent"),
        ({"activation": "gelo"}, "did you mean 'gelu'"),
        ({"kl_scale": "snps"}, "did you mean 'snp'"),
        ({"beta": -1.0}, "beta"),
    ],
)
def test_wrong_sizes_are_refused_by_name(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        GenotypeVAEConfig(**wrong)
