"""Simulated hospitals: the files are repeatable, true to the scenario, and readable by the study's readers."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pgenlib
import pytest
import yaml

from pm1_core.data.manifest import load_manifest
from pm1_core.data.preparation import prepare
from pm1_core.data.store import Store
from pm1_core.fields import CHROMOSOMES
from simulations.cohort import Cohort, load_cohort, write_cohort
from simulations.scenarios import Scenario

SMALL = Scenario(people=150, sites=6, test_people=60, snps=330, public_photographs=20, relatives=0.2)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    return write_cohort(SMALL, tmp_path_factory.mktemp("cohorts") / "small", workers=1)


def _digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def _people(cohort: Cohort) -> pd.DataFrame:
    return pd.read_csv(cohort.truth / "people.tsv", sep="\t", dtype={"subject": str}).set_index("subject")


def _dosages(home: Path) -> tuple[np.ndarray, pd.DataFrame, list[str]]:
    """Alternate allele counts [people, SNPs], the .pvar and the identifiers, through pgenlib alone."""
    variants = pd.read_csv(home / "genotypes" / "cohort.pvar", sep="\t", comment="#", header=None)
    variants.columns = pd.Index(["chrom", "pos", "id", "ref", "alt"])
    subjects = (home / "genotypes" / "cohort.psam").read_text().split("\n")[1:-1]
    with pgenlib.PgenReader(str(home / "genotypes" / "cohort.pgen").encode()) as reader:
        calls = np.empty((reader.get_variant_ct(), reader.get_raw_sample_ct()), np.int8)
        reader.read_range(0, len(calls), calls)
    return calls.T, variants, [line.split("\t")[0] for line in subjects]


def test_equal_scenarios_give_equal_bytes_whatever_the_number_of_processes(
    cohort: Cohort, tmp_path: Path
) -> None:
    again = write_cohort(SMALL, tmp_path / "again", workers=2)
    assert _digests(again.folder) == _digests(cohort.folder)


def test_another_seed_gives_other_people(cohort: Cohort, tmp_path: Path) -> None:
    other = write_cohort(
        Scenario(people=100, sites=1, test_people=50, snps=220, public_photographs=0, seed=7), tmp_path / "o"
    )
    assert not set(_people(other).index) & set(_people(cohort).index[:50])
    assert not (other.folder / "public").exists()
    assert len(other.sites) == 2


def test_a_cohort_that_is_there_is_not_written_again(cohort: Cohort) -> None:
    before = (cohort.folder / "cohort.json").stat().st_mtime_ns
    again = write_cohort(SMALL, cohort.folder)
    assert again.seconds == {}
    assert again.summary == cohort.summary
    assert (cohort.folder / "cohort.json").stat().st_mtime_ns == before
    assert load_cohort(cohort.folder, Scenario(people=151)) is None
    assert load_cohort(cohort.folder / "nowhere") is None


def test_every_member_and_test_only_person_is_at_one_place(cohort: Cohort) -> None:
    seen: list[str] = []
    for manifest in (*cohort.sites, cohort.evaluation):
        content = yaml.safe_load(manifest.read_text())
        seen += pd.read_csv(manifest.parent / "labels.csv", dtype=str).eid.tolist()
        assert (content["role"] == "evaluation") == (manifest == cohort.evaluation)
    assert len(seen) == len(set(seen)) == SMALL.people + SMALL.test_people


def test_the_eyepacs_like_site_has_photographs_and_grades_only(cohort: Cohort) -> None:
    content = yaml.safe_load(cohort.sites[-1].read_text())
    assert content["site"] == "eyepacs"
    assert "genotype" not in content
    assert "phenotype" not in content
    assert list(content["labels"]["columns"].values()) == ["diabetic_retinopathy"]
    index = pd.read_csv(cohort.sites[-1].parent / "fundus.csv")
    assert all((cohort.sites[-1].parent / "photos" / name).stat().st_size > 5_000 for name in index.file)


def test_test_only_people_have_everything(cohort: Cohort) -> None:
    counts = cohort.summary["counts"]["evaluation"]
    assert set(counts.values()) == {SMALL.test_people}
    targets = [t["name"] for t in yaml.safe_load(cohort.study.read_text())["targets"]]
    dictionary = yaml.safe_load((cohort.evaluation.parent / "dictionary.yaml").read_text())["columns"]
    field = {entry["to"]: entry["column"] for entry in dictionary}
    table = pd.read_csv(cohort.evaluation.parent / "phenotypes.csv", dtype=str).set_index("eid")
    truth = _people(cohort).loc[table.index]
    for target in targets:
        assert (table[field[target]] == truth[f"status.{target}"].astype(str)).all()


def test_site_genotypes_are_the_same_people_under_other_alleles(cohort: Cohort) -> None:
    """Swapped alleles and strands resolve to the study's list, and differ at every site but the first."""
    reference = pd.read_csv(cohort.folder / "variants.tsv", sep="\t").set_index("id")
    assert sorted(reference.chrom.unique()) == list(CHROMOSOMES)
    truth = _people(cohort)
    pigment = json.loads((cohort.truth / "pigment.json").read_text())
    complement = str.maketrans("ACGT", "TGCA")
    palindromic = reference.ref.str.translate(complement) == reference.alt
    assert palindromic.mean() <= 0.03
    assert not palindromic[pigment["id"]]
    for number, manifest in enumerate(cohort.sites[:-1]):
        calls, variants, subjects = _dosages(manifest.parent)
        listed = reference.loc[variants.id]
        same = variants.ref.to_numpy() == listed.ref.to_numpy()
        assert same.all() == (number == 0)
        column = int(np.flatnonzero(variants.id == pigment["id"])[0])
        swapped = variants.ref[column] in (pigment["alt"], pigment["alt"].translate(complement))
        have = 2 - calls[:, column] if swapped else calls[:, column]
        known = calls[:, column] >= 0
        assert (have[known] == truth.loc[subjects].pigment_dosage.to_numpy()[known]).all()
        assert 0 < (calls < 0).mean() < 0.02


