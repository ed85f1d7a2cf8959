"""Projections: exact, repeatable, and usable on people who were not fitted."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.decomposition import PCA

from pm1_core.errors import InputError
from pm1_core.evaluation.embedding import genotype_components, principal_components, tsne


@pytest.mark.parametrize("shape", [(80, 12), (30, 200)])
def test_components_equal_a_singular_value_decomposition(shape: tuple[int, int]) -> None:
    x = np.random.default_rng(0).standard_normal(shape) * np.linspace(3, 1, shape[1])
    ours, reference = principal_components(x, 5), PCA(5, svd_solver="full").fit(x)
    np.testing.assert_allclose(ours.explained, reference.explained_variance_ratio_, atol=1e-9)
    np.testing.assert_allclose(np.abs(ours.transform(x)), np.abs(reference.transform(x)), atol=1e-6)
    assert (np.take_along_axis(ours.axes, np.abs(ours.axes).argmax(1)[:, None], 1) > 0).all()


def test_directions_without_variance_have_no_axis() -> None:
    x = np.outer(np.arange(10.0), np.ones(4))
    fitted = principal_components(x, 3)
    assert fitted.explained == pytest.approx([1, 0, 0], abs=1e-9)
    assert np.abs(fitted.transform(x)[:, 1:]).max() < 1e-9


def test_genotype_components_separate_populations_and_take_missing_at_the_mean() -> None:
    rng = np.random.default_rng(1)
    first, second = rng.uniform(0.1, 0.9, 400), rng.uniform(0.1, 0.9, 400)
    dosages = np.vstack([rng.binomial(2, f, (60, 400)) for f in (first, second)]).astype(np.uint8)
    dosages[rng.random(dosages.shape) < 0.02] = 3
    dosages[:, 0] = 1  # without variation
    scores = genotype_components(dosages, 2).transform(dosages)
    assert (scores[:60, 0] > 0).all() != (scores[60:, 0] > 0).all()
    fitted = genotype_components(dosages[::2], 2)
    held = fitted.transform(dosages[1::2])
    assert abs(held[:30, 0].mean() - held[30:, 0].mean()) > 5 * held[:30, 0].std()
    everything_missing = fitted.transform(np.full((1, 400), 3, np.uint8))
    np.testing.assert_allclose(everything_missing, 0, atol=1e-12)


def test_too_many_components_and_nan_are_refused() -> None:
    with pytest.raises(InputError, match="number of components"):
        principal_components(np.zeros((5, 3)), 4)
    with pytest.raises(InputError, match="NaN"):
        principal_components(np.array([[1.0, np.nan], [2, 3], [4, 5]]), 1)


def test_layout_repeats_under_a_seed_and_keeps_clusters() -> None:
    rng = np.random.default_rng(2)
    x = rng.standard_normal((90, 60)) + 12 * np.repeat(np.eye(3, 60), 30, axis=0)
    layout = tsne(x, seed=5)
    np.testing.assert_array_equal(layout, tsne(x, seed=5))
    centres = layout.reshape(3, 30, 2).mean(1)
    within = np.linalg.norm(layout.reshape(3, 30, 2) - centres[:, None], axis=2).mean()
    between = np.linalg.norm(centres[0] - centres[1])
    assert between > 2 * within
    assert layout.dtype == np.float32
