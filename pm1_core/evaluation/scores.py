"""Areas under the ROC curve from sums: histograms of scores that sites may add up, and nothing about one person.

A site counts its cases and its controls in bins of the score, per target and group of people. Counts add up over
sites, so the area over all of them is known to whoever sees only the sum.

A score is a log odds, or anything on that scale. The bins are the same everywhere: BINS of width WIDTH from -LIMIT
to LIMIT, what lies outside in the outermost two. Scores of one bin count as tied, so that

    |area from bins - area from scores| <= 1/2 sum over bins of (share of cases) (share of controls)

because pairs in different bins are ranked as they are, and a pair in one bin counts 1/2 where it would count 0, 1/2
or 1. `resolution` gives the right side. With scores of standard deviation 1 it is about 0.002.

Source: Hanley and McNeil, Radiology 1982;143:29 (the area as a probability).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from pm1_core.data.store import Store
from pm1_core.errors import InputError
from pm1_core.update import Tensors
from pm1_core.validate import refusal, require_range, require_shape

PREFIX = "scores."
WIDTH = 1 / 64
"""A power of two, so that a float32 and a float64 of the same score fall into the same bin."""
LIMIT = 12
BINS = round(2 * LIMIT / WIDTH)
ALL = "all"
"""The group of everybody."""
SUBGROUP_COLUMNS = ("sex",)
"""Phenotype columns whose values are groups, in a study that has them; the study's labels are groups anyway."""


def bins_of(scores: np.ndarray) -> np.ndarray:
    """The bin of each score, int64 [n] in 0..BINS-1. Scores must not be NaN; infinities are outermost.

    >>> bins_of(np.array([-99.0, 0.0, 0.015, 0.016, 99.0])).tolist()
    [0, 768, 768, 769, 1535]
    """
    # Cut before the division by WIDTH: an infinity has no place in whole numbers.
    cut = np.clip(np.asarray(scores, np.float64), -LIMIT, LIMIT)
    return np.minimum(np.floor((cut + LIMIT) / WIDTH).astype(np.int64), BINS - 1)


def gather(
    names: Sequence[str], labels: np.ndarray, scores: np.ndarray, groups: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Counts of one site, to be added to those of others: "scores.TARGET.GROUP" -> float32 [2, BINS].

    names: targets, T of them
    labels: [n, T], 1 case, 0 control, NaN unknown; scores: [n, T] log odds, NaN where there is none
    groups: name -> bool [n], who belongs; the group "all" is added

    Row 0 counts cases, row 1 controls; who has no label or no score is in neither. Which names there are depends
    on `names` and `groups` alone, not on the people. float32 counts up to 2^24 people exactly.
    Raises InputError on another shape or label.
    """
    labels, scores = np.asarray(labels, np.float64), np.asarray(scores, np.float64)
    require_shape("labels", labels, (None, len(names)))
    require_shape("scores", scores, labels.shape)
    if not (np.isnan(labels) | np.isin(labels, (0, 1))).all():
        raise InputError(refusal("labels", "found other values than 0, 1 and NaN", "use 1 for a case"))
    counted: dict[str, np.ndarray] = {}
    for group, members in {ALL: np.ones(len(labels), bool), **groups}.items():
        require_shape(f"group {group!r}", members, (len(labels),))
        for column, name in enumerate(names):
            label, score = labels[members, column], scores[members, column]
            histogram = [
                np.bincount(bins_of(score[(label == kind) & ~np.isnan(score)]), minlength=BINS)
                for kind in (1, 0)
            ]
            counted[f"{PREFIX}{name}.{group}"] = np.stack(histogram).astype(np.float32)
    return counted


def subgroups(
    store: Store, people: np.ndarray, columns: Collection[str] = SUBGROUP_COLUMNS
) -> dict[str, np.ndarray]:
    """The groups of a study, and which of `people` [n] belong to each: "ancestry=EUR" -> bool [n].

    One group per category of each categorical label of the study, two ("=0", "=1") per binary label, and the same
    for those of its phenotype columns that are among `columns`. They follow from the study alone, so that all
    sites give the same ones, empty or not. A person whose value is missing is in none of its groups.
    """
    groups: dict[str, np.ndarray] = {}
    table = store.labels(people)
    for label in store.study.labels:
        values: tuple[str | int, ...] = label.categories if label.kind == "categorical" else (0, 1)
        if label.kind != "continuous":
            groups |= {f"{label.name}={v}": (table[label.name] == v).to_numpy(bool) for v in values}
    named = [column for column in store.study.columns if column.name in columns]
    entries, observed = store.phenotypes(people)
    for column in named:
        features = store.study.feature_indices([column.name]).tolist()
        if column.kind == "categorical" and len(features) > 1:
            for feature, category in zip(features, column.categories, strict=True):
                groups[f"{column.name}={category}"] = observed[:, feature] & (entries[:, feature] == 1)
        elif column.kind != "continuous":
            (feature,) = features  # of two categories, the second is 1
            for value, shown in enumerate(column.categories or (0, 1)):
                groups[f"{column.name}={shown}"] = observed[:, feature] & (entries[:, feature] == value)
    return groups


def auc_of(counts: np.ndarray) -> float:
    """P(a case scores above a control) + P(they fall into one bin) / 2, from counts [2, BINS] as of `gather`.

    Raises InputError on another shape, a negative count, or if there are no cases or no controls.

    >>> counts = np.zeros((2, BINS))
    >>> counts[0, [5, 9]], counts[1, [5, 7]] = 1, 1
    >>> auc_of(counts)
    0.625
    """
    cases, controls = _counted("counts of scores", counts)
    below = np.cumsum(controls) - controls
    return float(cases @ (below + controls / 2) / _pairs(cases, controls))


def resolution(counts: np.ndarray) -> float:
    """How far `auc_of` may be from the area of the scores themselves, see the top of this module."""
    cases, controls = _counted("counts of scores", counts)
    return float(cases @ controls / _pairs(cases, controls) / 2)


def areas(sums: Tensors, fewest: int = 5) -> dict[str, dict[str, float]]:
    """Areas from summed counts: "TARGET.GROUP" -> {"auc": x, "cases": n, "controls": m}, in the order of names.

    fewest: groups with fewer cases or fewer controls than this are left out, so that no figure is about a handful
        of people. How many people a single left-out group of a label has may still follow from the others.
    Tensors whose name does not begin with "scores." are passed over. Raises InputError as `auc_of`.
    """
    require_range("fewest cases and controls", fewest, 1)
    found = {}
    for name in sorted(sums):
        if name.startswith(PREFIX):
            cases, controls = _counted(name, sums[name]).sum(1).tolist()
            if min(cases, controls) >= fewest:
                area = {"auc": auc_of(sums[name]), "cases": cases, "controls": controls}
                found[name.removeprefix(PREFIX)] = area
    return found


def _counted(where: str, counts: np.ndarray) -> np.ndarray:
    """`counts` as float64 [2, BINS]: sums of float32 would lose people."""
    counts = require_shape(where, np.asarray(counts, np.float64), (2, BINS))
    if not (np.isfinite(counts).all() and (counts >= 0).all()):
        raise InputError(refusal(where, "found a count that is negative or no number", "sum what sites sent"))
    return counts


def _pairs(cases: np.ndarray, controls: np.ndarray) -> float:
    pairs = float(cases.sum() * controls.sum())
    if not pairs:
        found = f"found {cases.sum():g} cases and {controls.sum():g} controls"
        raise InputError(refusal("area", found, "give at least one of each"))
    return pairs
