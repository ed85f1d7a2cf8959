"""Statistics that come from no site: the free alternative where a study pays for what it computes from data.

A reference panel's allele frequencies and published means are public. They take the place of the federation's own
statistics; tokens are then taken as they are. Sites take part in the phase and send zeros.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from pm1_core.data.store import Store
from pm1_core.data.summary import StudySummary
from pm1_core.errors import ConfigError, InputError
from pm1_core.fields import Modality, Split
from pm1_core.privacy.mechanisms import Mechanism
from pm1_core.training.guide import UNGUIDED, Guide
from pm1_core.training.order import Order
from pm1_core.training.parts import State
from pm1_core.training.tasks.base import Task
from pm1_core.training.tasks.statistics import StatisticsTask
from pm1_core.training.tasks.tokens import TokensTask
from pm1_core.update import Tensors, Update
from pm1_core.validate import refusal, require_choice

KINDS = ("statistics", "tokens")


def pin_reference(file: str | Path) -> dict[str, str]:
    """The file and its SHA-256, as parameters of the task. Raises ConfigError if it cannot be read."""
    try:
        content = Path(file).read_bytes()
    except OSError as error:
        remedy = "name a safetensors file with the tensors of a reference panel"
        raise ConfigError(
            refusal(f"key 'privacy.reference' = {file}", error.strerror or str(error), remedy)
        ) from None
    return {"base": str(file), "base_sha256": hashlib.sha256(content).hexdigest()}


def statistics_of_panel(store: Store, folder: Path) -> Tensors:
    """The statistics of a store of public people, as `ReferenceTask` reads them: of everybody in it, exact.

    folder: for what training remembers; nothing of it is needed afterwards
    """
    from pm1_core.training.local import train_locally  # it imports tasks, of which this is one

    orders = [Order("statistics", "statistics", number, 2, 0) for number in (1, 2)]
    return train_locally(StatisticsTask({}, store.study), _Panel.open(store.path), orders, {}, folder)


class _Panel(Store):
    """A store of public people, all of whom count, whatever a study's split says of them."""

    def people(self, split: Split | None, modality: Modality | None = None) -> np.ndarray:
        return super().people(None, modality)


class ReferenceTask(Task):
    """Keys of `parameters`:

    kind: "statistics" reads "statistics.*" tensors from the file `base` (with its `base_sha256`, see
        `pin_reference`), with the names and shapes of `StatisticsTask`; "tokens" leaves tokens as they are: mean
        0, deviation 1
    widths: of tokens, as `TokensTask` has them

    The file is read by the coordinator alone. Raises ConfigError on a wrong parameter.
    """

    name = "reference"
    aggregation = "sum"
    modalities = frozenset(Modality)
    private = True

    def __init__(self, parameters: Mapping[str, Any], study: StudySummary) -> None:
        super().__init__(parameters, study)
        require_choice("reference task, kind", parameters.get("kind"), KINDS, ConfigError)

    def mechanisms(self, order: Order) -> tuple[Mechanism, ...]:
        """Nothing of anybody here is released."""
        return ()

    def initial(self, state: State, seed: int) -> Tensors:
        """The reference's tensors. Raises InputError if the file is not the pinned one or has other tensors."""
        if self.parameters["kind"] == "tokens":
            start = TokensTask(self.parameters, self.study).initial(state, seed)
            return {
                name: np.zeros_like(array) if name.endswith(".mean") else np.ones_like(array)
                for name, array in start.items()
            }
        wanted = StatisticsTask({}, self.study).initial(state, seed)
        found = _read(Path(self.parameters["base"]), self.parameters["base_sha256"])
        for name, array in wanted.items():
            if name not in found or found[name].shape != array.shape or found[name].dtype != np.float32:
                have = f"{found[name].dtype} {found[name].shape}" if name in found else "none"
                remedy = f"give float32 of shape {array.shape}, of this study's definition"
                raise InputError(refusal(f"reference, tensor {name!r}", f"found {have}", remedy))
        return {name: found[name] for name in wanted}

    def train(
        self,
        store: Store,
        order: Order,
        state: State,
        tensors: Tensors,
        folder: Path,
        guide: Guide = UNGUIDED,
    ) -> Update:
        """Zeros."""
        return Update({name: np.zeros(array.shape, np.float32) for name, array in tensors.items()}, 1.0, {})

    def advance(self, round_number: int, tensors: Tensors, aggregate: Tensors) -> Tensors:
        """What it started from."""
        return tensors


def _read(file: Path, sha256: str) -> dict[str, np.ndarray]:
    try:
        content = file.read_bytes()
    except OSError as error:
        raise InputError(
            refusal(file, error.strerror or str(error), "put the reference where the study names it")
        ) from None
    if hashlib.sha256(content).hexdigest() != sha256:
        raise InputError(refusal(file, "it is not the file that the study names", "use the original"))
    try:
        return safetensors.numpy.load(content)
    except safetensors.SafetensorError as error:
        raise InputError(refusal(file, f"no safetensors ({error})", "write it with safetensors")) from None
