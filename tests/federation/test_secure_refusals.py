"""What secure aggregation refuses: at the configuration, at a site, and where a coordinator cheats."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import short
import unruly
from flwr.app import Message
from studies import tiny_study
from test_secure_rounds import LAST, run, study
from unruly import UnrulyGrid

from pm1_core import atomic
from pm1_core.checkpoint import CheckpointFolder
from pm1_core.errors import ConfigError, FederationError
from pm1_core.privacy.secure_plan import Plan
from pm1_core.privacy.secure_sum import STAGES
from pm1_core.signing import Signer, public_file

pytestmark = pytest.mark.usefixtures("_impatient")


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ({"strategy": "median"}, "found 'median', which looks at every update by itself"),
        ({"strategy": "trimmed_mean"}, "use a strategy of means"),
        ({"strategy": "krum"}, "found 'krum'"),
        ({"strategy": "bulyan"}, "found 'bulyan'"),
        ({"strategy": "scaffold"}, "control variates have no range"),
        ({"encoding": "int8"}, "found 'int8', with aggregation=secure; use full"),
        ({"norm_limit": 3.0}, "key 'norm_limit': found 3.0.*nobody sees a site's norm"),
        ({"aggregation__bits": 64}, "key 'aggregation.bits': found 64; use 32 or 16"),
        ({"aggregation__range": 0.0}, "key 'aggregation.range'"),
        ({"aggregation__threshold": 1.5}, "key 'aggregation.threshold'"),
        ({"aggregation__mode": "secret"}, "key 'aggregation.mode'.*clear, secure"),
    ],
)
def test_what_cannot_be_had_with_sums_is_refused(override: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        tiny_study(**{"aggregation": "secure", **override})


@pytest.mark.parametrize("strategy", ["fedavg", "fedprox", "fedavgm", "fedadam", "fedyogi", "ditto", "fedbn"])
def test_strategies_of_means_run_on_sums(strategy: str) -> None:
    made = tiny_study(aggregation="secure", strategy=strategy)
    assert made.secure == {"bits": 32, "range": 8.0, "threshold": 0.67}
    assert made.norm_limit == 0
    assert {phase.min_sites for phase in made.phases} == {3}


@pytest.mark.parametrize("strategy", ["fedadam", "fedbn", "ditto"])
def test_their_models_are_those_of_the_clear_study(
    stores: dict[str, Path], tmp_path: Path, strategy: str
) -> None:
    secure = replace(study(), strategy={"name": strategy})
    clear = replace(secure, secure={})
    one, other = (run(stores, tmp_path / name, made) for name, made in (("one", secure), ("other", clear)))
    state, expected = (
        CheckpointFolder(tmp_path / name / "checkpoints").state(checkpoint)
        for name, checkpoint in (("one", one), ("other", other))
    )
    assert set(state) == set(expected)
    for name in expected:
        # Adam divides by the change itself: where that is below tau, steps of the words grow by 1 / tau.
        assert abs(state[name] - expected[name]).max() < 2e-5, name
    assert dict(one.metrics["all"]) == pytest.approx(dict(other.metrics["all"]), abs=1e-3)


def test_two_sites_are_too_few_and_nothing_is_sent(stores: dict[str, Path], tmp_path: Path) -> None:
    two = {site: stores[site] for site in ("south", "east")}
    grid = UnrulyGrid(two, tmp_path, secure=True)
    with pytest.raises(FederationError, match=r"phase 'statistics': 2 of at least 3 sites"):
        run(two, tmp_path, replace(study(), gather=0.3), grid)
    assert {kind for _, kind, _, _ in grid.asked} == {"query.ready"}


def test_a_site_without_a_key_does_not_take_part(stores: dict[str, Path], tmp_path: Path) -> None:
    grid = UnrulyGrid(stores, tmp_path, secure=False)
    with pytest.raises(FederationError, match="found no public keys"):
        run(stores, tmp_path, replace(study(), gather=0.3), grid)


def test_a_site_with_peers_answers_nothing_in_the_clear(stores: dict[str, Path], tmp_path: Path) -> None:
    clear = replace(study(), secure={}, gather=0.3)
    grid = UnrulyGrid(stores, tmp_path, secure=True)
    with pytest.raises(FederationError, match=r"in the clear, and this site has peers.*unsecured=true"):
        run(stores, tmp_path, clear, grid)
    allowing = UnrulyGrid(stores, tmp_path, secure=True)
    for context in allowing._contexts.values():
        context.node_config["unsecured"] = True
    assert run(stores, tmp_path, clear, allowing).round == 2


def test_a_study_that_began_with_sums_gets_nothing_in_the_clear(
    stores: dict[str, Path], tmp_path: Path
) -> None:
    """The coordinator signs what it likes: the same checkpoint with an order that asks for the update itself."""
    refused: list[str] = []

    def downgraded(grid: UnrulyGrid, message: Message) -> list[Message]:
        facts = message.content.config_records["order"]
        honest = str(facts["order"])
        facts["order"] = json.dumps({**json.loads(honest), "secure": {}}, sort_keys=True)
        refused.append(grid._answer(message).error.reason)
        facts["order"] = honest
        return [grid.honest(message)]

    grid = UnrulyGrid(stores, tmp_path, {("east", "train", *LAST): downgraded}, secure=True)
    for context in grid._contexts.values():
        context.node_config["unsecured"] = True
    run(stores, tmp_path, grid=grid)
    assert len(refused) == 1
    assert "in the clear, and this study began with secure aggregation" in refused[0]


def test_a_coordinator_that_puts_in_its_own_key_is_caught_and_the_site_is_named(
    stores: dict[str, Path], tmp_path: Path
) -> None:
    other = Signer.create(tmp_path / "other.pem").key.public_key().public_bytes_raw().hex()
    grid = UnrulyGrid(stores, tmp_path, secure=True)
    coordinator = short.coordinator(stores, tmp_path, replace(study(), gather=0.3), grid)
    phase_of = coordinator._phase

    def cheating(desk: Any, phase: Any) -> Any:
        gather = desk.roster.gather

        def gathered(*arguments: Any) -> Any:
            found = gather(*arguments)
            for member in found:
                if member.participant.site == "west":
                    member.identity = other
            return found

        desk.roster.gather = gathered
        return phase_of(desk, phase)

    coordinator._phase = cheating  # type: ignore[method-assign]
    sentence = r"advertise: secure sum, site 'west': its key is another one.*by telephone"
    with pytest.raises(FederationError, match=sentence), atomic.without_sync():
        coordinator.run()
    assert not [key for key in grid.asked if key[1] == "query.share"]


def _repeated(change: Callable[[dict[str, Any]], None]) -> tuple[Any, list[str]]:
    """A deed: the stage once more with other facts, before the honest one; and what the site said to it."""
    said: list[str] = []

    def deed(grid: UnrulyGrid, message: Message) -> list[Message]:
        first = grid.honest(message)
        if said:  # of the evaluation
            return [first]
        facts = message.content.config_records["order"]
        kept = dict(facts)
        given = dict(kept)
        change(given)
        for name, value in given.items():
            facts[name] = value
        reply = grid._answer(message)
        said.append(reply.error.reason if reply.has_error() else "answered")
        for name, value in kept.items():
            facts[name] = value
        return [first]

    return deed, said


def _lower(facts: dict[str, Any]) -> None:
    facts["attempt"] = -1


def _higher(facts: dict[str, Any]) -> None:
    facts["attempt"] = 7


def _other_words(facts: dict[str, Any]) -> None:
    facts["train"] = str(facts["train"]).replace("a", "b")
    facts["exact"] = str(facts["exact"]).replace("a", "b")


def _other_plan(facts: dict[str, Any]) -> None:
    plan = json.loads(facts["plan"])
    plan["entries"] = dict(list(plan["entries"].items())[:-1])
    facts["plan"] = json.dumps(plan, sort_keys=True)


def _other_weight(facts: dict[str, Any]) -> None:
    plan = json.loads(facts["plan"])
    plan["weights"]["train"]["south"] *= 2
    facts["plan"] = json.dumps({**plan, "attempt": 5}, sort_keys=True)


@pytest.mark.parametrize(
    ("stage", "change", "sentence"),
    [
        ("share", _lower, "comes after attempt 0"),
        ("reveal", _higher, "attempt 7 was not begun here"),
        ("share", _other_words, "asked a second time, for something else"),
        ("agree", _other_words, "asked a second time, for something else"),
        ("reveal", _other_words, "asked a second time, for something else"),
        ("advertise", _other_plan, "the attempt has another plan here"),
        ("advertise", _other_weight, "the terms are not those of the plan"),
    ],
)
def test_a_site_is_not_led_to_a_second_answer(
    stores: dict[str, Path], tmp_path: Path, stage: str, change: Any, sentence: str
) -> None:
    deed, said = _repeated(change)
    grid = UnrulyGrid(stores, tmp_path, {("south", f"query.{stage}", *LAST): deed}, secure=True)
    run(stores, tmp_path, grid=grid)
    assert said
    assert sentence in said[0]


def test_a_lower_attempt_is_refused(stores: dict[str, Path], tmp_path: Path) -> None:
    """A coordinator that loses its disk in the middle goes on with a number that sites have not seen."""

    def stop(what: str, phase: str, number: int) -> None:
        if (phase, number) == LAST and what == "query.agree":
            raise short.StoppedError

    for _ in range(2):
        with pytest.raises(short.StoppedError):
            run(stores, tmp_path, grid=UnrulyGrid(stores, tmp_path, before=stop, secure=True))
        shutil.rmtree(tmp_path / "spool")
    run(stores, tmp_path)
    (own,) = (tmp_path / "sites/east/studies").iterdir()
    numbers = {int(folder.name) for folder in (own / "sealed/sums").glob("*/[0-9]*")}
    assert numbers == {0, 2}  # of the evaluation and the round before; of the last round


def test_a_stage_is_answered_one_at_a_time(stores: dict[str, Path], tmp_path: Path) -> None:
    """Two lists of survivors at the same instant: the second message is refused, not answered beside the first."""
    said: list[str] = []

    def at_once(grid: UnrulyGrid, message: Message) -> list[Message]:
        with atomic.locked(tmp_path / "sites/east/secure.lock", "wait"):
            said.append(grid._answer(message).error.reason)
        return [grid.honest(message)]

    grid = UnrulyGrid(stores, tmp_path, {("east", "query.agree", *LAST): at_once}, secure=True)
    run(stores, tmp_path, grid=grid)
    assert "another message of a secure sum is being answered here" in said[0]


def test_secrets_at_a_site_are_for_its_owner_alone(stores: dict[str, Path], tmp_path: Path) -> None:
    run(stores, tmp_path)
    members = list((tmp_path / "sites").rglob("*.member"))
    assert members
    for file in members:
        assert file.stat().st_mode & 0o077 == 0
    keys = list((tmp_path / "keys" / "sites").glob("*.pem"))
    assert len(keys) == 3
    assert all(public_file(key).exists() for key in keys)
    for file in (tmp_path / "sites").rglob("plan.json"):
        assert Plan.from_json(file.read_text()).sums


def test_words_that_are_missing_or_of_another_size_are_refused(
    stores: dict[str, Path], tmp_path: Path
) -> None:
    deeds = {("east", "query.input", *LAST): unruly.answers(lambda c: unruly.altered(c, tensors=_short))}
    with pytest.raises(FederationError, match=r"east: masked words of .* found uint32 \(\d+,\); send uint32"):
        run(stores, tmp_path, replace(study(), gather=0.3), UnrulyGrid(stores, tmp_path, deeds, secure=True))


def _short(tensors: dict[str, Any]) -> dict[str, Any]:
    return {name: array[:-1] if array.size > 2 else array for name, array in tensors.items()}


def test_stages_have_their_own_messages() -> None:
    assert STAGES == ("advertise", "share", "input", "agree", "reveal")
