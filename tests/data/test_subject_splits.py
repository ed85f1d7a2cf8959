"""A person, a family and both eyes are in one split everywhere, and only the key tells which."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from site_files import write_site, write_study

from pm1_core.data.manifest import load_manifest
from pm1_core.data.preparation import prepare
from pm1_core.data.store import Store
from pm1_core.data.subjects import split_of
from pm1_core.fields import Modality, Split

COLUMNS = [{"name": "age", "kind": "continuous"}]


def store_of(folder: Path, site: str, subjects: list[str], **extra: object) -> Store:
    (folder / f"{site}.csv").write_text("eid,age\n" + "".join(f"{s},{i}\n" for i, s in enumerate(subjects)))
    part = {"path": f"{site}.csv", "subject": "eid", "columns": [{"column": "age", "to": "age"}]}
    manifest = load_manifest(write_site(folder, site, f"{site}.yaml", phenotype=part, **extra))
    prepare(manifest, folder / f"store-{site}")
    return Store.open(folder / f"store-{site}")


def splits(store: Store) -> dict[str, str]:
    return dict(zip(store.subjects["subject"], store.subjects["split"], strict=True))


def test_shares_are_80_10_10() -> None:
    counted = Counter(split_of(f"person-{i}", b"key") for i in range(20_000))
    assert counted[Split.TRAIN] / 20_000 == pytest.approx(0.8, abs=0.01)
    assert counted[Split.VALIDATION] / 20_000 == pytest.approx(0.1, abs=0.008)
    assert counted[Split.TEST] / 20_000 == pytest.approx(0.1, abs=0.008)


@given(st.text(min_size=1), st.binary(min_size=1))
def test_a_split_depends_on_identifier_and_key_alone(identifier: str, key: bytes) -> None:
    assert split_of(identifier, key) is split_of(identifier, key)


def test_the_split_is_the_documented_hmac() -> None:
    # python -c "import hmac; print(hmac.new(b'42', b'1000001', 'sha256').hexdigest()[:16])"
    import hmac

    for identifier in ("1000001", "NA12878", "ä"):
        digest = hmac.new(b"42", identifier.encode(), "sha256").hexdigest()
        fraction = int(digest[:16], 16) / 2**64
        expected = Split.TRAIN if fraction < 0.8 else Split.VALIDATION if fraction < 0.9 else Split.TEST
        assert split_of(identifier, b"42") is expected


def test_another_key_gives_another_split() -> None:
    people = [f"p{i}" for i in range(200)]
    assert [split_of(p, b"1") for p in people] != [split_of(p, b"2") for p in people]


def test_a_person_at_two_sites_is_in_the_same_split_at_both(tmp_path: Path) -> None:
    write_study(tmp_path, columns=COLUMNS)
    here = splits(store_of(tmp_path, "leeds", [f"p{i}" for i in range(60)]))
    there = splits(store_of(tmp_path, "bonn", [f"p{i}" for i in range(30, 90)]))
    both = set(here) & set(there)
    assert len(both) == 30
    assert all(here[p] == there[p] for p in both)
    assert len({here[p] for p in both}) > 1


def test_relatives_are_in_one_split_at_every_site(tmp_path: Path) -> None:
    families = {f"p{i}": f"F{i // 4}" for i in range(80)}
    rows = "".join(f"{subject}\t{family}\n" for subject, family in families.items())
    (tmp_path / "relatives.tsv").write_text("subject\tfamily\n" + rows)
    write_study(tmp_path, columns=COLUMNS, relatives="relatives.tsv")
    found: dict[str, set[str]] = {}
    for site, people in (("leeds", range(0, 80, 2)), ("bonn", range(1, 80, 2))):
        for subject, split in splits(store_of(tmp_path, site, [f"p{i}" for i in people])).items():
            found.setdefault(families[subject], set()).add(split)
    assert all(len(kinds) == 1 for kinds in found.values())
    assert len({kind for kinds in found.values() for kind in kinds}) > 1


def test_everybody_of_an_evaluation_site_is_test_only(tmp_path: Path) -> None:
    write_study(tmp_path, columns=COLUMNS)
    store = store_of(tmp_path, "holdout", [f"p{i}" for i in range(40)], role="evaluation")
    assert len(store.people(Split.TEST)) == 40
    assert len(store.people(Split.TRAIN)) == 0
    assert store.role == "evaluation"


def test_people_of_a_split_have_the_modality(tmp_path: Path) -> None:
    write_study(tmp_path, columns=COLUMNS)
    store = store_of(tmp_path, "leeds", [f"p{i}" for i in range(50)])
    parts = [store.people(split, Modality.PHENOTYPE) for split in Split]
    assert sorted(int(i) for part in parts for i in part) == list(range(50))
    assert len(store.people(None, Modality.GENOTYPE)) == 0
    assert store.modalities == {Modality.PHENOTYPE}
