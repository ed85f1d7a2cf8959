"""What a site answers is checked before it is used: a bad answer is named, and the others go on."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import unruly
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mortal_work import fresh
from short import last_round, phases, run
from unruly import UnrulyGrid, altered, answers

from pm1_core.checkpoint import CheckpointFolder
from strategies import records

pytestmark = pytest.mark.usefixtures("_impatient")

Alter = Callable[[RecordDict], RecordDict]


def first(change: Callable[[np.ndarray], np.ndarray]) -> Alter:
    """Change one tensor."""

    def alter(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        name = min(tensors)
        return {**tensors, name: change(tensors[name].copy())}

    return lambda content: altered(content, tensors=alter)


def with_value(value: float) -> Alter:
    def put(array: np.ndarray) -> np.ndarray:
        array.reshape(-1)[0] = value
        return array

    return first(put)


def other_bytes(content: RecordDict) -> RecordDict:
    """The announced name over other bytes."""
    record = content.array_records["objects"]
    name = next(iter(record))
    data = bytearray(record[name].data)
    data[-1] ^= 1
    content["objects"] = ArrayRecord({name: Array("uint8", (len(data),), record[name].stype, bytes(data))})
    return content


def unannounced(content: RecordDict) -> RecordDict:
    return altered(content, facts={"objects": ["0" * 64]})


def no_safetensors(content: RecordDict) -> RecordDict:
    digest = hashlib.sha256(b"nothing").hexdigest()
    return records.pack(
        "site",
        {**records.facts_of(content, "site"), "objects": [digest]},
        [(digest, b"nothing")],
        records.figures_of(content),
    )


@pytest.mark.parametrize(
    ("alter", "why"),
    [
        (with_value(math.nan), "found NaN"),
        (with_value(math.inf), "NaN(,| or) infinity"),
        (first(lambda array: array[..., None]), "shape"),
        (first(lambda array: array.astype(np.float64)), "dtype float64"),
        (first(lambda array: array + np.float32(1e6)), "norm"),
        (lambda c: altered(c, tensors=lambda t: dict(sorted(t.items())[1:])), "missing"),
        (
            lambda c: altered(c, tensors=lambda t: {**t, "phenotype.more": np.ones(3, np.float32)}),
            "not asked for",
        ),
        (lambda c: altered(c, figures={"weight": 35.0}), "declared 34"),
        (lambda c: altered(c, figures={"weight": -1.0}), "finite count"),
        (lambda c: altered(c, figures={"weight": math.nan}), "finite count"),
        (lambda c: altered(c, figures={"weight": None}), "no weight"),
        (lambda c: altered(c, figures={"weight": [34.0, 1.0]}), "found a list"),
        (lambda c: altered(c, figures={"weight.genotype": 7.0}), "weight 'genotype'"),
        (lambda c: altered(c, figures={"weight.phenotype": 99.0}), "weight 'phenotype'"),
        (lambda c: altered(c, figures={"loss": [1.0, 2.0]}), "found a list"),
        (lambda c: altered(c, figures={f"x{i}": 0.0 for i in range(5000)}), "5[0-9]{3} figures"),
        (other_bytes, "do not match the name"),
        (unannounced, "not announced"),
        (no_safetensors, "no safetensors"),
        (lambda c: altered(c, facts={"objects": [f"{i:064x}" for i in range(100_000)]}), "100000 objects"),
        (lambda c: altered(c, facts={"objects": ["../../../etc/passwd"]}), "no SHA-256"),
        (lambda c: altered(c, facts={"objects": ["0" * 64, "0" * 64]}), "twice"),
        (lambda c: altered(c, facts={"objects": ["f" * 64]}, tensors=None), "not announced"),
        (lambda c: altered(c, facts={"objects": 7}), "list of texts"),
        (lambda c: altered(c, facts={"site": 3}), "of site 3"),
        (lambda c: altered(c, facts={"request": [1]}), "another request"),
        (lambda c: RecordDict(), "record 'site' is missing"),
    ],
)
def test_an_update_that_is_not_what_was_asked_for_is_refused_by_name_and_the_round_goes_on(
    alter: Alter, why: str, stores: dict[str, Path], begun: Path, tmp_path: Path
) -> None:
    latest = last_round(stores, begun, tmp_path, answers(alter))
    assert set(latest.sites) == {"south", "west"}
    lost = phases(tmp_path / "run")["phenotype"]["lost"]["round 2"]
    assert list(lost) == ["east"]
    assert re.search(why, lost["east"])


def test_objects_that_are_announced_and_never_handed_over_are_not_waited_for_long(
    stores: dict[str, Path], begun: Path, tmp_path: Path
) -> None:
    def absent(content: RecordDict) -> RecordDict:
        facts = {**records.facts_of(content, "site"), "objects": ["a" * 64]}
        return records.pack("site", facts, [], records.figures_of(content))

    latest = last_round(stores, begun, tmp_path, answers(absent))
    assert set(latest.sites) == {"south", "west"}
    assert "aaaaaaaaaaaa" in phases(tmp_path / "run")["phenotype"]["lost"]["round 2"]["east"]


def test_figures_that_are_no_numbers_are_left_out_of_what_is_kept(
    stores: dict[str, Path], begun: Path, tmp_path: Path
) -> None:
    strange = {"loss": math.nan, "validation.loss": math.inf, "test.loss": 1e300}
    latest = last_round(stores, begun, tmp_path, answers(lambda c: altered(c, figures=strange)))
    assert set(latest.sites) == {"east", "south", "west"}
    for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines():
        assert all(math.isfinite(value) for value in json.loads(line)["metrics"].values())


COUNTS = np.zeros((2, 1536), np.float32)


@pytest.mark.parametrize(
    ("figures", "tensors", "why"),
    [
        ({}, {"scores.disease.all": COUNTS - 1}, "negative"),
        ({}, {"scores.disease.all": COUNTS * np.float32("nan")}, "no number"),
        ({}, {"scores.disease.all": COUNTS[:, :9]}, "shape"),
        ({}, {"scores.disease.all": COUNTS + 1}, "people"),
        ({}, {"scores.disease.all": COUNTS.astype(np.float64)}, "counts no scores"),
        ({}, {"other": np.ones((3, 3), np.float32)}, "counts no scores"),
        ({"validation.examples": -5.0}, None, "validation.examples"),
        ({"test.examples": 1e6}, None, "test.examples"),
        ({"weight": math.inf}, None, "finite count"),
    ],
)
def test_an_evaluation_that_counts_wrongly_is_refused_by_name(
    figures: dict[str, float],
    tensors: dict[str, np.ndarray] | None,
    why: str,
    stores: dict[str, Path],
    begun: Path,
    tmp_path: Path,
) -> None:
    def alter(content: RecordDict) -> RecordDict:
        return altered(content, figures=figures, tensors=None if tensors is None else lambda held: tensors)

    run_folder = fresh(begun, tmp_path / "run")
    grid = UnrulyGrid(stores, run_folder, {("east", "evaluate", None, None): answers(alter)})
    latest = run(stores, run_folder, grid=grid)
    assert set(latest.sites) == {"east", "south", "west"}
    assert why in phases(run_folder)["phenotype"]["lost"]["evaluation"]["east"]
    assert set(latest.metrics) == {"all", "south", "west"}


names = st.sampled_from(
    [
        "site",
        "request",
        "objects",
        "lacking",
        "phases",
        "study",
        "weight",
        "loss",
        "weight.phenotype",
        "test.examples",
    ]
)
scalars = st.one_of(
    st.text(max_size=20),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(),
    st.binary(max_size=9),
    st.booleans(),
    st.sampled_from(
        ["..", "a/b", "{}", "[[[[", '{"phenotype": 3}', '{"phenotype": {"train": true}}', "1e999"]
    ),
)
values = st.one_of(scalars, st.lists(st.text(max_size=70), max_size=4), st.lists(st.floats(), max_size=4))
numbers = st.one_of(st.floats(), st.integers(-(2**63), 2**63 - 1), st.lists(st.floats(), max_size=3))
arrays = st.dictionaries(
    st.one_of(st.text(max_size=80), st.just("0" * 64 + ".000000")),
    st.builds(
        lambda data, stype: Array("uint8", (len(data),), stype, data),
        st.binary(max_size=40),
        st.sampled_from(["pm1.raw", "numpy.ndarray", ""]),
    ),
    max_size=3,
)
junk = st.fixed_dictionaries(
    {},
    optional={
        "facts": st.dictionaries(names, values, max_size=4),
        "figures": st.dictionaries(names | st.text(max_size=300), numbers, max_size=4),
        "arrays": arrays,
        "without": st.sampled_from(["site", "objects", "figures"]),
    },
)


@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,
)
@given(
    junk=st.dictionaries(st.sampled_from(["query.ready", "train", "evaluate"]), junk, min_size=1, max_size=3)
)
def test_nothing_that_a_site_answers_ends_the_study(
    junk: dict[str, dict[str, Any]], stores: dict[str, Path], begun: Path, tmp_path: Path
) -> None:
    def deed(grid: UnrulyGrid, message: Any) -> list[Any]:
        change = junk[message.metadata.message_type]
        reply = grid.honest(message)
        content = reply.content if not reply.has_error() else RecordDict({"site": ConfigRecord()})
        facts = {**dict(content.config_records["site"]), **change.get("facts", {})}
        figures = {**dict(content.metric_records.get("figures", {})), **change.get("figures", {})}
        held = {**dict(content.array_records.get("objects", {})), **change.get("arrays", {})}
        made = RecordDict()
        made["site"], made["figures"] = ConfigRecord(facts), MetricRecord(figures)
        made["objects"] = ArrayRecord(held)
        if change.get("without"):
            del made[change["without"]]
        return [unruly.Message(made, reply_to=message)]

    run_folder = fresh(begun, tmp_path / "run")
    grid = UnrulyGrid(stores, run_folder, {("east", kind, None, None): deed for kind in junk})
    latest = run(stores, run_folder, grid=grid)
    assert {"south", "west"} <= set(latest.sites)
    assert set(latest.sites) <= {"east", "south", "west"}
    checkpoints = CheckpointFolder(run_folder / "checkpoints")
    assert all(np.isfinite(checkpoints.state(latest)[name]).all() for name in checkpoints.state(latest))
    assert {path.name for path in (run_folder / "sites").iterdir()} == {"east", "south", "west"}
