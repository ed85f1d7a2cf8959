"""Whatever stands in a site's manifest, a study definition or a file that they name: read, or a sentence."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mutations import changed, damaged, sentence, writes_only
from site_files import reference, write_study

from pm1_core.data.documents import read_yaml
from pm1_core.data.manifest import load_manifest
from pm1_core.errors import DataError, ManifestError

STUDY: dict[str, Any] = {
    "study": "trial",
    "build": "GRCh38",
    "split_key_file": "split.key",
    "relatives": "relatives.tsv",
    "photograph_size": 64,
    "columns": [
        {"name": "age", "kind": "continuous", "unit": "years", "range": [18, 99]},
        {"name": "glucose", "kind": "continuous", "unit": "mmol/L", "analyte": "glucose"},
        {"name": "smoker", "kind": "categorical", "categories": ["never", "once", "now"]},
        {"name": "diabetes", "kind": "binary", "codes": {"ICD-10": ["E11", "H36.0"]}},
    ],
    "targets": [{"name": "diabetes", "label": "Diabetes", "masked": ["glucose"]}],
    "labels": [{"name": "dr", "kind": "binary"}],
}
COLUMNS: list[dict[str, Any]] = [
    {"column": "21003-0.0", "to": "age", "unit": "years", "missing": [-1]},
    {"column": "glu", "to": "glucose", "factor": 0.0555, "offset": 0, "coding": 100291},
    {"column": "smk", "to": "smoker", "values": {0: "never", 1: "once", 2: "now", -3: None}},
    {"column": "icd", "system": "ICD-10", "separator": "|", "to": "diabetes", "empty": "missing"},
]
SITE: dict[str, Any] = {
    "site": "leeds",
    "study": "study.yaml",
    "role": "member",
    "genotype": {"format": "vcf", "path": "chr{chrom}.vcf", "build": "hg38", "palindromic": "drop"},
    "phenotype": {
        "path": "people.csv",
        "subject": "eid",
        "dictionary": "dictionary.yaml",
        "missing": ["NA", -9],
        "identical_rows": "drop",
    },
    "fundus": {"index": "photographs.csv", "folder": "photographs", "separator": ","},
    "labels": {
        "path": "labels.csv",
        "subject": "eid",
        "names": ["eid", "dr"],
        "columns": {"dr": {"to": "dr", "values": {"yes": 1, "no": 0}}},
    },
}
TABLES = {
    "people.csv": "eid,21003-0.0,glu,smk,icd\n1,50,90,0,E119|I10\n2,-1,,-3,\n3,61,80,2,H36\n",
    "photographs.csv": "subject,eye,file\n",
    "labels.csv": "1,yes\n2,no\n",
    "relatives.tsv": "subject\tfamily\n1\tf\n2\tf\n",
    "codings.csv": "coding,fields,code,as,meaning\n100291,30740,-1,,unknown\n100291,30740,-10,0.5,below one\n",
    "chr1.vcf": "##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\tFORMAT\t1\t2\n",
    "split.key": "0123456789abcdef\n",
}
DOCUMENTS = {
    "site.yaml": SITE,
    "dictionary.yaml": {"columns": COLUMNS, "missing": ["?"], "codings": ["codings.csv", "ukb"]},
}
PIECES = [
    piece.encode()
    for piece in ("[", "{", "? ", "- ", "&a ", "*a", "<<: ", "!!binary ", "!!int ", "\t", "\\", '"', "---\n")
]

_settings = settings(max_examples=100, suppress_health_check=list(HealthCheck))


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """The folder of a site's files, three floors down."""
    folder = tmp_path / "hospital/data/leeds"
    (folder / "photographs").mkdir(parents=True)
    for name, text in TABLES.items():
        (folder / name).write_text(text)
    write_study(folder, reference(3, [1]), **STUDY)
    for name, content in DOCUMENTS.items():
        (folder / name).write_text(yaml.safe_dump(content))
    return folder


def _read(folder: Path) -> None:
    manifest = load_manifest(folder / "site.yaml")
    assert json.loads(manifest.study.to_json())
    assert isinstance(manifest.study.families, dict)


@contextmanager
def _instead(file: Path, content: bytes) -> Iterator[None]:
    before = file.read_bytes()
    file.write_bytes(content)
    try:
        yield
    finally:
        file.write_bytes(before)


