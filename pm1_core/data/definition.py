"""The study definition: what all sites of a study share, and the part of it that a store keeps."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pm1_core.data.builds import build_name
from pm1_core.data.codes import SYSTEMS, is_code
from pm1_core.data.documents import is_there, list_of, mapping_of, read_text, read_yaml, text_of
from pm1_core.data.reference import read_families, read_variants
from pm1_core.data.summary import KINDS, Column, Feature, StudySummary, Target, features_of
from pm1_core.data.tables import table_text
from pm1_core.errors import ManifestError
from pm1_core.fields import CHROMOSOMES
from pm1_core.validate import refusal, require_choice, require_keys, require_range

__all__ = [
    "KINDS",
    "Column",
    "Feature",
    "StudyDefinition",
    "StudySummary",
    "Target",
    "features_of",
    "load_definition",
]


@dataclass(frozen=True)
class StudyDefinition:
    """A study definition as a site reads it; see `load_definition`.

    split_key is secret and never written to a store. variants and families are read on first use.
    """

    path: Path
    name: str
    build: str
    split_key: bytes = field(repr=False)
    columns: tuple[Column, ...]
    targets: tuple[Target, ...]
    labels: tuple[Column, ...]
    photograph_size: int
    variants_path: Path | None
    relatives_path: Path | None
    files: tuple[Path, ...]

    @cached_property
    def features(self) -> tuple[Feature, ...]:
        """Columns of the phenotype matrix, in order."""
        return features_of(self.columns)

    def feature_indices(self, columns: Iterable[str]) -> np.ndarray:
        """See `StudySummary.feature_indices`."""
        return self.summary.feature_indices(columns)

    @cached_property
    def variants(self) -> pd.DataFrame:
        """The reference list: chrom int, pos int, id, ref, alt; empty if the study has none."""
        if self.variants_path is None:
            return pd.DataFrame({"chrom": [], "pos": [], "id": [], "ref": [], "alt": []}).astype(
                {"chrom": np.int64, "pos": np.int64}
            )
        return read_variants(self.variants_path)

    @cached_property
    def families(self) -> dict[str, str]:
        """Subject -> family; empty if the study has no relatives list."""
        return {} if self.relatives_path is None else read_families(self.relatives_path)

    @cached_property
    def summary(self) -> StudySummary:
        """The non-secret part."""
        counted = self.variants["chrom"].value_counts()
        sizes = {chromosome: int(counted.get(chromosome, 0)) for chromosome in CHROMOSOMES}
        digest = ""
        if len(self.variants):
            listed = table_text(self.variants[["chrom", "pos", "ref", "alt"]], ",")
            digest = hashlib.sha256(listed).hexdigest()
        return StudySummary(
            self.name,
            self.build,
            self.columns,
            self.targets,
            self.labels,
            sizes,
            self.photograph_size,
            digest,
        )

    def to_json(self) -> str:
        """The non-secret part as text; `from_json` gives a StudySummary."""
        return self.summary.to_json()

    @staticmethod
    def from_json(text: str) -> StudySummary:
        """The summary that `to_json` wrote."""
        return StudySummary.from_json(text)


def _column(where: str, entry: Any) -> Column:
    optional = ("unit", "categories", "codes", "analyte", "range")
    require_keys(where, entry, ("name", "kind"), optional, ManifestError)
    name = text_of(f"{where}, key name", entry["name"])
    where = f"{where} ({name})"
    kind = require_choice(f"{where}, key kind", entry["kind"], KINDS, ManifestError)
    for key, owner in (
        ("unit", "continuous"),
        ("analyte", "continuous"),
        ("range", "continuous"),
        ("categories", "categorical"),
        ("codes", "binary"),
    ):
        if key in entry and kind != owner:
            raise ManifestError(
                refusal(f"{where}, key {key}", f"found it on a {kind} column", f"use it on {owner} ones")
            )
    categories = tuple(
        text_of(f"{where}, categories", c)
        for c in list_of(f"{where}, key categories", entry.get("categories", []))
    )
    if kind == "categorical" and (len(categories) < 2 or len(set(categories)) < len(categories)):
        raise ManifestError(
            refusal(
                f"{where}, key categories", f"found {list(categories)}", "list at least two different ones"
            )
        )
    codes: dict[str, tuple[str, ...]] = {}
    for system, listed in mapping_of(f"{where}, key codes", entry.get("codes", {})).items():
        require_choice(f"{where}, key codes", system, SYSTEMS, ManifestError)
        codes[system] = tuple(
            text_of(f"{where}, codes of {system}", code)
            for code in list_of(f"{where}, codes of {system}", listed)
        )
        for code in codes[system]:
            if not is_code(system, code):
                raise ManifestError(
                    refusal(f"{where}, codes of {system}", f"found {code!r}", f"write codes of {system}")
                )
    unit, analyte = entry.get("unit"), entry.get("analyte")
    return Column(
        name, kind, None if unit is None else text_of(f"{where}, key unit", unit), categories, codes,
        None if analyte is None else text_of(f"{where}, key analyte", analyte).lower(),
        _range(f"{where}, key range", entry["range"]) if "range" in entry else (),
    )  # fmt: skip


def _range(where: str, given: Any) -> tuple[float, float]:
    bounds = [require_range(where, bound, -1e300, 1e300, ManifestError) for bound in list_of(where, given)]
    if len(bounds) != 2 or not bounds[0] < bounds[1] or not np.isfinite(bounds).all():
        raise ManifestError(refusal(where, f"found {given!r}", "write [lowest, highest]"))
    return float(bounds[0]), float(bounds[1])


def _columns(where: str, entries: Any) -> tuple[Column, ...]:
    columns = tuple(_column(f"{where}, entry {i}", e) for i, e in enumerate(list_of(where, entries), 1))
    names = [column.name for column in columns]
    for name in names:
        if names.count(name) > 1:
            raise ManifestError(refusal(where, f"found {name!r} twice", "name every column once"))
    return columns


def _targets(where: str, entries: Any, columns: tuple[Column, ...]) -> tuple[Target, ...]:
    binary = [column.name for column in columns if column.kind == "binary"]
    every = [column.name for column in columns]
    targets = []
    for number, entry in enumerate(list_of(where, entries), 1):
        here = f"{where}, entry {number}"
        require_keys(here, entry, ("name",), ("label", "masked"), ManifestError)
        name = require_choice(f"{here}, key name (a binary column)", entry["name"], binary, ManifestError)
        masked = [
            require_choice(f"{here}, key masked", m, every, ManifestError)
            for m in list_of(f"{here}, key masked", entry.get("masked", []))
        ]
        # Predicting a column while showing it would measure nothing.
        targets.append(
            Target(
                name,
                text_of(f"{here}, key label", entry.get("label", name)),
                tuple(dict.fromkeys([name, *masked])),
            )
        )
    return tuple(targets)


def load_definition(path: Path | str) -> StudyDefinition:
    """Read study.yaml. Raises ManifestError naming file, key, what was found and what is accepted."""
    path = Path(path)
    content = require_keys(
        str(path), read_yaml(path), ("study", "build"),
        ("split_key", "split_key_file", "variants", "relatives", "photograph_size", "columns", "targets", "labels"),
        ManifestError,
    )  # fmt: skip
    if ("split_key" in content) == ("split_key_file" in content):
        raise ManifestError(
            refusal(path, "found none or both of split_key and split_key_file", "write exactly one")
        )
    files = [path]

    def beside(key: str) -> Path | None:
        if key not in content:
            return None
        file = path.parent / text_of(f"{path}, key {key}", content[key])
        if not is_there(file):
            raise ManifestError(
                refusal(f"{path}, key {key}", f"found no file {file}", "correct the path or add the file")
            )
        files.append(file)
        return file

    key_file = beside("split_key_file")
    split_key = (
        read_text(key_file).strip() if key_file else text_of(f"{path}, key split_key", content["split_key"])
    )
    if not split_key:
        raise ManifestError(
            refusal(
                key_file,
                "found an empty key",
                "write at least one character; 32 random bytes in hex are good",
            )
        )
    size_key = f"{path}, key photograph_size"
    columns = _columns(f"{path}, key columns", content.get("columns", []))
    return StudyDefinition(
        path=path,
        name=text_of(f"{path}, key study", content["study"]),
        build=build_name(f"{path}, key build", content["build"]),
        split_key=split_key.encode(),
        columns=columns,
        targets=_targets(f"{path}, key targets", content.get("targets", []), columns),
        labels=_columns(f"{path}, key labels", content.get("labels", [])),
        photograph_size=int(require_range(size_key, content.get("photograph_size", 224), 8, 587, ManifestError)),
        variants_path=beside("variants"),
        relatives_path=beside("relatives"),
        files=tuple(files),
    )  # fmt: skip
