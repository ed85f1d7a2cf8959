"""What a round must equal, through the whole engine: formulas by hand, groups, and sites that join late."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from mortal_work import fresh
from short import LAST, coordinator, run, short_study
from studies import coordinate, site_paths, tiny_study
from unruly import UnrulyGrid, altered, answers, copied_store, dies

import server.updates
from pm1_core import atomic
from pm1_core.checkpoint import CheckpointFolder, State
from pm1_core.data.store import Store
from pm1_core.fields import Modality, Split
from pm1_core.objects import ObjectStore, Reader
from pm1_core.training.tasks.fusion import FusionTask
from pm1_core.update import Update
from server.updates import Spooled
from simulations.grid import run_in_process
from strategies.fedavg import FedAvg
from strategies.updates import Gathered

pytestmark = pytest.mark.usefixtures("_impatient")


def final(folder: Path) -> State:
    """The tensors of a run's last checkpoint."""
    checkpoints = CheckpointFolder(folder / "checkpoints")
    return checkpoints.state(checkpoints.latest())


def released(folder: Path, site: str, phase: str) -> dict[str, np.ndarray]:
    """What a site sent in the last round of training of `phase`, from its own disk."""
    (study,) = (folder / "sites" / site / "studies").glob("*")
    releases = [json.loads(file.read_text()) for file in (study / "releases").glob("*.json")]
    last = max(
        (one for one in releases if (one["kind"], one["phase"]) == ("train", phase)),
        key=lambda one: one["round"],
    )
    return dict(Reader(ObjectStore(study / "releases" / "objects"), last["objects"]))


