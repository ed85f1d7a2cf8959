"""Hyperband over the phenotype auto-encoder: trials follow from the seed, bad ones end early, the best is told."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from configs import compose
from pm1_core.data.store import Store
from pm1_core.errors import ConfigError
from simulations import cli
from simulations import search as searching
from simulations.progress import Stages

SMALL = [
    "model=tiny",
    "search.trials=9",
    "search.epochs=9",
    "search.batch_size=[8,32]",
    "search.depth=[1,2]",
    "search.learning_rate=[1.0e-5,1.0e-1]",
]


def search(
    hospitals: dict[str, Path],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    *more: str,
    only: Sequence[str] = SMALL,
) -> Any:
    stores = {site: Store.open(hospitals[site]) for site in ("north", "south")}
    monkeypatch.setattr(searching, "simulated", lambda config, stages: SimpleNamespace(open=lambda: stores))
    config = compose.load("simulation", [*only, f"runs={folder}", *more])
    return searching.search(config, Stages(Console(quiet=True)))


def test_trials_follow_from_the_seed_and_bad_ones_end_early(
    hospitals: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("optuna")
    found = search(hospitals, tmp_path / "a", monkeypatch)
    assert found == search(hospitals, tmp_path / "b", monkeypatch)
    (file,) = (tmp_path / "a").glob("*/search.json")
    assert json.loads(file.read_text()) == found
    trials = found["trials"]
    assert len(trials) == 9
    assert {trial["state"] for trial in trials} == {"complete", "pruned"}
    assert all(trial["epochs"] < 9 for trial in trials if trial["state"] == "pruned")
    assert all(1e-5 <= trial["learning_rate"] <= 1e-1 for trial in trials)
    assert {trial["batch_size"] for trial in trials} <= {8, 32}
    assert found["best"]["loss"] == min(trial["loss"] for trial in trials)


def test_the_best_one_is_told_as_keys_of_a_study(
    hospitals: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("optuna")
    found = search(hospitals, tmp_path, monkeypatch, "search.trials=2", "search.epochs=1")
    config = compose.load("simulation", ["model=tiny", *found["overrides"]])
    loop = config["study"]["phases"]["phenotype"]["loop"]
    assert loop["batch_size"] == found["best"]["batch_size"]
    assert loop["optimiser"]["learning_rate"] == pytest.approx(found["best"]["learning_rate"], rel=1e-5)
    assert config["model"]["phenotype"]["depth"] == found["best"]["depth"]


def test_an_interrupted_search_goes_on_to_what_it_would_have_found(
    hospitals: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("optuna")
    undisturbed = search(hospitals, tmp_path / "a", monkeypatch, "name=whole")
    train, trained = searching._Work.train, []

    def interrupted(work: Any, trial: Any) -> float:
        trained.append(trial.number)
        loss = train(work, trial)
        if len(trained) in (3, 6):
            raise KeyboardInterrupt
        return loss

    monkeypatch.setattr(searching._Work, "train", interrupted)
    for resumed in ("name=whole", "name=whole"):
        with pytest.raises(KeyboardInterrupt):
            search(hospitals, tmp_path / "b", monkeypatch, resumed)
    assert search(hospitals, tmp_path / "b", monkeypatch, "resume=whole", only=[]) == undisturbed
    assert trained == [0, 1, 2, 2, 3, 4, 4, 5, 6, 7, 8], "what had ended is not run again"
    assert search(hospitals, tmp_path / "b", monkeypatch, "name=whole") == undisturbed
    with pytest.raises(
        ConfigError, match="started with another configuration; choose another one with name="
    ):
        search(hospitals, tmp_path / "b", monkeypatch, "name=whole", "search.momentum=[0.5]")


def test_the_command_prints_trials_best_first_or_the_whole_file_as_json(
    hospitals: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("optuna")
    found = search(hospitals, tmp_path, monkeypatch, "name=told", "search.trials=3")
    assert cli.main(["search", "resume=told", f"runs={tmp_path}", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == found
    assert cli.main(["search", "resume=told", f"runs={tmp_path}"]) == 0
    _, best, *_ = lines = capsys.readouterr().out.splitlines()
    assert best.split()[0] == f"{found['best']['learning_rate']:.4g}"
    assert lines[-1] == "the best one: " + " ".join(found["overrides"])


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("search.trials=0", r"key 'search.trials': found 0"),
        ("search.learning_rate=[0.1,0.01]", r"key 'search.learning_rate': found .*the smaller first"),
        ("search.batch_size=[]", r"key 'search.batch_size': found nothing"),
        ("search.momentum=[0.9,1.5]", r"key 'search.momentum': found 1.5"),
        ("~study.phases.phenotype", r"no phase is of task phenotype"),
    ],
)
def test_what_cannot_be_searched_is_refused_by_name(
    override: str, sentence: str, hospitals: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("optuna")
    with pytest.raises(ConfigError, match=sentence):
        search(hospitals, tmp_path, monkeypatch, override)


def test_without_optuna_a_sentence_says_how_to_get_it(
    hospitals: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(searching, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'pm1\[search\]'"):
        search(hospitals, tmp_path, monkeypatch)
