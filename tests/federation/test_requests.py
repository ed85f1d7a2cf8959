"""A site does nothing for who is not its coordinator, and nothing that its own list does not allow."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from mortal_work import fresh
from short import run, short_study
from studies import run_key
from unruly import UnrulyGrid

from pm1_core.checkpoint import Checkpoint, CheckpointFolder
from pm1_core.objects import packed
from pm1_core.signing import Signer
from pm1_core.training.cached import PHOTOGRAPH_CACHES, TOKEN_CACHES
from strategies import records

Asked = tuple[UnrulyGrid, Path, Checkpoint]


@pytest.fixture
def asked(stores: dict[str, Path], begun: Path, tmp_path: Path) -> Asked:
    """A grid of one site in the middle of a study, its folder, and the checkpoint in force."""
    folder = fresh(begun, tmp_path / "run")
    latest = CheckpointFolder(folder / "checkpoints").latest()
    assert latest
    return UnrulyGrid({"east": stores["east"]}, folder), folder / "sites" / "east", latest


def send(grid: UnrulyGrid, kind: str, **facts: Any) -> Message:
    """What the site answers to a message with these facts."""
    content = RecordDict({"order": ConfigRecord(facts)})
    return deliver(grid, kind, content)


def deliver(grid: UnrulyGrid, kind: str, content: RecordDict) -> Message:
    message = super(UnrulyGrid, grid).create_message(content, kind, 2, "test", ttl=60.0)
    return grid._answer(message)


def order(round_number: int = 2, **changes: Any) -> str:
    study = short_study()
    made = study.order(study.phases[1], round_number)
    return json.dumps({**json.loads(made.to_json()), **changes})


def listing(folder: Path) -> dict[str, bytes]:
    """Everything on the site's disk but its logs."""
    files = [file for file in folder.rglob("*") if file.is_file()]
    return {
        str(file): file.read_bytes() for file in files if file.name not in ("failures.log", "outbox.jsonl")
    }


def refused(reply: Message) -> str:
    assert reply.has_error()
    return str(reply.error.reason)


def stranger(tmp_path: Path) -> Signer:
    return Signer.at(tmp_path / "stranger.pem")


@pytest.mark.parametrize("kind", ["query.ready", "query.objects", "train", "evaluate"])
@pytest.mark.parametrize(
    ("forge", "why"),
    [
        (lambda c, key: replace(c, signature="", signer="").to_json(), "signature is not the coordinator's"),
        (lambda c, key: c.signed(key).to_json(), "signature is not the coordinator's"),
        (lambda c, key: replace(c, sequence=99).to_json(), "signature is not the coordinator's"),
        (
            lambda c, key: replace(c, measured={"seconds": 1e9}).to_json(),
            "signature is not the coordinator's",
        ),
        (lambda c, key: c.to_json().replace('"phenotype"', '"fusion"', 1), "hash does not match"),
        (lambda c, key: c.to_json()[:-40], "cannot be read"),
        (lambda c, key: "[]", "cannot be read"),
        (lambda c, key: "null", "cannot be read"),
        (lambda c, key: replace(c, signature="zz").to_json(), "signature is not the coordinator's"),
    ],
)
def test_a_checkpoint_that_the_coordinator_did_not_sign_is_refused_and_nothing_is_written(
    kind: str, forge: Callable[[Checkpoint, Signer], str], why: str, asked: Asked, tmp_path: Path
) -> None:
    grid, folder, latest = asked
    before = listing(folder)
    reply = send(grid, kind, order=order(), checkpoint=forge(latest, stranger(tmp_path)))
    assert why in refused(reply)
    assert listing(folder) == before


def test_objects_that_the_signed_checkpoint_does_not_name_are_refused(asked: Asked) -> None:
    grid, folder, latest = asked
    before = listing(folder)
    digest, data = packed({"phenotype.weight": np.zeros(3, np.float32)})
    facts = {"order": order(), "checkpoint": latest.to_json()}
    reply = deliver(grid, "query.objects", records.pack("order", facts, [(digest, data)]))
    assert "the signed checkpoint does not name it" in refused(reply)
    named = next(iter(latest.parts.values()))[0]
    reply = deliver(grid, "query.objects", records.pack("order", facts, [(named, data)]))
    assert "do not match the name" in refused(reply)
    assert listing(folder) == before


