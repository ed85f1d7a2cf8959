"""What processes that were killed left in the folder of a run, removed before the next one goes on."""

from __future__ import annotations

import logging
from pathlib import Path

from pm1_core import atomic
from pm1_core.checkpoint import CheckpointFolder
from pm1_core.errors import CheckpointError

log = logging.getLogger("pm1.coordinator")


def clear_away(folder: Path, checkpoints: CheckpointFolder) -> None:
    """Remove files that were never finished, and tensors that no checkpoint names.

    The latter are of a round that did not come to its checkpoint. Asked for again it may have other sites, and so
    other tensors: left where they are, they would add up. If a manifest cannot be read, nobody knows what it names,
    and all tensors stay.
    """
    for swept in (folder, checkpoints.folder, checkpoints.objects.folder):
        atomic.sweep(swept)
    try:
        manifests = [checkpoints.load(sequence) for sequence in checkpoints.sequences()]
        origin = checkpoints.origin()
    except CheckpointError as error:
        log.warning("tensors of no checkpoint are not looked for: %s", error)
        return
    named = {
        digest
        for manifest in [*manifests, *([origin] if origin else [])]
        for digests in manifest.parts.values()
        for digest in digests
    }
    for file in checkpoints.objects.folder.glob("*.safetensors"):
        if file.stem not in named:
            file.unlink(missing_ok=True)
