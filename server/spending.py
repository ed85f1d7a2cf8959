"""What the rounds of a study have spent so far, at a site that took part in all of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pm1_core.data.summary import nobody
from pm1_core.errors import PM1Error
from pm1_core.privacy.accounting import tightest
from pm1_core.privacy.distributed_noise import nominal
from pm1_core.privacy.mechanisms import GAUSSIAN, Mechanism
from pm1_core.privacy.terms import RecordTerms, SiteTerms, terms_of
from pm1_core.training.tasks import TASKS, build_task
from server.study import Study


def spent(study: Mapping[str, Any], done: Mapping[str, int]) -> dict[str, Any]:
    """{"epsilon", "delta", "unit", "accountant"} of the rounds that are done: phase -> rounds.

    study: resolved, with a guarantee. {"why"} if it cannot be counted, an installed task for one.
    """
    try:
        known = Study.from_json(json.dumps(study))
        tasks = {phase.task for phase in known.phases} - set(TASKS)
        items: list[Mechanism] = []
        counts = 0.0
        for phase in known.phases:
            for number in range(1, done.get(phase.name, 0) + 1):
                order = known.order(phase, number)
                terms = terms_of(order.privacy)
                if isinstance(terms, SiteTerms):
                    items += [] if phase.task == "reference" else [nominal(terms.noise_multiplier)]
                else:
                    items += build_task(order, nobody(), sorted(tasks)).mechanisms(order)
                if isinstance(terms, RecordTerms):
                    counts = max(counts, terms.counts)
        if counts:
            items.append(Mechanism(GAUSSIAN, counts))
        found = tightest(items, float(study["guarantee"]["delta"]))
    except (PM1Error, KeyError, TypeError, ValueError) as error:
        return {"why": str(error)}
    return {
        "epsilon": found.value,
        "delta": found.delta,
        "unit": study["guarantee"].get("unit", found.unit),
        "accountant": found.accountant,
    }
