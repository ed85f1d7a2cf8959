"""What a site remembers of a phase between its rounds, on its own disk.

    folder/KIND.PHASE/000017.safetensors     as it was at the end of round 17

Moments of optimisers, control variates, personal models, tensors that stay at a site and what a lossy encoding left
out are all kept this way, so that one rule covers them:

- A round reads the newest file of a round *before* its own. Asked for once more, it reads what it read at first and
  writes the same bytes; a site that missed rounds goes on with what it has.
- The two newest rounds up to the one just written are kept: a coordinator asks for no round older than the one
  after its last checkpoint.
- Files of later rounds than the one just written come from a coordinator that was set back since. They are never
  read, and they are removed.
"""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

import numpy as np
import safetensors
import safetensors.numpy

from pm1_core import atomic
from pm1_core.errors import StateError
from pm1_core.training import processes
from pm1_core.training.order import Order
from pm1_core.update import Tensors
from pm1_core.validate import refusal

_KEPT = 2
_SUFFIX = ".safetensors"


class Memory:
    """The memory of one phase, seen from the round of `order`; `folder` is the site's own disk for the study."""

    def __init__(self, folder: Path, order: Order) -> None:
        self._folder = folder
        self._phase, self._round = quote(order.phase, safe=""), order.round

    def load(self, kind: str, after: bool = False) -> dict[str, np.ndarray] | None:
        """Arrays of `kind` as they were before the order's round, or None if there were none yet.

        after: as they are once the order's round is done, if it has been, for figures at the end of a phase.
        Raises StateError if the file is damaged.
        """
        last = self._round if after else self._round - 1
        rounds = [number for number in self._rounds(kind) if number <= last]
        if not rounds:
            return None
        file = self._file(kind, rounds[-1])
        try:
            return safetensors.numpy.load_file(file)
        except safetensors.SafetensorError as error:
            remedy = "remove it, and the site goes on with the round before"
            raise StateError(refusal(file, f"found no whole safetensors file ({error})", remedy)) from None

    def save(self, kind: str, tensors: Tensors) -> None:
        """Keep arrays of `kind` as of the end of the order's round, and forget what no round can ask for.

        Of several processes that train together the first one does; all have the same arrays.
        """
        if processes.rank():
            return
        file = self._file(kind, self._round)
        for left_over in file.parent.glob(f".*{_SUFFIX}.*"):
            left_over.unlink(missing_ok=True)  # of a process that was killed while it wrote
        content = {name: np.asarray(tensors[name], order="C") for name in sorted(tensors)}
        atomic.write_bytes(file, safetensors.numpy.save(content))
        rounds = self._rounds(kind)
        kept = [number for number in rounds if number <= self._round][-_KEPT:]
        for number in rounds:
            if number not in kept:
                self._file(kind, number).unlink(missing_ok=True)

    def drop(self, kind: str) -> None:
        """Forget what the round before the order's left: its update did not count."""
        self._file(kind, self._round - 1).unlink(missing_ok=True)

    def _rounds(self, kind: str) -> list[int]:
        files = self._file(kind, 0).parent.glob(f"[0-9]*{_SUFFIX}")
        return sorted(int(file.name.removesuffix(_SUFFIX)) for file in files)

    def _file(self, kind: str, number: int) -> Path:
        return self._folder / f"{kind}.{self._phase}" / f"{number:06d}{_SUFFIX}"
