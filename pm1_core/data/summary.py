"""What a study measures, as far as it is no secret: columns, features, targets, labels, chromosome sizes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from pm1_core.errors import ManifestError
from pm1_core.fields import CHROMOSOMES
from pm1_core.validate import require_choice

KINDS: tuple[str, ...] = ("continuous", "binary", "categorical")


@dataclass(frozen=True)
class Column:
    """A phenotype column, or a label, of the study.

    unit: of a continuous column; categories: of a categorical one, in order
    codes: code system -> codes; a person with any of them (or of a finer code) has a 1
    analyte: substance that is measured, for conversions between mg/dL and mmol/L
    range: lowest and highest value of a continuous column, in `unit`, from public knowledge: noised statistics cut
        values to it (docs/privacy.md). Empty where the study gives none
    """

    name: str
    kind: str
    unit: str | None = None
    categories: tuple[str, ...] = ()
    codes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    analyte: str | None = None
    range: tuple[float, ...] = ()


@dataclass(frozen=True)
class Feature:
    """One column of the phenotype matrix; kind is "continuous" or "binary"."""

    name: str
    kind: str
    column: str


@dataclass(frozen=True)
class Target:
    """What is predicted, its label in a report, and the columns to hide then (appendix G.1)."""

    name: str
    label: str
    masked: tuple[str, ...]


def features_of(columns: Iterable[Column]) -> tuple[Feature, ...]:
    """The phenotype matrix's columns: one-hot for more than two categories (appendix E.3).

    A column of two categories is one binary feature, 1 for the second.
    """
    features = []
    for column in columns:
        if column.kind == "categorical":
            shown = column.categories if len(column.categories) > 2 else column.categories[1:]
            features += [Feature(f"{column.name}={category}", "binary", column.name) for category in shown]
        else:
            features.append(Feature(column.name, column.kind, column.name))
    return tuple(features)


@dataclass(frozen=True)
class StudySummary:
    """The non-secret part of a study definition: what models and reports need to know.

    chromosome_sizes: chromosome 1-22 -> number of SNPs in the study's reference list (0 if none)
    variants_sha256: of that list's positions and alleles, "" without a list
    """

    name: str
    build: str
    columns: tuple[Column, ...]
    targets: tuple[Target, ...]
    labels: tuple[Column, ...]
    chromosome_sizes: Mapping[int, int]
    photograph_size: int = 224
    variants_sha256: str = ""

    @cached_property
    def features(self) -> tuple[Feature, ...]:
        """Columns of the phenotype matrix, in order."""
        return features_of(self.columns)

    def feature_indices(self, columns: Iterable[str]) -> np.ndarray:
        """int64 indices of the features that belong to these study columns.

        Raises ManifestError for a column that the study does not have.
        """
        names = [column.name for column in self.columns]
        wanted = {require_choice("study column", name, names, ManifestError) for name in columns}
        return np.array([i for i, f in enumerate(self.features) if f.column in wanted], np.int64)

    @property
    def hash(self) -> str:
        """SHA-256 of `to_json`: sites of one study have the same."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def to_json(self) -> str:
        """Text with sorted keys; equal summaries give equal text."""
        content = {**asdict(self), "chromosome_sizes": {str(c): n for c, n in self.chromosome_sizes.items()}}
        return json.dumps(content, indent=1, sort_keys=True) + "\n"

    @staticmethod
    def from_json(text: str) -> StudySummary:
        """What `to_json` gave."""
        content = json.loads(text)

        def column(entry: Mapping[str, Any]) -> Column:
            codes = {system: tuple(codes) for system, codes in entry["codes"].items()}
            lists = {key: tuple(entry.get(key, ())) for key in ("categories", "range")}
            return Column(**{**entry, **lists, "codes": codes})

        content["columns"] = tuple(column(entry) for entry in content["columns"])
        content["labels"] = tuple(column(entry) for entry in content["labels"])
        content["targets"] = tuple(
            Target(t["name"], t["label"], tuple(t["masked"])) for t in content["targets"]
        )
        content["chromosome_sizes"] = {int(c): n for c, n in content["chromosome_sizes"].items()}
        return StudySummary(**content)


def nobody() -> StudySummary:
    """A study without columns, whose chromosomes have one SNP each: what a task releases follows from its order."""
    return StudySummary("", "", (), (), (), dict.fromkeys(CHROMOSOMES, 1))
