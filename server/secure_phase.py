"""A phase under secure aggregation: what of an order goes into which sum, and what the sums mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from pm1_core.errors import FederationError, InputError
from pm1_core.evaluation.scores import BINS, areas
from pm1_core.fields import Split
from pm1_core.objects import Reader
from pm1_core.privacy.secure_plan import Place
from pm1_core.update import Tensors
from server.exchange import shortened
from server.gathered import Gathered
from server.secure_round import SecureRound, weights_of
from server.secure_updates import Folded, Opened

if TYPE_CHECKING:
    from server.phase_run import PhaseRun, Question
    from server.roster import Member
    from server.updates import Expected

_ENERGY = "energy_joules"


def secure_gathered(
    run: PhaseRun, question: Question, members: Sequence[Member], expected: Expected
) -> tuple[Gathered, dict[str, str]]:
    """The sum of a training round, and who failed and why. Raises FederationError if there is none."""
    names = tuple(name for name in expected.tensors if not expected.stays(name))
    declared = {site: said for site, said in expected.declared.items() if said}
    if expected.summed:
        sizes = {name: int(np.prod(expected.tensors.shape(name))) for name in names}
        work = SecureRound(run, question, (), {}, sizes)
        opened = work.opened(members)
        updates = _of_sums(names, expected.tensors, opened)
        weights = dict.fromkeys(opened.sites, 1.0)
    else:
        layout = [
            Place(
                name,
                int(np.prod(expected.tensors.shape(name))),
                expected.modality_of(name) or Split.TRAIN.value,
            )
            for name in names
        ]
        work = SecureRound(run, question, layout, expected.tensors, None)
        opened = work.opened(members)
        updates = _of_means(layout, opened, declared)
        weights = {site: float(declared[site][Split.TRAIN]) for site in opened.sites}
    joules, measured = opened.total(_ENERGY)
    energy = {_ENERGY: joules, "energy_sites": measured} if measured else {}
    gathered = Gathered(updates, weights, opened.means(), work.clear, energy=energy)
    return gathered, work.failures


def secure_evaluated(
    run: PhaseRun, question: Question, members: Sequence[Member]
) -> tuple[dict[str, float], dict[str, np.ndarray], dict[str, str]]:
    """Figures and histograms over all sites, and who failed and why: what cannot be added up is left out."""
    work = SecureRound(run, question, (), {}, None)
    try:
        opened = work.opened(members)
    except FederationError as error:
        return {}, {}, {**work.failures, "all": shortened(str(error))}
    means, sums = opened.means(), {name: array.reshape(2, BINS) for name, array in opened.summed().items()}
    for split in Split:
        name = f"{split}.examples"
        if name in means:
            means[name] = opened.total(name)[0]
    try:
        areas(sums, fewest=1)
    except InputError as error:  # of one of the sites, and nobody can tell whose
        sums, work.failures["all"] = {}, shortened(str(error))
    work.clear()
    return means, sums, work.failures


def _of_sums(names: Sequence[str], before: Reader, opened: Opened) -> Folded:
    sums = opened.summed()
    tensors: dict[str, np.ndarray] = {}
    for name in names:
        shape = before.shape(name)
        found = sums.get(name)
        tensors[name] = (np.zeros(shape) if found is None else found.reshape(shape)).astype(np.float32)
    weights = dict.fromkeys(names, 1.0)
    return Folded(tuple(names), tensors, weights, weights)


def _of_means(layout: Sequence[Place], opened: Opened, declared: Mapping[str, Mapping[str, int]]) -> Folded:
    """Means, weighed by what the sites in the sum declared for each tensor's kind."""
    could = weights_of(layout, declared)
    here = {kind: sum(by_site.get(site, 0.0) for site in opened.sites) for kind, by_site in could.items()}
    whole = {kind: sum(by_site.values()) for kind, by_site in could.items()}
    means: Tensors = opened.tensors
    return Folded(
        tuple(place.name for place in layout),
        means,
        {place.name: here[place.kind] for place in layout},
        {place.name: whole[place.kind] for place in layout},
    )
