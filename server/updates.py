"""One round's updates: checked against what was asked for, and read back tensor by tensor for folding."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from pm1_core import encoding
from pm1_core.errors import FederationError, InputError
from pm1_core.fields import Modality
from pm1_core.objects import Reader
from pm1_core.validate import refusal
from server.spool import Bounds, Spool
from strategies.base import CONTROL

_READERS = 64
"""Sites whose small tensors may be in memory at a time."""


@dataclass(frozen=True)
class Expected:
    """What every update of a round has to be.

    tensors: what was sent, name -> float32 array, lazy
    modality_of: tensor -> the modality whose examples train it, or None
    stays: tensors that never leave a site
    encoding: how updates travel; summed: sums carry weight 1 and are not looked at for their norm
    declared: site -> examples in all and by modality, as the site said before the round
    """

    tensors: Reader
    modality_of: Callable[[str], Modality | None]
    stays: Callable[[str], bool]
    encoding: str
    summed: bool
    declared: Mapping[str, Mapping[str, int]]

    @property
    def bounds(self) -> Bounds:
        """What an update can need at most, in any encoding: every tensor in float32, and what names them."""
        elements = sum(int(np.prod(self.tensors.shape(name))) for name in self.tensors)
        names = len(self.tensors)
        return Bounds(objects=2 * names + 1, size=5 * elements + 2048 * names + 2**16)

    @property
    def modalities(self) -> set[Modality]:
        """Modalities that tensors of the round belong to."""
        found = {self.modality_of(name.removeprefix(CONTROL)) for name in self.tensors}
        return {modality for modality in found if modality}


class Spooled:
    """strategies.Updates over a spool: every tensor is read from disk when it is asked for.

    Site by site, `check` refuses an update that is not what was asked for; it reads each tensor once, and
    measures how far the update moves the model.
    """

    def __init__(self, spool: Spool, expected: Expected) -> None:
        self.spool = spool
        self.expected = expected
        self.names = tuple(name for name in expected.tensors if not expected.stays(name))
        self._readers: dict[str, Reader] = {}

    @property
    def sites(self) -> tuple[str, ...]:
        """Sites whose updates are there, in the order in which they are folded."""
        return tuple(sorted(self.spool.replies))

    def weight(self, site: str, name: str) -> float:
        """Examples behind a tensor at a site: of its modality where it belongs to one."""
        reply = self.spool.replies[site]
        modality = self.expected.modality_of(name.removeprefix(CONTROL))
        return float(reply.weights.get(modality, 0.0)) if modality else float(reply.weight)

    def eligible(self, name: str) -> dict[str, float]:
        """Site -> examples behind a tensor, > 0, as every site of the phase declared them."""
        kind = self.expected.modality_of(name.removeprefix(CONTROL)) or "train"
        counts = {site: float(declared.get(kind, 0)) for site, declared in self.expected.declared.items()}
        return {site: count for site, count in counts.items() if count > 0}

    def tensor(self, site: str, name: str) -> np.ndarray:
        """A site's tensor, float32, as if it had sent all of it."""
        return self._decoded(self._reader(site), name)

    def check(self, site: str) -> float:
        """The L2 norm of what `site` changes of the model.

        Raises InputError naming the first thing that is wrong, CheckpointError if an object is no safetensors file.
        """
        self._check_weights(site)
        reader = self._reader(site)
        carried = set(encoding.names_of(self._encoding, list(reader)))
        needed = {name for name in self.names if self.weight(site, name) > 0}
        for name in sorted(needed - carried):
            raise InputError(refusal(f"tensor {name!r}", "it is missing", "send what the order names"))
        for name in sorted(carried - set(self.names)):
            raise InputError(refusal(f"tensor {name!r}", "it was not asked for", "send what the order names"))
        squares = 0.0
        for name in sorted(carried):
            wanted = self.expected.tensors.shape(name)
            if reader.shape(name) != wanted:
                raise InputError(refusal(f"tensor {name!r}", f"shape {reader.shape(name)}", f"send {wanted}"))
            encoding.check_tensor(self._encoding, reader, name)
            if not name.startswith(CONTROL):
                change = self._decoded(reader, name).astype(np.float64) - self.expected.tensors[name]
                squares += float(np.vdot(change, change))
        return float(np.sqrt(squares))

    @property
    def _encoding(self) -> str:
        return "full" if self.expected.summed else self.expected.encoding

    def _decoded(self, reader: Reader, name: str) -> np.ndarray:
        whole = self._encoding == "full" or name.startswith(CONTROL)  # of the latter changes are sent
        received = None if whole else self.expected.tensors[name]
        return encoding.decode(self._encoding, reader, name, received)

    def _reader(self, site: str) -> Reader:
        if site not in self._readers:
            if len(self._readers) >= _READERS:
                del self._readers[next(iter(self._readers))]
            self._readers[site] = self.spool.tensors(site)
        return self._readers[site]

    def _check_weights(self, site: str) -> None:
        """A site's weight is what it declared before it saw the round: nobody gains a say by claiming more."""
        reply, declared = self.spool.replies[site], self.expected.declared.get(site)
        if declared is None:
            raise FederationError(refusal("update", "nobody knows its site", "let it say what it has first"))
        found: dict[str, float] = dict.fromkeys(self.expected.modalities, 0.0)
        found |= {**reply.weights, "train": reply.weight}
        wanted = {name: declared.get(name, 0) for name in found}
        if self.expected.summed:
            wanted["train"] = 1
        for name, count in found.items():
            if count != wanted[name]:
                raise InputError(
                    refusal(
                        f"weight {name!r}",
                        f"found {count:g}, declared {wanted[name]}",
                        "weigh by the examples that were declared before the round",
                    )
                )


def far_beyond(norms: Mapping[str, float], people: Mapping[str, float], limit: float) -> dict[str, str]:
    """Sites whose update moves the model far beyond the others', with a sentence each.

    A site is refused if its norm exceeds `limit` times the median norm of the others, times the ratio of its
    people to theirs where it has more: a site takes steps in proportion to its people, so an honest one cannot
    move further than that. Two sites cannot judge each other; it takes three.
    """
    if limit <= 0 or len(norms) < 3:
        return {}
    refused = {}
    for site in sorted(norms):
        others = [other for other in sorted(norms) if other != site]
        usual = float(np.median([norms[other] for other in others]))
        crowd = float(np.median([people[other] for other in others]))
        bound = limit * usual * max(1.0, people[site] / crowd if crowd else 1.0)
        if norms[site] > bound and usual > 0:
            refused[site] = refusal(
                "update",
                f"its norm is {norms[site]:.3g}",
                f"at most {bound:.3g} is accepted beside the others",
            )
    return refused