@pytest.mark.parametrize("kind", ["train", "evaluate"])
@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "found no JSON"),
        ("{}", "is missing"),
        ("[1]", "mapping"),
        ("null", "mapping"),
        ("[" * 100_000, "order"),
        (order(round=9), "round"),
        (order(task="tabular"), "not on the list of allowed tasks"),
        (order(task="os.system"), "task"),
        (order(task=["phenotype"]), "task"),
        (order(encoding="zip"), "encoding"),
        (order(method={"proximal": "much"}), "proximal"),
        (order(method=[]), "method"),
        (order(parameters=[]), "parameters"),
        (order(round="2"), "round"),
        (order(rounds="2"), "rounds"),
        (order(seed="x"), "seed"),
        (order(phase=["phenotype"]), "phase"),
        (order(more=1), "more"),
    ],
)
def test_an_order_that_makes_no_sense_is_refused_with_a_sentence(
    kind: str, text: str, why: str, asked: Asked
) -> None:
    grid, folder, latest = asked
    before = listing(folder)
    store = CheckpointFolder(folder.parents[1] / "checkpoints").objects
    objects = [(digest, store.read(digest)) for digests in latest.parts.values() for digest in digests]
    facts = {"order": text, "checkpoint": latest.to_json()}
    reply = deliver(grid, kind, records.pack("order", facts, objects))
    assert why in refused(reply)
    assert "details stay at the site" not in refused(reply)
    assert listing(folder) == before


@pytest.mark.parametrize(
    "facts",
    [{}, {"order": "x"}, {"checkpoint": 7}, {"checkpoint": [1.5]}, {"checkpoint": "{}", "order": 3}],
)
@pytest.mark.parametrize("kind", ["query.ready", "query.objects", "query.release", "train", "evaluate"])
def test_a_message_without_what_it_needs_is_refused_with_a_sentence(
    kind: str, facts: dict[str, Any], asked: Asked
) -> None:
    grid, folder, _ = asked
    before = listing(folder)
    assert "details stay at the site" not in refused(send(grid, kind, **facts))
    assert "is missing" in refused(deliver(grid, kind, RecordDict()))
    assert listing(folder) == before


@pytest.mark.parametrize("name", ["../../../etc/passwd", "x", "", "0" * 64])
def test_only_objects_of_a_release_are_handed_out(name: str, asked: Asked) -> None:
    grid, _, latest = asked
    facts = {"order": order(), "checkpoint": latest.to_json()}
    reply = send(grid, "query.release", **facts, request="0" * 64, object=name)
    assert "no release of this site has it" in refused(reply)
    reply = send(grid, "query.release", **facts, request=f"../../{name}", object=name)
    assert "no release of this site has it" in refused(reply)


def test_the_key_of_the_run_is_the_one_that_sites_trust(begun: Path, asked: Asked) -> None:
    _, _, latest = asked
    assert latest.signer == Signer.load(run_key(begun)).fingerprint


def test_caches_go_when_the_study_is_over_and_nothing_else_does(asked: Asked) -> None:
    grid, folder, latest = asked
    (study,) = (folder / "studies").iterdir()
    caches = [study / "memory" / name / "made.npy" for name in (TOKEN_CACHES, PHOTOGRAPH_CACHES)]
    mine = study / "memory/personal.phenotype/000001.safetensors"
    for file in (*caches, mine):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    facts = {"order": order(), "checkpoint": latest.to_json()}
    assert not send(grid, "query.objects", **facts).has_error()
    assert all(file.exists() for file in caches)
    assert not send(grid, "query.objects", **facts, over=1).has_error()
    assert not any(file.exists() for file in caches)
    assert mine.exists()


class _Listening(UnrulyGrid):
    """Counts requests that say that the study is over."""

    told = 0

    def create_message(self, content: RecordDict, message_type: str, *rest: Any, **options: Any) -> Message:
        self.told += int(records.facts_of(content, "order").get("over", 0))  # type: ignore[arg-type]
        return super().create_message(content, message_type, *rest, **options)


def test_every_site_hears_that_the_study_is_over(stores: dict[str, Path], tmp_path: Path) -> None:
    """Also those that have the whole model already: gone on with, a study that had ended says it again."""
    for _ in range(2):
        grid = _Listening(stores, tmp_path)
        run(stores, tmp_path, grid=grid)
        assert grid.told == len(stores)
