"""Table 1 from arrays."""

from __future__ import annotations

import json

import numpy as np
import pytest

from pm1_core.errors import InputError
from pm1_core.evaluation.cross_modal import TargetScores, cross_modal_table
from pm1_core.evaluation.intervals import holm, roc_auc


def target(name: str, n: int = 600, prevalence: float = 0.2, seed: int = 0) -> TargetScores:
    rng = np.random.default_rng(seed)
    labels = (rng.random(n) < prevalence).astype(float)
    base = labels + 1.5 * rng.standard_normal(n)
    scores = {"P": base, "P+I": base + labels, "P+G": base + 0.1 * rng.standard_normal(n)}
    return TargetScores(name, name.capitalize(), labels, scores)


def test_rows_of_a_target_are_of_the_same_people() -> None:
    one = target("glaucoma")
    one.labels[:50] = np.nan
    one.scores["P+I"][100:130] = np.nan
    table = cross_modal_table([one])
    assert {(row.cases, row.controls) for row in table.rows} == {
        (table.rows[0].cases, table.rows[0].controls)
    }
    assert table.rows[0].cases + table.rows[0].controls == 600 - 50 - 30
    known = np.isfinite(one.labels) & np.isfinite(one.scores["P+I"])
    assert table.rows[0].auc == roc_auc(one.labels[known], one.scores["P"][known]).auc


def test_a_gain_is_tested_in_pairs_and_adjusted_over_the_table() -> None:
    table = cross_modal_table([target("glaucoma"), target("cataract", seed=1)])
    assert [row.inputs for row in table.differences] == ["P+I", "P+G"] * 2
    assert table.differences[0].low > 0
    assert table.differences[0].p_holm < 1e-4
    assert [r.p_holm for r in table.differences] == pytest.approx(holm([r.p for r in table.differences]))


def test_rare_targets_are_omitted_by_name() -> None:
    table = cross_modal_table([target("dementia", n=40, prevalence=0.02)])
    assert (table.rows, table.differences) == ((), ())
    assert table.omitted[0].target == "dementia"
    assert table.omitted[0].cases < 5


def test_table_is_plain_json() -> None:
    table = cross_modal_table([target("glaucoma")]).to_json()
    assert json.loads(json.dumps(table)) == table


def test_missing_reference_is_refused() -> None:
    one = target("glaucoma")
    scores = {"P+I": one.scores["P+I"], "P+G": one.scores["P+G"]}
    with pytest.raises(InputError, match="'P' too"):
        cross_modal_table([TargetScores("glaucoma", "Glaucoma", one.labels, scores)])
