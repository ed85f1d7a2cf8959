"""What leaves a site under record-level terms, what it costs, and what is refused: whole rounds in one process."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from flwr.app import ConfigRecord, RecordDict
from short import phases
from studies import coordinate, site_paths
from unruly import UnrulyGrid

from client import counts
from client.guarantee import Guarantee
from client.outbox import Outbox, Release
from client.site import SitePaths
from configs import compose
from pm1_core import atomic
from pm1_core.checkpoint import Checkpoint, CheckpointFolder
from pm1_core.data.store import Store
from pm1_core.data.summary import nobody
from pm1_core.errors import FederationError, PrivacyError
from pm1_core.fields import Modality, Split
from pm1_core.objects import ObjectStore
from pm1_core.privacy.ledger import Ledger
from pm1_core.privacy.terms import RecordTerms
from pm1_core.training.tasks import build_task
from server.cli import main as server_command
from server.configure import build_study
from server.study import Study

pytestmark = pytest.mark.usefixtures("_impatient")

PHASES = ("genotype", "fundus", "tokens", "fusion")


def private_study(*overrides: str, left_out: tuple[str, ...] = PHASES) -> Study:
    """Statistics and phenotypes, paid for with epsilon 8 in all."""
    out = [f"~study.phases.{name}" for name in left_out]
    short = [f"study.phases.phenotype.{key}" for key in ("rounds=2", "loop.epochs=1")]
    given = ["model=tiny", "privacy=record", "privacy.people=30", *out, *overrides]
    given += [] if "phenotype" in left_out else short
    study = build_study(compose.load("simulation", given))
    return replace(study, timeout=0.3, gather=0.3, grace=0.0)


def opened(folder: Path, sites: Mapping[str, Path], epsilon: float = 8.0) -> dict[str, Ledger]:
    """A ledger at each site."""
    ledgers = {site: Ledger(folder / "sites" / site / "ledger.jsonl") for site in sites}
    for site, ledger in ledgers.items():
        ledger.path.parent.mkdir(parents=True)
        ledger.open(site, {"record": (epsilon, 1e-5)})
    return ledgers


def run(study: Study, stores: Mapping[str, Path], folder: Path, grid: UnrulyGrid | None = None) -> Checkpoint:
    with atomic.without_sync():
        made: Checkpoint = coordinate(study, dict(stores), folder)(grid or UnrulyGrid(stores, folder)).run()
    return made


def lines(folder: Path, site: str, what: str) -> list[dict[str, Any]]:
    """The site's outbox."""
    written = (folder / "sites" / site / "outbox.jsonl").read_text().splitlines()
    return [line for line in map(json.loads, written) if line["what"] == what]


def test_an_update_and_public_numbers_are_all_that_leaves_and_its_cost_is_in_the_ledger(
    stores: dict[str, Path], tmp_path: Path
) -> None:
    study = private_study()
    ledgers = opened(tmp_path, stores)
    latest = run(study, stores, tmp_path)
    assert latest.privacy.startswith("differential privacy: epsilon 7.9")
    assert (latest.metrics, latest.areas) == ({}, {})
    assert set(latest.sites.values()) == {1.0}
    for site, ledger in ledgers.items():
        trained = lines(tmp_path, site, "train")
        assert len(trained) == 4
        for line in trained:
            assert set(line["figures"]) <= {"weight", "weight.phenotype", "steps"}
            assert line["weight"] == 1.0
        assert lines(tmp_path, site, "evaluate") == []
        told = json.loads(lines(tmp_path, site, "ready")[0]["facts"]["phases"])
        assert set(told["phenotype"].values()) <= {0, 1}
        assert 7.9 < ledger.spent().value <= 8.0
        assert [item.releases for item in ledger.by_phase()] == [2, 2]
        ledger.verify()


