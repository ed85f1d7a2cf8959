"""How a study's privacy budget becomes the terms of its phases, and the sentence that its manifests carry.

    privacy: {unit: record, epsilon: 8, delta: 1e-5, shares: {...}}
        -> what each phase releases in all its rounds (Task.mechanisms)
        -> the noise multiplier of each, by shares, for which all of them composed keep to the budget
        -> Phase.privacy, which sites get with every order

The figure holds for all releases of the study at one site. What else a site releases, of other studies or of the
one that this starts from, is in its ledger.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

from pm1_core.data.summary import nobody
from pm1_core.errors import ConfigError
from pm1_core.privacy.accounting import Epsilon
from pm1_core.privacy.calibration import Calibration, Plan, calibrate
from pm1_core.privacy.mechanisms import Mechanism
from pm1_core.privacy.terms import RecordTerms, to_order
from pm1_core.training.order import Order
from pm1_core.training.precision import FLOAT32, require_exact
from pm1_core.training.tasks import TASKS, Task, task_class
from pm1_core.training.tasks.reference import pin_reference
from pm1_core.validate import refusal, require_choice
from server.study import Phase

NO_PRIVACY = "no differential privacy"
COUNTS = "counts"
_SOURCES = {"statistics": ("noised", "public"), "tokens": ("noised", "identity")}

Privacy = Mapping[str, Any]


def public_phase(phase: Mapping[str, Any], privacy: Privacy) -> dict[str, Any]:
    """A configured phase whose statistics come from no site, if the study says so; else the phase as it is.

    Raises ConfigError on another source, or if `privacy.reference` is missing or cannot be read.
    """
    task = phase["task"]
    if privacy["unit"] == "none" or task not in _SOURCES:
        return dict(phase)
    source = require_choice(f"key 'privacy.{task}'", privacy[task], _SOURCES[task], ConfigError)
    if source == "noised":
        return dict(phase)
    public = {**phase, "task": "reference", "kind": task, "rounds": 1}
    if task == "tokens":
        return public
    if not privacy["reference"]:
        remedy = "name a safetensors file of public statistics, or use privacy.statistics=noised"
        raise ConfigError(refusal("key 'privacy.reference'", "it is not set", remedy))
    return {**public, **pin_reference(privacy["reference"])}


def with_record_terms(
    phases: Sequence[Phase], privacy: Privacy, seed: int, allowed: Collection[str] = ()
) -> tuple[tuple[Phase, ...], Epsilon]:
    """The phases with the terms under which sites answer, and what all they release amounts to at a site.

    Raises ConfigError naming a phase whose task keeps no such terms or that has no share of the budget, and if no
    noise keeps to the budget.
    """
    epsilon = privacy["epsilon"]
    if epsilon is None:
        raise ConfigError(refusal("key 'privacy.epsilon'", "it is not set", "give the study's budget, say 8"))
    groups = alike(phases)
    require_known_shares(privacy["shares"], groups)
    plans, terms = [], {}
    for name, members in groups.items():
        cls = task_class(members[0].task, allowed, f"phase {name!r}, task")
        terms[name] = _terms(cls, members[0], privacy)
        released = _released(cls, members[0], terms[name], seed)
        if released:
            plans.append(_plan(name, privacy["shares"], released, len(members)))
        else:
            terms[name] = replace(terms[name], noise_multiplier=0.0)
    if privacy["weights"] == "noised":
        plans.append(Plan(COUNTS, share_of(COUNTS, privacy["shares"]), "gaussian"))
    if not plans:
        raise ConfigError(refusal("key 'privacy.unit'", "no phase releases anything", "use privacy=none"))
    found = _calibrated(tuple(plans), float(epsilon), float(privacy["delta"]))
    planned = []
    for name, members in groups.items():
        noise = found.noise.get(name, 0.0)
        agreed = replace(terms[name], noise_multiplier=noise, counts=found.noise.get(COUNTS, 0.0))
        planned += [replace(phase, privacy=to_order(agreed)) for phase in members]
    order = {phase.name: place for place, phase in enumerate(phases)}
    planned.sort(key=lambda phase: order[phase.name])
    return tuple(planned), replace(found.epsilon, delta=float(privacy["delta"]))


def alike(phases: Sequence[Phase]) -> dict[str, list[Phase]]:
    """Phases by the name under which they are configured: a genotype phase has one for each chromosome."""
    groups: dict[str, list[Phase]] = {}
    for phase in phases:
        name = phase.name.rpartition(".")[0] if phase.task == "genotype" else phase.name
        groups.setdefault(name, []).append(phase)
    return groups


def _terms(cls: type[Task], phase: Phase, privacy: Privacy) -> RecordTerms:
    """The terms of a phase, with noise of one clipping bound."""
    if not cls.private:
        remedy = "leave the phase out, or use privacy=none"
        raise ConfigError(
            refusal(f"phase {phase.name!r}", f"task {phase.task!r} keeps no record-level terms", remedy)
        )
    trains = cls.aggregation == "mean"
    rate = float(privacy["sample_rate"])
    if trains:
        require_exact(f"phase {phase.name!r}", phase.parameters["loop"].get("precision", FLOAT32))
    epochs = int(phase.parameters["loop"]["epochs"]) if trains else 1
    return RecordTerms(
        noise_multiplier=1.0,
        clip=float(privacy["clip"]),
        sample_rate=rate if trains else 1.0,
        steps=epochs * math.ceil(1 / rate - 1e-9) if trains else 1,
        group_size=int(privacy["group_size"]) if cls.grouped else 1,
        people=int(privacy["people"]),
        weights=privacy["weights"],
        counts=1.0 if privacy["weights"] == "noised" else 0.0,
    )


def _released(cls: type[Task], phase: Phase, terms: RecordTerms, seed: int) -> list[Mechanism]:
    """What one phase releases in its rounds, equal mechanisms with their steps added up."""
    steps: dict[Mechanism, int] = {}
    task, agreed = cls(phase.parameters, nobody()), to_order(terms)
    for number in range(1, phase.rounds + 1):
        order = Order(phase.name, phase.task, number, phase.rounds, seed, phase.parameters, privacy=agreed)
        for item in task.mechanisms(order):
            steps[item.kind_alone] = steps.get(item.kind_alone, 0) + item.steps
    return [replace(item, steps=count) for item, count in steps.items()]


def _plan(name: str, shares: Mapping[str, float], released: Sequence[Mechanism], phases: int) -> Plan:
    if len(released) > 1:
        found = f"its task releases {len(released)} kinds of noise"
        remedy = "give it a phase for each, so that each has its share"
        raise ConfigError(refusal(f"phase {name!r}, privacy", found, remedy))
    (item,) = released
    return Plan(name, share_of(name, shares), item.kind, item.sample_rate, item.steps, phases)


def share_of(name: str, shares: Mapping[str, float]) -> float:
    """The share of the phases of this name. Raises ConfigError if there is none."""
    if name not in shares:
        found = f"found shares of {', '.join(sorted(shares)) or 'nothing'}"
        remedy = f"give privacy.shares.{name}, a part of the budget"
        raise ConfigError(refusal(f"phase {name!r}, privacy", found, remedy))
    return float(shares[name])


def require_known_shares(shares: Mapping[str, float], groups: Collection[str]) -> None:
    """Raise ConfigError on the share of a phase that there is not: a misspelt one would go to nobody."""
    for name in shares:
        if name not in groups and name not in TASKS and name != COUNTS:
            remedy = f"name phases of the study: {', '.join(groups)}"
            raise ConfigError(refusal(f"key 'privacy.shares.{name}'", "the study has no such phase", remedy))


@lru_cache(maxsize=32)
def _calibrated(plans: tuple[Plan, ...], epsilon: float, delta: float) -> Calibration:
    """Cached: a study is built several times in one command, and this takes a second."""
    return calibrate(plans, epsilon, delta)
