"""The laws of a sweep's table and page: every cell once, bands around their means, every plot on the page."""

from __future__ import annotations

import csv
import math
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sweep_results import results_of

from pm1_core.errors import InputError
from simulations.sweep_grid import AXES, Sweep, sweep_of
from simulations.sweep_page import write_page
from simulations.sweep_table import (
    NONE,
    band,
    change,
    curve,
    epsilons,
    figure_names,
    label,
    retained,
    series_of,
    table,
    write_table,
)


@pytest.fixture(scope="module")
def planned() -> Sweep:
    return sweep_of(["epsilon=1,8,none", "unit=record,site", "seed=1,2,3", "strategy=fedavg,fedadam"])


def test_the_table_has_every_cell_once_with_every_figure(planned: Sweep, tmp_path: Path) -> None:
    results = results_of(planned)
    with write_table(results, tmp_path).open() as stream:
        rows = list(csv.DictReader(stream))
    places = [tuple(row[key] for key in AXES) for row in rows]
    assert len(places) == len(set(places)) == len(planned.cells)
    for row, result in zip(rows, results, strict=True):
        assert {key: row[key] for key in AXES} == result["values"]
        for name in figure_names(results):
            assert float(row[name]) == pytest.approx(result["figures"][name], rel=1e-5)
        assert (row["spent"] == "") == (result["values"]["epsilon"] == "none")


def test_a_figure_that_a_cell_has_not_is_an_empty_field(planned: Sweep, tmp_path: Path) -> None:
    results = results_of(planned)
    del results[0]["figures"]["gap.auc"]
    with write_table(results, tmp_path).open() as stream:
        rows = list(csv.DictReader(stream))
    assert [row["gap.auc"] == "" for row in rows] == [True] + [False] * (len(rows) - 1)


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=8))
def test_a_band_contains_its_mean_whichever_way_the_seeds_are_ordered(values: list[float]) -> None:
    found = band(values)
    assert found.low <= found.mean <= found.high
    assert found.mean == pytest.approx(np.mean(values), abs=1e-9)
    turned = band(values[::-1])
    assert (turned.mean, turned.low, turned.high) == pytest.approx((found.mean, found.low, found.high))


def test_a_band_covers_the_true_mean_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    draws = rng.normal(0.7, 0.05, (2000, 3))
    inside = [found.low <= 0.7 <= found.high for found in map(band, draws.tolist())]
    assert np.mean(inside) == pytest.approx(0.95, abs=0.02)


def test_one_seed_has_a_mean_and_no_band() -> None:
    found = band([0.5])
    assert found.mean == 0.5
    assert math.isnan(found.low)
    assert math.isnan(found.high)
    with pytest.raises(InputError, match="found none"):
        band([])


def test_a_cell_that_stands_twice_is_refused(planned: Sweep) -> None:
    results = results_of(planned)
    with pytest.raises(InputError, match="stands twice"):
        table([*results, results[0]])


def test_every_series_has_all_epsilons_and_all_seeds(planned: Sweep) -> None:
    results = results_of(planned)
    found = series_of(results)
    assert [label(series, found) for series in found] == [
        f"{strategy}, unit {unit}" for strategy in ("fedavg", "fedadam") for unit in ("record", "site")
    ]
    for series in found:
        points = curve(results, series, "auc")
        assert list(points) == epsilons(results) == ["1", "8", NONE]  # without privacy there is no unit
        assert all(len(point.values) == 3 for point in points.values())
        for epsilon, point in points.items():
            members = [r for r in results if series.holds(r) and r["values"]["epsilon"] == epsilon]
            assert sorted(point.values) == sorted(r["figures"]["auc"] for r in members)


def test_a_change_is_paired_by_seed(planned: Sweep) -> None:
    results = results_of(planned)
    (series, *_) = series_of(results)
    here, free = curve(results, series, "auc")["1"], curve(results, series, "auc")[NONE]
    found = change(results, series, "auc")
    assert list(found) == ["1", "8"]
    assert found["1"].values == tuple(a - b for a, b in zip(here.values, free.values, strict=True))
    assert found["1"].low <= found["1"].mean <= found["1"].high
    left = retained(results, series, "auc")["1"]
    assert left.values == tuple(a / b for a, b in zip(here.values, free.values, strict=True))


def _page(planned: Sweep, done: int, folder: Path) -> str:
    results = results_of(planned)[:done]
    return write_page(results, planned.arguments, folder, len(planned.cells)).read_text()


@pytest.mark.parametrize("seeds", ["seed=1,2,3", "seed=1"])
def test_the_page_shows_every_figure_against_epsilon(seeds: str, tmp_path: Path) -> None:
    planned = sweep_of(["epsilon=0.5,8,none", seeds])
    page = _page(planned, len(planned.cells), tmp_path)
    assert page.count("<svg") >= 4
    for words in ("glaucoma", "heart failure", "0 to 10 %", "10 to 25 %", "25 to 50 %", "AFR", "EUR"):
        assert words in page
    for kind in ("iseases", "llele frequency", "ancestries", "attack"):
        assert kind in page
    assert ">none<" in page  # its own place on the axis
    assert not re.search(r'(src|href)="(?!#|sweep\.csv)', page)  # nothing is loaded from elsewhere
    assert "nan" not in re.sub(r"<svg.*?</svg>", "", page, flags=re.DOTALL).lower()


def test_the_page_of_half_a_sweep_says_so(planned: Sweep, tmp_path: Path) -> None:
    page = _page(planned, 2, tmp_path)
    assert re.search(rf"2\s+of\s+{len(planned.cells)}", page)
