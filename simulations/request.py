"""What a run was asked for, kept in its folder: it goes on as it began, or not at all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pm1_core import atomic
from pm1_core.errors import ConfigError
from pm1_core.validate import refusal


@dataclass(frozen=True)
class Request:
    """Where a command keeps the configuration that it was given, but for the keys that are not its own."""

    file: str
    apart: tuple[str, ...]

    def settled(self, config: dict[str, Any], folder: Path) -> dict[str, Any]:
        """The configuration to go on with: the run's own when it is resumed, else the given one.

        Raises ConfigError if there is no run to resume, or one with another configuration.
        """
        before = self._read(folder)
        if config["resume"]:
            if before is None:
                found, remedy = f"found no run at {folder}", f"choose from {self._names(folder.parent)}"
                raise ConfigError(refusal("key 'resume'", found, remedy))
            return {**config, **before}
        if before is not None and before != self._own(config):
            found = "it was started with another configuration"
            remedy = "choose another one with name=..., or remove the folder"
            raise ConfigError(refusal(f"run {folder}", found, remedy))
        return config

    def remember(self, config: Mapping[str, Any], folder: Path) -> None:
        """Keep what the run in `folder` is asked for."""
        # Not sorted: phases run in the order in which they are written.
        atomic.write_text(folder / self.file, json.dumps(self._own(config), indent=1) + "\n")

    def _read(self, folder: Path) -> dict[str, Any] | None:
        marker = folder / self.file
        content: dict[str, Any] | None = atomic.read_json(marker) if marker.exists() else None
        return content

    def _own(self, config: Mapping[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in config.items() if key not in self.apart}

    def _names(self, runs: Path) -> str:
        found = sorted(path.parent.name for path in runs.glob(f"*/{self.file}"))
        return ", ".join(found) or f"nothing: {runs} has none"
