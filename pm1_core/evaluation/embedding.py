"""Low-dimensional views of representations: principal components of embeddings and of genotypes, t-SNE.

Sources: Patterson, Price, Reich, PLoS Genetics 2006;2:e190 (scaling of genotypes); van der Maaten and
Hinton, JMLR 2008;9:2579 (t-SNE); section 5 and supplementary figures 5 to 8 of the paper (use).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import eigh
from sklearn.manifold import TSNE

from pm1_core.errors import InputError
from pm1_core.fields import MISSING_DOSAGE
from pm1_core.validate import refusal, require_range, require_shape

LARGEST_SIDE = 10_000


@dataclass(frozen=True)
class Components:
    """Principal components, fitted on some people and usable on others.

    mean [d], scale [d]: features are (x - mean) / scale before projection
    axes [k, d]: orthonormal, largest absolute entry positive, so that signs repeat
    explained [k]: share of the fitted people's variance
    """

    mean: np.ndarray
    scale: np.ndarray
    axes: np.ndarray
    explained: np.ndarray

    def transform(self, features: np.ndarray) -> np.ndarray:
        """Scores float64 [n, k] of features [n, d]. Raises InputError on another width."""
        require_shape("features", features, (None, self.mean.size))
        return np.asarray(((features - self.mean) / self.scale) @ self.axes.T)


@dataclass(frozen=True)
class GenotypeComponents:
    """Principal components of genotypes: a missing dosage counts as the fitted people's mean."""

    components: Components

    def transform(self, dosages: np.ndarray) -> np.ndarray:
        """Scores float64 [n, k] of dosages uint8 [n, S], 3 = missing."""
        require_shape("dosages", dosages, (None, self.components.mean.size))
        filled = np.where(dosages == MISSING_DOSAGE, self.components.mean, dosages)
        return self.components.transform(filled)


def principal_components(features: np.ndarray, count: int, scale: np.ndarray | None = None) -> Components:
    """The `count` leading principal components of features float [n, d].

    They come from the eigenvectors of the smaller of the two Gram matrices, which is exact and takes
    min(n, d)^2 numbers; both sides above 10,000 are refused. Directions without variance get axes of 0.
    Raises InputError on NaN, on count outside 1..min(n - 1, d), and on that size.
    """
    features = np.asarray(features, dtype=np.float64)
    require_shape("features", features, (None, None))
    n, d = features.shape
    require_range("number of components", count, 1, min(n - 1, d))
    if min(n, d) > LARGEST_SIDE:
        remedy = f"fit on at most {LARGEST_SIDE} people and transform the rest"
        raise InputError(refusal("features", f"found shape {features.shape}", remedy))
    if not np.isfinite(features).all():
        raise InputError(refusal("features", "found NaN or infinity", "leave these people out"))
    mean = features.mean(axis=0)
    divisor = np.ones(d) if scale is None else np.asarray(scale, dtype=np.float64)
    centred = (features - mean) / divisor
    side = min(n, d)
    gram = centred @ centred.T if n < d else centred.T @ centred
    total = float(np.trace(gram))
    values, vectors = eigh(gram, subset_by_index=(side - count, side - 1))
    values, vectors = np.clip(values[::-1], 0.0, None), vectors[:, ::-1]
    axes = (vectors.T @ centred) if n < d else vectors.T
    lengths = np.linalg.norm(axes, axis=1, keepdims=True)
    alive = (values > 1e-12 * max(total, 1e-300))[:, None]
    axes = np.divide(axes, lengths, out=np.zeros_like(axes), where=alive & (lengths > 0))
    largest = np.take_along_axis(axes, np.abs(axes).argmax(axis=1)[:, None], axis=1)
    axes = axes * np.where(largest < 0, -1.0, 1.0)
    return Components(mean, divisor, axes, values / total if total > 0 else values)


def genotype_components(dosages: np.ndarray, count: int) -> GenotypeComponents:
    """Principal components of dosages uint8 [n, S], 3 = missing, scaled by sqrt(2 f (1 - f)).

    A SNP that does not vary among the fitted people takes no part.
    """
    require_shape("dosages", dosages, (None, None))
    observed = dosages != MISSING_DOSAGE
    counts = observed.sum(axis=0)
    mean = np.where(observed, dosages, 0).sum(axis=0, dtype=np.float64) / np.maximum(counts, 1)
    deviation = np.sqrt(mean * (1 - mean / 2))  # 2 f (1 - f) with f = mean / 2
    scale = np.where(deviation > 0, deviation, 1.0)
    return GenotypeComponents(principal_components(np.where(observed, dosages, mean), count, scale))


def tsne(features: np.ndarray, seed: int, perplexity: float = 30.0) -> np.ndarray:
    """t-SNE coordinates float32 [n, 2] of features float [n, d], for pictures only.

    More than 50 features are first reduced to 50 principal components, as is usual. The perplexity
    is lowered to (n - 1) / 3 for few points. The same seed gives the same coordinates on the same
    machine and library versions. Raises InputError on fewer than 5 points.
    """
    require_shape("features", features, (None, None))
    n, d = features.shape
    require_range("number of points", n, 5)
    if d > 50 and n > 51:
        features = principal_components(features, 50).transform(features)
    layout = TSNE(perplexity=min(perplexity, (n - 1) / 3), init="pca", random_state=seed)
    return np.asarray(layout.fit_transform(np.ascontiguousarray(features, np.float32)), np.float32)
