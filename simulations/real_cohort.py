"""Real people as five sites: manifests that point at open data sets, which stay where they are.

    out/study.yaml variants.tsv                                       what the sites share
        sites/<name>/site.yaml (+ keep.txt, fundus.csv, labels.csv)   one manifest per site
        cohort.json                                                   who was left out, and why

The data folder is read only and laid out like this; nothing of it is copied but identifiers and labels:

    genotypes_1kg_phase1/   one PLINK 1 file set, sample_labels.tsv (sample, super_pop)
    fundus_hrf/             images/, labels.csv (image, label)
    heart_disease/          processed.<hospital>.data, one table per hospital, 14 columns without a header
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from pm1_core import atomic
from pm1_core.data.reference import BASES
from pm1_core.errors import DataError, InputError
from pm1_core.fields import CHROMOSOMES
from pm1_core.validate import refusal, require_keys
from simulations.site_files import write_yaml

FORMAT = 1
"""Raised whenever the same data would give other manifests."""
REAL = "real"
"""The scenario's name in a configuration."""
BUILD = "GRCh37"
EUROPE = "EUR"
EUROPEANS, OTHERS = "1kg-europeans", "1kg-africans-asians-americans"
EYE_CLINIC = "hrf"
TARGET = "heart_disease"
SUPERPOPULATION, DIAGNOSIS = "super_population", "fundus_diagnosis"
_PICTURES = (".jpg", ".jpeg", ".png", ".tif", ".tiff")
_BIM = ("chrom", "id", "morgan", "pos", "a1", "a2")

# The 14 columns of the UCI heart disease tables, in the order of the files, with the meaning of their codes.
# Ranges are those of adults, not of these files.
HEART_COLUMNS: tuple[dict[str, Any], ...] = (
    {"name": "age", "kind": "continuous", "unit": "years", "range": [18, 100]},
    {"name": "sex", "kind": "binary"},
    {
        "name": "chest_pain",
        "kind": "categorical",
        "categories": ["typical_angina", "atypical_angina", "non_anginal", "asymptomatic"],
    },
    {"name": "resting_blood_pressure", "kind": "continuous", "unit": "mmHg", "range": [80, 220]},
    {"name": "cholesterol", "kind": "continuous", "unit": "mg/dL", "range": [80, 480]},
    {"name": "fasting_glucose_above_120", "kind": "binary"},
    {
        "name": "resting_ecg",
        "kind": "categorical",
        "categories": ["normal", "st_t_abnormal", "ventricular_hypertrophy"],
    },
    {"name": "highest_heart_rate", "kind": "continuous", "unit": "/min", "range": [60, 220]},
    {"name": "exercise_angina", "kind": "binary"},
    {"name": "st_depression", "kind": "continuous", "unit": "mm", "range": [-4, 8]},
    {"name": "st_slope", "kind": "categorical", "categories": ["upsloping", "flat", "downsloping"]},
    {"name": "coloured_vessels", "kind": "continuous", "range": [0, 3]},
    {"name": "thallium_scan", "kind": "categorical", "categories": ["normal", "fixed", "reversible"]},
    {"name": TARGET, "kind": "binary"},
)
_FILE_COLUMNS = (
    "age", "sex", "cp", "trestbps", "chol", "fbs", "restecg", "thalach", "exang", "oldpeak", "slope", "ca",
    "thal", "num",
)  # fmt: skip
# Where codes stand for categories; num counts narrowed vessels' grades, any of which is disease.
_CODES: dict[str, tuple[int, ...]] = {
    "chest_pain": (1, 2, 3, 4),
    "resting_ecg": (0, 1, 2),
    "st_slope": (1, 2, 3),
    "thallium_scan": (3, 6, 7),
}
# Nobody alive has a blood pressure or a cholesterol of zero: it was written where none was measured.
_HIDDEN_MISSING = ("resting_blood_pressure", "cholesterol")
_MISSING = ["?", "-9"]


