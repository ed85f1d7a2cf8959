"""What `pm1-sim search` draws from, and its trials as rows of search.json."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pm1_core.errors import ConfigError
from pm1_core.validate import refusal, require_range

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution


def require_space(space: Mapping[str, Any]) -> None:
    """Raise ConfigError naming a key of `search` that nothing can be drawn from."""
    for key, least in (("trials", 1), ("epochs", 1), ("reduction_factor", 2)):
        require_range(f"key 'search.{key}'", space[key], least, error=ConfigError)
    for key, low in (("learning_rate", 1e-12), ("depth", 1)):
        if len(space[key]) != 2 or not low <= space[key][0] <= space[key][1]:
            found, remedy = f"found {space[key]}", f"give two numbers, the smaller first, of at least {low}"
            raise ConfigError(refusal(f"key 'search.{key}'", found, remedy))
    for key, lowest, highest in (("batch_size", 1, None), ("momentum", 0.0, 1.0)):
        if not space[key]:
            raise ConfigError(refusal(f"key 'search.{key}'", "found nothing", "list at least one value"))
        for choice in space[key]:
            require_range(f"key 'search.{key}'", choice, lowest, highest, ConfigError)


def distributions(space: Mapping[str, Any]) -> dict[str, BaseDistribution]:
    """The space of appendix F.2 as Optuna has it."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    lowest, highest = space["learning_rate"]
    return {
        "learning_rate": FloatDistribution(lowest, highest, log=True),
        "batch_size": CategoricalDistribution(space["batch_size"]),
        "depth": IntDistribution(*space["depth"]),
        "momentum": CategoricalDistribution(space["momentum"]),
    }


def row_of(trial: optuna.trial.FrozenTrial) -> dict[str, Any]:
    """A trial that has ended; losses by epoch, None where it diverged. `rungs` is what the pruner remembers."""
    losses = [trial.intermediate_values[epoch] for epoch in sorted(trial.intermediate_values)]
    return {
        **trial.params,
        "state": trial.state.name.lower(),
        "epochs": len(losses),
        "loss": _finite(min(losses)),
        "losses": [_finite(loss) for loss in losses],
        "rungs": {rung: _finite(value) for rung, value in trial.system_attrs.items()},
    }


def trial_of(row: Mapping[str, Any], space: Mapping[str, Any]) -> optuna.trial.FrozenTrial:
    """The trial that a row was made of."""
    from optuna.trial import TrialState, create_trial

    drawn = distributions(space)
    losses = [_loss(loss) for loss in row["losses"]]
    state = TrialState[row["state"].upper()]
    return create_trial(
        state=state,
        value=min(losses) if state is TrialState.COMPLETE else losses[-1],
        params={name: row[name] for name in drawn},
        distributions=drawn,
        system_attrs={rung: _loss(value) for rung, value in row["rungs"].items()},
        intermediate_values=dict(enumerate(losses, 1)),
    )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _loss(value: float | None) -> float:
    return math.inf if value is None else value
