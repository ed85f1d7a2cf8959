"""Releases that every site of the consortium may read, through the gateway's read-only path.

    public/checkpoints/index.json               what there is, the newest last
    public/checkpoints/HASH/checkpoint.json     the signed manifest; release.json: who released it, and why
    public/checkpoints/objects/SHA256.safetensors       tensors, each once

Only what was released is published. The index is written last; a reader finds a release whole or not at all.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from pm1_core import atomic
from pm1_core.checkpoint import Checkpoint
from pm1_core.errors import InputError
from pm1_core.validate import refusal
from server.registry import Registry

SHORT = 16
"""Digits of a checkpoint's hash in the name of its folder."""


def publish(registry: Registry, checkpoint: Checkpoint, public: Path) -> Path:
    """Put a released checkpoint where sites find it; its folder. Raises InputError if it is not released.

    public: of the consortium's folder
    """
    release = next((one for one in registry.releases.all() if one.checkpoint == checkpoint.hash), None)
    if release is None:
        found = f"checkpoint {checkpoint.sequence} is not released"
        raise InputError(refusal("publication", found, "promote it first: pm1-server checkpoints promote"))
    root = public / "checkpoints"
    (root / "objects").mkdir(parents=True, exist_ok=True)
    for digest in sorted({digest for held in checkpoint.parts.values() for digest in held}):
        _place(registry.checkpoints.objects.check(digest), root / "objects" / f"{digest}.safetensors")
    folder = root / checkpoint.hash[:SHORT]
    folder.mkdir(exist_ok=True)
    atomic.write_text(folder / "release.json", release.to_json())
    atomic.write_text(folder / "checkpoint.json", checkpoint.to_json() + "\n")
    index = root / "index.json"
    listed = atomic.read_json(index)["checkpoints"] if index.exists() else []
    entry = {
        "hash": checkpoint.hash,
        "study": checkpoint.study,
        "release": release.number,
        "privacy": checkpoint.privacy,
        "bytes": sum(
            registry.checkpoints.objects.size(d) for held in checkpoint.parts.values() for d in held
        ),
    }
    others = [one for one in listed if one["hash"] != checkpoint.hash]
    atomic.write_json(index, {"checkpoints": [*others, entry]})
    return folder


def _place(file: Path, there: Path) -> None:
    """The same file under another name; a copy where the disk is another."""
    if there.exists():
        return
    beside = there.with_name(f".{there.name}.partial")
    beside.unlink(missing_ok=True)
    try:
        os.link(file, beside)
    except OSError:
        shutil.copyfile(file, beside)
    beside.replace(there)
