"""`pm1-sim learn` at size tiny: variants share their encoders, and what is done is not done again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from configs import compose
from server.configure import build_study
from simulations.cli import main
from simulations.halves import halves
from simulations.learning.paper import CLAIMS
from simulations.learning.variants import BASELINES, VARIANTS, varied, with_architecture

SMALL = [
    "model=tiny", "sites=1", "people=100", "test_people=60", "name=small",
    "study.phases.genotype.chromosomes=[22]", "study.phases.genotype.rounds=1",
    "study.phases.phenotype.rounds=1", "study.phases.phenotype.loop.epochs=1", "study.phases.fundus.rounds=1",
    "study.phases.fundus.loop.epochs=1", "study.phases.fusion.rounds=1", "study.phases.fusion.loop.epochs=1",
]  # fmt: skip
_PATIENCE = 600.0


def _arguments(folder: Path) -> list[str]:
    return ["learn", "--seeds", "0", *SMALL, f"runs={folder / 'runs'}", f"cohorts={folder / 'cohorts'}"]


def test_variants_differ_in_the_fusion_phase_alone() -> None:
    config = compose.load("simulation", ["model=small"])
    studies = {variant: halves(build_study(varied(config, variant))) for variant in VARIANTS}
    assert len({first.hash for first, _ in studies.values()}) == 1
    (_, full), (_, plain), (_, third) = studies.values()
    (fusion,) = full.phases
    assert fusion.parameters["objective"]["contrast"] == 0.5
    assert plain.phases[0].parameters["objective"]["contrast"] == 0.0
    assert (fusion.parameters["model"]["layers"], third.phases[0].parameters["model"]["layers"]) == (4, 1)
    paper = varied(compose.load("simulation", ["study=paper", "model=paper"]), "third_of_layers")
    assert paper["model"]["fusion"]["layers"] == 10


def test_a_baseline_differs_from_the_genotype_vae_in_its_architecture_alone() -> None:
    first, _ = halves(build_study(compose.load("simulation", [])))
    own = {phase.name: phase for phase in first.phases}
    for name in BASELINES:
        study = with_architecture(first, name)
        assert (study.seed, study.strategy, len(study.phases)) == (first.seed, first.strategy, 23)
        for phase in study.phases[1:]:
            assert phase.rounds == own[phase.name].rounds
            assert phase.parameters == {**own[phase.name].parameters, "architecture": name}


def test_a_study_is_measured_once_and_gone_on_with(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*_arguments(tmp_path), "--json"]) == 0
    outcome = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in outcome["claims"]] == [claim.name for claim in CLAIMS]
    run = Path(outcome["run"])
    assert all(Path(file).exists() for file in outcome["files"].values())
    figures = {file.name: file for file in (run / "seed-0" / "figures").iterdir()}
    before = {name: (file.stat().st_mtime_ns, file.read_bytes()) for name, file in figures.items()}

    # As after a kill in the last variant's figures.
    figures["third_of_layers.json"].unlink()
    assert main(_arguments(tmp_path)) == 0
    after = {name: (file.stat().st_mtime_ns, file.read_bytes()) for name, file in figures.items()}
    assert after["third_of_layers.json"][1] == before.pop("third_of_layers.json")[1]
    assert {name: after[name] for name in before} == before
    assert "undecided" in capsys.readouterr().out

    encoders = {
        (run / "seed-0" / variant / "checkpoints" / "origin.json").read_bytes() for variant in VARIANTS
    }
    assert len(encoders) == 1, "all variants start from one release"


@pytest.mark.slow
def test_a_killed_study_goes_on_where_it_was(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = _arguments(tmp_path)
    done = tmp_path / "runs" / "small" / "seed-0" / "figures" / "full.json"
    command = [sys.executable, "-m", "simulations.cli", *arguments]
    process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE)
    deadline = time.monotonic() + _PATIENCE
    while not done.exists():
        assert process.poll() is None, process.stderr.read().decode() if process.stderr else ""
        assert time.monotonic() < deadline
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    before = done.stat().st_mtime_ns
    assert main([*arguments, "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["claims"]) == len(CLAIMS)
    assert done.stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--seeds", "0,x"], "list whole numbers"),
        (["--seeds", "1,1"], "each once"),
        (["seed=3"], "use --seeds"),
        (["resume=small"], "run the same command again"),
        (["privacy=record", "privacy.epsilon=4"], "use privacy=none"),
        (["study=real"], "use study=ukb_eyepacs"),
        (["study=tabular", "site.tasks=[tabular]"], "trains the whole model"),
    ],
)
def test_what_cannot_be_measured_is_refused_with_a_sentence(
    arguments: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["learn", *arguments, f"runs={tmp_path}"]) == 2
    assert sentence in capsys.readouterr().err
    assert not list(tmp_path.iterdir()), "it is said before anything is written"


def test_help_shows_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["learn", "--help"])
    assert "pm1-sim learn --seeds 0,1,2,3,4" in capsys.readouterr().out
