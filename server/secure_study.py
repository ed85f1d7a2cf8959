"""What a study asks of secure aggregation: `Study.secure`, from the configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pm1_core.errors import ConfigError
from pm1_core.validate import refusal, require_choice

CLEAR, SECURE = MODES = ("clear", "secure")


def secure_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """`Study.secure` of a configuration; {} for updates in the clear. Raises ConfigError on what is not offered."""
    mode = require_choice("key 'aggregation.mode'", config["aggregation"]["mode"], MODES, ConfigError)
    if mode == CLEAR:
        return {}
    raise ConfigError(
        refusal("key 'aggregation.mode'", "found 'secure'", "this version has aggregation=clear only")
    )
