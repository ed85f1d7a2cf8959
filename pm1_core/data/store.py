"""The prepared store of a site, read by memory map."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd

from pm1_core.data.arrays import read_rows
from pm1_core.data.genotype import ABSENT, packed_width, unpack
from pm1_core.data.preparation_report import PreparationReport
from pm1_core.data.summary import StudySummary
from pm1_core.errors import StoreError
from pm1_core.fields import EYES, MISSING_DOSAGE, Modality, Split
from pm1_core.validate import refusal, require_choice

VERSION = 2
_TEXT = {"subject": str, "family": str, "split": str}


def is_store(path: Path) -> bool:
    """Whether `path` holds the description of a store, whole or damaged."""
    return (path / "store.json").is_file()


class Store:
    """A prepared site. People are int64 indices of rows of `subjects`; use `Store.open`."""

    def __init__(
        self, path: Path, content: dict[str, Any], study: StudySummary, subjects: pd.DataFrame
    ) -> None:
        self.path = path
        self.site: str = content["site"]
        self.role: str = content["role"]
        self.fingerprint: str = content["fingerprint"]
        self.counts: dict[str, int] = content["counts"]
        self.study = study
        self.subjects = subjects
        self._files: dict[str, int] = content["files"]
        self._maps: dict[str, np.ndarray] = {}

    @classmethod
    def open(cls, path: Path | str) -> Self:
        """Open a store. Raises StoreError if it is absent, incomplete, damaged or of another version."""
        path = Path(path)
        remedy = "prepare the site again"
        if not is_store(path):
            raise StoreError(refusal(path, "found no store", remedy))
        try:
            content = json.loads((path / "store.json").read_text(encoding="utf-8"))
            version = content["version"]
        except (ValueError, KeyError, TypeError):
            raise StoreError(
                refusal(path / "store.json", "found no description of a store", remedy)
            ) from None
        if version != VERSION:
            raise StoreError(refusal(path, f"found version {version}, not {VERSION}", remedy))
        for name, size in content["files"].items():
            file = path / name
            if not file.is_file():
                raise StoreError(refusal(file, "found no such file", remedy))
            if file.stat().st_size != size:
                raise StoreError(refusal(file, f"found {file.stat().st_size} bytes, not {size}", remedy))
        study = StudySummary.from_json((path / "study.json").read_text(encoding="utf-8"))
        subjects = pd.read_csv(
            path / "subjects.tsv", sep="\t", dtype=_TEXT, keep_default_na=False, na_values=[]
        )
        return cls(path, content, study, subjects)

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        """Another process opens the store again instead of receiving its arrays."""
        return type(self).open, (self.path,)

    def __len__(self) -> int:
        """Number of subjects."""
        return len(self.subjects)

    def __repr__(self) -> str:
        kinds = ", ".join(sorted(self.modalities))
        return f"Store({self.site!r}, {len(self)} subjects, {kinds})"

    @cached_property
    def modalities(self) -> frozenset[Modality]:
        """What at least one person here has."""
        return frozenset(modality for modality in Modality if self._has(modality).any())

    def _has(self, modality: Modality) -> np.ndarray:
        if modality is Modality.FUNDUS:
            return np.asarray((self._row("left_row") >= 0) | (self._row("right_row") >= 0))
        return np.asarray(self._row(f"{modality.value}_row") >= 0)

    def _row(self, name: str) -> np.ndarray:
        return self.subjects[name].to_numpy(np.int64)

    def people(self, split: Split | None, modality: Modality | None = None) -> np.ndarray:
        """int64 indices of the subjects of `split` (None: all) that have `modality` (None: any), increasing."""
        chosen = np.ones(len(self), bool)
        if split is not None:
            chosen &= (self.subjects["split"] == Split(split).value).to_numpy()
        if modality is not None:
            chosen &= self._has(Modality(modality))
        return np.flatnonzero(chosen).astype(np.int64)

    def snps(self, chromosome: int) -> int:
        """Number of SNPs of the study on `chromosome` (1-22)."""
        return self.study.chromosome_sizes.get(chromosome, 0)

    @cached_property
    def variants(self) -> pd.DataFrame:
        """The study's reference list as prepared here: chrom, pos, id, ref, alt; empty without genotypes."""
        file = "genotype/variants.tsv"
        if file not in self._files:
            return pd.DataFrame(columns=["chrom", "pos", "id", "ref", "alt"])
        return pd.read_csv(self.path / file, sep="\t", dtype={"id": str}, keep_default_na=False)

    def _map(self, name: str) -> np.ndarray:
        if name not in self._maps:
            self._maps[name] = read_rows(self.path / name)
        return self._maps[name]

    def _take(self, people: np.ndarray, row_name: str) -> tuple[np.ndarray, np.ndarray]:
        """Which of `people` have the rows, and these rows."""
        rows = self._row(row_name)[np.asarray(people, np.int64)]
        return np.flatnonzero(rows >= 0), rows[rows >= 0]

    def dosages(self, chromosome: int, people: np.ndarray) -> np.ndarray:
        """uint8 [n, S]: count of the study's alternate allele; 3 = missing, also for people without genotype."""
        people = np.asarray(people, np.int64)
        snps = self.snps(chromosome)
        at, rows = self._take(people, "genotype_row")
        if not len(rows) or not snps:
            return np.full((len(people), snps), MISSING_DOSAGE, np.uint8)
        packed = self._map(f"genotype/chr{chromosome}.npy")[rows]
        if len(rows) < len(people):
            held, packed = packed, np.full((len(people), packed_width(snps)), ABSENT, np.uint8)
            packed[at] = held
        return unpack(packed, snps)

    def phenotypes(self, people: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """float32 [n, K] in the study's units (0 where missing) and bool [n, K], 1 observed."""
        people = np.asarray(people, np.int64)
        shape = (len(people), len(self.study.features))
        values, observed = np.zeros(shape, np.float32), np.zeros(shape, bool)
        at, rows = self._take(people, "phenotype_row")
        if len(rows):
            values[at] = self._map("phenotype/values.npy")[rows]
            observed[at] = self._map("phenotype/observed.npy")[rows]
        return values, observed

    def photographs(self, people: np.ndarray, eye: str) -> tuple[np.ndarray, np.ndarray]:
        """uint8 [n, 224, 224, 3] RGB of one eye ("left" or "right", 0 where absent) and bool [n], 1 present."""
        require_choice("eye", eye, EYES)
        people = np.asarray(people, np.int64)
        size = self.study.photograph_size
        images, present = np.zeros((len(people), size, size, 3), np.uint8), np.zeros(len(people), bool)
        at, rows = self._take(people, f"{eye}_row")
        if len(rows):
            images[at] = self._map("fundus/photographs.npy")[rows]
            present[at] = True
        return images, present

    def eyes(self, people: np.ndarray) -> np.ndarray:
        """Of which eyes there is a photograph, bool [n, 2] in the order of EYES."""
        people = np.asarray(people, np.int64)
        return np.stack([self._row(f"{eye}_row")[people] >= 0 for eye in EYES], axis=1)

    @cached_property
    def _labels(self) -> pd.DataFrame:
        columns = self.study.labels
        if "labels.tsv" not in self._files:
            table = pd.DataFrame({"subject": pd.Series(dtype=str)})
        else:
            types = {"subject": str, **{c.name: str if c.kind == "categorical" else float for c in columns}}
            table = pd.read_csv(
                self.path / "labels.tsv",
                sep="\t",
                dtype=types,
                keep_default_na=False,
                na_values={c.name: [""] for c in columns},
            )
        names = [column.name for column in columns]
        return table.set_index("subject").reindex(index=pd.Index(self.subjects["subject"]), columns=names)

    def labels(self, people: np.ndarray) -> pd.DataFrame:
        """The study's labels of `people`, indexed by subject; NaN where missing, categories by name."""
        return self._labels.iloc[np.asarray(people, np.int64)]

    def report(self, skipped: bool = False) -> PreparationReport:
        """The report that was written with the store."""
        content = json.loads((self.path / "preparation.json").read_text(encoding="utf-8"))
        return replace(PreparationReport.from_json(content), skipped=skipped)