def _refused(below: Path, act: Callable[[], Any]) -> str:
    """The sentence with which `act` is refused; nothing was written anywhere."""
    with writes_only(below / "nowhere", below):
        return sentence(act, ManifestError, DataError)


def test_the_whole_site_is_read(site: Path, tmp_path: Path) -> None:
    assert _refused(tmp_path, lambda: _read(site)) == ""


def test_what_is_exchanged_somewhere_is_read_or_a_sentence(site: Path, tmp_path: Path) -> None:
    """A value or a branch of any other kind, names that lead out of the folder among them."""
    outside = st.sampled_from([str(tmp_path / "x"), "../../../x", "../leeds/people.csv", "/dev/zero", "."])

    whole = {name: yaml.safe_load((site / name).read_text()) for name in (*DOCUMENTS, "study.yaml")}

    @settings(_settings, max_examples=200)
    @given(data=st.data())
    def exchanged(data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(list(whole)))
        text = yaml.safe_dump(changed(whole[name], data, outside))
        with _instead(site / name, text.encode()):
            said = _refused(tmp_path, lambda: _read(site))
        assert not said or str(site) in said

    exchanged()


def test_bytes_that_were_damaged_are_read_or_a_sentence(site: Path, tmp_path: Path) -> None:
    """Of the documents, and of every list and table that they name."""
    whole = {file.name: file.read_bytes() for file in site.iterdir() if file.is_file()}

    @_settings
    @given(data=st.data())
    def bytes_of(data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(whole)))
        with _instead(site / name, damaged(whole[name], data, PIECES)):
            said = _refused(tmp_path, lambda: _read(site))
        assert not said or str(site) in said

    bytes_of()


@pytest.mark.parametrize("name", ["relatives.tsv", "variants.tsv"])
def test_a_wrong_byte_in_the_names_of_columns_is_a_sentence(name: str, site: Path, tmp_path: Path) -> None:
    with _instead(site / name, b"\x80" + (site / name).read_bytes()):
        assert f"{site / name}" in _refused(tmp_path, lambda: _read(site))


LAUGHS = "a0: &a0 [lol, lol]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 30)
)
MERGED = "a0: &a0 {x: 1}\n" + "".join(
    f"a{i}: &a{i}\n  <<: [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 30)
)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (LAUGHS, "aliases for more than 1,000,000 values"),
        (MERGED, "aliases for more than 1,000,000 values"),
        ("site: &a [*a]\n", "a value within itself"),
        ("[" * 100_000, "nested too deep"),
        ("site: leeds\nsite: york\n", "line 2: found key 'site' twice"),
        ("site: !!binary aGVsbG8=\n", "the tag 'tag:yaml.org,2002:binary'"),
        ("site: !!int zero\n", "the tag"),
        ("site: !!python/object/apply:os.system [id]\n", "the tag"),
        ('site: "a\\0b"\n', "write a line of text"),
        ('site: "\\ud800"\n', "write a line of text"),
        ("site: a\0b\n", "character 8: found a character that YAML does not have"),
        ("? [site]\n: leeds\n", "unhashable key"),
        ("", "found NoneType"),
        ("- site\n", "found list"),
    ],
)
def test_yaml_of_a_kind_that_nobody_means_is_a_sentence(
    text: str, found: str, site: Path, tmp_path: Path
) -> None:
    (site / "site.yaml").write_text(text + ("study: study.yaml\n" if text.startswith("site:") else ""))
    said = _refused(tmp_path, lambda: _read(site))
    assert said.startswith(str(site / "site.yaml"))
    assert found in said


def test_numbers_that_no_machine_word_holds_are_text(tmp_path: Path) -> None:
    (tmp_path / "codes.yaml").write_text("[" + ", ".join(["9" * 18, "-" + "9" * 19, "9" * 5000]) + "]")
    assert read_yaml(tmp_path / "codes.yaml") == [10**18 - 1, "-" + "9" * 19, "9" * 5000]


@pytest.mark.parametrize("value", [5, "NA", {"a": 1}, True])
@pytest.mark.parametrize("key", ["missing", "codings", "columns"])
def test_what_is_no_list_is_not_taken_for_one(key: str, value: Any, site: Path) -> None:
    dictionary = {**DOCUMENTS["dictionary.yaml"], key: value}
    (site / "dictionary.yaml").write_text(yaml.safe_dump(dictionary))
    assert key in sentence(lambda: _read(site), ManifestError)
