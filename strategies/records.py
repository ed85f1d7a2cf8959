"""Between Flower's records and ours: what a message carries, in one place for both ends.

coordinator -> site   "order": Order as JSON,  "tensors": arrays by name
site -> coordinator   "tensors": arrays,       "figures": weight and metrics,  "site": its name and facts
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from pm1_core.errors import FederationError
from pm1_core.update import Tensors, Update
from pm1_core.validate import refusal

Facts = Mapping[str, str | int | float | list[str]]
WEIGHT = "weight"


def pack_tensors(tensors: Tensors) -> ArrayRecord:
    """Named float32 arrays as a Flower record."""
    return ArrayRecord({name: Array(np.ascontiguousarray(tensors[name])) for name in sorted(tensors)})


def unpack_tensors(record: ArrayRecord) -> dict[str, np.ndarray]:
    """The arrays of a Flower record by name."""
    return {name: array.numpy() for name, array in record.items()}


def pack_request(order: str, tensors: Tensors | None = None, facts: Facts | None = None) -> RecordDict:
    """What the coordinator sends: an order's JSON, arrays, and further facts."""
    content = RecordDict({"order": ConfigRecord({"order": order, **(facts or {})})})
    if tensors is not None:
        content["tensors"] = pack_tensors(tensors)
    return content


def pack_reply(site: Facts, update: Update | None = None) -> RecordDict:
    """What a site answers: facts about itself, and an update unless it was only asked for facts."""
    content = RecordDict({"site": ConfigRecord(dict(site))})
    if update is not None:
        content["tensors"] = pack_tensors(update.tensors)
        content["figures"] = MetricRecord({WEIGHT: float(update.weight), **update.metrics})
    return content


def facts_of(content: RecordDict, record: str) -> dict[str, str | int | float | list[str]]:
    """The facts under "order" or "site". Raises FederationError if the message has none."""
    if record not in content.config_records:
        raise FederationError(
            refusal("message", f"record {record!r} is missing", "run the same version at both ends")
        )
    return dict(content.config_records[record])  # type: ignore[arg-type]


def tensors_of(content: RecordDict) -> dict[str, np.ndarray]:
    """The arrays of a message; none where it has none."""
    record = content.array_records.get("tensors")
    return unpack_tensors(record) if record is not None else {}


def figures_of(record: MetricRecord) -> dict[str, float]:
    """The numbers of a Flower record. Raises FederationError if one is a list."""
    figures = {}
    for name, value in record.items():
        if isinstance(value, list):
            raise FederationError(refusal(f"figure {name!r}", "found a list", "send one number"))
        figures[name] = float(value)
    return figures


def count_of(facts: Facts, name: str) -> int:
    """A count among the facts of a site. Raises FederationError if it is absent, no whole number or negative."""
    value = facts.get(name)
    if not isinstance(value, int) or value < 0:
        raise FederationError(
            refusal(f"fact {name!r}", f"found {value!r}", "send a whole number of at least 0")
        )
    return value


def update_of(content: RecordDict) -> Update:
    """The update of a reply.

    Raises FederationError if it lacks its figures or weight, InputError on NaN, infinity or another dtype.
    """
    record = content.metric_records.get("figures")
    figures = figures_of(record) if record is not None else {}
    if WEIGHT not in figures:
        raise FederationError(refusal("update", "it has no weight", "run the same version at both ends"))
    return Update(tensors_of(content), figures.pop(WEIGHT), figures)
