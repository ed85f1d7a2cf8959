"""A study runs from the first phase to the last, the same in both engines, and goes on where it stopped."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from studies import coordinate, site_paths, tiny_study

from pm1_core.checkpoint import CheckpointFolder
from pm1_core.errors import CheckpointError, FederationError
from server.coordinator import Coordinator
from simulations.grid import run_in_process


@pytest.fixture(scope="module")
def whole(hospitals: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an undisturbed run."""
    folder = tmp_path_factory.mktemp("whole")
    run_in_process(coordinate(tiny_study(), hospitals, folder), site_paths(hospitals, folder))
    return folder


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_every_phase_ends_with_a_checkpoint_of_all_parts(whole: Path) -> None:
    lineage = CheckpointFolder(whole / "checkpoints").verify()
    rounds = (2, 2, 2, 2, 1, 2, 2)  # each phase begins with a round 0
    assert [c.round for c in lineage] == [n for count in rounds for n in range(count + 1)]
    assert set(lineage[-1].parts) == {
        "statistics", "genotype.3", "genotype.22", "phenotype", "fundus", "tokens", "fusion",
    }  # fmt: skip


def test_only_sites_with_the_modality_take_part(whole: Path) -> None:
    phases = json.loads((whole / "phases.json").read_text())
    assert set(phases["genotype.22"]["sites"]) == {"north", "south"}
    assert set(phases["fundus"]["sites"]) == {"north", "clinic"}
    assert set(phases["fusion"]["sites"]) == {"north", "south", "clinic"}
    assert "clinic" in phases["phenotype"]["absent"]


def test_metrics_have_a_line_per_phase_round_and_site_and_one_for_all(whole: Path) -> None:
    train = [line for line in lines(whole) if line["phase"] == "fusion" and line["split"] == "train"]
    assert {(line["round"], line["site"]) for line in train} == {
        (number, site) for number in (1, 2) for site in ("north", "south", "clinic", None)
    }
    assert all(np.isfinite(line["metrics"]["loss"]) for line in train)


def test_the_same_seed_gives_the_same_checkpoint_bytes(
    whole: Path, hospitals: dict[str, Path], tmp_path: Path
) -> None:
    run_in_process(coordinate(tiny_study(), hospitals, tmp_path), site_paths(hospitals, tmp_path))
    first, second = CheckpointFolder(whole / "checkpoints"), CheckpointFolder(tmp_path / "checkpoints")
    assert first.latest().hash == second.latest().hash


def test_sites_that_train_two_at_a_time_give_the_same_bytes(
    whole: Path, hospitals: dict[str, Path], tmp_path: Path
) -> None:
    run_in_process(coordinate(tiny_study(), hospitals, tmp_path), site_paths(hospitals, tmp_path), workers=2)
    first, second = CheckpointFolder(whole / "checkpoints"), CheckpointFolder(tmp_path / "checkpoints")
    assert first.latest().hash == second.latest().hash


def test_another_seed_gives_another_model(whole: Path, hospitals: dict[str, Path], tmp_path: Path) -> None:
    study = tiny_study(seed=43)
    run_in_process(coordinate(study, hospitals, tmp_path), site_paths(hospitals, tmp_path))
    first = CheckpointFolder(whole / "checkpoints").latest().parts
    second = CheckpointFolder(tmp_path / "checkpoints").latest().parts
    assert first["statistics"] == second["statistics"]
    assert first["fusion"] != second["fusion"]


@pytest.mark.slow
def test_ray_gives_the_same_numbers_as_the_grid_in_this_process(
    whole: Path, hospitals: dict[str, Path], tmp_path: Path
) -> None:
    script = Path(__file__).with_name("ray_run.py")
    root = hospitals["north"].parent
    command = [sys.executable, str(script), str(root), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    here = CheckpointFolder(whole / "checkpoints")
    ray = CheckpointFolder(tmp_path / "checkpoints")
    one, other = here.state(here.latest()), ray.state(ray.latest())
    assert set(one) == set(other)
    for name in one:
        np.testing.assert_allclose(one[name], other[name], atol=1e-6, rtol=1e-6, err_msg=name)


@pytest.mark.parametrize("stop_after", [1, 2, 5, 8, 10, 12])
def test_a_run_stopped_after_any_round_resumes_to_the_same_bytes(
    whole: Path, hospitals: dict[str, Path], tmp_path: Path, stop_after: int
) -> None:
    class StoppedError(Exception):
        pass

    def stopping(grid):  # type: ignore[no-untyped-def]
        coordinator: Coordinator = coordinate(tiny_study(), hospitals, tmp_path)(grid)
        count = 0

        def progress(phase: str, done: int, rounds: int) -> None:
            nonlocal count
            count += 1
            if count == stop_after:
                raise StoppedError

        coordinator.progress = progress
        return coordinator

    with pytest.raises(StoppedError):
        run_in_process(stopping, site_paths(hospitals, tmp_path))
    run_in_process(coordinate(tiny_study(), hospitals, tmp_path), site_paths(hospitals, tmp_path))
    resumed = CheckpointFolder(tmp_path / "checkpoints").latest()
    assert resumed.hash == CheckpointFolder(whole / "checkpoints").latest().hash
    strip = [{k: v for k, v in line.items() if k != "seconds"} for line in lines(tmp_path)]
    assert strip == [{k: v for k, v in line.items() if k != "seconds"} for line in lines(whole)]


def test_a_run_is_not_resumed_with_another_configuration(whole: Path, hospitals: dict[str, Path]) -> None:
    with pytest.raises(CheckpointError, match="resume with the configuration"):
        run_in_process(coordinate(tiny_study(seed=1), hospitals, whole), site_paths(hospitals, whole))


def test_too_few_sites_end_a_phase_with_a_sentence(hospitals: dict[str, Path], tmp_path: Path) -> None:
    study = tiny_study(study__phases__fundus__min_sites=3)
    with pytest.raises(FederationError, match=r"phase 'fundus'.*2 of at least 3 sites.*south"):
        run_in_process(coordinate(study, hospitals, tmp_path), site_paths(hospitals, tmp_path))
    latest = CheckpointFolder(tmp_path / "checkpoints").latest()
    assert (latest.phase, latest.round) == ("fundus", 0)


def test_everything_that_left_a_site_is_written_down(whole: Path) -> None:
    released = [json.loads(line) for line in (whole / "sites/clinic/outbox.jsonl").read_text().splitlines()]
    trained = [line["phase"] for line in released if line["what"] == "train"]
    assert trained == ["fundus", "tokens", "tokens", "fusion", "fusion"]
    for line in released:
        if line["what"] == "train":
            assert line["bytes"] > 0
            assert all(len(digest) == 64 for digest in line["sha256"])
