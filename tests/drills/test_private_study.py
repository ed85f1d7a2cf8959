"""The model of a private study is the sum of what its sites persisted, and what looks at that would see another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import unruly
from persisted import Keeper, Persisted, require_paid, require_summed
from rehearsal import private_study, privately
from studies import coordinate
from working import Working

from pm1_core import atomic
from pm1_core.checkpoint import CheckpointFolder
from pm1_core.data.store import Store
from pm1_core.privacy.accounting import tightest
from pm1_core.privacy.ledger import Ledger
from pm1_core.privacy.mechanisms import RECORD, Mechanism
from pm1_core.privacy.secure_plan import Secured
from server.study import Study

pytestmark = pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")

_LEFT_OUT = ("genotype", "fundus", "tokens", "fusion")
_SITES = ("east", "south", "west")


@dataclass(frozen=True)
class _Run:
    """A private study of statistics and phenotypes that ended, and what its sites persisted."""

    study: Study
    checkpoints: CheckpointFolder
    store: Path
    ledgers: Mapping[str, Ledger]
    kept: Mapping[str, list[Persisted]]

    def require_summed(self, kept: Mapping[str, Sequence[Persisted]], study: Study | None = None) -> int:
        """As `persisted.require_summed`."""
        return require_summed(self.checkpoints, study or self.study, Store.open(self.store).study, kept)


@pytest.fixture(scope="session")
def alike(hospitals: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three sites that have phenotypes, of the same people."""
    folder = tmp_path_factory.mktemp("alike")
    return {site: unruly.copied_store(hospitals["south"], folder / site, site) for site in _SITES}


@pytest.fixture(scope="module")
def run(alike: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> _Run:
    """In this process, kept before each request."""
    folder, study = tmp_path_factory.mktemp("run"), private_study(_LEFT_OUT)
    ledgers = {site: Ledger(folder / "sites" / site / Ledger.NAME) for site in alike}
    for site, ledger in ledgers.items():
        ledger.path.parent.mkdir(parents=True)
        ledger.open(site, {RECORD: (8.0, 1e-5)})
    own = f"studies/{study.hash[:16]}/sealed"
    keeper = Keeper({site: folder / "sites" / site / own for site in alike}, folder / "kept")
    grid = unruly.UnrulyGrid(alike, folder, before=lambda *_: keeper.keep(), secure=True)
    with atomic.without_sync():
        coordinate(study, alike, folder)(grid).run()
    keeper.keep()
    return _Run(study, CheckpointFolder(folder / "checkpoints"), alike["south"], ledgers, keeper.kept())


def test_every_round_is_the_sum_of_what_the_sites_persisted(run: _Run) -> None:
    assert run.require_summed(run.kept) == 3
    assert [len(kept) for kept in run.kept.values()] == [3, 3, 3]


def test_one_step_of_one_element_of_one_site_is_seen(run: _Run) -> None:
    (release,) = (one for one in run.kept["west"] if one.plan.words)
    place = max(release.said.layout, key=lambda place: place.size)
    fixed = release.plan.fixed(place.kind, Secured.of(run.study.secure))
    name = f"train/{place.name}"
    changed = release.arrays[name].astype(np.float64)
    before = fixed.integers(fixed.encode(changed, 1.0))
    changed.reshape(-1)[-1] += 1 / fixed.scale
    assert (fixed.integers(fixed.encode(changed, 1.0)) - before).sum() == 1
    altered = replace(release, arrays={**release.arrays, name: changed})
    with pytest.raises(AssertionError, match=f"{place.name}' is not the sum of what the sites persisted"):
        run.require_summed({**run.kept, "west": [*_without(run.kept["west"], release), altered]})


def test_a_grid_finer_than_the_model_is_no_proof(run: _Run) -> None:
    """With the usual range of 8 a checkpoint cannot tell a sum from the one beside it."""
    fine = replace(run.study, secure={**run.study.secure, "range": 8.0})
    with pytest.raises(AssertionError, match="has room for several sums"):
        run.require_summed(run.kept, fine)


def test_a_release_that_was_not_kept_is_missed(run: _Run) -> None:
    with pytest.raises(AssertionError, match="0 releases of 'west'"):
        run.require_summed({**run.kept, "west": run.kept["west"][1:]})


def test_each_release_was_paid_for_before_it_left_and_nothing_else(run: _Run) -> None:
    kept, ledger = run.kept["west"], run.ledgers["west"]
    left = [_line(one) for one in kept]
    assert require_paid(ledger, left, kept).value == pytest.approx(run.study.guarantee["epsilon"])
    with pytest.raises(AssertionError, match="it left with epsilon None"):
        require_paid(ledger, [{**left[0], "epsilon": None}, *left[1:]], kept)
    with pytest.raises(AssertionError, match="charged for 1 releases that nobody saw"):
        require_paid(ledger, left, kept[1:])
    with pytest.raises(AssertionError, match="nobody paid for it"):
        require_paid(run.ledgers["east"], left, kept)


@pytest.mark.slow
def test_a_private_study_ends_with_the_sum_of_what_was_persisted(
    alike: dict[str, Path], hospitals: dict[str, Path], tmp_path: Path
) -> None:
    """Through all doors, as the drill whole.private does with every kind of phase."""
    definition = hospitals["south"].parent.parent / "study.yaml"
    with Working(tmp_path / "working", alike, private_study(_LEFT_OUT), definition) as working:
        found = privately(working)
    assert (found["rounds"], found["releases"]) == (3, 9)


def _without(kept: Sequence[Persisted], one: Persisted) -> list[Persisted]:
    return [other for other in kept if other is not one]


def _line(one: Persisted) -> dict[str, object]:
    """What the door's log has of it."""
    alone = tightest(map(Mechanism.from_json, one.release.mechanisms), 1e-5).value
    return {"phase": one.release.phase, "round": one.release.round, "epsilon": alone}
