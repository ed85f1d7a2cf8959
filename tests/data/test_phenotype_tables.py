"""Tables are harmonised exactly or refused with file, row, column and value."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from site_files import write_site, write_study

from pm1_core.data.manifest import load_manifest
from pm1_core.data.preparation import check, prepare
from pm1_core.data.store import Store
from pm1_core.data.units import conversion
from pm1_core.errors import PM1Error

COLUMNS: list[dict[str, Any]] = [
    {"name": "age", "kind": "continuous", "unit": "years"},
    {"name": "weight", "kind": "continuous", "unit": "kg"},
    {"name": "cholesterol", "kind": "continuous", "unit": "mmol/L", "analyte": "cholesterol"},
    {"name": "sex", "kind": "binary"},
    {"name": "smoking", "kind": "categorical", "categories": ["never", "previous", "current"]},
    {"name": "eye_disease", "kind": "binary", "codes": {"ICD-10": ["H36.0", "E11.3"]}},
    {"name": "glaucoma", "kind": "binary", "codes": {"ICD-10": ["H40"], "ICD-9": ["365"]}},
]
FEATURES = [
    "age", "weight", "cholesterol", "sex", "smoking=never", "smoking=previous", "smoking=current",
    "eye_disease", "glaucoma",
]  # fmt: skip
ONE = [{"column": "age", "to": "age", "unit": "years"}]


def site(folder: Path, text: str, columns: list[dict[str, Any]], name: str = "t.csv", **extra: Any) -> Path:
    folder.mkdir(exist_ok=True)
    write_study(folder, columns=COLUMNS)
    (folder / name).write_text(text)
    part: dict[str, Any] = {"path": name, "subject": "eid", "columns": columns, **extra}
    return write_site(folder, folder.name, phenotype=part)


def frame(path: Path, suffix: str = "") -> pd.DataFrame:
    """Features by subject, NaN where not observed."""
    prepare(load_manifest(path), path.parent / f"store{suffix}")
    store = Store.open(path.parent / f"store{suffix}")
    values, observed = store.phenotypes(store.people(None))
    assert (values[~observed] == 0).all()
    names = [feature.name for feature in store.study.features]
    return pd.DataFrame(np.where(observed, values, np.nan), store.subjects["subject"].tolist(), names)


def refused(path: Path) -> str:
    with pytest.raises(PM1Error) as caught:
        prepare(load_manifest(path), path.parent / "store")
    assert not (path.parent / "store").exists()
    with pytest.raises(PM1Error):
        check(load_manifest(path))
    return str(caught.value)


def test_two_hospitals_with_different_codings_agree_on_a_column(tmp_path: Path) -> None:
    british = site(
        tmp_path / "leeds",
        "eid,21022-0.0,w,chol,31-0.0,20116-0.0,41270\n"
        "7,61,80.5,5.2,1,2,E11.3|I10\n8,-3,70,,0,-3,\n9,47,-1,6,1,0,H400|H36.0\n",
        [
            {"column": "21022-0.0", "to": "age", "unit": "years", "missing": [-1, -3]},
            {"column": "w", "to": "weight", "unit": "kg", "missing": [-1]},
            {"column": "chol", "to": "cholesterol", "unit": "mmol/L"},
            {"column": "31-0.0", "to": "sex", "values": {0: 0, 1: 1}},
            {
                "column": "20116-0.0",
                "to": "smoking",
                "missing": [-3],
                "values": {0: "never", 1: "previous", 2: "current"},
            },
            {"column": "41270", "system": "ICD-10", "separator": "|"},
        ],
    )
    american = site(
        tmp_path / "boston",
        "id\tmonths\tlb\tmgdl\tgender\ttobacco\tdx\tgl\n"
        "7\t732.0\t177.472121\t201.058\tM\tsmoker\te11.31;i10\tno\n"
        "8\tNA\t154.323584\tNA\tF\t?\t\tno\n"
        "9\t564\tNA\t231.99\tM\tnon-smoker\tH36.0\tyes\n",
        [
            {"column": "months", "to": "age", "unit": "months"},
            {"column": "lb", "to": "weight", "unit": "lb"},
            {"column": "mgdl", "to": "cholesterol", "unit": "mg/dL"},
            {"column": "gender", "to": "sex", "values": {"F": 0, "M": 1}},
            {
                "column": "tobacco",
                "to": "smoking",
                "values": {"smoker": "current", "non-smoker": "never", "?": None},
            },
            {"column": "dx", "to": "eye_disease", "system": "ICD-10", "separator": ";"},
            {"column": "gl", "to": "glaucoma", "values": {"no": 0, "yes": 1}},
        ],
        "t.tsv",
        subject="id",
        missing=["NA"],
    )
    first, second = frame(british), frame(american)
    assert first.columns.tolist() == FEATURES
    pd.testing.assert_frame_equal(first, second, rtol=1e-4)
    nan = np.nan
    expected = [
        [61, 80.5, 5.2, 1, 0, 0, 1, 1, 0],
        [nan, 70, nan, 0, nan, nan, nan, 0, 0],
        [47, nan, 6, 1, 1, 0, 0, 1, 1],
    ]
    np.testing.assert_allclose(first.to_numpy(), expected, rtol=1e-6)


def test_csv_tsv_and_parquet_give_the_same_values(tmp_path: Path) -> None:
    table = pd.DataFrame({"eid": [3, 1, 2], "age": [50.0, np.nan, 61.5], "sex": [True, False, True]})
    rules = [*ONE, {"column": "sex", "to": "sex"}]
    csv = frame(site(tmp_path / "a", table.to_csv(index=False), rules))
    tsv = frame(site(tmp_path / "b", table.to_csv(index=False, sep="\t"), rules, "t.tsv"))
    path = site(tmp_path / "c", "", rules, "t.parquet")
    table.to_parquet(tmp_path / "c" / "t.parquet")
    parquet = frame(path)
    table.assign(eid=table["eid"].astype(float)).to_parquet(tmp_path / "c" / "t.parquet")
    pd.testing.assert_frame_equal(frame(path, "2"), parquet)
    pd.testing.assert_frame_equal(csv, tsv)
    pd.testing.assert_frame_equal(csv, parquet)
    assert csv.index.tolist() == ["1", "2", "3"]


@pytest.mark.parametrize(
    ("rule", "cell", "sentence"),
    [
        (ONE[0], "1_000", "t.csv, row 3, column 'age': found '1_000', which is no number"),
        (ONE[0], "61,5", "t.csv, row 3: found 3 cells, not 2; correct the row."),
        (ONE[0], '"61,5"', "found '61,5', which is no number; write it with a decimal point and no unit"),
        (ONE[0], "nan", "found 'nan', which is no number"),
        (ONE[0], "1e60", "found '1e60', which is no number"),
        (ONE[0], "٣", "found '٣', which is no number"),
        (
            {"column": "age", "to": "sex", "missing": [50]},
            "2",
            "found '2'; map it by values in the dictionary to 0 or 1",
        ),
        (
            {"column": "age", "to": "sex", "values": {"F": 0, "50": 1}},
            "W",
            "row 3, column 'age': found 'W', which is in no map; add it to values or missing of the dictionary "
            "(known: 50, F)",
        ),
        (
            {"column": "age", "to": "smoking", "missing": [50]},
            "often",
            "map it by values in the dictionary to one of never,",
        ),
        (
            {"column": "age", "system": "ICD-10", "missing": [50]},
            "I10|250.01",
            "row 3, column 'age': found '250.01', which is no code of ICD-10",
        ),
    ],
)
def test_a_cell_that_cannot_be_read_is_refused_with_its_place(
    tmp_path: Path, rule: dict[str, Any], cell: str, sentence: str
) -> None:
    assert sentence in refused(site(tmp_path, f"eid,age\n1,50\n2,{cell}\n", [rule]))


@pytest.mark.parametrize(
    ("rule", "sentence"),
    [
        ({"column": "age", "to": "agee"}, "key to: found 'agee'; did you mean 'age'?"),
        ({"column": "agee", "to": "age"}, "found 'agee'; did you mean 'age'?"),
        (
            {"column": "age", "to": "age", "unit": "kg"},
            "found 'kg', which cannot be converted to the study's 'years'",
        ),
        ({"column": "age", "to": "weight", "unit": "mg/dL"}, "write factor and offset instead"),
        ({"column": "age", "to": "age", "unit": "years", "factor": 2}, "found both unit and factor"),
        ({"column": "age", "to": "age", "factor": 0}, "key factor: found 0"),
        ({"column": "age", "to": "sex", "unit": "kg"}, "found a unit for the binary column 'sex'"),
        ({"column": "age", "to": "sex", "values": {1: 2}}, "values of 1: found '2'"),
        ({"column": "age", "to": "smoking", "values": {1: "nevr"}}, "did you mean 'never'?"),
        ({"column": "age", "system": "ICD-11"}, "did you mean 'ICD-10'?"),
        ({"column": "age", "system": "ATC"}, "give codes of it to a study column"),
        ({"column": "age"}, "key 'to' is missing"),
        ({"column": "age", "to": "age", "units": "years"}, "did you mean 'unit'?"),
    ],
)
def test_a_wrong_dictionary_entry_is_refused_by_name(
    tmp_path: Path, rule: dict[str, Any], sentence: str
) -> None:
    found = refused(site(tmp_path, "eid,age\n1,50\n", [rule]))
    assert sentence in found
    assert "site.yaml, key phenotype, columns entry 1" in found


def test_two_columns_cannot_fill_one_unless_they_are_binary(tmp_path: Path) -> None:
    assert "fills 'age', which column 'a' fills too" in refused(
        site(tmp_path, "eid,a,b\n1,2,3\n", [{"column": "a", "to": "age"}, {"column": "b", "to": "age"}])
    )
    rules = [
        {"column": "a", "to": "glaucoma"},
        {"column": "b", "system": "ICD-10", "empty": "missing", "to": "glaucoma"},
    ]
    path = site(tmp_path, "eid,a,b\n1,0,H40\n2,1,I10\n3,0,\n4,,\n5,,I10\n", rules)
    np.testing.assert_array_equal(frame(path)["glaucoma"], [1, 1, 0, np.nan, 0])


def test_missing_codes_hold_per_column_and_negative_numbers_are_values(tmp_path: Path) -> None:
    rules = [
        {"column": "a", "to": "age", "unit": "years", "missing": [-3]},
        {"column": "b", "to": "weight", "unit": "kg", "values": {-10: 0.5}},
    ]
    table = frame(site(tmp_path, "eid,a,b\n1,-3.0,-3\n2,-1,-10\n", rules))
    np.testing.assert_array_equal(table[["age", "weight"]], [[np.nan, -3], [-1, 0.5]])


def test_a_subject_twice_is_kept_once_or_refused(tmp_path: Path) -> None:
    path = site(tmp_path, "eid,age,x\n1,50,a\n2,40,b\n1,50.0,c\n", ONE)
    report = check(load_manifest(path))
    assert report.counts["subjects"] == 2
    assert [f.rows for f in report.findings if f.code == "phenotype.duplicate-subject"] == [
        ("row 4 (as row 2)",)
    ]
    assert "t.csv, rows 2 and 4: found subject '1' twice with different values" in refused(
        site(tmp_path, "eid,age\n1,50\n2,40\n1,51\n", ONE)
    )


def test_rows_without_identifiers_are_numbered_and_identical_ones_dropped(tmp_path: Path) -> None:
    text = "50,1\n40,0\n\n50,1\n50,2\n"
    path = site(tmp_path, text, ONE, subject=None, names=["age", "x"])
    report = check(load_manifest(path))
    assert [f.rows for f in report.findings if f.code == "phenotype.identical-row"] == [("row 4 (as row 1)",)]
    name = tmp_path.name
    assert frame(path).index.tolist() == [f"{name}-row-000001", f"{name}-row-000002", f"{name}-row-000005"]
    path = site(tmp_path, text, ONE, subject=None, names=["age", "x"], identical_rows="keep")
    assert len(frame(path)) == 4


def test_findings_name_columns_of_no_use(tmp_path: Path) -> None:
    rules = [
        {"column": "age", "to": "age"}, {"column": "w", "to": "weight", "unit": "kg"},
        {"column": "s", "to": "sex", "values": {1: 1, 2: 0, 3: 0}},
    ]  # fmt: skip
    report = check(load_manifest(site(tmp_path, "eid,age,w,s,extra\n1,50,,1,x\n2,50,,2,y\n", rules)))
    rows = {finding.code: finding.rows for finding in report.findings}
    assert rows["phenotype.one-value"] == ("column 'age' (to age)",)
    assert rows["phenotype.no-value"] == ("column 'w' (to weight)",)
    assert rows["phenotype.not-in-dictionary"] == ("column 'extra'",)
    assert rows["phenotype.unit-assumed"] == ("column 'age' (years)",)
    assert rows["phenotype.unused-code"] == ("column 's', value '3'",)
    assert report.count("phenotype.not-provided") == 4


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"eid,age\n1,50\n2\n", "t.csv, row 3: found 1 cells, not 2"),
        (b"eid,age\n1,50\n,51\n", "t.csv, row 3, column 'eid': found no subject identifier"),
        (b"eid,age,age\n1,50,3\n", "t.csv, row 1: found column 'age' twice"),
        (b"eid,age\n1,\xff\n", "t.csv: could not be read"),
        (b"", "t.csv, row 1: found no header"),
        (b"eid,age\n", "t.csv: found no rows"),
        (b"id,age\n1,50\n", "t.csv, subject column: found 'eid'; did you mean 'id'?"),
    ],
)
def test_a_broken_table_is_refused_with_its_row(tmp_path: Path, content: bytes, sentence: str) -> None:
    path = site(tmp_path, "", ONE)
    (tmp_path / "t.csv").write_bytes(content)
    assert sentence in refused(path)


def test_a_dictionary_file_is_named_in_messages(tmp_path: Path) -> None:
    path = site(tmp_path, "eid,age\n1,50\n", ONE)
    (tmp_path / "dictionary.yaml").write_text(yaml.safe_dump({"columns": [{"column": "age", "to": "agee"}]}))
    write_site(tmp_path, phenotype={"path": "t.csv", "subject": "eid", "dictionary": "dictionary.yaml"})
    assert "dictionary.yaml, columns entry 1 (column 'age'), key to: found 'agee'" in refused(path)


def test_labels_are_joined_and_kept_as_the_study_names_them(tmp_path: Path) -> None:
    path = site(tmp_path, "eid,age\n1,50\n2,51\n3,52\n", ONE)
    labels = [
        {"name": "ancestry", "kind": "categorical", "categories": ["EUR", "NA"]},
        {"name": "dr", "kind": "binary"},
    ]
    write_study(tmp_path, columns=COLUMNS, labels=labels)
    (tmp_path / "labels.csv").write_text("who,a,grade\n3,NA,4\n1,EUR,0\n9,EUR,0\n2,,1\n")
    columns = {"a": "ancestry", "grade": {"to": "dr", "values": {0: 0, 1: 1, 4: 1}}}
    parts = yaml.safe_load(path.read_text())
    parts["labels"] = {"path": "labels.csv", "subject": "who", "columns": columns}
    path.write_text(yaml.safe_dump(parts))
    report = prepare(load_manifest(path), tmp_path / "store")
    store = Store.open(tmp_path / "store")
    got = store.labels(store.people(None)[[2, 0, 1]])
    assert got.index.tolist() == ["3", "1", "2"]
    assert got["ancestry"].tolist()[:2] == ["NA", "EUR"]
    assert pd.isna(got["ancestry"].iloc[2])
    assert got["dr"].tolist() == [1.0, 0.0, 1.0]
    assert report.count("labels.no-modality") == 1


@pytest.mark.parametrize(
    ("have", "want", "analyte", "value", "expected"),
    [
        ("F", "C", None, 98.6, 37.0),
        ("cm", "m", None, 180, 1.8),
        ("mg/dL", "mmol/L", "glucose", 180.156, 10.0),
        ("umol/L", "mg/dL", "creatinine", 88.4, 1.0),
        ("mmol/mol", "%", "hba1c", 48, 6.54),
        ("kPa", "mmHg", None, 16, 120.0),
        ("st", "kg", None, 11, 69.85),
    ],
)
def test_units_convert_to_published_values(
    have: str, want: str, analyte: str, value: float, expected: float
) -> None:
    found = conversion(have, want, analyte)
    back = conversion(want, have, analyte)
    assert found is not None
    assert back is not None
    result = value * found.factor + found.offset
    assert result == pytest.approx(expected, rel=0.002)
    assert result * back.factor + back.offset == pytest.approx(value)
