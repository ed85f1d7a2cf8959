"""Readers on real files. Set PM1_REAL_DATA to the folder that holds them; nothing is copied here."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import numpy as np
import pytest
from site_files import Variant, write_site, write_study

from pm1_core.data.manifest import load_manifest
from pm1_core.data.preparation import prepare
from pm1_core.data.store import Store

REAL = Path(os.environ.get("PM1_REAL_DATA", ""))
pytestmark = pytest.mark.skipif("PM1_REAL_DATA" not in os.environ, reason="PM1_REAL_DATA is not set")
BED = "genotypes_1kg_phase1/kg_phase1"
VCF = "genotypes_1kg_phase3_vcf/1KG_phase3_subset_chr{chrom}.vcf.gz"


def prepared(folder: Path, name: str, **parts: object) -> Store:
    prepare(load_manifest(write_site(folder, name, f"{name}.yaml", **parts)), folder / name)
    return Store.open(folder / name)


def test_people_in_a_bed_and_in_vcfs_have_the_same_genotypes_in_both(tmp_path: Path) -> None:
    bim = [line.split() for line in (REAL / f"{BED}.bim").read_text().splitlines()]
    bim.sort(key=lambda row: (int(row[0]), int(row[3])))
    write_study(tmp_path, [Variant(c, int(p), a2, (a1,), i) for c, i, _, p, a1, a2 in bim], build="GRCh37")
    part = {"build": "GRCh37"}
    first = prepared(tmp_path, "bed", genotype={"format": "bed", "path": str(REAL / BED), **part})
    second = prepared(tmp_path, "vcf", genotype={"format": "vcf", "path": str(REAL / VCF), **part})
    assert len(first) == 1092
    assert len(second) == 100
    shared = sorted(set(first.subjects["subject"]) & set(second.subjects["subject"]))
    assert len(shared) == 63
    places = [store.subjects.set_index("subject").index.get_indexer(shared) for store in (first, second)]
    assert (
        first.subjects["split"].to_numpy()[places[0]] == second.subjects["split"].to_numpy()[places[1]]
    ).all()
    compared = equal = 0
    for chromosome in range(1, 23):
        a, b = first.dosages(chromosome, places[0]), second.dosages(chromosome, places[1])
        known = (a != 3) & (b != 3)
        compared, equal = compared + known.sum(), equal + (a == b)[known].sum()
    assert compared > 900
    assert equal / compared > 0.98  # the two releases were called from different reads
    report = second.report()
    assert report.count("genotype.flipped") > 0
    assert report.count("genotype.non-autosome-file") == 1
    assert report.count("genotype.multiallelic-ignored") > 0


def test_every_photograph_of_an_eye_clinic_is_located_and_cropped(tmp_path: Path) -> None:
    with (REAL / "fundus_hrf" / "labels.csv").open() as stream:
        names = [row["image"] for row in csv.DictReader(stream)]
    write_study(tmp_path)
    (tmp_path / "fundus.csv").write_text("subject,eye,file\n" + "".join(f"{n},L,{n}.jpg\n" for n in names))
    folder = str(REAL / "fundus_hrf" / "images")
    store = prepared(tmp_path, "clinic", fundus={"index": "fundus.csv", "folder": folder})
    images, present = store.photographs(store.people(None), "left")
    assert present.sum() == len(names) == 45
    assert store.report().findings == ()
    corners = images[:, [2, 2, -3, -3], [2, -3, 2, -3]]
    assert corners.max() <= 40
    assert (images[:, 112, 112].max(axis=1) > 40).all()
    bright = (images.max(axis=3) > 20).mean(axis=(1, 2))
    assert np.all((bright > 0.5) & (bright < 0.85))


@pytest.mark.parametrize(("hospital", "people", "twice"), [("cleveland", 303, 0), ("hungarian", 293, 1)])
def test_hospital_tables_keep_hidden_missing_values_missing(
    tmp_path: Path, hospital: str, people: int, twice: int
) -> None:
    names = [
        "age",
        "sex",
        "cp",
        "trestbps",
        "chol",
        "fbs",
        "restecg",
        "thalach",
        "exang",
        "oldpeak",
        "slope",
        "ca",
        "thal",
        "num",
    ]
    columns = [{"name": name, "kind": "continuous"} for name in names[:-1]] + [
        {"name": "disease", "kind": "binary"}
    ]
    write_study(tmp_path, columns=columns)
    rules = [{"column": n, "to": n, "missing": [0] if n == "chol" else []} for n in names[:-1]]
    rules.append({"column": "num", "to": "disease", "values": {0: 0, 1: 1, 2: 1, 3: 1, 4: 1}})  # type: ignore[dict-item]
    store = prepared(
        tmp_path,
        hospital,
        phenotype={
            "path": str(REAL / "heart_disease" / f"processed.{hospital}.data"),
            "separator": ",", "subject": None, "names": names, "missing": ["?"], "columns": rules,
        },
    )  # fmt: skip
    assert len(store) == people
    assert store.report().count("phenotype.identical-row") == twice
    values, observed = store.phenotypes(store.people(None))
    chol = names.index("chol")
    assert (values[observed[:, chol], chol] > 50).all()
    assert observed[:, 0].all()
    assert set(np.unique(values[:, -1])) == {0.0, 1.0}
