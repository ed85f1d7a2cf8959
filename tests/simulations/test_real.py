"""The study on real people: manifests by reference, figures per split key, bounds that are held in the open.

Most tests draw a small folder of the layout of the real data; the last ones read the real one, found through
PM1_REAL_DATA.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

import simulations.cli
from pm1_core.data.manifest import load_manifest
from pm1_core.data.preparation import prepare
from pm1_core.data.store import Store
from pm1_core.errors import BoundError, InputError
from pm1_core.fields import Modality, Split
from simulations.real import heart_disease, require_bounds, superpopulation, verdicts
from simulations.real_cohort import EUROPEANS, EYE_CLINIC, OTHERS, TARGET, RealData, write_real_cohort
from simulations.real_keys import COMPONENTS, FEDERATED, LOGISTIC, TRAINED, UNTRAINED, KeyFigures

REAL = os.environ.get("PM1_REAL_DATA")
needs_real_data = pytest.mark.skipif(REAL is None, reason="PM1_REAL_DATA is not set")
PEOPLE, UNLABELLED, SNPS, ROWS, PHOTOGRAPHS = 60, 3, 6, 40, 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 people of three populations, two hospitals of 40 rows, 5 photographs."""
    home = tmp_path_factory.mktemp("open-data")
    rng = np.random.default_rng(5)
    _genotypes(home / "genotypes_1kg_phase1", rng)
    (home / "heart_disease").mkdir()
    for hospital in ("here", "there"):
        (home / "heart_disease" / f"processed.{hospital}.data").write_text(_table(rng))
    _photographs(home / "fundus_hrf", rng)
    return home


def _genotypes(home: Path, rng: np.random.Generator) -> None:
    home.mkdir()
    names = [f"P{i:03d}" for i in range(PEOPLE)]
    kinds = np.arange(PEOPLE) % 3
    (home / "few.fam").write_text("".join(f"{n} {n} 0 0 0 -9\n" for n in names))
    rows = [(c, 1000 * (i + 1)) for c in range(1, 24) for i in range(SNPS)]  # 23 is X: no autosome
    (home / "few.bim").write_text("".join(f"{c}\trs{c}_{p}\t0\t{p}\tA\tG\n" for c, p in rows))
    frequency = rng.uniform(0.1, 0.9, (len(rows), 3))
    dosages = rng.binomial(2, frequency[:, kinds])  # [S, n], of A1
    np.save(home.parent / "drawn.npy", dosages)
    codes = np.array([3, 2, 0], np.uint8)[dosages]  # PLINK 1: 00 two of A1, 10 one, 11 none
    padded = np.pad(codes, ((0, 0), (0, -PEOPLE % 4))).reshape(len(rows), -1, 4)
    packed = (padded << np.array([0, 2, 4, 6], np.uint8)).sum(2).astype(np.uint8)
    (home / "few.bed").write_bytes(b"\x6c\x1b\x01" + packed.tobytes())
    labels = pd.DataFrame(
        {"sample": names, "super_pop": np.array(["EUR", "AFR", "EAS"])[kinds], "sex": "male"}
    )
    labels.iloc[: PEOPLE - UNLABELLED].to_csv(home / "sample_labels.tsv", sep="\t", index=False)


def _table(rng: np.random.Generator) -> str:
    lines = []
    for row in range(ROWS):
        ill = rng.integers(0, 2)
        age, cholesterol = 40 + 10 * ill + rng.integers(0, 9), "0" if row % 8 == 0 else str(200 + row)
        vessels = "?" if row % 3 == 0 else "1.0"
        lines.append(
            f"{age},1,{1 + row % 4},130,{cholesterol},0,{row % 3},150,{ill},1.5,2,{vessels},{(3, 6, 7)[row % 3]},"
            f"{ill * (1 + row % 4)}"
        )
    return "\n".join(lines) + "\n"


def _photographs(home: Path, rng: np.random.Generator) -> None:
    (home / "images").mkdir(parents=True)
    names = [f"{i:02d}_h" for i in range(PHOTOGRAPHS)]
    for name in names:
        picture = np.zeros((120, 180, 3), np.uint8)
        cv2.circle(picture, (90, 60), 55, (40, 80, int(rng.integers(150, 220))), -1)
        cv2.imwrite(str(home / "images" / f"{name}.jpg"), picture)
    pd.DataFrame({"image": names, "label": ["healthy"] * 3 + ["glaucoma"] * 2}).to_csv(
        home / "labels.csv", index=False
    )


