"""Special codes of UK Biobank's fields come from a table, field by field (appendix E.3)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_phenotype_tables import frame, refused, site

from pm1_core.data.codings import PACKAGED, read_codings
from pm1_core.data.manifest import load_manifest
from pm1_core.data.preparation import prepare

SMOKING = {"0": "never", "1": "previous", "2": "current"}


def column(path: Path, name: str, suffix: str = "") -> list[float]:
    return frame(path, suffix)[name].tolist()


def test_the_same_code_is_missing_in_one_field_a_number_in_another_and_itself_in_a_third(
    tmp_path: Path,
) -> None:
    # Hours of television, age when smoking was given up, and refraction, which is negative in the short-sighted.
    path = site(
        tmp_path / "leeds",
        "eid,1070-0.0,2897-0.0,5084-0.0\na,-10,-1,-10\nb,-3,61,-3\nc,4,-10,-1\n",
        [
            {"column": "1070-0.0", "to": "weight", "unit": "kg"},
            {"column": "2897-0.0", "to": "age", "unit": "years"},
            {"column": "5084-0.0", "to": "cholesterol", "unit": "mmol/L"},
        ],
        codings=["ukb"],
    )
    np.testing.assert_array_equal(column(path, "weight"), [0, np.nan, 4])
    np.testing.assert_array_equal(column(path, "age", "2"), [np.nan, 61, -10])
    assert column(path, "cholesterol", "3") == [-10, -3, -1]


@pytest.mark.parametrize(
    "name", ["20116-0.0", "20116_0_0", "f.20116.0.0", "p20116_i0", "p20116_i0_a1", "20116"]
)
def test_a_field_is_told_by_the_name_of_its_column(tmp_path: Path, name: str) -> None:
    rule = {"column": name, "to": "smoking", "values": SMOKING}
    path = site(tmp_path / "leeds", f"eid,{name}\na,-3\nb,2\n", [rule], codings=["ukb"])
    np.testing.assert_array_equal(column(path, "smoking=current"), [np.nan, 1])
    assert "found '-3', which is in no map" in refused(
        site(tmp_path / "york", f"eid,{name}\na,-3\nb,2\n", [rule])
    )


def test_a_code_that_stands_for_a_number_is_in_the_files_unit(tmp_path: Path) -> None:
    (tmp_path / "leeds").mkdir()
    (tmp_path / "leeds" / "own.csv").write_text(
        "coding,fields,code,as,meaning\nheavy,,-9,100,over the scale\n"
    )
    rule = {"column": "w", "to": "weight", "unit": "lb", "coding": "heavy"}
    path = site(tmp_path / "leeds", "eid,w\na,-9\nb,100\n", [rule], codings=["ukb", "own.csv"])
    assert column(path, "weight")[0] == column(path, "weight", "2")[1] == pytest.approx(45.359237)


def test_a_sites_table_replaces_a_coding_and_its_dictionary_comes_before_both(tmp_path: Path) -> None:
    (tmp_path / "leeds").mkdir()
    (tmp_path / "leeds" / "own.csv").write_text("coding,fields,code,as,meaning\n100329,,-7,,Not asked\n")
    rule: dict[str, Any] = {"column": "1070-0.0", "to": "weight", "unit": "kg"}
    text = "eid,1070-0.0\na,-10\nb,-7\n"
    path = site(tmp_path / "leeds", text, [rule], codings=["ukb", "own.csv"])
    np.testing.assert_array_equal(column(path, "weight"), [-10, np.nan])
    (tmp_path / "york").mkdir()
    path = site(tmp_path / "york", text, [{**rule, "values": {"-10": "0.25"}}], codings=["ukb"])
    assert column(path, "weight") == [0.25, -7]


def test_a_changed_table_prepares_the_store_anew(tmp_path: Path) -> None:
    (tmp_path / "leeds").mkdir()
    table = tmp_path / "leeds" / "own.csv"
    table.write_text("coding,fields,code,as,meaning\n1,1070,-7,,Not asked\n")
    rule = {"column": "1070-0.0", "to": "weight", "unit": "kg"}
    path = site(tmp_path / "leeds", "eid,1070-0.0\na,-10\nb,-7\n", [rule], codings=["own.csv"])
    prepare(load_manifest(path), tmp_path / "store")
    assert prepare(load_manifest(path), tmp_path / "store").skipped
    table.write_text("coding,fields,code,as,meaning\n1,1070,-10,,Less\n")
    assert not prepare(load_manifest(path), tmp_path / "store").skipped


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("coding,code\n", "row 1: found ['coding', 'code']"),
        ("coding,fields,code,as,meaning\n1,x,-1,,no\n", "row 2, fields: found 'x'"),
        ("coding,fields,code,as,meaning\n1,,,,no\n", "row 2, code: found an empty cell"),
        ("coding,fields,code,as,meaning\n1,,-1,few,no\n", "row 2, as: found 'few'"),
        ("coding,fields,code,as,meaning\n1,,-1\n", "row 2: found 3 cells"),
        ("coding,fields,code,as,meaning\n1,,-1,,a\n1,,-1,,b\n", "row 3: found code '-1' of 1 twice"),
    ],
)
def test_a_wrong_table_is_refused_with_its_row(tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / "leeds").mkdir()
    (tmp_path / "leeds" / "own.csv").write_text(text)
    rule = {"column": "age", "to": "age"}
    said = refused(site(tmp_path / "leeds", "eid,age\na,1\n", [rule], codings=["own.csv"]))
    assert f"own.csv, {sentence}" in said


def test_an_unknown_coding_or_table_is_refused_by_name(tmp_path: Path) -> None:
    rule: dict[str, Any] = {"column": "age", "to": "age", "coding": 77}
    assert "'77'" in refused(site(tmp_path / "leeds", "eid,age\na,1\n", [rule], codings=["ukb"]))
    del rule["coding"]
    assert "found 'none.csv'" in refused(
        site(tmp_path / "york", "eid,age\na,1\n", [rule], codings=["none.csv"])
    )


def test_the_packaged_table_can_be_read_and_names_no_field_twice() -> None:
    codings, files = read_codings("here", ["ukb"], Path())
    assert files == (PACKAGED["ukb"],)
    listed = [f for row in files[0].read_text().splitlines()[1:] for f in row.split(",")[1].split()]
    assert len(listed) == len(set(listed)) == len(codings.of_field)
    assert codings.of("here", "864-0.0") == {"-2": None, "-1": None, "-3": None}