@pytest.fixture(scope="module")
def whole(hospitals: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of all phases: `south` has no photographs, `clinic` nothing else."""
    folder = tmp_path_factory.mktemp("whole")
    with atomic.without_sync():
        run_in_process(coordinate(tiny_study(), hospitals, folder), site_paths(hospitals, folder))
    return folder


@pytest.mark.parametrize("absent", [None, "small"])
def test_partial_participation_equals_the_formula_by_hand_on_three_numbers(
    absent: str | None, hospitals: dict[str, Path], tmp_path: Path
) -> None:
    stores = {"north": hospitals["north"], "south": hospitals["south"]}
    stores["small"] = copied_store(hospitals["south"], tmp_path / "small", "small")
    numbers = {"north": 1.0, "south": 2.0, "small": 4.0}
    people = {
        site: len(Store.open(store).people(Split.TRAIN, Modality.PHENOTYPE)) for site, store in stores.items()
    }

    def says(number: float) -> object:
        return answers(
            lambda content: altered(
                content, tensors=lambda held: {n: np.full_like(a, number) for n, a in held.items()}
            )
        )

    deeds = {(site, *LAST): dies if site == absent else says(number) for site, number in numbers.items()}
    grid = UnrulyGrid(stores, tmp_path / "run", deeds)  # type: ignore[arg-type]
    run(stores, tmp_path / "run", short_study(norm_limit=0.0), grid)
    here = [site for site in numbers if site != absent]
    by_hand = sum(people[site] * numbers[site] for site in here) / sum(people[site] for site in here)
    assert people["north"] != people["south"]
    for array in final(tmp_path / "run").part("phenotype").values():
        np.testing.assert_allclose(array, by_hand, rtol=1e-7)


def test_a_tensor_of_one_modality_is_the_mean_over_those_who_have_it_weighted_by_their_people(
    whole: Path, hospitals: dict[str, Path]
) -> None:
    stores = {site: Store.open(store) for site, store in hospitals.items()}
    task = FusionTask(
        next(phase for phase in tiny_study().phases if phase.name == "fusion").parameters,
        stores["north"].study,
    )
    sent = {site: released(whole, site, "fusion") for site in stores}
    state, seen = final(whole), dict.fromkeys(Modality, 0)
    for name, array in state.part("fusion").items():
        modality = task.modality_of(name)
        people = {site: len(store.people(Split.TRAIN, modality)) for site, store in stores.items()}
        carriers = [site for site in people if people[site]]
        mean = sum(people[s] * sent[s][name].astype(np.float64) for s in carriers) / sum(
            people[s] for s in carriers
        )
        np.testing.assert_allclose(array, mean, rtol=1e-6, atol=1e-7, err_msg=name)
        if modality:
            seen[modality] += 1
            others = {Modality.GENOTYPE: {"north", "south"}, Modality.PHENOTYPE: {"north", "south"}}
            assert set(carriers) == others.get(modality, {"north", "clinic"})
    assert all(seen.values())


def test_the_mean_does_not_depend_on_how_sites_are_grouped(whole: Path, hospitals: dict[str, Path]) -> None:
    people = {site: float(len(Store.open(store).people(Split.TRAIN))) for site, store in hospitals.items()}
    sent = {site: released(whole, site, "fusion") for site in hospitals}
    shared = sorted(set.intersection(*(set(tensors) for tensors in sent.values())))
    updates = {site: Update({n: sent[site][n] for n in shared}, people[site]) for site in sent}

    def folded(given: Mapping[str, Update]) -> dict[str, np.ndarray]:
        previous = next(iter(given.values())).tensors
        return dict(FedAvg().aggregate(1, previous, Gathered(given)))

    at_once = folded(updates)
    for alone in updates:
        others = {site: update for site, update in updates.items() if site != alone}
        group = Update(folded(others), sum(update.weight for update in others.values()))
        in_groups = folded({"alone": updates[alone], "group": group})
        for name, array in at_once.items():
            np.testing.assert_allclose(in_groups[name], array, rtol=1e-6, atol=1e-6, err_msg=name)


@pytest.mark.parametrize(("optimiser", "equal"), [("sgd", True), ("adamw", False)])
def test_joining_late_equals_having_been_there_with_zero_weight(
    optimiser: str, equal: bool, stores: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For an optimiser without a state only: one with moments goes on from them, if its site was there before.

    The site gave its statistics in both runs: what is standardised by is part of the model that it joins.
    """
    phase = short_study().phases[1]
    loop = {**phase.parameters["loop"], "optimiser": {"name": optimiser, "learning_rate": 0.01}}
    study = short_study({"rounds": 3, "parameters": {**phase.parameters, "loop": loop}})
    now = {"round": ("", 0)}

    def follow(kind: str, name: str, number: int) -> None:
        if kind == "train":
            now["round"] = (name, number)
            if now["round"] == ("statistics", 2):
                late.away.add("east")
            elif now["round"] == ("phenotype", 1):
                late.away.discard("east")

    late = UnrulyGrid(stores, tmp_path / "late", before=follow)
    run(stores, tmp_path / "late", study, late)
    weight = Spooled.weight

    def muted(updates: Spooled, site: str, name: str) -> float:
        return 0.0 if site == "east" and now["round"] == ("phenotype", 1) else weight(updates, site, name)

    monkeypatch.setattr(server.updates.Spooled, "weight", muted)
    there = UnrulyGrid(stores, tmp_path / "there", before=follow)
    run(stores, tmp_path / "there", study, there)
    rounds = {}
    for place in ("late", "there"):
        lineage = CheckpointFolder(tmp_path / place / "checkpoints").verify()
        rounds[place] = {c.round: c for c in lineage if c.phase == "phenotype"}
    assert set(rounds["late"][1].sites) == {"south", "west"}
    assert set(rounds["late"][2].sites) == set(rounds["there"][1].sites) == {"east", "south", "west"}
    assert rounds["late"][1].parts["phenotype"] == rounds["there"][1].parts["phenotype"]
    assert (rounds["late"][3].parts["phenotype"] == rounds["there"][3].parts["phenotype"]) is equal


def test_resuming_between_two_rounds_equals_no_interruption(
    stores: dict[str, Path], begun: Path, tmp_path: Path
) -> None:
    uninterrupted = run(stores, tmp_path / "run")
    assert run(stores, fresh(begun, tmp_path / "resumed")).hash == uninterrupted.hash
    with atomic.without_sync():
        again = coordinator(stores, tmp_path / "run").run()
    assert again == CheckpointFolder(tmp_path / "run" / "checkpoints").latest()
