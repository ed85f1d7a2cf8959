"""What is said of a run comes from its folder alone, and a folder that is no run's gets a sentence."""

from __future__ import annotations

import io
import json
import math
import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from rich.console import Console
from watched import change

import server.cli
from pm1_core.checkpoint import CheckpointFolder
from pm1_core.errors import PM1Error
from server.pulse import Pulse
from server.runs import Run, Runs
from server.spending import spent
from server.watch import Watch, as_json
from server.watch_view import line, view, watch


def test_a_finished_run_is_told_from_its_files(finished: Path) -> None:
    facts = Watch(finished).facts()
    assert facts["state"] == "finished"
    assert facts["rounds"] == {"done": 4, "of": 4}
    assert facts["left"] == {"seconds": 0.0, "unknown": []}
    assert [(one["name"], one["done"], one["sites"]) for one in facts["phases"]] == [
        ("statistics", 2, ["east", "south", "west"]),
        ("phenotype", 2, ["east", "south", "west"]),
    ]
    assert set(facts["phases"][1]["loss"]) == {"train", "validation", "test"}
    assert facts["phases"][0]["loss"] == {}
    assert facts["checkpoints"]["candidate"]["sequence"] == facts["checkpoints"]["count"] == 6
    assert {gate["gate"] for gate in facts["checkpoints"]["candidate"]["gates"]} >= {
        "min_sites",
        "min_people",
    }
    assert json.loads(json.dumps(as_json(facts), allow_nan=False))["study"] == facts["study"]


def test_every_message_is_counted_once_and_rounds_sum_to_no_more_than_all(finished: Path) -> None:
    """What is asked of nodes before the first round, and given to sites after the last, is in no round."""
    facts = Watch(finished).facts()
    for way in ("sent", "received"):
        of_phases = sum(phase["bytes"][way] for phase in facts["phases"])
        of_sites = sum(site[way] for site in facts["sites"])
        assert 0 < of_phases <= facts["bytes"][way]
        assert of_sites <= facts["bytes"][way]
    weight = sum(file.stat().st_size for file in (finished / "checkpoints/objects").iterdir())
    assert facts["bytes"]["sent"] > weight / 2
    assert {site["contact"][:10] for site in facts["sites"]} <= {
        facts["started"][:10],
        facts["last_sign"][:10],
    }


def test_bytes_of_rounds_are_no_part_of_a_checkpoints_hash(finished: Path) -> None:
    for made in CheckpointFolder(finished / "checkpoints").verify():
        assert ("bytes_received" in made.measured) == bool(made.round)


def test_a_run_under_way_says_for_whom_it_waits_and_what_is_left(under_way: Path) -> None:
    facts = Watch(under_way).facts()
    assert (facts["state"], facts["doing"], facts["waiting"]) == ("running", "phenotype, train 2", ["west"])
    assert [site["site"] for site in facts["sites"] if site["waited_for"]] == ["west"]
    phenotype = facts["phases"][1]
    assert facts["left"]["seconds"] == pytest.approx(phenotype["seconds"] / phenotype["done"], abs=0.06)
    assert "validation" not in phenotype["loss"]  # its line belongs to a checkpoint that is not there


def test_silence_stop_and_a_new_start_are_told_apart(under_way: Path) -> None:
    now = datetime.now(UTC)
    sign = now - timedelta(seconds=200)
    change(under_way / "status.json", time=sign.isoformat())
    run = Run("r", 7, "s", "c", "b", str(under_way), (now - timedelta(hours=1)).isoformat())
    watched = Watch(under_way)
    assert watched.facts(run)["state"] == "silent"
    stopped = Run(*list(vars(run).values())[:7], now.isoformat())
    assert watched.facts(stopped)["state"] == "ended"
    assert "submit the same study" in watched.facts(stopped)["why"]
    again = Run("r", 8, "s", "c", "b", str(under_way), now.isoformat())
    assert watched.facts(again)["state"] == "starting"


def test_a_run_that_has_only_been_submitted_is_not_begun(finished: Path, tmp_path: Path) -> None:
    shutil.copy(finished / "study.json", tmp_path)
    facts = Watch(tmp_path).facts()
    assert (facts["state"], facts["left"]["seconds"]) == ("not begun", None)
    Console(file=io.StringIO()).print(view(facts))