def test_readers_recover_what_hospitals_coded_in_their_own_ways(cohort: Cohort, tmp_path: Path) -> None:
    """Pounds, metres, percent, letters, ICD-10 lists and missing codes all end in the study's values."""
    truth = pd.read_csv(cohort.truth / "phenotypes.csv", dtype={"subject": str}).set_index("subject")
    for name in ("birmingham", "glasgow", "cardiff", "bristol"):
        prepare(load_manifest(cohort.folder / "sites" / name / "site.yaml"), tmp_path / name)
        store = Store.open(tmp_path / name)
        everyone = np.arange(len(store.subjects))
        values, observed = store.phenotypes(everyone)
        subjects = store.subjects.reset_index()["subject"].astype(str).to_numpy()
        assert observed.mean() > 0.5
        for k, feature in enumerate(store.study.features):
            if "=" in feature.name:
                continue
            known = observed[:, k]
            want = truth.loc[subjects[known], feature.column].to_numpy()
            np.testing.assert_allclose(values[known, k], want, rtol=2e-3, atol=0.06, err_msg=feature.name)


def test_prevalences_of_the_paper_and_the_cohort_are_stated(cohort: Cohort) -> None:
    figures = cohort.summary["prevalences"]
    assert figures["heart_attack"]["paper"] == pytest.approx(19_785 / (19_785 + 457_026), abs=1e-6)
    for row in figures.values():
        assert row["cohort"] >= row["paper"]
        cases = row["cases_members"] + row["cases_test_only"]
        people = SMALL.people + SMALL.test_people - cohort.summary["counts"]["eyepacs"]["people"]
        assert cases / people == pytest.approx(row["cohort"], abs=1.5 / people)
    assert "raised" in cohort.summary["statement"]


def test_relatives_share_half_their_genome_and_never_cross_into_the_test(cohort: Cohort) -> None:
    families = pd.read_csv(cohort.folder / "relatives.tsv", sep="\t", dtype=str)
    people = _people(cohort)
    assert (families.groupby("family").size() == 2).all()
    assert len(families) >= 20
    places = people.loc[families.subject, "place"].to_numpy() == "evaluation"
    assert (pd.Series(places).groupby(families.family.to_numpy()).nunique() == 1).all()
    calls, _, subjects = _dosages(cohort.evaluation.parent)
    calls = np.where(calls < 0, 0, calls).astype(float)
    frequency = calls.mean(axis=0)
    row = {subject: i for i, subject in enumerate(subjects)}
    standard = (calls - frequency) / np.sqrt(np.maximum(frequency * (1 - frequency / 2), 0.05))
    relation = standard @ standard.T / calls.shape[1]
    pairs = [group.subject.tolist() for _, group in families.groupby("family")]
    kin = [relation[row[a], row[b]] for a, b in pairs if a in row and b in row]
    assert np.mean(kin) > np.median(relation) + 0.2


def test_public_photographs_carry_no_label_and_nobody_of_a_site(cohort: Cohort) -> None:
    index = pd.read_csv(cohort.public / "index.csv")
    assert list(index.columns) == ["subject", "eye", "file"]
    assert len(index) == SMALL.public_photographs
    assert all((cohort.public / "photos" / name).is_file() for name in index.file)
    assert (_people(cohort).loc[index.subject, "place"] == "public").all()
