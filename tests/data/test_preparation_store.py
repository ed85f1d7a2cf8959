"""A store is whole or absent, prepared once, and made again when anything changed."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from site_files import (
    disc,
    genotype_part,
    jpeg,
    random_dosages,
    reference,
    write_pgen,
    write_site,
    write_study,
)

from pm1_core.data.definition import StudySummary, load_definition
from pm1_core.data.manifest import load_manifest
from pm1_core.data.preparation import check, prepare
from pm1_core.data.store import VERSION, Store
from pm1_core.errors import DataError, ManifestError, PM1Error, StoreError
from pm1_core.fields import Modality

COLUMNS = [{"name": "age", "kind": "continuous", "unit": "years"}]


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A site with all modalities: p0-p5 genotypes, p3-p8 phenotypes, p5-p9 photographs."""
    variants = reference(6, [1, 2])
    write_study(tmp_path, variants, columns=COLUMNS)
    write_pgen(tmp_path / "cohort", [f"p{i}" for i in (4, 2, 0, 5, 1, 3)], variants, random_dosages(6, 12))
    (tmp_path / "t.csv").write_text("eid,age\n" + "".join(f"p{i},{50 + i}\n" for i in (8, 3, 4, 5, 6, 7)))
    (tmp_path / "photos").mkdir()
    lines = ["subject,eye,file"]
    for i in range(5, 10):
        for eye in ("left", "right"):
            (tmp_path / "photos" / f"{i}{eye}.jpg").write_bytes(jpeg(disc(120, 160, (80, 60), 50, seed=i)))
            lines.append(f"p{i},{eye},{i}{eye}.jpg")
    (tmp_path / "fundus.csv").write_text("\n".join(lines) + "\n")
    return write_site(
        tmp_path,
        genotype=genotype_part("pgen", "cohort"),
        phenotype={
            "path": "t.csv",
            "subject": "eid",
            "columns": [{"column": "age", "to": "age", "unit": "years"}],
        },
        fundus={"index": "fundus.csv", "folder": "photos"},
    )


def test_subjects_are_the_outer_join_and_rows_find_their_person(site: Path) -> None:
    report = prepare(load_manifest(site), site.parent / "store")
    store = Store.open(site.parent / "store")
    assert store.subjects["subject"].tolist() == [f"p{i}" for i in range(10)]
    assert store.modalities == set(Modality)
    assert [len(store.people(None, m)) for m in Modality] == [6, 6, 5]
    assert report.counts["all modalities"] == 1
    people = np.array([9, 4, 3])
    values, observed = store.phenotypes(people)
    assert values[:, 0].tolist() == [0, 54, 53]
    assert observed[:, 0].tolist() == [False, True, True]
    raw = random_dosages(6, 12)
    np.testing.assert_array_equal(store.dosages(2, people), [[3] * 6, raw[0, 6:], raw[5, 6:]])
    images, present = store.photographs(people, "left")
    assert present.tolist() == [True, False, False]
    assert images[0].any()
    assert store.labels(people).shape == (3, 0)
    assert store.snps(1) == 6
    assert store.snps(3) == 0


def test_a_second_run_with_the_same_inputs_reads_nothing_again(site: Path) -> None:
    out = site.parent / "store"
    first = prepare(load_manifest(site), out)
    stamp = (out / "store.json").stat().st_mtime_ns
    calls: list[str] = []
    second = prepare(load_manifest(site), out, lambda stage, done, total: calls.append(stage))
    assert second.skipped
    assert not first.skipped
    assert second == first
    assert not calls
    assert (out / "store.json").stat().st_mtime_ns == stamp


@pytest.mark.parametrize(
    "changed", ["t.csv", "photos/7left.jpg", "cohort.psam", "variants.tsv", "site.yaml", "study.yaml"]
)
def test_a_changed_input_is_prepared_again(site: Path, changed: str) -> None:
    out = site.parent / "store"
    prepare(load_manifest(site), out)
    file = site.parent / changed
    if file.suffix == ".yaml":
        file.write_text(file.read_text() + "\n# a remark\n")
    else:
        os.utime(file, ns=(0, time.time_ns() + 10**9))
    assert not prepare(load_manifest(site), out).skipped


def test_another_split_key_is_prepared_again(site: Path) -> None:
    folder = site.parent
    (folder / "key").write_text("first")
    write_study(folder, reference(6, [1, 2]), columns=COLUMNS, split_key_file="key")
    prepare(load_manifest(site), folder / "store")
    (folder / "key").write_text("Zq9-other")
    assert not prepare(load_manifest(site), folder / "store").skipped
    assert "Zq9" not in "".join(p.read_text() for p in (folder / "store").glob("*.json"))


