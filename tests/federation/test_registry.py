"""The registry finds checkpoints by name, names the first broken link, compares and shows."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from lineages import WORSE, Run, command, later, promote, whole_run

import server.cli
from pm1_core.errors import InputError
from pm1_core.signing import Signer
from server.differences import compare
from server.registry import KEY, Registry
from server.releases import ReleaseFolder


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return whole_run(tmp_path / "first")


def test_checkpoints_are_found_by_number_hash_and_role(run: Run) -> None:
    registry = Registry(run.folder)
    third = run.checkpoints.load(3)
    assert registry.find("3") == registry.find(third.hash) == registry.find(third.hash[:8]) == third
    assert registry.find().sequence == 5
    promote(run)
    later(run)
    assert registry.find("released").sequence == 5
    assert registry.find("latest").sequence == 6


@pytest.mark.parametrize("name", ["9", "0", "zz", "feed" * 16, "ab", "origin", "released", ""])
def test_a_name_of_nothing_is_refused(name: str, run: Run) -> None:
    with pytest.raises(InputError):
        Registry(run.folder).find(name)


def test_verify_says_how_many_and_who_signed(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    release = promote(run)
    assert command("verify", run.folder) == 0
    printed = capsys.readouterr().out
    assert "5 checkpoints: lineage whole" in printed
    assert f"1 released, the last {release.hash}" in printed
    assert f"5 signed by {run.signer.fingerprint}" in printed
    assert "checked with the run's own public key" in printed
    assert command("verify", run.folder, "--json", "--key", run.folder / f"{KEY}.pub") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["checkpoints"] == 5
    assert found["signers"] == {run.signer.fingerprint: 5}
    assert found["signatures_checked"] is True


def test_without_a_key_verify_says_that_nothing_was_checked(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(run.folder / "keys")
    assert command("verify", run.folder) == 0
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
    promote(run)
    later(run)
    promote(run)
    damage(run)
    assert command("verify", run.folder) == 3
    printed = capsys.readouterr().err
    assert sentence in printed
    assert where in printed
    assert len(printed.strip().splitlines()) == 1


def test_a_cut_off_end_is_seen_by_whoever_knows_a_hash(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    first = promote(run)
    later(run)
    second = promote(run)
    assert command("verify", run.folder, "--expect", second.hash) == 0
    (run.folder / "checkpoints/releases/000002.json").unlink()
    assert command("verify", run.folder, "--expect", first.hash[:12]) == 0
    assert command("verify", run.folder, "--expect", second.hash) == 3
    assert "its end is cut off" in capsys.readouterr().err


def test_compare_puts_figures_side_by_side_and_measures_tensors(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    later(run, WORSE)
    found = compare(run.checkpoints, run.checkpoints.load(4), run.checkpoints.load(5))
    distances = {part.part: part.distance for part in found.parts}
    assert distances == {"fundus": 0.0, "fusion": pytest.approx(1.0)}  # all ones, then all twos
    assert command("compare", run.folder, 5, 6, "--json") == 0
    seen = json.loads(capsys.readouterr().out)
    fall = next(area for area in seen["areas"] if area["name"] == "diabetes.all")
    assert fall["difference"] == pytest.approx(-0.05)
    assert command("compare", run.folder, 2, 5) == 0
    assert "only in 5" in capsys.readouterr().out


def test_tensors_that_do_not_fit_are_counted_not_compared(run: Run) -> None:
    changed = {"fusion.weight": np.zeros((9, 9), np.float32), "fusion.bias": np.zeros(3, np.float32)}
    run.save("fusion", 2, changed)
    found = compare(run.checkpoints, run.checkpoints.load(5), run.checkpoints.load(6))
    (fusion,) = (part for part in found.parts if part.part == "fusion")
    assert (fusion.tensors, fusion.unmatched, fusion.distance) == (1, ("fusion.weight",), 1.0)
    back = compare(run.checkpoints, run.checkpoints.load(6), run.checkpoints.load(5))
    assert next(part for part in back.parts if part.part == "fusion").distance is None


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
    promote(run)
    assert command("show", run.folder) == 0
    printed = capsys.readouterr().out
    for piece in ("release 1", "by A. Example", "leeds", "diabetes.sex=F", "validation.loss", "seconds"):
        assert piece in printed
    assert command("show", run.folder, "2", "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["sequence"], shown["released"], shown["phase"]) == (2, None, "fundus")
    assert command("list", run.folder, "--json") == 0
    assert len(json.loads(capsys.readouterr().out)) == 5