@pytest.fixture(scope="module")
def cohort(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("cohort") / "1"
    write_real_cohort(RealData(folder), out, "1")
    return out


@pytest.fixture(scope="module")
def stores(cohort: Path) -> dict[str, Store]:
    opened = {}
    for manifest in sorted(cohort.glob("sites/*/site.yaml")):
        prepare(load_manifest(manifest), cohort / "stores" / manifest.parent.name)
        opened[manifest.parent.name] = Store.open(cohort / "stores" / manifest.parent.name)
    return opened


def test_sites_follow_from_the_label_files(stores: dict[str, Store]) -> None:
    assert set(stores) == {EUROPEANS, OTHERS, EYE_CLINIC, "here", "there"}
    people = {
        name: set(store.labels(store.people(None))["super_population"]) for name, store in stores.items()
    }
    assert people[EUROPEANS] == {"EUR"}
    assert people[OTHERS] == {"AFR", "EAS"}
    assert stores[EYE_CLINIC].modalities == {Modality.FUNDUS}
    assert stores["here"].modalities == {Modality.PHENOTYPE}
    diagnoses = stores[EYE_CLINIC].labels(stores[EYE_CLINIC].people(None))["fundus_diagnosis"]
    assert diagnoses.value_counts().to_dict() == {"healthy": 3, "glaucoma": 2}


def test_people_without_a_label_are_left_out_and_said_so(cohort: Path, stores: dict[str, Store]) -> None:
    assert len(stores[EUROPEANS]) + len(stores[OTHERS]) == PEOPLE - UNLABELLED
    (left_out,) = json.loads((cohort / "cohort.json").read_text())["excluded"]
    assert left_out["people"] == UNLABELLED


def test_the_alternate_allele_is_the_one_that_the_bed_counts(folder: Path, stores: dict[str, Store]) -> None:
    variants = stores[OTHERS].variants
    assert set(variants["chrom"]) == set(range(1, 23))
    assert set(variants["alt"]) == {"A"}
    drawn = np.load(folder / "drawn.npy")  # counts of A1
    subjects = [int(name[1:]) for name in stores[OTHERS].subjects["subject"]]
    read = stores[OTHERS].dosages(2, stores[OTHERS].people(None))
    assert np.array_equal(read, drawn[SNPS : 2 * SNPS, subjects].T)


def test_only_names_and_labels_of_the_data_are_written(folder: Path, cohort: Path) -> None:
    copied = [path for path in cohort.rglob("*") if path.is_file() and "stores" not in path.parts]
    assert {path.suffix for path in copied} <= {".yaml", ".tsv", ".csv", ".txt", ".json"}
    text = (cohort / "sites" / "here" / "site.yaml").read_text()
    assert str(folder / "heart_disease" / "processed.here.data") in text


def test_zeros_for_missing_and_grades_of_disease_are_read_as_meant(stores: dict[str, Store]) -> None:
    store = stores["here"]
    values, observed = store.phenotypes(store.people(None))
    (cholesterol,) = store.study.feature_indices(["cholesterol"])
    (disease,) = store.study.feature_indices([TARGET])
    (vessels,) = store.study.feature_indices(["coloured_vessels"])
    assert (values[observed[:, cholesterol], cholesterol] > 0).all()
    assert 0 < (~observed[:, cholesterol]).sum() < len(store)
    assert 0 < (~observed[:, vessels]).sum() < len(store)
    assert set(np.unique(values[:, disease])) == {0.0, 1.0}


def test_another_key_splits_the_same_people_otherwise(
    folder: Path, stores: dict[str, Store], tmp_path: Path
) -> None:
    manifests = write_real_cohort(RealData(folder), tmp_path / "2", "2", photographs=False)
    assert EYE_CLINIC not in manifests
    prepare(load_manifest(manifests[OTHERS]), tmp_path / "store")
    other = Store.open(tmp_path / "store")
    assert list(other.subjects["subject"]) == list(stores[OTHERS].subjects["subject"])
    assert list(other.subjects["split"]) != list(stores[OTHERS].subjects["split"])


def _figures(trained: float, federated: float) -> KeyFigures:
    return KeyFigures(
        {TRAINED: trained, UNTRAINED: 0.90, COMPONENTS: 0.98},
        {TRAINED: 352, UNTRAINED: 352, COMPONENTS: 20},
        {"here": {FEDERATED: federated, LOGISTIC: 0.90}},
    )


@pytest.mark.parametrize(
    ("trained", "federated", "missed"), [(0.97, 0.89, 0), (0.95, 0.89, 1), (0.89, 0.89, 2), (0.97, 0.87, 1)]
)
def test_missed_bounds_are_named_and_end_in_exit_code_1(
    trained: float, federated: float, missed: int
) -> None:
    figures = [_figures(trained - 0.01, federated), _figures(trained + 0.01, federated)]
    results: dict[str, object] = {
        "superpopulation": superpopulation(["1", "2"], figures),
        "heart_disease": heart_disease(["1", "2"], figures),
        "photographs": {"sites": [{"site": EYE_CLINIC, "located": 5, "total": 5}]},
    }
    assert sum(not kept for kept, _ in verdicts(results)) == missed  # type: ignore[arg-type]
    if missed:
        with pytest.raises(BoundError) as raised:
            require_bounds(results)  # type: ignore[arg-type]
        assert raised.value.exit_code == 1
    else:
        require_bounds(results)  # type: ignore[arg-type]


def test_a_hospital_without_cases_under_some_key_is_left_out() -> None:
    figures = [_figures(0.97, 0.9), KeyFigures(_figures(0.97, 0.9).superpopulation, {}, {})]
    assert heart_disease(["1", "2"], figures)["rows"] == []


def test_without_real_data_a_sentence_says_what_to_set(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.delenv("PM1_REAL_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    assert simulations.cli.main(["run", "study=real"]) == 2
    said = capsys.readouterr().err
    assert "PM1_REAL_DATA is not set" in said
    assert len(said.strip().splitlines()) == 1
    with pytest.raises(InputError, match="found no"):
        RealData(tmp_path)


def test_a_small_study_ends_with_its_figures_and_verdicts(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PM1_REAL_DATA", str(folder))
    phases = ("genotype", "phenotype", "fundus", "fusion")
    code = simulations.cli.main(
        ["run", "study=real", "model=tiny", "split_keys=2", "workers=1", f"runs={tmp_path / 'runs'}"]
        + [f"cohorts={tmp_path / 'cohorts'}", "model.genotype.blocks=1", "model.genotype.depth=0"]
        + [f"study.phases.{phase}.rounds=1" for phase in phases]
    )
    printed = capsys.readouterr()
    run = tmp_path / "runs" / "real-tiny"
    results = json.loads((run / "results.json").read_text())
    assert [row["name"] for row in results["superpopulation"]["rows"]] == [TRAINED, UNTRAINED, COMPONENTS]
    assert {row["site"] for row in results["heart_disease"]["rows"]} <= {"here", "there"}
    assert all(len(row["values"]) == 2 for row in results["superpopulation"]["rows"])
    assert results["photographs"]["sites"] == [
        {"site": EYE_CLINIC, "located": PHOTOGRAPHS, "total": PHOTOGRAPHS}
    ]
    assert len(json.loads((run / "sample_photographs" / "index.json").read_text())) == PHOTOGRAPHS
    missed = [sentence for kept, sentence in verdicts(results) if not kept]
    assert code == (1 if missed else 0)
    assert printed.out.count("PASS") + printed.out.count("MISSED") == len(verdicts(results))
    page = (run / "report.html").read_text()
    assert "Super-populations" in page
    assert f"{UNLABELLED} people" in page
    assert {path.name for path in (run / "keys" / "2").iterdir()} >= {"figures.json"}
    assert not (run / "keys" / "2" / "checkpoints").exists()


@needs_real_data
def test_real_people_make_five_sites(tmp_path: Path) -> None:
    manifests = write_real_cohort(RealData(Path(str(REAL))), tmp_path / "1", "1")
    assert len(manifests) == 5
    stores = {}
    for site, manifest in manifests.items():
        prepare(load_manifest(manifest), tmp_path / site)
        stores[site] = Store.open(tmp_path / site)
    genotyped = [store for store in stores.values() if Modality.GENOTYPE in store.modalities]
    tables = [store for store in stores.values() if Modality.PHENOTYPE in store.modalities]
    assert (len(genotyped), len(tables)) == (2, 2)
    people = pd.read_csv(RealData(Path(str(REAL))).labels, sep="\t", dtype=str, keep_default_na=False)
    labelled = set(people.loc[people["super_pop"] != "", "sample"])
    subjects = [subject for store in genotyped for subject in store.subjects["subject"]]
    assert len(subjects) == len(set(subjects))
    assert set(subjects) <= labelled
    for store in genotyped:
        assert store.labels(store.people(None))["super_population"].notna().all()
        assert store.dosages(22, store.people(None)).max() <= 2
    listed = pd.read_csv(RealData(Path(str(REAL))).diagnoses)
    clinic = stores[EYE_CLINIC]
    assert len(clinic.people(None, Modality.FUNDUS)) == len(listed)
    for store in tables:
        assert len(store.people(Split.TRAIN)) > len(store) / 2
