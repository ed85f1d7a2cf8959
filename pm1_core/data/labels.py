"""Labels for evaluation: never trained on, kept as the study writes them."""

from __future__ import annotations

from collections.abc import Callable, Collection

import numpy as np
import pandas as pd

from pm1_core.data.definition import Column
from pm1_core.data.manifest import SiteManifest, TableSource
from pm1_core.data.preparation_report import Findings
from pm1_core.data.table_reading import TableReader


def read_labels(
    manifest: SiteManifest,
    source: TableSource,
    everybody: Collection[str],
    findings: Findings,
    progress: Callable[[int, int], None],
) -> pd.DataFrame:
    """Labels of the people in `everybody`, indexed by subject; all study labels, NaN or None missing.

    Binary labels are 0.0 or 1.0, categorical ones the category's name. Labels of people without any
    modality are left out and counted. Raises DataError naming file, row, column and value.
    """
    columns = manifest.study.labels
    subjects: list[str] = []
    values: dict[str, list[np.ndarray]] = {column.name: [] for column in columns}
    for part, found in TableReader(source, manifest.site, "labels", findings).read(progress):
        known = np.array([subject in everybody for subject in part], bool)
        findings.add_all(
            "labels.no-modality", source.table.path, (s for s, k in zip(part, known, strict=True) if not k)
        )
        subjects += [subject for subject, keep in zip(part, known, strict=True) if keep]
        for column in columns:
            values[column.name].append(found.get(column.name, np.full(len(part), np.nan))[known])
    table = {column.name: _shown(column, np.concatenate(values[column.name])) for column in columns}
    return pd.DataFrame(table, index=pd.Index(subjects, name="subject"))


def _shown(column: Column, values: np.ndarray) -> np.ndarray:
    if column.kind != "categorical":
        return values
    names = np.array([*column.categories, None], object)
    shown: np.ndarray = names[np.where(np.isnan(values), len(column.categories), values).astype(np.int64)]
    return shown
