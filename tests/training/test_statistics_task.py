"""Z-scores and the set of features follow from all sites together, whichever comes first (appendix E.3)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from pm1_core.data.manifest import load_manifest
from pm1_core.data.preparation import prepare
from pm1_core.data.store import Store
from pm1_core.fields import Split
from pm1_core.training.order import Order
from pm1_core.training.tasks import build_task

COLUMNS = ["differs", "same", "between", "unseen", "other", "absent", "binary"]
PEOPLE = 80


def site(folder: Path, name: str, table: pd.DataFrame) -> Store:
    (folder / name).mkdir(parents=True)
    columns = [{"name": c, "kind": "binary" if c == "binary" else "continuous"} for c in COLUMNS]
    study = {"study": "trial", "build": "GRCh38", "split_key": "42", "columns": columns}
    (folder / name / "study.yaml").write_text(yaml.safe_dump(study))
    table.to_csv(folder / name / "table.csv", index_label="id")
    rules = [{"column": c, "to": c} for c in table.columns]
    part = {"path": "table.csv", "subject": "id", "columns": rules}
    manifest = {"site": name, "study": "study.yaml", "phenotype": part}
    (folder / name / "site.yaml").write_text(yaml.safe_dump(manifest))
    prepare(load_manifest(folder / name / "site.yaml"), folder / name / "store")
    return Store.open(folder / name / "store")


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Store]:
    """Two sites: "between" has one value at each and two in all, "unseen" is observed in training people alone,
    "other" and "absent" are columns that the first site, or no site, has."""
    folder, rng = tmp_path_factory.mktemp("sites"), np.random.default_rng(0)
    found = {}
    for number, name in enumerate(("leeds", "york")):
        table = pd.DataFrame(index=[f"{name}{i:03d}" for i in range(PEOPLE)])
        table["differs"] = rng.normal(number, 2, PEOPLE).round(3)
        table["same"], table["between"] = 7, number
        table["binary"] = rng.integers(0, 2, PEOPLE)
        if name == "york":
            table["other"] = rng.normal(5, 1, PEOPLE).round(3)
        bare = site(folder / "bare", name, table)
        split = dict(zip(bare.subjects["subject"], bare.subjects["split"], strict=True))
        table["unseen"] = [i if split[s] == Split.TRAIN.value else None for i, s in enumerate(table.index)]
        found[name] = site(folder, name, table)
    return found


def statistics(stores: list[Store], folder: Path) -> dict[str, np.ndarray]:
    order = Order("statistics", "statistics", 1, 2, 0)
    task = build_task(order, stores[0].study)
    tensors = dict(task.initial({}, 0))
    for number in (1, 2):
        sums = [task.train(s, replace(order, round=number), {}, tensors, folder).tensors for s in stores]
        together = {name: np.sum([one[name] for one in sums], axis=0) for name in tensors}
        tensors = dict(task.advance(number, tensors, together))
    return tensors


def test_features_are_kept_by_all_sites_together_in_any_order(
    sites: dict[str, Store], tmp_path: Path
) -> None:
    found = statistics([sites["leeds"], sites["york"]], tmp_path)
    kept = dict(zip(COLUMNS, found["statistics.phenotype.kept"].tolist(), strict=True))
    assert kept == {
        "differs": 1,
        "same": 0,
        "between": 1,
        "unseen": 0,
        "other": 1,
        "absent": 0,
        "binary": 1,
    }
    turned = statistics([sites["york"], sites["leeds"]], tmp_path)
    for name, array in found.items():
        np.testing.assert_allclose(turned[name], array, rtol=1e-6, err_msg=name)
    alone = statistics([sites["leeds"]], tmp_path)["statistics.phenotype.kept"]
    assert dict(zip(COLUMNS, alone.tolist(), strict=True)) == {**kept, "between": 0, "other": 0}


def test_z_scores_are_of_the_training_people_of_all_sites(sites: dict[str, Store], tmp_path: Path) -> None:
    found = statistics(list(sites.values()), tmp_path)
    values = [store.phenotypes(store.people(Split.TRAIN))[0][:, 0] for store in sites.values()]
    pooled = np.concatenate(values).astype(np.float64)
    assert found["statistics.phenotype.mean"][0] == pytest.approx(pooled.mean(), rel=1e-5)
    assert found["statistics.phenotype.std"][0] == pytest.approx(pooled.std(), rel=1e-5)
    assert found["statistics.phenotype.count"][0] == len(pooled)
    # A binary feature is left as it is.
    assert (found["statistics.phenotype.mean"][6], found["statistics.phenotype.std"][6]) == (0, 1)
