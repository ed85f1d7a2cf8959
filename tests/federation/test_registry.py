"""The registry names the first broken link, releases only what passes the gates, and lets others start from it."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lineages import AREAS, Run, tensors, whole_run

import server.cli
from pm1_core import atomic
from pm1_core.checkpoint import Checkpoint, CheckpointFolder
from pm1_core.errors import BoundError, CheckpointError, InputError
from pm1_core.gates import Gates
from pm1_core.signing import Signer, Trust
from server.differences import compare
from server.origins import require_origin, start_from
from server.registry import KEY, Registry
from server.releases import Release, ReleaseFolder

WORSE = {**AREAS, "diabetes.all": {"auc": 0.75, "cases": 120.0, "controls": 900.0}}


def _promote(run: Run, name: str = "latest") -> Release:
    registry = Registry(run.folder)
    checkpoint = registry.find(name)
    return registry.promote(checkpoint, run.study.gates, run.signer, "A. Example", "end of the study")[0]


def _command(*arguments: object) -> int:
    return server.cli.main(["checkpoints", *map(str, arguments)])


def _later(run: Run, areas: Any = AREAS) -> Checkpoint:
    """The last phase once more: another checkpoint with figures."""
    number = (run.checkpoints.sequences() or [0])[-1]
    return run.save("fusion", 2, tensors("fusion", number + 1.0), areas=areas)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return whole_run(tmp_path / "first")


# ---- names ------------------------------------------------------------------------------------------------------


def test_checkpoints_are_found_by_number_hash_and_role(run: Run) -> None:
    registry = Registry(run.folder)
    third = run.checkpoints.load(3)
    assert registry.find("3") == registry.find(third.hash) == registry.find(third.hash[:8]) == third
    assert registry.find().sequence == 5
    _promote(run)
    _later(run)
    assert registry.find("released").sequence == 5
    assert registry.find("latest").sequence == 6


@pytest.mark.parametrize("name", ["9", "0", "zz", "feed" * 16, "ab", "origin", "released", ""])
def test_a_name_of_nothing_is_refused(name: str, run: Run) -> None:
    with pytest.raises(InputError):
        Registry(run.folder).find(name)


# ---- verify -----------------------------------------------------------------------------------------------------


def test_verify_says_how_many_and_who_signed(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    release = _promote(run)
    assert _command("verify", run.folder) == 0
    printed = capsys.readouterr().out
    assert "5 checkpoints: lineage whole" in printed
    assert f"1 released, the last {release.hash}" in printed
    assert f"5 signed by {run.signer.fingerprint}" in printed
    assert "checked with the run's own public key" in printed
    assert _command("verify", run.folder, "--json", "--key", run.folder / f"{KEY}.pub") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["checkpoints"] == 5
    assert found["signers"] == {run.signer.fingerprint: 5}
    assert found["signatures_checked"] is True


def test_without_a_key_verify_says_that_nothing_was_checked(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(run.folder / "keys")
    assert _command("verify", run.folder) == 0
    assert "signatures not checked" in capsys.readouterr().out


def _flip_a_byte(run: Run) -> None:
    shard = run.checkpoints.objects.path(run.checkpoints.load(2).parts["fundus"][0])
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(bytes(content))


def _edit(run: Run) -> None:
    manifest = run.folder / "checkpoints/000002.json"
    manifest.write_text(manifest.read_text().replace("300.0", "900.0"))


def _edit_and_hash(run: Run) -> None:
    edited = replace(run.checkpoints.load(2), sites={"leeds": 900.0})
    (run.folder / "checkpoints/000002.json").write_text(edited.to_json())


def _edit_what_was_measured(run: Run) -> None:
    edited = replace(run.checkpoints.load(2), measured={"seconds": 1.0})
    (run.folder / "checkpoints/000002.json").write_text(edited.to_json())


def _sign_again(run: Run) -> None:
    """A stranger writes the whole lineage anew, each link right."""
    stranger = Signer.create(run.folder.parent / "stranger.pem")
    parent = ""
    for sequence in run.checkpoints.sequences():
        made = replace(run.checkpoints.load(sequence), parent=parent).signed(stranger)
        (run.folder / f"checkpoints/{sequence:06d}.json").write_text(made.to_json())
        parent = made.hash


def _unsign(run: Run) -> None:
    made = replace(run.checkpoints.load(5), signer="", signature="")
    (run.folder / "checkpoints/000005.json").write_text(made.to_json())


def _lose_an_object(run: Run) -> None:
    run.checkpoints.objects.path(run.checkpoints.load(2).parts["fundus"][0]).unlink()


def _lose_a_manifest(run: Run) -> None:
    (run.folder / "checkpoints/000002.json").unlink()


def _lose_a_release(run: Run) -> None:
    (run.folder / "checkpoints/releases/000001.json").unlink()


def _edit_a_release(run: Run) -> None:
    file = run.folder / "checkpoints/releases/000001.json"
    file.write_text(file.read_text().replace("end of the study", "because"))


def _edit_and_hash_a_release(run: Run) -> None:
    releases = ReleaseFolder(run.folder / "checkpoints/releases")
    (releases.folder / "000002.json").write_text(replace(releases.all()[1], by="Nobody").to_json())


def _swap_releases(run: Run) -> None:
    folder = run.folder / "checkpoints/releases"
    shutil.copy(folder / "000001.json", folder / "000002.json")


def _cut_the_end_off(run: Run) -> None:
    (run.folder / "checkpoints/000006.json").unlink()


@pytest.mark.parametrize(
    ("damage", "where", "sentence"),
    [
        (_flip_a_byte, ".safetensors", "the bytes do not match the name"),
        (_edit, "000002.json", "its hash does not match its content"),
        (_edit_and_hash, "000002.json", "its signature is not the coordinator's"),
        (_edit_what_was_measured, "000002.json", "its signature is not the coordinator's"),
        (_sign_again, "000001.json", "its signature is not the coordinator's"),
        (_unsign, "000005.json", "its signature is not the coordinator's"),
        (_lose_an_object, ".safetensors", "found no such object"),
        (_lose_a_manifest, "000002.json", "found no such checkpoint"),
        (_lose_a_release, "releases/000001.json", "found no such release"),
        (_edit_a_release, "releases/000001.json", "its hash does not match its content"),
        (_edit_and_hash_a_release, "releases/000002.json", "its signature is not the coordinator's"),
        (_swap_releases, "releases/000002.json", "the chain of releases is broken"),
        (_cut_the_end_off, "releases/000002.json", "which is not number 6"),
    ],
)
def test_verify_names_the_first_broken_link(
    damage: Callable[[Run], None], where: str, sentence: str, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    _promote(run)
    _later(run)
    _promote(run)
    damage(run)
    assert _command("verify", run.folder) == 3
    printed = capsys.readouterr().err
    assert sentence in printed
    assert where in printed
    assert len(printed.strip().splitlines()) == 1


def test_a_cut_off_end_is_seen_by_whoever_knows_a_hash(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    first = _promote(run)
    _later(run)
    second = _promote(run)
    assert _command("verify", run.folder, "--expect", second.hash) == 0
    (run.folder / "checkpoints/releases/000002.json").unlink()
    assert _command("verify", run.folder, "--expect", first.hash[:12]) == 0
    assert _command("verify", run.folder, "--expect", second.hash) == 3
    assert "its end is cut off" in capsys.readouterr().err


# ---- promote ----------------------------------------------------------------------------------------------------


def test_a_release_records_who_why_and_the_figures_seen(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    _command("promote", run.folder, "--by", "A. Example", "--because", "end of the study")
    printed = capsys.readouterr().out
    assert "is release 1" in printed
    assert "diabetes.sex=F, the lowest of 2 groups" in printed
    (release,) = ReleaseFolder(run.folder / "checkpoints/releases").all(run.trust)
    assert (release.by, release.because, release.sequence) == ("A. Example", "end of the study", 5)
    assert release.checkpoint == run.checkpoints.load(5).hash
    assert release.gates["max_auc_fall"] == 0.02
    assert [figure["gate"] for figure in release.figures] == [
        "max_auc_fall", "min_group_auc", "min_sites", "min_people",
    ]  # fmt: skip
    _command("list", run.folder)
    stages = [line.split()[4:6] for line in capsys.readouterr().out.splitlines()[1:]]
    assert stages[4] == ["release", "1"]
    assert stages[1][0] == "candidate"


def test_releases_are_linked(run: Run) -> None:
    first = _promote(run)
    _later(run)
    second = _promote(run)
    assert (first.parent, second.parent, second.number) == ("", first.hash, 2)


def test_a_gate_that_fails_leaves_a_candidate(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    _promote(run)
    _later(run, WORSE)
    assert _command("promote", run.folder, "--by", "A", "--because", "B") == 1
    printed = capsys.readouterr().err
    assert "checkpoint 6 stays a candidate" in printed
    assert "gate max_auc_fall = 0.02 fails with 0.05 (diabetes.all: 0.8000 -> 0.7500)" in printed
    assert len(Registry(run.folder).releases.all()) == 1


def test_every_gate_that_fails_or_cannot_be_computed_is_named(run: Run) -> None:
    _later(run, {})
    with pytest.raises(BoundError) as refused:
        _promote(run)
    assert "gate max_auc_fall cannot be computed: the checkpoint holds no area" in str(refused.value)
    assert "gate min_group_auc cannot be computed: no group" in str(refused.value)
    assert not (run.folder / "checkpoints/releases").exists()


def test_only_the_end_of_a_phase_can_be_released_unless_there_is_no_gate(tmp_path: Path, run: Run) -> None:
    with pytest.raises(InputError, match="it is round 1 of 2 of phase 'fusion'"):
        _promote(run, "4")
    free = whole_run(
        tmp_path / "free", Gates(max_auc_fall=None, min_group_auc=None, min_sites=None, min_people=None)
    )
    assert _promote(free, "4").figures == []


def test_gates_cannot_be_moved_after_the_figures_are_seen(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    _promote(run)
    _later(run, WORSE)
    easier = replace(run.study, gates=Gates(max_auc_fall=0.5))
    (run.folder / "study.json").write_text(easier.to_json())
    assert _command("promote", run.folder, "--by", "A", "--because", "B") == 3
    assert "give the study as it was when the run began" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--by", " ", "--because", "B"], "--by: found nothing"),
        (["--by", "A", "--because", ""], "--because: found nothing"),
        (["--by", "A", "--because", "B", "--key", "/nonexistent.pem"], "/nonexistent.pem"),
        (["--by", "A", "--because", "B", "--study", "/nonexistent.json"], "give the resolved study"),
        (["77", "--by", "A", "--because", "B"], "found no such checkpoint"),
    ],
)
def test_what_is_missing_for_a_release_is_said(
    arguments: list[str], sentence: str, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _command("promote", run.folder, *arguments) == 2
    assert sentence in capsys.readouterr().err


def test_who_and_why_have_to_be_given(run: Run) -> None:
    with pytest.raises(SystemExit):
        _command("promote", run.folder, "--by", "A")


def test_a_stranger_can_release_nothing(run: Run) -> None:
    registry = Registry(run.folder)
    stranger = Signer.create(run.folder.parent / "stranger.pem")
    with pytest.raises(CheckpointError, match="its signature is not the coordinator's"):
        registry.promote(registry.find(), run.study.gates, stranger, "A", "B")


def test_a_checkpoint_is_released_once_and_a_damaged_one_never(run: Run) -> None:
    _promote(run)
    with pytest.raises(InputError, match="is this checkpoint already"):
        _promote(run)
    later = _later(run)
    run.checkpoints.objects.path(later.parts["fusion"][0]).write_bytes(b"")
    with pytest.raises(CheckpointError, match="the bytes do not match the name"):
        _promote(run)


def test_a_record_is_never_overwritten(run: Run) -> None:
    release = _promote(run)
    with pytest.raises(CheckpointError, match="at the same time"):
        Registry(run.folder).releases.add(replace(release, by="Somebody else").signed(run.signer))
    assert Registry(run.folder).releases.all() == [release]
    assert [file.name for file in (run.folder / "checkpoints/releases").iterdir()] == ["000001.json"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
def test_a_disk_that_takes_nothing_leaves_no_release_and_says_so(
    code: int, run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", refuse)
        assert _command("promote", run.folder, "--by", "A", "--because", "B") == 2
    printed = capsys.readouterr().err
    assert "the disk is full" in printed or "the file system is read-only" in printed
    assert "checkpoints/releases" in printed
    assert list((run.folder / "checkpoints/releases").iterdir()) == []
    assert _promote(run).number == 1


# ---- compare ----------------------------------------------------------------------------------------------------


def test_compare_puts_figures_side_by_side_and_measures_tensors(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    _later(run, WORSE)
    found = compare(run.checkpoints, run.checkpoints.load(4), run.checkpoints.load(5))
    distances = {part.part: part.distance for part in found.parts}
    assert distances == {"fundus": 0.0, "fusion": pytest.approx(1.0)}  # all ones, then all twos
    assert _command("compare", run.folder, 5, 6, "--json") == 0
    seen = json.loads(capsys.readouterr().out)
    fall = next(area for area in seen["areas"] if area["name"] == "diabetes.all")
    assert fall["difference"] == pytest.approx(-0.05)
    assert _command("compare", run.folder, 2, 5) == 0
    assert "only in 5" in capsys.readouterr().out


def test_tensors_that_do_not_fit_are_counted_not_compared(run: Run) -> None:
    changed = {"fusion.weight": np.zeros((9, 9), np.float32), "fusion.bias": np.zeros(3, np.float32)}
    run.save("fusion", 2, changed)
    found = compare(run.checkpoints, run.checkpoints.load(5), run.checkpoints.load(6))
    (fusion,) = (part for part in found.parts if part.part == "fusion")
    assert (fusion.tensors, fusion.unmatched, fusion.distance) == (1, ("fusion.weight",), 1.0)
    back = compare(run.checkpoints, run.checkpoints.load(6), run.checkpoints.load(5))
    assert next(part for part in back.parts if part.part == "fusion").distance is None


# ---- starting from a release ------------------------------------------------------------------------------------


def _second(tmp_path: Path) -> CheckpointFolder:
    return CheckpointFolder(tmp_path / "second/checkpoints", Signer.create(tmp_path / "second" / KEY))


def test_a_run_starts_from_what_another_released(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _promote(run)
    _later(run)  # a candidate beyond it
    second = _second(tmp_path)
    origin = start_from(run.folder, second, run.trust)
    assert origin == run.checkpoints.load(5)
    assert start_from(run.folder, second, run.trust) == origin
    require_origin(second, origin.hash)
    root = second.save(None, tensors("fusion", 9), study="t", config="d", phase="fusion", round=0, rounds=1)
    assert (root.parent, set(root.parts)) == (origin.hash, {"fundus", "fusion"})
    linked = second.objects.path(origin.parts["fundus"][0])
    assert linked.stat().st_ino == run.checkpoints.objects.path(origin.parts["fundus"][0]).stat().st_ino
    assert _command("verify", tmp_path / "second") == 0
    assert f"starts from {origin.hash[:12]} of hearts" in capsys.readouterr().out
    own = tmp_path / "second" / f"{KEY}.pub"
    assert _command("verify", tmp_path / "second", "--key", own) == 3
    assert "origin.json: its signature" in capsys.readouterr().err
    assert _command("verify", tmp_path / "second", "--key", own, "--key", run.folder / f"{KEY}.pub") == 0


def test_starting_from_another_run_is_a_command(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    release = _promote(run)
    key = run.folder / f"{KEY}.pub"
    assert _command("start", tmp_path / "second", "--origin", run.folder, "--key", key) == 0
    assert f"start_from={release.checkpoint}" in capsys.readouterr().out
    origin = CheckpointFolder(tmp_path / "second/checkpoints").origin()
    assert origin is not None
    assert origin.hash == release.checkpoint
    assert _command("start", tmp_path / "third", "--origin", tmp_path, "--key", key) == 3
    assert "found no checkpoint" in capsys.readouterr().err


def _origin_edited(folder: Path) -> None:
    file = folder / "origin.json"
    file.write_text(file.read_text().replace("hearts", "brains"))


def _origin_gone(folder: Path) -> None:
    (folder / "origin.json").unlink()


def _origin_resigned(folder: Path) -> None:
    stranger = Signer.create(folder / "stranger.pem")
    origin = Checkpoint.from_json((folder / "origin.json").read_text()).signed(stranger)
    (folder / "origin.json").write_text(origin.to_json())


@pytest.mark.parametrize(
    ("damage", "where", "sentence"),
    [
        (_origin_edited, "origin.json", "its hash does not match its content"),
        (_origin_gone, "000001.json", "its parent is"),
        (_origin_resigned, "origin.json", "its signature is not the coordinator's"),
    ],
)
def test_an_origin_that_was_touched_is_named(
    damage: Callable[[Path], None], where: str, sentence: str, run: Run, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    _promote(run)
    second = _second(tmp_path)
    start_from(run.folder, second, run.trust)
    second.save(None, tensors("fusion", 9), study="t", config="d", phase="fusion", round=0, rounds=1)
    damage(second.folder)
    assert _command("verify", tmp_path / "second") == 3
    printed = capsys.readouterr().err
    assert sentence in printed
    assert where in printed


def test_nothing_but_a_release_that_is_trusted_is_taken_over(run: Run, tmp_path: Path) -> None:
    second = _second(tmp_path)
    with pytest.raises(InputError, match="nothing in it is released"):
        start_from(run.folder, second, run.trust)
    _promote(run)
    with pytest.raises(InputError, match="found no release of"):
        start_from(run.folder, second, run.trust, run.checkpoints.load(4).hash)
    Signer.create(tmp_path / "stranger.pem")
    with pytest.raises(CheckpointError, match="its signature is not the coordinator's"):
        start_from(run.folder, second, Trust.load(tmp_path / "stranger.pem.pub"))
    assert not second.folder.exists()
    run.checkpoints.objects.path(run.checkpoints.load(5).parts["fusion"][0]).unlink()
    with pytest.raises(CheckpointError, match="found no such object"):
        start_from(run.folder, second, run.trust)
    assert second.origin() is None


def test_a_run_that_began_otherwise_does_not_change_its_origin(run: Run, tmp_path: Path) -> None:
    _promote(run)
    other = whole_run(tmp_path / "other")
    with pytest.raises(CheckpointError, match="it holds checkpoints already"):
        start_from(run.folder, other.checkpoints, run.trust)
    second = _second(tmp_path)
    start_from(run.folder, second, run.trust)
    with pytest.raises(CheckpointError, match="it began from"):
        start_from(run.folder, second, run.trust, "0" * 64)
    with pytest.raises(CheckpointError, match="the study starts from nothing"):
        require_origin(second, "")


def test_another_file_system_gets_copies_and_a_full_disk_leaves_a_run_that_has_not_begun(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = _promote(run)
    second = _second(tmp_path)

    def no_links(*_: object) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "link", no_links)
    with monkeypatch.context() as broken:
        broken.setattr(atomic, "write_text", full)
        with pytest.raises(OSError, match="No space"):
            start_from(run.folder, second, run.trust)
    assert second.origin() is None
    with monkeypatch.context() as broken:
        broken.setattr(atomic, "write_bytes", full)
        with pytest.raises(OSError, match="No space"):
            start_from(run.folder, CheckpointFolder(tmp_path / "third"), run.trust)
    assert not [file for file in (tmp_path / "third").rglob("*") if file.is_file()]
    assert start_from(run.folder, second, run.trust).hash == release.checkpoint
    digest = run.checkpoints.load(5).parts["fusion"][0]
    assert second.objects.path(digest).read_bytes() == run.checkpoints.objects.path(digest).read_bytes()


# ---- keys and sentences -----------------------------------------------------------------------------------------


def test_a_key_pair_is_made_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "keys/coordinator.pem"
    monkeypatch.setenv("PM1_KEY_PASSPHRASE", "not a secret")
    assert server.cli.main(["key", str(file)]) == 0
    assert Signer.load(file).fingerprint in capsys.readouterr().out
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.with_name("coordinator.pem.pub").stat().st_mode & 0o777 == 0o644
    assert server.cli.main(["key", str(file)]) == 2
    monkeypatch.delenv("PM1_KEY_PASSPHRASE")
    with pytest.raises(InputError, match="PM1_KEY_PASSPHRASE"):
        Signer.load(file)


def test_everything_a_manifest_says_is_shown(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    _promote(run)
    assert _command("show", run.folder) == 0
    printed = capsys.readouterr().out
    for piece in ("release 1", "by A. Example", "leeds", "diabetes.sex=F", "validation.loss", "seconds"):
        assert piece in printed
    assert _command("show", run.folder, "2", "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["sequence"], shown["released"], shown["phase"]) == (2, None, "fundus")
    assert _command("list", run.folder, "--json") == 0
    assert len(json.loads(capsys.readouterr().out)) == 5
