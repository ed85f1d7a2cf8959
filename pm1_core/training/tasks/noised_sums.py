"""The sums of `statistics` and `tokens` under record-level privacy: bounded per person, and noised at the site.

What leaves has the names and shapes of the exact sums, so that the coordinator makes statistics of them as ever.
It is less: values are cut to ranges that the study's definition gives from public knowledge, and dosages are
counted per chromosome, not per SNP, since class weights take no more and exact allele frequencies tell who is in
them (Homer et al. 2008, "Resolving individuals contributing trace amounts of DNA ...").
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from pm1_core.data.summary import StudySummary
from pm1_core.errors import ConfigError
from pm1_core.fields import MISSING_DOSAGE, TOKENS_OF, Modality
from pm1_core.training.bounded import BoundedSums
from pm1_core.validate import refusal

Shapes = Mapping[str, tuple[int, ...]]

_PHENOTYPE, _GENOTYPE, _TOKENS = "statistics.phenotype.", "statistics.genotype.", "tokens."
_VALUE_BOUND, _SQUARE_BOUND = 0.6, 0.15
"""Times sqrt(features): the norms to which a person's values and squares, in units of half the range, are cut. With
ranges of five standard deviations to either side typical rows have a third and half of that; noise is in proportion
to the bound, and cutting the few longer rows costs less than noise for a bound that nobody reaches."""
_TOKEN_BOUND = 2.0
"""Times sqrt(width): the L2 norm to which a token is cut for its statistics. A latent of unit variance has norm
sqrt(width), as has a fundus token after its LayerNorm."""
_USUAL = 0.2
"""Of half the range: the standard deviation of a column whose noised variance is not above zero."""


def ranges(study: StudySummary) -> tuple[np.ndarray, np.ndarray]:
    """Centre and half-width of every feature, float64 [K]; 0 and 1 of binary ones.

    Raises ConfigError naming the first continuous column whose definition gives no range.
    """
    columns = {column.name: column for column in study.columns}
    centres, halves = np.zeros(len(study.features)), np.ones(len(study.features))
    for place, feature in enumerate(study.features):
        if feature.kind == "continuous":
            given = columns[feature.column].range
            if not given:
                remedy = (
                    "give `range: [lowest, highest]` from public knowledge, or use privacy.statistics=public"
                )
                raise ConfigError(
                    refusal(f"study column {feature.column!r}", "noised sums need a range", remedy)
                )
            centres[place], halves[place] = (given[0] + given[1]) / 2, (given[1] - given[0]) / 2
    return centres, halves


def statistics_sums(study: StudySummary, round_number: int, chromosomes: int) -> BoundedSums:
    """The blocks of one round: who is observed, values and dosages; in round 2 squared deviations."""
    features = max(1, len(study.features))
    if round_number > 1:
        return BoundedSums({"square": _SQUARE_BOUND * features**0.5})
    bounds = {"observed": features**0.5, "value": _VALUE_BOUND * features**0.5}
    return BoundedSums({**bounds, "dosage": chromosomes**0.5} if chromosomes else bounds)


def add_phenotypes(
    sums: BoundedSums,
    study: StudySummary,
    chunks: Iterable[tuple[np.ndarray, np.ndarray]],
    mean: np.ndarray,
    round_number: int,
) -> None:
    """Add people's values [n, K] and observed entries [n, K]; mean: float64 [K], of round 1."""
    centres, halves = ranges(study)
    continuous = np.array([feature.kind == "continuous" for feature in study.features])
    for values, observed in chunks:
        if round_number == 1:
            sums.add("observed", observed)
            sums.add("value", np.clip((values - centres) / halves, -1, 1) * observed)
        else:
            # What a binary feature varies by follows from its mean, which has been paid for.
            deviation = np.clip((values - mean) / halves, -1, 1)
            sums.add("square", deviation**2 * observed * continuous)


def dosage_shares(dosages: np.ndarray) -> np.ndarray:
    """Share of each dosage among a person's observed genotypes, float64 [n, 3] of rows [n, S]; 0 if none was."""
    counts = np.stack([(dosages == d).sum(1) for d in range(MISSING_DOSAGE)], 1).astype(np.float64)
    shares: np.ndarray = counts / np.maximum(1, counts.sum(1, keepdims=True))
    return shares


def statistics_tensors(
    study: StudySummary, round_number: int, released: Mapping[str, np.ndarray], shapes: Shapes
) -> dict[str, np.ndarray]:
    """Released blocks as the exact sums would have been sent, float32; zero where a round has nothing new."""
    centres, halves = ranges(study)
    out = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    if round_number > 1:
        out[_PHENOTYPE + "std"] = (released["square"] * halves**2).astype(np.float32)
        return out
    # Said of every feature, whoever is there: it tells nothing, and costs nothing.
    out[_PHENOTYPE + "validated"] = np.ones(shapes[_PHENOTYPE + "validated"], np.float32)
    out[_PHENOTYPE + "count"] = released["observed"].astype(np.float32)
    sums = released["value"] * halves + released["observed"] * centres
    out[_PHENOTYPE + "mean"] = sums.astype(np.float32)
    counted = [name for name in shapes if name.startswith(_GENOTYPE)]
    for place, name in enumerate(sorted(counted)):
        # Every SNP gets the chromosome's shares, in people.
        out[name] = np.broadcast_to(released["dosage"][place], shapes[name]).astype(np.float32)
    return out


def token_sums(widths: Mapping[Modality, int], round_number: int) -> BoundedSums:
    """The blocks of one round: which tokens are present, and tokens; in round 2 mean squares of each token."""
    places = {m: span.stop - span.start for m, span in TOKENS_OF.items()}
    if round_number > 1:
        return BoundedSums({str(m): _TOKEN_BOUND**2 * n**0.5 for m, n in places.items()})
    bounds = {str(m): _TOKEN_BOUND * (widths[m] * n) ** 0.5 for m, n in places.items()}
    return BoundedSums({**bounds, "present": sum(places.values()) ** 0.5})


def squared_deviations(tokens: np.ndarray, mean: np.ndarray, present: np.ndarray) -> np.ndarray:
    """Mean over dimensions of a token's squared deviation from `mean` [T, d], cut to its bound: [n, T].

    One number for a token's dimensions: with one for each of them, noise would be what they differ by.
    """
    squares: np.ndarray = ((tokens - mean) ** 2).mean(-1)
    cut: np.ndarray = np.clip(squares, 0, _TOKEN_BOUND**2) * present
    return cut


def usual_deviation(study: StudySummary) -> np.ndarray:
    """What stands for a standard deviation whose noised square is below zero, float64 [K]; 1 without a range."""
    columns = {column.name: column for column in study.columns}
    given = [columns[feature.column].range for feature in study.features]
    return np.array([_USUAL * (r[1] - r[0]) / 2 if r else 1.0 for r in given])


def bounded_tokens(tokens: np.ndarray) -> np.ndarray:
    """Each token cut to its own bound, so that one large token does not shrink a person's others: [n, T, d]."""
    tokens = np.where(np.isfinite(tokens), tokens, 0).astype(np.float64)
    norms = np.linalg.norm(tokens, axis=-1, keepdims=True)
    bound = _TOKEN_BOUND * tokens.shape[-1] ** 0.5
    cut: np.ndarray = tokens * np.minimum(1.0, bound / np.maximum(norms, 1e-300))
    return cut
