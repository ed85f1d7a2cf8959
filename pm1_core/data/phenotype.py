"""The phenotype matrix: study columns as features, values beside an observed mask (appendix E.3)."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from pm1_core.data.arrays import RowWriter
from pm1_core.data.definition import Column, features_of
from pm1_core.data.manifest import SiteManifest, TableSource
from pm1_core.data.preparation_report import Findings
from pm1_core.data.table_reading import TableReader


def feature_matrix(
    columns: tuple[Column, ...], values: dict[str, np.ndarray], rows: int
) -> tuple[np.ndarray, np.ndarray]:
    """Study values as features.

    values: study column -> float64 [rows], NaN missing; a category by its index
    Returns float32 [rows, K] with 0 where missing, and bool [rows, K], 1 observed. K counts the
    features of `columns`, see `definition.features_of`.
    """
    parts, seen = [], []
    for column in columns:
        features = features_of([column])
        value = values.get(column.name)
        if value is None:
            parts.append(np.zeros((rows, len(features)), np.float32))
            seen.append(np.zeros((rows, len(features)), bool))
            continue
        observed = ~np.isnan(value)
        if column.kind == "categorical":
            first = len(column.categories) - len(features)
            wide = value[:, None] == np.arange(first, len(column.categories))
        else:
            wide = np.where(observed, value, 0.0)[:, None]
        parts.append(wide.astype(np.float32))
        seen.append(np.repeat(observed[:, None], len(features), axis=1))
    return np.concatenate(parts, axis=1), np.concatenate(seen, axis=1)


def write_phenotypes(
    manifest: SiteManifest,
    source: TableSource,
    folder: Path | None,
    findings: Findings,
    progress: Callable[[int, int], None],
) -> dict[str, int]:
    """Read the phenotype table into `folder` (nothing is written if None); returns subject -> row.

    Raises DataError naming file, row, column and value.
    """
    columns = manifest.study.columns
    width = len(features_of(columns))
    rows: dict[str, int] = {}
    reader = TableReader(source, manifest.site, "phenotype", findings)
    with ExitStack() as stack:
        writers: list[RowWriter] = []
        if folder is not None:
            writers = [
                stack.enter_context(RowWriter(folder / "values.npy", (width,), "float32")),
                stack.enter_context(RowWriter(folder / "observed.npy", (width,), "bool")),
            ]
        for subjects, values in reader.read(progress):
            parts = feature_matrix(columns, values, len(subjects))
            rows.update(zip(subjects, range(len(rows), len(rows) + len(subjects)), strict=True))
            for writer, part in zip(writers, parts, strict=False):
                writer.append(part)
    filled = {column.name for rule in source.rules for column in rule.to}
    findings.add_all(
        "phenotype.not-provided",
        source.table.path,
        (f"study column {c.name!r}" for c in columns if c.name not in filled),
    )
    return rows
