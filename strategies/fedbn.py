"""FedBN: Li et al. 2021, "FedBN: federated learning on non-IID features via local batch normalization"."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, ClassVar

from pm1_core.errors import ConfigError
from pm1_core.validate import refusal
from strategies.fedavg import FedAvg


@dataclass(frozen=True)
class FedBN(FedAvg):
    """FedAvg of all tensors but some, which every site trains for itself and keeps.

    The paper keeps batch normalisation; here it is what a pattern says, normalisation layers by default. The
    global checkpoint holds those tensors as they began: a model for a site is the checkpoint and the site's own.

    local: shell patterns of names of tensors, e.g. "*norm*", "fusion.inputs.fundus.*"
    """

    name: ClassVar[str | None] = "fedbn"

    local: tuple[str, ...] = ("*norm*",)

    def __post_init__(self) -> None:
        if not self.local or not all(self.local):
            raise ConfigError(
                refusal("key 'strategy.local'", f"found {list(self.local)}", "name at least one pattern")
            )

    def method(self) -> dict[str, Any]:
        """Which tensors the sites keep."""
        return {"local": list(self.local)}

    def stays(self, name: str) -> bool:
        """Whether one of the patterns fits."""
        return any(fnmatchcase(name, pattern) for pattern in self.local)