@pytest.mark.parametrize("stage", ["phenotypes", "genotypes", "photographs"])
def test_an_interrupted_preparation_leaves_what_was_there(site: Path, stage: str) -> None:
    out = site.parent / "store"

    def interrupt(name: str, done: int, total: int) -> None:
        if name == stage:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(load_manifest(site), out, interrupt)
    assert not out.exists()
    assert not list(site.parent.glob(".store*"))
    with pytest.raises(StoreError, match="found no store; prepare the site again"):
        Store.open(out)
    before = prepare(load_manifest(site), out)
    (site.parent / "t.csv").write_text("eid,age\np3,99\n")
    with pytest.raises(KeyboardInterrupt):
        prepare(load_manifest(site), out, interrupt)
    assert Store.open(out).counts == dict(before.counts)


def test_a_killed_preparation_leaves_no_store_and_the_next_run_cleans_up(site: Path) -> None:
    out = site.parent / "store"
    code = (
        "import sys, time; from pm1_core.data.manifest import load_manifest;"
        "from pm1_core.data.preparation import prepare\n"
        "def stop(stage, done, total):\n"
        "    if stage == 'photographs': print('here', flush=True); time.sleep(60)\n"
        "prepare(load_manifest(sys.argv[1]), sys.argv[2], stop)"
    )
    run = subprocess.Popen(
        [sys.executable, "-c", code, str(site), str(out)], stdout=subprocess.PIPE, text=True
    )
    with run:
        assert run.stdout is not None
        assert run.stdout.readline() == "here\n"
        run.send_signal(signal.SIGKILL)
    assert not out.exists()
    assert len(list(site.parent.glob(".store.*.partial"))) == 1
    assert not prepare(load_manifest(site), out).skipped
    assert not list(site.parent.glob(".store.*"))


def test_a_damaged_store_is_not_opened_and_is_made_again(site: Path) -> None:
    out = site.parent / "store"
    prepare(load_manifest(site), out)
    values = out / "phenotype" / "values.npy"
    values.write_bytes(values.read_bytes()[:-4])
    with pytest.raises(StoreError, match=r"values\.npy: found \d+ bytes, not \d+; prepare the site again"):
        Store.open(out)
    assert not prepare(load_manifest(site), out).skipped
    (out / "store.json").write_text('{"version": 0}')
    with pytest.raises(StoreError, match=rf"found version 0, not {VERSION}"):
        Store.open(out)
    (out / "store.json").write_text("half")
    with pytest.raises(StoreError, match="no description of a store"):
        Store.open(out)


def test_a_folder_that_is_no_store_is_never_replaced(site: Path) -> None:
    out = site.parent / "precious"
    out.mkdir()
    (out / "thesis.txt").write_text("ten years")
    with pytest.raises(DataError, match="found something that is no store"):
        prepare(load_manifest(site), out)
    assert (out / "thesis.txt").read_text() == "ten years"


def test_a_store_travels_to_another_process_by_its_path(site: Path) -> None:
    prepare(load_manifest(site), site.parent / "store")
    store = Store.open(site.parent / "store")
    people = store.people(None)
    content = pickle.dumps(store)
    assert len(content) < 500
    np.testing.assert_array_equal(pickle.loads(content).dosages(1, people), store.dosages(1, people))


