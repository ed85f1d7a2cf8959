"""The grid of a sweep: every combination once, hashes that change with what figures depend on."""

from __future__ import annotations

from pathlib import Path

import pytest

from pm1_core.errors import ConfigError
from simulations.sweep_code import digest_of
from simulations.sweep_grid import AXES, sweep_of

ARGUMENTS = ["epsilon=1,8,none", "seed=1,2"]


def test_every_combination_is_there_once_and_in_order() -> None:
    planned = sweep_of([*ARGUMENTS, "sites=2,3"])
    places = [tuple(cell.axes[key] for key in AXES) for cell in planned.cells]
    assert len(places) == len(set(places)) == 3 * 2 * 2
    assert len({cell.hash for cell in planned.cells}) == len(places)
    for cell in planned.cells:
        assert str(cell.config["sites"]) == cell.axes["sites"]
        assert str(cell.config["seed"]) == cell.axes["seed"]
        free = cell.axes["epsilon"] == "none"
        assert cell.config["privacy"]["unit"] == ("none" if free else "record")
        assert cell.config["privacy"]["epsilon"] == (None if free else float(cell.axes["epsilon"]))


def test_without_privacy_it_is_one_cell_whatever_the_unit() -> None:
    planned = sweep_of(["epsilon=8,none", "unit=record,site", "seed=1"])
    assert [(cell.axes["unit"], cell.axes["epsilon"]) for cell in planned.cells].count(("none", "none")) == 1
    assert len(planned.cells) == 3


def test_the_default_has_six_epsilons_and_three_seeds() -> None:
    planned = sweep_of([])
    assert {cell.axes["epsilon"] for cell in planned.cells} == {"0.5", "1", "2", "4", "8", "none"}
    assert len({cell.axes["seed"] for cell in planned.cells}) == 3
    assert len(planned.cells) == 18


def test_a_hash_follows_what_figures_depend_on_and_nothing_else() -> None:
    (cell,) = sweep_of(["epsilon=8", "seed=1"]).cells
    (elsewhere,) = sweep_of(["epsilon=8", "seed=1", "name=other", "runs=there", "workers=1"]).cells
    (other,) = sweep_of(["epsilon=8", "seed=1", "people=1300"]).cells
    assert elsewhere.hash == cell.hash
    assert other.hash != cell.hash


@pytest.mark.parametrize(
    ("argument", "sentence"),
    [
        ("epsilon=little", "use a number above 0, or none"),
        ("unit=family", "key 'unit'"),
        ("privacy.epsilon=3", "epsilon=..."),
        ("privacy=none", "unit=..."),
        ("resume=sweep", "run the same command again"),
        ("epsilon", "is no KEY=VALUE"),
        ("name=a,b", "give it one value"),
        ("name=../up", "plain folder name"),
        ("poeple=300", "there is no such key"),
    ],
)
def test_what_is_wrong_is_said_before_anything_runs(argument: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        sweep_of(["epsilon=8", "seed=1", argument])


def test_the_code_is_part_of_a_hash_but_not_what_no_cell_runs(tmp_path: Path) -> None:
    (tmp_path / "simulations" / "learning").mkdir(parents=True)
    (tmp_path / "pm1_core").mkdir()
    apart = ("simulations/sweep_page.py", "simulations/learning/paper.py")
    for name in ("simulations/run.py", "pm1_core/gates.py", *apart):
        (tmp_path / name).write_text("A = 1\n")
    before = digest_of(tmp_path)
    for name in apart:
        (tmp_path / name).write_text("A = 2\n")
    assert digest_of(tmp_path) == before
    (tmp_path / "pm1_core/gates.py").write_text("A = 2\n")
    assert digest_of(tmp_path) != before


def test_terms_of_the_other_unit_are_left_to_their_defaults() -> None:
    (cell,) = sweep_of(["epsilon=8", "unit=site", "sites=3", "seed=1"]).cells
    assert cell.config["aggregation"]["mode"] == "secure"
    assert "statistics" not in cell.config["privacy"]["shares"]
    (chosen,) = sweep_of(["epsilon=8", "unit=site", "seed=1", "privacy.clip=0.5"]).cells
    assert chosen.config["privacy"]["clip"] == 0.5
