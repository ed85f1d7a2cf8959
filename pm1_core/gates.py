"""When a checkpoint may be released: bounds that a study fixes before its first round, held against figures.

Only what the coordinator may see is looked at: areas of held-out people summed over the sites, pooled figures, and
counts of sites and people where the study is in the clear. A gate that cannot be computed from that is not passed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass

from pm1_core.checkpoint import Checkpoint
from pm1_core.errors import ConfigError
from pm1_core.validate import require_range

ALL = ".all"
"""The end of the names of areas over everybody, "TARGET.all"; other areas are of groups of people."""

_SLACK = 1e-9  # 0.80 - 0.78 is a little more than 0.02 in binary


@dataclass(frozen=True)
class Gates:
    """Bounds of a release; None switches one off.

    max_auc_fall: no target's area over everybody is lower by more than this than in the release before
    min_group_auc: no group of held-out people has a lower area than this, for any target
    min_group_people: groups with fewer cases or fewer controls are too small to be held to that
    min_sites, min_people: sites that trained in the checkpoint's round, and their examples together
    max_loss_rise: the pooled validation loss is at most this share above that of the release before
    """

    max_auc_fall: float | None = 0.02
    min_group_auc: float | None = 0.5
    min_group_people: int = 20
    min_sites: int | None = 2
    min_people: int | None = 100
    max_loss_rise: float | None = None

    def __post_init__(self) -> None:
        highest = {"max_auc_fall": 1.0, "min_group_auc": 1.0}
        for name, value in asdict(self).items():
            if value is not None:
                require_range(f"key 'gates.{name}'", value, 0, highest.get(name), ConfigError)

    @property
    def none(self) -> bool:
        """Whether every gate is switched off."""
        return all(value is None for name, value in asdict(self).items() if name != "min_group_people")


@dataclass(frozen=True)
class Verdict:
    """One gate, held against a checkpoint.

    found: the figure that decides, None where it cannot be computed
    note: which figure that is, or what is missing
    """

    gate: str
    limit: float
    found: float | None
    passed: bool
    note: str


def judge(gates: Gates, candidate: Checkpoint, released: Checkpoint | None) -> list[Verdict]:
    """What each gate that is switched on says of `candidate`; `released` is the release before it, if any."""
    return [
        verdict
        for judged in (
            _auc_fall(gates.max_auc_fall, candidate, released),
            _group_auc(gates.min_group_auc, gates.min_group_people, candidate),
            _counts(gates, candidate),
            _loss_rise(gates.max_loss_rise, candidate, released),
        )
        for verdict in judged
    ]


def _missing(gate: str, limit: float, what: str) -> Verdict:
    return Verdict(gate, limit, None, False, what)


def _auc_fall(limit: float | None, candidate: Checkpoint, released: Checkpoint | None) -> Iterator[Verdict]:
    gate = "max_auc_fall"
    if limit is None:
        return
    here = _areas_of_all(candidate)
    if not here:
        # Also at a first release: without figures there, the next one would have nothing to fall from.
        yield _missing(gate, limit, "the checkpoint holds no area over everybody (TARGET.all)")
        return
    if released is None:
        yield Verdict(
            gate, limit, 0.0, True, f"first release; {len(here)} areas to compare the next one with"
        )
        return
    before = _areas_of_all(released)
    lost = sorted(set(before) - set(here))
    if lost or not before:
        whose = f"the checkpoint holds no {lost[0]}" if lost else "the release before holds no area"
        yield _missing(gate, limit, whose)
        return
    worst = max(before, key=lambda name: before[name] - here[name])
    fall = before[worst] - here[worst]
    yield Verdict(
        gate, limit, fall, fall <= limit + _SLACK, f"{worst}: {before[worst]:.4f} -> {here[worst]:.4f}"
    )


def _group_auc(limit: float | None, fewest: int, candidate: Checkpoint) -> Iterator[Verdict]:
    gate = "min_group_auc"
    if limit is None:
        return
    groups = {name: area for name, area in candidate.areas.items() if not name.endswith(ALL)}
    large = {name: area["auc"] for name, area in groups.items() if _people(area) >= fewest}
    if not large:
        what = f"no group of at least {fewest} cases and controls among {len(groups)} groups"
        yield _missing(gate, limit, what)
        return
    if not all(math.isfinite(area) for area in large.values()):
        yield _missing(gate, limit, "an area is no number")
        return
    worst = min(large, key=lambda name: (large[name], name))
    note = (
        f"{worst}, the lowest of {len(large)} groups; {len(groups) - len(large)} too small to be held to it"
    )
    yield Verdict(gate, limit, large[worst], large[worst] >= limit - _SLACK, note)


def _counts(gates: Gates, candidate: Checkpoint) -> Iterator[Verdict]:
    trained = [count for count in candidate.sites.values() if count > 0]
    found: Mapping[str, float] = {"min_sites": len(trained), "min_people": sum(trained)}
    for gate, count in found.items():
        limit = getattr(gates, gate)
        if limit is None:
            continue
        if not candidate.sites:
            yield _missing(gate, limit, "the checkpoint names no sites")
        else:
            what = "sites trained" if gate == "min_sites" else "examples behind the round"
            yield Verdict(gate, limit, count, count >= limit, what)


def _loss_rise(limit: float | None, candidate: Checkpoint, released: Checkpoint | None) -> Iterator[Verdict]:
    gate, name = "max_loss_rise", "validation.loss"
    if limit is None:
        return
    here = candidate.metrics.get("all", {}).get(name)
    if here is None or not math.isfinite(here):
        yield _missing(gate, limit, f"the checkpoint holds no {name} over all sites")
        return
    if released is None:
        yield Verdict(gate, limit, 0.0, True, f"first release; {name} {here:.4g}")
        return
    before = released.metrics.get("all", {}).get(name)
    if released.phase != candidate.phase:
        what = f"the release before is of phase {released.phase!r}, whose loss is another"
        yield _missing(gate, limit, what)
        return
    if before is None or not math.isfinite(before) or before == 0:
        yield _missing(gate, limit, f"the release before holds no {name} over all sites to compare with")
        return
    rise = (here - before) / abs(before)
    yield Verdict(gate, limit, rise, rise <= limit + _SLACK, f"{name}: {before:.4g} -> {here:.4g}")


def _areas_of_all(checkpoint: Checkpoint) -> dict[str, float]:
    return {
        name: area["auc"]
        for name, area in checkpoint.areas.items()
        if name.endswith(ALL) and math.isfinite(area["auc"])
    }


def _people(area: Mapping[str, float]) -> float:
    return min(area.get("cases", 0), area.get("controls", 0))