def test_a_full_disk_ends_in_a_sentence(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pm1_core.data.arrays.RowWriter.append", full)
    with pytest.raises(
        DataError, match=r"store: could not be written \(No space left on device\); make room"
    ):
        prepare(load_manifest(site), site.parent / "store")
    assert not list(site.parent.glob(".store*"))


def test_checking_writes_nothing(site: Path) -> None:
    before = sorted(site.parent.rglob("*"))
    report = check(load_manifest(site))
    assert sorted(site.parent.rglob("*")) == before
    assert report == prepare(load_manifest(site), site.parent / "store")


def test_the_summary_survives_its_text(tmp_path: Path) -> None:
    columns = [*COLUMNS, {"name": "smoking", "kind": "categorical", "categories": ["no", "ex", "yes"]}]
    columns.append({"name": "dr", "kind": "binary", "codes": {"ICD-10": ["E11.3"]}})
    targets = [{"name": "dr", "label": "Retinopathy", "masked": ["smoking"]}]
    study = load_definition(write_study(tmp_path, reference(3, [5]), columns=columns, targets=targets))
    assert StudySummary.from_json(study.to_json()) == study.summary
    assert study.from_json(study.to_json()).features == study.features
    assert study.feature_indices(["smoking", "dr"]).tolist() == [1, 2, 3, 4]
    assert study.targets[0].masked == ("dr", "smoking")
    assert study.summary.chromosome_sizes[5] == 3
    assert "42" not in repr(study).replace(str(tmp_path), "")


@pytest.mark.parametrize(
    ("extra", "sentence"),
    [
        ({"colums": []}, "found 'colums'; did you mean 'columns'?"),
        (
            {"split_key_file": "nowhere", "split_key": "1"},
            "found none or both of split_key and split_key_file",
        ),
        ({"build": "hg99"}, "key build: found 'hg99'"),
        (
            {"columns": [{"name": "a", "kind": "number"}]},
            "key columns, entry 1 (a), key kind: found 'number'",
        ),
        ({"columns": [{"name": "a", "kind": "binary"}] * 2}, "key columns: found 'a' twice"),
        (
            {"columns": [{"name": "a", "kind": "binary", "unit": "kg"}]},
            "key unit: found it on a binary column",
        ),
        (
            {"columns": [{"name": "a", "kind": "categorical", "categories": ["x"]}]},
            "list at least two different ones",
        ),
        (
            {"columns": [{"name": "a", "kind": "binary", "codes": {"ICD-10": ["??"]}}]},
            "codes of ICD-10: found '??'",
        ),
        ({"columns": COLUMNS, "targets": [{"name": "age"}]}, "key name (a binary column): found 'age'"),
        ({"relatives": "nowhere.tsv"}, "key relatives: found no file"),
        ({"photograph_size": 5}, "key photograph_size: found 5; use a number from 8 to 587"),
    ],
)
def test_a_wrong_definition_is_refused_by_key(
    tmp_path: Path, extra: dict[str, object], sentence: str
) -> None:
    with pytest.raises(ManifestError) as caught:
        load_definition(write_study(tmp_path, **extra))
    assert sentence in str(caught.value)
    assert "study.yaml" in str(caught.value)


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ("1\t10\tr\tA\n", "variants.tsv, row 2: found 4 columns; write 5"),
        ("X\t10\tr\tA\tG\n", "row 2, chrom: found 'X'; write an autosome"),
        ("1\t0\tr\tA\tG\n", "row 2, pos: found '0'"),
        ("1\t10\tr\tA\tAG\n", "row 2: found A/AG; write two different bases"),
        ("1\t10\tr\tA\tA\n", "row 2: found A/A"),
        ("1\t10\tr\tA\tG\n1\t9\tr\tA\tG\n", "row 3: found a position before the row above"),
        ("1\t10\tr\tA\tG\n1\t10\tr\tG\tA\n", "row 3: found a variant listed twice"),
    ],
)
def test_a_wrong_reference_list_is_refused_by_row(tmp_path: Path, rows: str, sentence: str) -> None:
    path = write_study(tmp_path, variants=reference(1, [1]))
    (tmp_path / "variants.tsv").write_text("chrom\tpos\tid\tref\talt\n" + rows)
    with pytest.raises(ManifestError) as caught:
        _ = load_definition(path).variants
    assert sentence in str(caught.value)


def test_a_subject_in_two_families_is_refused(tmp_path: Path) -> None:
    (tmp_path / "r.tsv").write_text("subject\tfamily\na\tF1\nb\tF1\na\tF2\n")
    with pytest.raises(ManifestError, match=r"r\.tsv, row 4: found subject 'a' in families 'F1' and 'F2'"):
        _ = load_definition(write_study(tmp_path, relatives="r.tsv")).families


@pytest.mark.parametrize(
    ("parts", "sentence"),
    [
        ({}, "site.yaml: found none of genotype, phenotype and fundus"),
        ({"genotypes": {}}, "found 'genotypes'; did you mean 'genotype'?"),
        (
            {"genotype": {"format": "bgen", "path": "x", "build": "GRCh38"}},
            "key genotype.format: found 'bgen'",
        ),
        (
            {"genotype": {"format": "pgen", "path": "x", "build": "GRCh38"}},
            "key genotype.path: found no file",
        ),
        (
            {"genotype": {"format": "vcf", "path": "c{chrom}.vcf.gz", "build": "GRCh38"}},
            "write a pattern such as",
        ),
        ({"fundus": {"index": "variants.tsv", "folder": "nowhere"}}, "key fundus.folder: found no folder"),
        (
            {"phenotype": {"path": "t.csv", "subject": "a", "columns": []}},
            "key phenotype, key path: found no file",
        ),
        ({"phenotype": {"path": "t.csv", "subject": "a"}}, "found none or both of dictionary and columns"),
        ({"site": "a/b", "fundus": {}}, "key site: found 'a/b'"),
        ({"role": "guest", "fundus": {}}, "key role: found 'guest'"),
        ({"study": "nowhere.yaml", "fundus": {}}, "key study: found no file"),
    ],
)
def test_a_wrong_manifest_is_refused_by_key(tmp_path: Path, parts: dict[str, object], sentence: str) -> None:
    write_study(tmp_path, reference(1, [1]), columns=COLUMNS)
    with pytest.raises(PM1Error) as caught:
        load_manifest(write_site(tmp_path, **parts))
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("site: a\nsite: b\n", "line 2: found key 'site' twice"),
        ("site: [a\n", "line 2: found"),
        ("- a\n", "found list"),
        ("[" * 5000, "nested too deep"),
    ],
)
def test_broken_yaml_is_refused_by_line(tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / "site.yaml").write_text(text)
    with pytest.raises(ManifestError) as caught:
        load_manifest(tmp_path / "site.yaml")
    assert sentence in str(caught.value)