def test_the_figure_of_the_manifest_is_what_every_ledger_was_charged(
    stores: dict[str, Path], tmp_path: Path
) -> None:
    study = private_study("privacy.epsilon=2", "privacy.weights=noised", "privacy.shares.counts=0.05")
    ledgers = opened(tmp_path, stores, epsilon=2.0)
    run(study, stores, tmp_path)
    for ledger in ledgers.values():
        assert ledger.spent().value == pytest.approx(study.guarantee["epsilon"], rel=1e-6)
        assert [item.phase for item in ledger.by_phase()] == ["counts", "statistics", "phenotype"]


def test_public_statistics_cost_nothing_and_are_those_of_the_panel(
    stores: dict[str, Path], hospitals: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    panel = tmp_path / "panel.safetensors"
    assert server_command(["reference", str(hospitals["north"]), "--out", str(panel)]) == 0
    assert "for privacy.reference=" in capsys.readouterr().out
    study = private_study("privacy.statistics=public", f"privacy.reference={panel}")
    ledgers = opened(tmp_path / "run", stores)
    latest = run(study, stores, tmp_path / "run")
    for ledger in ledgers.values():
        assert [item.phase for item in ledger.by_phase()] == ["phenotype"]
    state = CheckpointFolder(tmp_path / "run" / "checkpoints").state(latest)
    for name, array in safetensors.numpy.load_file(panel).items():
        np.testing.assert_array_equal(state[name], array)


def test_a_site_without_a_ledger_takes_no_part_and_says_how_to_make_one(
    stores: dict[str, Path], tmp_path: Path
) -> None:
    opened(tmp_path, {site: stores[site] for site in ("south", "west")})
    run(private_study(), stores, tmp_path)
    absent = phases(tmp_path)["statistics"]["absent"]["east"]
    assert "found no ledger" in absent
    assert "pm1-site privacy open" in absent


def test_a_site_with_a_ledger_takes_no_part_in_a_study_without_privacy_unless_its_it_allows_it(
    stores: dict[str, Path], tmp_path: Path
) -> None:
    study = private_study("privacy=none", left_out=("genotype", "phenotype", "fundus", "tokens", "fusion"))
    ledgers = opened(tmp_path, {"east": stores["east"], "west": stores["west"]})
    grid = UnrulyGrid(stores, tmp_path)
    allowed = next(node for node, site in grid.sites.items() if site == "west")
    grid._contexts[allowed].node_config["unprotected"] = True
    latest = run(study, stores, tmp_path, grid)
    assert set(latest.sites) == {"south", "west"}
    assert "it asks for no differential privacy" in phases(tmp_path)["statistics"]["absent"]["east"]
    assert sum(ledgers["west"].unprotected().values()) == 4  # its numbers, two rounds and the evaluation
    assert ledgers["east"].unprotected() == {}


def test_a_round_past_the_budget_is_refused_before_anything_is_computed(
    stores: dict[str, Path], tmp_path: Path
) -> None:
    study = private_study()
    ledgers = opened(tmp_path, stores, epsilon=6.5)
    with pytest.raises(FederationError, match=r"past its budget of 6.5, of which .* remains"):
        run(study, stores, tmp_path)
    for site, ledger in ledgers.items():
        assert ledger.spent().value <= 6.5
        last = ledger.by_phase()[-1]
        sent = [line for line in lines(tmp_path, site, "train") if line["phase"] == last.phase]
        assert len(sent) == last.releases


def test_figures_on_people_are_refused_under_terms(stores: dict[str, Path], tmp_path: Path) -> None:
    study = private_study()
    opened(tmp_path, stores)
    latest = run(study, stores, tmp_path)
    grid = UnrulyGrid(stores, tmp_path)
    order = study.order(study.phases[-1], study.phases[-1].rounds).to_json()
    content = RecordDict({"order": ConfigRecord({"order": order, "checkpoint": latest.to_json()})})
    reply = grid._answer(grid.create_message(content, "evaluate", 2, "test", ttl=60.0))
    assert "figures on people here are not paid for" in reply.error.reason


class _Killed(BaseException):
    pass


@pytest.mark.parametrize("after_the_charge", [False, True])
def test_a_site_that_dies_around_its_charge_sends_the_same_bytes_later_and_pays_once(
    after_the_charge: bool, stores: dict[str, Path], tmp_path: Path
) -> None:
    """Kept, then charged, then sent: in whichever gap it dies, what was drawn first is what leaves."""
    ledger = opened(tmp_path, {"east": stores["east"]})["east"]
    study = private_study()
    paths = {one.store: one for one in site_paths(stores, tmp_path)}[str(stores["east"])]
    release = Release(
        "a" * 64, "train", "statistics", 1, [], {"weight": 1.0}, _mechanisms(study), True, "a sum"
    )
    made: list[str] = []

    def outbox(dies: bool) -> Outbox:
        guarantee = _guarantee(paths, study)

        def pay(given: Release) -> None:
            if dies and not after_the_charge:
                raise _Killed
            guarantee.pay(given)
            if dies:
                raise _Killed

        return Outbox("east", tmp_path / "outbox.jsonl", tmp_path / "releases", pay)

    first = outbox(dies=True)
    made += first.keep(release, [("x", np.random.default_rng().normal(size=3).astype(np.float32))]).objects
    held = first.held(release.request)
    assert held
    with pytest.raises(_Killed):
        first.answer(held, again=False)
    assert not (tmp_path / "outbox.jsonl").exists()  # nothing has left
    second = outbox(dies=False)
    again = second.held(release.request)
    assert again
    second.answer(again, again=True)
    second.answer(again, again=True)
    assert json.loads((tmp_path / "outbox.jsonl").read_text().splitlines()[0])["sha256"] == made
    assert ObjectStore(tmp_path / "releases" / "objects").read(made[0])
    assert [item.releases for item in ledger.by_phase()] == [1]


def test_other_bytes_for_a_request_that_was_paid_for_do_not_leave(
    stores: dict[str, Path], tmp_path: Path
) -> None:
    opened(tmp_path, {"east": stores["east"]})
    study = private_study()
    guarantee = _guarantee(site_paths({"east": stores["east"]}, tmp_path)[0], study)
    release = Release("a" * 64, "train", "statistics", 1, ["b" * 64], {}, _mechanisms(study), True, "")
    guarantee.pay(release)
    with pytest.raises(PrivacyError, match="has another release for the request"):
        guarantee.pay(replace(release, objects=["c" * 64]))


def test_equal_and_noised_numbers_of_people(hospitals: dict[str, Path], tmp_path: Path) -> None:
    store, study = Store.open(hospitals["north"]), private_study()
    task = build_task(study.order(study.phases[-1], 0), store.study)
    assert counts.equal(task, store) == {
        Split.TRAIN: 1, Split.VALIDATION: 0, Split.TEST: 0, Modality.PHENOTYPE: 1,
    }  # fmt: skip
    quiet = counts.noised_cells(
        store, RecordTerms(1.0, weights="noised", counts=1e-3), tmp_path / "quiet.json"
    )
    assert counts.from_cells(task, quiet.people) == counts.exact(task, store)
    loud = counts.noised_cells(store, RecordTerms(1.0, weights="noised", counts=50.0), tmp_path / "loud.json")
    assert counts.from_cells(task, loud.people) != counts.exact(task, store)
    again = counts.noised_cells(store, RecordTerms(1.0, weights="noised", counts=0.1), tmp_path / "loud.json")
    np.testing.assert_array_equal(again.people, loud.people)  # one answer for good,
    assert again.noise_multiplier == 50.0  # charged as it was drawn


def test_a_person_is_in_one_cell_of_the_counts(hospitals: dict[str, Path]) -> None:
    for path in hospitals.values():
        store = Store.open(path)
        assert counts.cells(store).sum() == len(store.people(None))


def _guarantee(paths: SitePaths, study: Study) -> Guarantee:
    return Guarantee(Ledger(Path(paths.folder) / "ledger.jsonl"), study.name)


def _mechanisms(study: Study) -> list[dict[str, Any]]:
    phase = study.phases[0]
    order = study.order(phase, 1)
    return [item.to_json() for item in build_task(order, nobody()).mechanisms(order)]
