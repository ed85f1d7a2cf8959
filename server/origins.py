"""Starting from what another run released: its manifest, signature and tensors checked, then taken over.

The source is the folder of a run, or a folder that `pm1-server checkpoints export` wrote. Nothing but a released
checkpoint whose signature one of the given keys made is accepted.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from cryptography.hazmat.primitives import serialization

from pm1_core import atomic
from pm1_core.checkpoint import Checkpoint, CheckpointFolder
from pm1_core.errors import CheckpointError, InputError
from pm1_core.objects import ObjectStore, packed
from pm1_core.signing import Trust, fingerprint
from pm1_core.validate import refusal
from server.registry import ORIGIN_KEY, Registry
from server.releases import Release
from server.shards import entries

CHECKPOINT, RELEASE, OBJECTS = "checkpoint.json", "release.json", "objects.json"
"""Files of an export: manifest, record of the release, and which tensors each object of the manifest holds."""


def start_from(source: Path, checkpoints: CheckpointFolder, trust: Trust, wanted: str = "") -> Checkpoint:
    """Let the first checkpoint of `checkpoints` follow a checkpoint that another run released, and return that.

    source: folder of a run, or of an export
    trust: keys of coordinators whose checkpoints are accepted
    wanted: hash of the checkpoint, or its beginning; default: the newest release

    Tensors are hard-linked where the file system allows it, copied otherwise. origin.json is written last, so a
    crash leaves a run that has not begun; calling again completes it. A run that began from this very checkpoint
    is left as it is. Raises InputError if `source` holds no such release, CheckpointError if something in it is
    damaged, not signed by `trust`, or if `checkpoints` began otherwise.
    """
    there = checkpoints.origin()
    if there is not None and (not wanted or there.hash.startswith(wanted)):
        return there
    if there is not None or checkpoints.sequences():
        found = f"it began from {there.hash[:12]}" if there else "it holds checkpoints already"
        raise CheckpointError(refusal(checkpoints.folder, found, "start from another one in another run"))
    if (source / CHECKPOINT).is_file():
        origin = _from_export(source, checkpoints.objects, trust, wanted)
    else:
        origin = _from_run(source, checkpoints.objects, trust, wanted)
    keep_key(checkpoints.folder / ORIGIN_KEY, origin, trust)
    atomic.write_text(checkpoints.folder / "origin.json", origin.to_json() + "\n")
    return origin


def require_origin(checkpoints: CheckpointFolder, wanted: str) -> None:
    """Raise CheckpointError unless the lineage starts where the study says: Study.start_from, "" for nowhere."""
    origin = checkpoints.origin()
    if (origin.hash if origin else "") != wanted:
        found = f"it starts from {origin.hash[:12] if origin else 'nothing'}"
        remedy = f"the study starts from {wanted[:12] or 'nothing'}; choose another run name"
        raise CheckpointError(refusal(checkpoints.folder, found, remedy))


def _from_run(source: Path, objects: ObjectStore, trust: Trust, wanted: str) -> Checkpoint:
    registry = Registry(source)
    chosen = [r for r in registry.releases.all(trust) if r.checkpoint.startswith(wanted)]
    if not chosen:
        raise _unreleased(source, wanted)
    origin = registry.checkpoints.load(chosen[-1].sequence)
    where = f"{source}, checkpoint {origin.sequence}"
    _require_released(where, origin, chosen[-1])
    trust.require(where, origin.signed_bytes, origin.signature)
    for digest in _digests(origin):
        _take(registry.checkpoints.objects.check(digest), objects, digest)
    return origin


def _from_export(source: Path, objects: ObjectStore, trust: Trust, wanted: str) -> Checkpoint:
    origin = Checkpoint.from_json((source / CHECKPOINT).read_text(errors="replace"), source / CHECKPOINT)
    trust.require(source / CHECKPOINT, origin.signed_bytes, origin.signature)
    if not origin.hash.startswith(wanted) or not (source / RELEASE).is_file():
        raise _unreleased(source, wanted)
    release = Release.from_json((source / RELEASE).read_text(errors="replace"), source / RELEASE)
    trust.require(source / RELEASE, release.signed_bytes, release.signature)
    _require_released(source / RELEASE, origin, release)
    if not (source / OBJECTS).is_file():
        found = f"found no {OBJECTS}: it holds a part of the model"
        raise InputError(refusal(source, found, "export the whole checkpoint"))
    names = _objects(source / OBJECTS)
    files = [file for file in sorted(source.glob("model*.safetensors")) if file.is_file()]
    there = {entry.name: entry for file in files for entry in entries(file)}
    for digest in _digests(origin):
        if digest in objects:
            objects.check(digest)
            continue
        held = names.get(digest, [digest])
        missing = [name for name in held if name not in there]
        if missing:
            found = f"tensor {missing[0]!r} is missing"
            raise CheckpointError(refusal(source, found, "export the checkpoint again"))
        made, content = packed({name: there[name].read() for name in held})
        if made != digest:
            found = f"the tensors from {(held or [digest])[0]!r} on are not those of the manifest"
            raise CheckpointError(refusal(source, found, "export the checkpoint again"))
        objects.put_bytes(digest, content)
    return origin


def _objects(file: Path) -> dict[str, list[str]]:
    """Names of tensors by object. Raises CheckpointError on anything else."""
    content = atomic.read_json(file)
    lists = content.values() if isinstance(content, dict) else [None]
    if not all(isinstance(held, list) and all(isinstance(name, str) for name in held) for held in lists):
        raise CheckpointError(refusal(file, "it lists no tensors", "export the checkpoint again"))
    return dict(content)


def _require_released(where: object, origin: Checkpoint, release: Release) -> None:
    if release.checkpoint != origin.hash:
        found = f"release {release.number} is of checkpoint {release.checkpoint[:12]}, not {origin.hash[:12]}"
        raise CheckpointError(refusal(where, found, "restore it from a copy"))


def _unreleased(source: Path, wanted: str) -> InputError:
    found = f"found no release of {wanted[:12]}" if wanted else "nothing in it is released"
    return InputError(refusal(source, found, "name one that `pm1-server checkpoints promote` released"))


def _digests(checkpoint: Checkpoint) -> Iterator[str]:
    for part in sorted(checkpoint.parts):
        yield from checkpoint.parts[part]


def _take(file: Path, objects: ObjectStore, digest: str) -> None:
    """Put a checked object into another store, as a link to the same bytes if possible."""
    target = objects.path(digest)
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(file, target)
        except OSError:  # another file system, or one without links
            objects.put_bytes(digest, file.read_bytes())
    objects.check(digest)


def keep_key(file: Path, checkpoint: Checkpoint, trust: Trust) -> None:
    """Write the key of `trust` that signed `checkpoint`. Raises CheckpointError if none of them did."""
    signer = trust.require(file, checkpoint.signed_bytes, checkpoint.signature)
    (key,) = {fingerprint(k): k for k in trust.keys if fingerprint(k) == signer}.values()
    pem = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    atomic.write_bytes(file, key.public_bytes(*pem))
