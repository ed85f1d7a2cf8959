"""What a study asks of secure aggregation: `Study.secure`, from the configuration, and what it cannot have then."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pm1_core.errors import ConfigError
from pm1_core.privacy.secure_plan import Secured
from pm1_core.privacy.secure_sum import LEAST_SITES
from pm1_core.validate import refusal, require_choice
from server.study import Phase, Study
from strategies import Strategy

CLEAR, SECURE = MODES = ("clear", "secure")
_USUAL = Study.__dataclass_fields__["norm_limit"].default


def secure_of(config: Mapping[str, Any], strategy: Strategy) -> dict[str, Any]:
    """`Study.secure` of a configuration; {} for updates in the clear.

    Raises ConfigError on what needs a single site's update, which nobody sees then.
    """
    wanted = config["aggregation"]
    mode = require_choice("key 'aggregation.mode'", wanted["mode"], MODES, ConfigError)
    if mode == CLEAR:
        return {}
    asked = Secured(int(wanted["bits"]), float(wanted["range"]), float(wanted["threshold"]))
    where, name = "key 'strategy.name', with aggregation=secure", strategy.name
    if not strategy.linear:
        found = f"found {name!r}, which looks at every update by itself"
        raise ConfigError(
            refusal(where, found, "use a strategy of means: fedavg, fedavgm, fedadam, fedprox ...")
        )
    if strategy.method().get("control"):
        found = f"found {name!r}, whose control variates have no range to be cut to"
        raise ConfigError(refusal(where, found, "use fedprox for sites that differ"))
    if config["encoding"] != "full":
        found = f"found {config['encoding']!r}, with aggregation=secure"
        remedy = "use full: words of the sum are their own encoding, aggregation.bits=16 halves them"
        raise ConfigError(refusal("key 'encoding'", found, remedy))
    if config["norm_limit"] not in (0, _USUAL):
        found = f"found {config['norm_limit']}, with aggregation=secure"
        remedy = "use 0: nobody sees a site's norm; aggregation.range bounds each element at the sites"
        raise ConfigError(refusal("key 'norm_limit'", found, remedy))
    return asked.to_json()


def secure_phases(phases: tuple[Phase, ...], secure: Mapping[str, Any]) -> tuple[Phase, ...]:
    """The phases, which wait for at least three sites if answers are added up."""
    if not secure:
        return phases
    return tuple(replace(phase, min_sites=max(phase.min_sites, LEAST_SITES)) for phase in phases)
