"""Flower's own robust rules on blocks of plain numbers, through its public `aggregate_train`.

A strategy of Flower gets all replies of a round as messages. Median and trimmed mean remember nothing and work
coordinate by coordinate, so that a block of elements is to them a small model: the numbers are Flower's, and the
memory is a block's.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import flwr.serverapp.strategy as flower
import numpy as np
from flwr.app import Array, ArrayRecord, Message, Metadata, MetricRecord, RecordDict

from pm1_core.update import Tensors

_TTL_SECONDS = 60.0


def fold(rule: flower.FedAvg, stack: np.ndarray) -> np.ndarray:
    """`rule` over the rows of a float64 array [sites, elements], every row with the same weight: [elements]."""
    with _unlogged():
        arrays, _ = rule.aggregate_train(1, [reply({"block": row}) for row in stack])
    assert arrays is not None  # none of the replies carries an error
    folded: np.ndarray = arrays["block"].numpy()
    return folded


def reply(tensors: Tensors, weight: float = 1.0) -> Message:
    """A reply to a training message as Flower's strategies read one."""
    content = RecordDict(
        {
            "arrays": ArrayRecord({name: Array(array) for name, array in tensors.items()}),
            "figures": MetricRecord({"num-examples": weight}),
        }
    )
    metadata = Metadata(
        run_id=1,
        message_id="block",
        src_node_id=2,
        dst_node_id=1,
        reply_to_message_id="",
        group_id="",
        created_at=time.time(),
        ttl=_TTL_SECONDS,
        message_type="train",
    )
    # As Flower's own grids build messages; the overloads for applications leave it out.
    build: Callable[..., Message] = Message
    return build(content, metadata=metadata)


@contextmanager
def _unlogged() -> Iterator[None]:
    """Without Flower's line "received n results", which would appear for every block."""

    def other(record: logging.LogRecord) -> bool:
        return record.funcName != "_check_and_log_replies"

    logger = logging.getLogger("flwr")
    logger.addFilter(other)
    try:
        yield
    finally:
        logger.removeFilter(other)