@dataclass(frozen=True)
class RealData:
    """Where the open data sets are. Raises InputError if a folder or a file is not there."""

    folder: Path

    def __post_init__(self) -> None:
        for path in (self.labels, self.diagnoses, self.photographs):
            if not path.exists():
                raise InputError(
                    refusal("PM1_REAL_DATA", f"found no {path}", "name the folder that holds the data sets")
                )

    @property
    def genotypes(self) -> Path:
        """Prefix of the PLINK 1 file set."""
        folder = self.folder / "genotypes_1kg_phase1"
        found = sorted(folder.glob("*.bed"))
        if len(found) != 1:
            raise InputError(refusal(folder, f"found {len(found)} .bed files", "leave exactly one"))
        return found[0].with_suffix("")

    @property
    def labels(self) -> Path:
        """Super-populations by person."""
        return self.folder / "genotypes_1kg_phase1" / "sample_labels.tsv"

    @property
    def diagnoses(self) -> Path:
        """Diagnoses by photograph."""
        return self.folder / "fundus_hrf" / "labels.csv"

    @property
    def photographs(self) -> Path:
        """Folder of the photographs."""
        return self.folder / "fundus_hrf" / "images"

    @property
    def hospitals(self) -> dict[str, Path]:
        """Hospital -> its table."""
        found = sorted((self.folder / "heart_disease").glob("processed.*.data"))
        if not found:
            raise InputError(
                refusal(
                    self.folder / "heart_disease", "found no processed.*.data", "add the hospitals' tables"
                )
            )
        return {path.name.split(".")[1]: path.resolve() for path in found}

    def fingerprint(self) -> str:
        """Hex SHA-256 of the format and of every used file's path, size and time."""
        prefix = self.genotypes
        files = [*(prefix.with_name(prefix.name + end) for end in (".bed", ".bim", ".fam")), self.labels]
        files += [self.diagnoses, *sorted(self.photographs.iterdir()), *self.hospitals.values()]
        states = [[str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns] for path in files]
        return hashlib.sha256(json.dumps([FORMAT, states]).encode()).hexdigest()


def write_real_cohort(data: RealData, out: Path, split_key: str, photographs: bool = True) -> dict[str, Path]:
    """Write the manifests of all sites into `out`, whole or not at all; site -> its site.yaml.

    split_key: of the study; photographs: False leaves the eye clinic out.
    """
    if not (out / "cohort.json").exists():
        with atomic.whole_folder(out) as folder:
            _write(data, folder, split_key, photographs)
    return {path.parent.name: path for path in sorted(out.glob("sites/*/site.yaml"))}


def _write(data: RealData, folder: Path, split_key: str, photographs: bool) -> None:
    people = _table(data.labels, ("sample", "super_pop"), sep="\t")
    people = people[people["super_pop"] != ""]
    diagnoses = _table(data.diagnoses, ("image", "label"), sep=",")
    genotyped = _fam(data.genotypes)
    known = people[people["sample"].isin(genotyped)]
    left_out = len(genotyped) - len(known)
    _write_study(
        folder, data, split_key, sorted(known["super_pop"].unique()), sorted(diagnoses["label"].unique())
    )
    for site, chosen in ((EUROPEANS, known["super_pop"] == EUROPE), (OTHERS, known["super_pop"] != EUROPE)):
        _write_genotyped(folder / "sites" / site, site, data, known[chosen])
    for hospital, path in data.hospitals.items():
        _write_hospital(folder / "sites" / hospital, hospital, path)
    if photographs:
        _write_clinic(folder / "sites" / EYE_CLINIC, data, diagnoses)
    excluded = [
        {
            "site": data.genotypes.name,
            "people": left_out,
            "reason": f"no super-population in {data.labels.name}",
        }
    ]
    atomic.write_json(folder / "cohort.json", {"excluded": excluded if left_out else []})


def _write_study(
    folder: Path, data: RealData, split_key: str, populations: Sequence[str], diagnoses: Sequence[str]
) -> None:
    """study.yaml and variants.tsv. The alternate allele is the .bim's A1, which the .bed counts."""
    bim = pd.read_csv(
        data.genotypes.with_name(data.genotypes.name + ".bim"), sep=r"\s+", header=None, dtype=str
    )
    bim.columns = pd.Index(_BIM)
    bim["chrom"] = bim["chrom"].str.removeprefix("chr")
    single = bim["a1"].isin(BASES) & bim["a2"].isin(BASES)
    bim = bim[single & bim["chrom"].isin([str(c) for c in CHROMOSOMES])]
    variants = pd.DataFrame(
        {
            "chrom": bim["chrom"].astype(int), "pos": bim["pos"].astype(int), "id": bim["id"],
            "ref": bim["a2"], "alt": bim["a1"],
        }
    )  # fmt: skip
    variants = variants.sort_values(["chrom", "pos"], kind="stable").drop_duplicates(["chrom", "pos"])
    variants.to_csv(folder / "variants.tsv", sep="\t", index=False, lineterminator="\n")
    write_yaml(folder / "study.yaml", {
        "study": REAL,
        "build": BUILD,
        "split_key": split_key,
        "variants": "variants.tsv",
        "photograph_size": 224,
        "columns": [dict(column) for column in HEART_COLUMNS],
        "targets": [{"name": TARGET, "label": "Heart disease"}],
        "labels": [
            {"name": SUPERPOPULATION, "kind": "categorical", "categories": list(populations)},
            {"name": DIAGNOSIS, "kind": "categorical", "categories": list(diagnoses)},
        ],
    })  # fmt: skip