def _torn(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text('{"phases": ')


def _other(name: str, content: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(content)


@pytest.mark.parametrize(
    "break_",
    [
        _torn("study.json"),
        _torn("phases.json"),
        _torn("roster.json"),
        _torn("status.json"),
        _torn("checkpoints/000004.json"),
        _other("study.json", "[]"),
        _other("study.json", '{"name": "x", "phases": [{"name": 1}]}'),
        _other("study.json", '{"name": "x", "phases": []}'),
        _other("phases.json", "[1]"),
        _other("phases.json", '{"phenotype": 3}'),
        _other("roster.json", '{"leeds": 3}'),
        _other("status.json", '{"contact": 3}'),
        lambda folder: (folder / "study.json").write_bytes(b"\xff\xfe\x00"),
        lambda folder: (folder / "study.json").unlink(),
        lambda folder: change(folder / "study.json", seed=7),
        lambda folder: (folder / "checkpoints/000004.json").write_text("{}"),
    ],
)
def test_a_folder_that_is_half_written_or_foreign_is_a_sentence(
    break_: Callable[[Path], object], under_way: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    break_(under_way)
    assert server.cli.main(["study", "status", str(under_way)]) in (2, 3)
    printed = capsys.readouterr()
    assert len(printed.err.splitlines()) == 1
    assert str(under_way) in printed.err


@pytest.mark.parametrize("content", ["", '{"sequence": 1', "[]\n", '{"metrics": 3}\n', "\xff\n"])
def test_a_torn_line_of_figures_is_left_out(content: str, under_way: Path) -> None:
    with (under_way / "metrics.jsonl").open("a", encoding="latin-1") as stream:
        stream.write(content)
    assert Watch(under_way).facts()["phases"][1]["loss"]["train"] > 0


def test_a_watch_that_is_no_terminal_says_each_change_once_and_ends_with_the_run(under_way: Path) -> None:
    watched, told = Watch(under_way), []

    def facts() -> dict[str, object]:
        told.append(1)
        if len(told) == 3:
            change(under_way / "status.json", state="ended", why="too few \x1b[2J sites")
        return watched.facts()

    said = io.StringIO()
    watch(facts, Console(file=said, width=400), every=0)  # type: ignore[arg-type]
    assert said.getvalue().splitlines() == [
        "under_way  running  3/4 rounds  phenotype, train 2  waiting for west",
        "under_way  ended  3/4 rounds  too few \\x1b[2J sites",
    ]


def test_a_live_view_shows_the_last_state(under_way: Path) -> None:
    change(under_way / "status.json", state="ended", why="no site is left")
    said = io.StringIO()
    watch(Watch(under_way).facts, Console(file=said, force_terminal=True, width=100), every=0)
    assert "no site is left" in said.getvalue()


def test_what_a_site_wrote_does_not_reach_the_terminal_as_commands(under_way: Path) -> None:
    lost = {"round 2": {"west\x1b]0;x\x07": "\x1b[31m[bold]no"}}
    phases = json.loads((under_way / "phases.json").read_text())
    phases["phenotype"]["lost"] = lost
    (under_way / "phases.json").write_text(json.dumps(phases))
    facts = Watch(under_way).facts()
    said = io.StringIO()
    Console(file=said, width=200).print(view(facts))
    assert "\x1b" not in said.getvalue()
    assert "\x1b" not in line(facts)


def test_a_status_without_a_name_is_of_the_newest_run(
    under_way: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, folder in (("old", finished), ("new", under_way)):
        when = (datetime.now(UTC) - timedelta(minutes=1)).isoformat()
        Runs(tmp_path).add(Run(name, 2**63 + 1, "s", "c", "b", str(folder), when))
    assert server.cli.main(["study", "status", "--folder", str(tmp_path), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["run"], told["flower"], told["state"]) == ("new", str(2**63 + 1), "running")
    assert server.cli.main(["study", "status", "old", "--folder", str(tmp_path)]) == 0
    assert "finished" in capsys.readouterr().out
    assert server.cli.main(["study", "status", "--folder", str(tmp_path / "nowhere")]) == 2


def test_signs_of_life_survive_a_full_disk_and_bytes_a_restart(tmp_path: Path) -> None:
    file = tmp_path / "status.json"
    first = Pulse(file)
    first.sent["leeds"] = 5
    first.ended(RuntimeError("killed"))
    assert json.loads(file.read_text())["why"] == "killed"
    assert Pulse(file).sent == {"leeds": 5}
    file.write_text("{")
    assert Pulse(file).sent == {}
    Pulse(tmp_path / "no" / "folder" / "status.json").doing("something")


def test_what_is_spent_grows_to_the_guarantee(tmp_path: Path) -> None:
    from studies import tiny_study

    study = tiny_study(privacy="record", privacy__epsilon=4)
    content = json.loads(study.to_json())
    whole = {phase.name: phase.rounds for phase in study.phases}
    none, some, all_ = (spent(content, done) for done in ({}, {"statistics": 2}, whole))
    assert some["epsilon"] > 0
    assert none["epsilon"] <= some["epsilon"] < all_["epsilon"]
    assert all_["epsilon"] <= 4.0 + 1e-6
    assert all_["epsilon"] == pytest.approx(study.guarantee["epsilon"], rel=0.02)
    assert all_["unit"] == "record"
    assert math.isfinite(all_["delta"])


def test_a_study_whose_price_cannot_be_told_says_so() -> None:
    assert "why" in spent({"guarantee": {}}, {})


def test_a_list_of_runs_that_is_damaged_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "runs.json").write_text('[{"name": 3}]')
    with pytest.raises(PM1Error, match=r"runs\.json"):
        Runs(tmp_path).all()
