"""Federated averaging and plain sums as Flower strategies around the rules."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import flwr.serverapp.strategy as flower
import numpy as np
from flwr.app import ArrayRecord, Message, MetricRecord

from strategies import records, rules


class FedAvg(flower.FedAvg):
    """Flower's FedAvg, folded in float64 in the order of site names (McMahan et al. 2017)."""

    rule: Callable[[rules.Updates], dict[str, np.ndarray]] = staticmethod(rules.weighted_mean)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Fold the replies; figures are averaged with the same weights."""
        updates = {
            str(records.facts_of(reply.content, "site")["site"]): records.update_of(reply.content)
            for reply in replies
        }
        tensors = type(self).rule(updates)
        return records.pack_tensors(tensors), MetricRecord({**mean_metrics(updates)})


class Summation(FedAvg):
    """Adds what the sites send: federated statistics."""

    rule = staticmethod(rules.total)


def mean_metrics(updates: rules.Updates) -> dict[str, float]:
    """Figures averaged over the sites that sent them, weighted by examples."""
    names = sorted({name for update in updates.values() for name in update.metrics})
    means = {}
    for name in names:
        carriers = [updates[site] for site in sorted(updates) if name in updates[site].metrics]
        weight = sum(update.weight for update in carriers)
        if weight > 0:
            means[name] = sum(update.metrics[name] * update.weight for update in carriers) / weight
    return means
