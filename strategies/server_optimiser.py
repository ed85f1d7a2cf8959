"""What FedAvgM, FedAdagrad, FedAdam and FedYogi share: the sites' mean change is a gradient for an optimiser.

The mean over sites gives Delta = mean of (what a site sent - what it received), weighted by examples as in
`FedAvg`. An optimiser at the coordinator turns it into the step of the model. Its state is tensors of the
checkpoint, "server.KIND.NAME", in float32: it survives the coordinator, and costs as many copies of the model on
disk as there are kinds.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from pm1_core.update import Tensors
from strategies import folding
from strategies.base import SERVER, Named, Strategy
from strategies.updates import Updates

Doubles = npt.NDArray[np.float64]
Moments = dict[str, Doubles]


@dataclass(frozen=True)
class ServerOptimiser(Strategy):
    """An optimiser at the coordinator, elementwise.

    kinds: what it remembers of every element, in the order of names
    """

    linear: ClassVar[bool] = True
    kinds: ClassVar[tuple[str, ...]]

    @abstractmethod
    def step(self, delta: Doubles, moments: Moments) -> tuple[Doubles, Moments]:
        """The change of the model and the new moments, given Delta and the old ones: float64 of one shape."""

    def start(self, kind: str) -> float:
        """What every element of a kind begins with."""
        return 0.0

    def initial(self, tensors: Tensors) -> dict[str, np.ndarray]:
        """The moments before the first round, as views of one number each."""
        return {
            f"{SERVER}{kind}.{name}": np.broadcast_to(np.float32(self.start(kind)), tensors[name].shape)
            for kind in self.kinds
            for name in sorted(tensors)
        }

    def aggregate(self, round_number: int, previous: Tensors, updates: Updates) -> Named:
        """Yield the model's tensors, then each kind of moment.

        Updates are folded anew for each of them: to hold one until the other is written would be to hold a
        whole model.
        """
        for name in updates.names:
            before = previous[name]
            new = np.array(before, np.float32, order="C")
            for block, change, _ in self._steps(previous, updates, name):
                new.reshape(-1)[block] = before.reshape(-1)[block].astype(np.float64) + change
            yield name, new
        for kind in self.kinds:
            for name in updates.names:
                new = np.array(previous[f"{SERVER}{kind}.{name}"], np.float32, order="C")
                for block, _, moments in self._steps(previous, updates, name):
                    new.reshape(-1)[block] = moments[kind]
                yield f"{SERVER}{kind}.{name}", new

    def _steps(
        self, previous: Tensors, updates: Updates, name: str
    ) -> Iterator[tuple[slice, Doubles, Moments]]:
        """Block by block (slice, change, new moments); nothing where no site trained the tensor."""
        mean = folding.mean(updates, name)
        if mean is None:
            return
        before = previous[name].reshape(-1)
        old = {kind: previous[f"{SERVER}{kind}.{name}"].reshape(-1) for kind in self.kinds}
        for block in folding.blocks(mean.size):
            delta = mean[block] - before[block]
            moments = {kind: values[block].astype(np.float64) for kind, values in old.items()}
            yield block, *self.step(delta, moments)
