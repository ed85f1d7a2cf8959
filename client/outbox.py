"""The only way out of a site: every answer to the coordinator passes here and leaves a line.

`outbox.jsonl` in the site's folder has one line per release: study phase, round, what, bytes, SHA-256 of the
tensors and the names of the figures. A release that is not finite or not float32 never becomes one.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import numpy as np
from flwr.app import RecordDict

from pm1_core.training.order import Order
from pm1_core.update import Update
from strategies import records


class Outbox:
    """Packs a site's answers and writes down what left."""

    def __init__(self, site: str, folder: Path) -> None:
        self.site = site
        self.file = folder / "outbox.jsonl"

    def release(
        self, kind: str, order: Order, facts: records.Facts, update: Update | None = None
    ) -> RecordDict:
        """The content of one reply, after its line is on disk.

        kind: "ready", "train" or "evaluate"; facts: what the site tells about itself.
        """
        digest = hashlib.sha256()
        size = 0
        tensors = update.tensors if update else {}
        for name in sorted(tensors):
            content = np.ascontiguousarray(tensors[name])
            digest.update(name.encode())
            digest.update(content.data)
            size += content.nbytes
        line = {
            "what": kind,
            "phase": order.phase,
            "round": order.round,
            "bytes": size,
            "sha256": digest.hexdigest(),
            "facts": dict(facts),
            "weight": update.weight if update else None,
            "metrics": sorted(update.metrics) if update else [],
        }
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self.file.open("a") as stream:
            stream.write(json.dumps(line, sort_keys=True) + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        return records.pack_reply({"site": self.site, **facts}, update)
