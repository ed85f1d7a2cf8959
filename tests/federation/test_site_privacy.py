"""Site-level privacy in whole rounds: clipped, noised by everybody together, charged once, never noised twice."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import short
import unruly
from mortal_work import fresh
from studies import tiny_study
from test_secure_rounds import LAST, SECURE
from unruly import UnrulyGrid

from client.site_noise import NoisedWords
from pm1_core.checkpoint import Checkpoint, CheckpointFolder
from pm1_core.errors import ConfigError, FederationError, PrivacyError
from pm1_core.objects import ObjectStore, Reader
from pm1_core.privacy.accounting import tightest
from pm1_core.privacy.distributed_noise import SiteNoise, nominal
from pm1_core.privacy.ledger import Ledger
from pm1_core.privacy.opened import Openings
from pm1_core.privacy.secure_plan import Place, Plan
from pm1_core.privacy.terms import SiteTerms, to_order
from server.study import Study
from simulations.workspace import members_of

pytestmark = pytest.mark.usefixtures("_impatient")

DELTA = 1e-5


@cache
def _phenotype() -> Study:
    study = short.short_study(timeout=30.0, gather=2.0, grace=None)
    phases = tuple(replace(phase, min_sites=3) for phase in study.phases if phase.name == "phenotype")
    return replace(study, phases=phases, secure=SECURE)


def private(noise: float, clip: float = 1.0, colluding: int = 1, budget: float = 1000.0) -> Study:
    """Two rounds of phenotypes from given noise; the statistics that they need are zeros and ones."""
    (phase,) = _phenotype().phases
    terms = to_order(SiteTerms(noise, clip, colluding))
    guarantee = {"unit": "site", "budget": budget, "delta": DELTA, "epsilon": budget, "accountant": "rdp"}
    reference = replace(
        short.short_study().phases[0],
        task="reference",
        rounds=1,
        min_sites=3,
        parameters={"kind": "statistics", **_REFERENCE},
        privacy=to_order(SiteTerms(0.0, clip, colluding)),
    )
    return replace(_phenotype(), phases=(reference, replace(phase, privacy=terms)), guarantee=guarantee)


_REFERENCE: dict[str, Any] = {}


@pytest.fixture(autouse=True, scope="module")
def _panel(stores: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> None:
    """A reference panel: every mean 0, every deviation 1."""
    import safetensors.numpy

    from pm1_core.data.store import Store
    from pm1_core.training.tasks.reference import pin_reference
    from pm1_core.training.tasks.statistics import StatisticsTask

    summary = Store.open(stores["south"]).study
    zeros = StatisticsTask({}, summary).initial({}, 0)  # type: ignore[arg-type]
    tensors = {
        name: np.zeros_like(array) if name.endswith("mean") else np.ones_like(array)
        for name, array in zeros.items()
    }
    file = tmp_path_factory.mktemp("panel") / "panel.safetensors"
    safetensors.numpy.save_file(tensors, str(file))
    _REFERENCE.update(pin_reference(file))


def run(
    stores: Mapping[str, Path],
    folder: Path,
    study: Study,
    deeds: Mapping[Any, Any] | None = None,
    before: Any = lambda kind, phase, number: None,
) -> Checkpoint:
    members_of(study, stores, folder, "")  # opens the ledgers
    return short.run(stores, folder, study, UnrulyGrid(stores, folder, deeds, before, secure=True))


def model(folder: Path, sequence: int) -> dict[str, np.ndarray]:
    lineage = CheckpointFolder(folder / "checkpoints")
    state = lineage.state(lineage.load(sequence))
    return {name: np.array(state[name]) for name in state if name.startswith("phenotype.")}


def moved(folder: Path, last: int) -> np.ndarray:
    before, after = model(folder, last - 1), model(folder, last)
    return np.concatenate([(after[name] - before[name]).ravel() for name in sorted(after)]).astype(np.float64)


def charges(folder: Path, site: str = "east") -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "sites" / site / "ledger.jsonl").read_text().splitlines()]
    return [line for line in lines if line["what"] == "charge"]


def plan_of(folder: Path, site: str = "east") -> Plan:
    (own,) = (folder / "sites" / site / "studies").iterdir()
    plans = [Plan.from_json(file.read_text()) for file in own.glob("sealed/sums/*/*/plan.json")]
    return next(plan for plan in plans if plan.noise)


def test_the_sum_carries_the_noise_that_is_charged(stores: dict[str, Path], tmp_path: Path) -> None:
    """Three shares of which one is not counted: 3/2 of the variance; an update of norm 0.01 hardly shows."""
    run(stores, tmp_path, private(noise=2.0, clip=0.01))
    change = moved(tmp_path, 4)
    noise = SiteNoise.from_json(plan_of(tmp_path).noise)
    deviation = np.sqrt(noise.share * 3) / noise.scale / 3
    assert deviation == pytest.approx(2.0 * 0.01 * np.sqrt(1.5) / 3, rel=0.05)
    assert change.std() == pytest.approx(deviation, rel=0.15)  # of a few hundred numbers
    found = charges(tmp_path)
    assert [line["round"] for line in found] == [1, 2]
    assert found[0]["mechanisms"] == [noise.mechanism().to_json()]
    ledger = Ledger(tmp_path / "sites/east/ledger.jsonl")
    assert ledger.exists


def test_an_update_is_cut_to_the_clip(stores: dict[str, Path], tmp_path: Path) -> None:
    run(stores, tmp_path, private(noise=0.05, clip=0.01))
    assert _sealed_norm(tmp_path) > 0.03
    # Three alike, and noise that is a third of them.
    assert np.linalg.norm(moved(tmp_path, 4)) == pytest.approx(0.01, rel=0.3)


def _sealed_norm(folder: Path) -> float:
    """L2 norm of what east changed in the last round, as only its own disk has it."""
    (own,) = (folder / "sites/east/studies").iterdir()
    releases = [json.loads(file.read_text()) for file in own.glob("sealed/*.json")]
    last = max(releases, key=lambda release: (release["phase"], release["round"]))
    changes = Reader(ObjectStore(own / "sealed/objects"), last["objects"])
    return float(np.sqrt(sum(np.square(changes[name]).sum() for name in changes)))


def test_nothing_but_the_sum_is_told(stores: dict[str, Path], tmp_path: Path) -> None:
    checkpoint = run(stores, tmp_path, private(noise=1.0))
    assert dict(checkpoint.metrics) == {}
    assert checkpoint.areas == {}
    assert dict(checkpoint.sites) == dict.fromkeys(stores, 1.0)
    lines = [json.loads(line) for line in (tmp_path / "sites/east/outbox.jsonl").read_text().splitlines()]
    assert {line["facts"].get("entries", 0) for line in lines} == {0}
    assert not [line for line in lines if "evaluate" in line["what"]]
    assert (tmp_path / "metrics.jsonl").read_text() == ""


def test_asked_again_the_same_words_leave_and_nothing_is_charged_again(
    stores: dict[str, Path], tmp_path: Path
) -> None:
    def again(grid: UnrulyGrid, message: Any) -> list[Any]:
        first, second = grid.honest(message), grid.honest(message)
        assert dict(first.content["objects"]) == dict(second.content["objects"])
        return [second]

    run(stores, tmp_path, private(noise=1.0), {("east", "query.input", *LAST): again})
    assert len(charges(tmp_path)) == 2


def test_a_new_attempt_over_the_same_sites_has_the_same_noise(
    stores: dict[str, Path], tmp_path: Path
) -> None:
    """West is lost after east gave its words: the next attempt masks the same noised words anew, unpaid."""
    lost: list[str] = []

    def once(grid: UnrulyGrid, message: Any) -> list[Any]:
        lost.append("west")
        return unruly.dies(grid, message) if len(lost) == 1 else [grid.honest(message)]

    run(stores, tmp_path, private(noise=1.0), {("west", "query.input", *LAST): once})
    assert len(lost) == 2
    assert len(charges(tmp_path)) == 2
    (own,) = (tmp_path / "sites/east/studies").iterdir()
    noised = list(own.glob("sealed/sums/*/noised/*.json"))
    assert len(noised) == 2  # of two rounds


def test_other_noise_on_the_same_update_is_paid_for_again(stores: dict[str, Path], tmp_path: Path) -> None:
    """With one site fewer the shares are larger: new noise. It was not opened with the first, and costs again."""
    four = {**stores, "mid": unruly.copied_store(stores["south"], tmp_path / "mid", "mid")}
    deeds = {(site, "query.input", *LAST): unruly.dies for site in ("mid", "west")}
    folder = tmp_path / "run"
    with pytest.raises(FederationError):
        run(four, folder, private(noise=1.0), deeds)
    assert [line["round"] for line in charges(folder)] == [1, 2]
    assert run(stores, folder, private(noise=1.0)).round == 2
    assert [line["round"] for line in charges(folder)] == [1, 2, 2]
    requests = [line["request"] for line in charges(folder)]
    assert len(set(requests)) == 3


def test_what_was_opened_is_not_opened_with_other_noise(stores: dict[str, Path], tmp_path: Path) -> None:
    """A coordinator that opened a round, lost its disk, and asks again, now with one site more in the sum."""
    four = {**stores, "mid": unruly.copied_store(stores["south"], tmp_path / "mid", "mid")}
    folder = tmp_path / "run"

    def progress(phase: str, done: int, whole: int) -> None:
        if done == whole - 1:
            raise short.StoppedError

    study = replace(private(noise=1.0), gather=0.3)
    coordinator = _coordinator(four, folder, study, away={"mid"})
    coordinator.progress = progress
    with pytest.raises(short.StoppedError):
        coordinator.run()
    before = fresh(folder, tmp_path / "copy")
    assert run(stores, folder, study).round == 2
    # The coordinator's folder as it was before the round; the sites remember.
    for name in ("checkpoints", "roster.json", "metrics.jsonl", "phases.json"):
        _restored(before / name, folder / name)
    with pytest.raises(FederationError, match="the same bytes were opened before"):
        _coordinator(four, folder, study).run()


def _coordinator(stores: Mapping[str, Path], folder: Path, study: Study, away: set[str] | None = None) -> Any:
    members_of(study, stores, folder, "")
    grid = UnrulyGrid(stores, folder, secure=True)
    grid.away = away or set()
    return short.coordinator(stores, folder, study, grid)


def _restored(source: Path, target: Path) -> None:
    import shutil

    if target.is_dir():
        shutil.rmtree(target)
        shutil.copytree(source, target)
    elif source.exists():
        shutil.copy(source, target)


def test_a_ledger_that_cannot_afford_a_round_refuses_before_anything_is_trained(
    stores: dict[str, Path], tmp_path: Path
) -> None:
    one = tightest([nominal(1.0)], DELTA).value
    with pytest.raises(FederationError, match=r"round 2.*budget"):
        run(stores, tmp_path, private(noise=1.0, budget=1.2 * one))
    assert [line["round"] for line in charges(tmp_path)] == [1]


@pytest.mark.parametrize(
    ("noise", "sentence"),
    [
        ({"noise_multiplier": 0.5}, "its noise is not that of the order's terms"),
        ({"clip": 0.9}, "its noise is not that of the order's terms"),
        ({"colluding": 0}, "its noise is not that of the order's terms"),
        ({"scale": 1.0}, "its noise is not that of the order's terms|lengthens an update"),
    ],
)
def test_a_plan_with_less_noise_than_the_order_says_is_refused(
    stores: dict[str, Path], tmp_path: Path, noise: dict[str, Any], sentence: str
) -> None:
    said: list[str] = []

    def weaker(grid: UnrulyGrid, message: Any) -> list[Any]:
        facts = message.content.config_records["order"]
        kept = dict(facts)
        plan = json.loads(str(facts["plan"]))
        plan["noise"] |= noise
        changed = Plan.from_json(json.dumps(plan))
        facts["plan"] = changed.to_json()
        facts["train"] = str(facts["train"]).replace(
            json.loads(str(facts["train"]))["agreed"], changed.digest
        )
        said.append(grid._answer(message).error.reason)
        for name, value in kept.items():
            facts[name] = value
        return [grid.honest(message)]

    run(stores, tmp_path, private(noise=1.0), {("east", "query.advertise", *LAST): weaker})
    assert len(said) == 1
    assert any(part in said[0] for part in sentence.split("|"))


def test_terms_without_noise_are_refused_by_sites(stores: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(FederationError, match="task 'phenotype' would be answered without noise"):
        run(stores, tmp_path, replace(private(noise=0.0), gather=0.3))


def test_statistics_from_the_sites_are_refused_by_them(stores: dict[str, Path], tmp_path: Path) -> None:
    study = private(noise=1.0)
    statistics = replace(study.phases[0], task="statistics", parameters={})
    with pytest.raises(FederationError, match="task 'statistics' would be answered without noise"):
        run(stores, tmp_path, replace(study, phases=(statistics, study.phases[1]), gather=0.3))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"aggregation": "clear"}, "found 'site', with aggregation=clear"),
        ({"privacy__statistics": "noised"}, "task 'statistics' sums what sites have"),
        ({"privacy__epsilon": "null"}, "key 'privacy.epsilon': it is not set"),
    ],
)
def test_a_study_that_cannot_keep_it_is_refused(
    tmp_path: Path, changes: dict[str, Any], sentence: str
) -> None:
    given = {"privacy__reference": _REFERENCE["base"], "aggregation": "secure", "privacy": "site", **changes}
    with pytest.raises(ConfigError, match=sentence):
        tiny_study(**given)


def test_a_budget_is_divided_by_shares_and_kept() -> None:
    study = tiny_study(privacy="site", aggregation="secure", privacy__reference=_REFERENCE["base"])
    noise = {phase.name: phase.privacy["noise_multiplier"] for phase in study.phases}
    assert noise["statistics"] == noise["tokens"] == 0
    released = [nominal(noise[phase.name], phase.rounds) for phase in study.phases if noise[phase.name]]
    assert 7.9 < tightest(released, DELTA).value <= 8.0
    assert study.guarantee["epsilon"] == pytest.approx(tightest(released, DELTA).value)
    assert study.guarantee["unit"] == "site"
    precision = {name: 1 / z**2 for name, z in noise.items() if z}
    # Two rounds of phenotypes at 0.30, one of photographs at 0.10.
    assert precision["phenotype"] * 2 / precision["fundus"] == pytest.approx(3.0, rel=1e-3)


def test_a_rounds_words_are_opened_once_and_an_equal_update_of_another_round_is_another_release(
    tmp_path: Path,
) -> None:
    """An update of zeros comes twice: in each round it has noise of its own, and each is paid for."""
    sites, openings = frozenset("abc"), Openings({})
    layout, changes = [Place("w", 4, "train")], {"w": np.zeros(4, np.float32)}
    for request in ("first", "second"):
        words = NoisedWords(tmp_path / request, SiteNoise.planned(32, 1.0, 1.0, 4, 3, 3, 1, 1.0))
        words.drawn(layout, changes)
        openings = words.opened(openings, "mark", "w", sites)
        assert words.opened(openings, "mark", "w", sites) == openings
    other = NoisedWords(tmp_path / "second", SiteNoise.planned(32, 1.0, 1.0, 4, 3, 3, 1, 2.0))
    other.drawn(layout, changes)
    with pytest.raises(PrivacyError, match="opened before"):
        other.opened(openings, "mark", "w", sites)