def _write_genotyped(home: Path, site: str, data: RealData, people: pd.DataFrame) -> None:
    home.mkdir(parents=True)
    (home / "keep.txt").write_text("".join(f"{sample}\n" for sample in people["sample"]))
    people[["sample", "super_pop"]].to_csv(home / "labels.csv", index=False, lineterminator="\n")
    write_yaml(home / "site.yaml", {
        "site": site,
        "study": "../../study.yaml",
        "genotype": {
            "format": "bed",
            "path": str(data.genotypes.resolve()),
            "build": BUILD,
            "keep": "keep.txt",
            # Both sites read one file, so an A/T SNP is on the same strand at both.
            "palindromic": "keep",
        },
        "labels": _labels("labels.csv", "sample", {"super_pop": SUPERPOPULATION}),
    })  # fmt: skip


def _write_hospital(home: Path, hospital: str, table: Path) -> None:
    home.mkdir(parents=True)
    rules = []
    for name, column in zip(_FILE_COLUMNS, HEART_COLUMNS, strict=True):
        rule: dict[str, Any] = {"column": name, "to": column["name"]}
        if column["name"] in _CODES:
            rule["values"] = dict(zip(_CODES[column["name"]], column["categories"], strict=True))
        if column["name"] == TARGET:
            rule["values"] = {0: 0, 1: 1, 2: 1, 3: 1, 4: 1}
        if column["name"] in _HIDDEN_MISSING:
            rule["missing"] = [0]
        if "unit" in column:
            rule["unit"] = column["unit"]
        rules.append(rule)
    write_yaml(home / "site.yaml", {
        "site": hospital,
        "study": "../../study.yaml",
        "phenotype": {
            "path": str(table),
            "separator": ",",
            "subject": None,
            "names": list(_FILE_COLUMNS),
            "missing": _MISSING,
            "columns": rules,
        },
    })  # fmt: skip


def _write_clinic(home: Path, data: RealData, diagnoses: pd.DataFrame) -> None:
    """One photograph a person. The collection does not say which eye it shows; all are entered as left."""
    home.mkdir(parents=True)
    files = {path.stem: path.name for path in data.photographs.iterdir() if path.suffix.lower() in _PICTURES}
    rows = []
    for number, name in enumerate(diagnoses["image"], 2):
        stem = Path(name).stem if Path(name).suffix.lower() in _PICTURES else name
        if stem not in files:
            raise DataError(
                refusal(f"{data.diagnoses}, row {number}", f"found no picture of {name!r}", "add the file")
            )
        rows.append({"subject": name, "eye": "left", "file": files[stem]})
    pd.DataFrame(rows).to_csv(home / "fundus.csv", index=False, lineterminator="\n")
    diagnoses[["image", "label"]].to_csv(home / "labels.csv", index=False, lineterminator="\n")
    write_yaml(home / "site.yaml", {
        "site": EYE_CLINIC,
        "study": "../../study.yaml",
        "fundus": {"index": "fundus.csv", "folder": str(data.photographs.resolve())},
        "labels": _labels("labels.csv", "image", {"label": DIAGNOSIS}),
    })  # fmt: skip


def _labels(path: str, subject: str, columns: dict[str, str]) -> dict[str, Any]:
    return {"path": path, "subject": subject, "columns": columns}


def _table(path: Path, columns: Sequence[str], sep: str) -> pd.DataFrame:
    table = pd.read_csv(path, sep=sep, dtype=str, keep_default_na=False)
    require_keys(
        f"{path}, row 1", dict.fromkeys(table.columns), tuple(columns), tuple(table.columns), DataError
    )
    return table


def _fam(prefix: Path) -> list[str]:
    fam = pd.read_csv(prefix.with_name(prefix.name + ".fam"), sep=r"\s+", header=None, dtype=str)
    return fam[1].tolist()
