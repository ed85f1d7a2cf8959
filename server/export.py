"""A checkpoint as a folder of the kind that Hugging Face's tools read, with everything needed to check it.

    README.md                   model card, see server.model_card
    config.json                 sizes of the parts
    model.safetensors           or model-00001-of-00003.safetensors ... and model.safetensors.index.json
    fundus/                     adapters in PEFT's format: adapter_config.json, adapter_model.safetensors
    fundus/merged.safetensors   if asked for: base and decoder with the adapters merged into it (appendix F.3)
    checkpoint.json release.json coordinator.pub     signed manifest and record of the release; the key
    objects.json                which tensors each object of the manifest holds: an export can start another run

With `parts`, the model's file holds those parts alone; of the fundus part alone, the folder is the PEFT adapter.
The folder appears whole or not at all. Tensors are copied block by block.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pm1_core import atomic
from pm1_core.checkpoint import Checkpoint, State
from pm1_core.errors import InputError
from pm1_core.signing import Trust
from pm1_core.validate import refusal, require_choice
from server.folding import STATE
from server.model_card import Facts, adapter_card, model_card
from server.origins import CHECKPOINT, OBJECTS, RELEASE, keep_key
from server.registry import Registry
from server.shards import Entry, entries, shards, write

if TYPE_CHECKING:
    from server.study import Study

SHARD_BYTES = 5 * 10**9
"""The size above which a model is more than one file, as in Hugging Face's own tools."""
FUNDUS = "fundus"
ADAPTERS = "fundus.lora."
_METADATA = {"format": "pt"}  # what transformers asks for; the arrays are the same for everybody


@dataclass(frozen=True)
class Exported:
    """What was written: the folder, its files with their bytes, and the tensors' count and parameters."""

    folder: Path
    files: Mapping[str, int]
    tensors: int
    parameters: int


def export(
    registry: Registry,
    checkpoint: Checkpoint,
    folder: Path,
    *,
    parts: Sequence[str] = (),
    study_file: Path | None = None,
    trust: Trust | None = None,
    licence: str = "unknown",
    shard_bytes: int = SHARD_BYTES,
    merged: bool = False,
) -> Exported:
    """Write `checkpoint` to `folder`, which must not exist or be empty.

    parts: names of parts ("fusion", "genotype.22"; "genotype" takes all chromosomes); default: all of the model,
        without what a strategy keeps for itself within a phase
    trust: keys that must have signed the lineage; default: the run's own, if it is there
    licence: of the weights, an identifier of Hugging Face's list
    merged: also write the fundus encoder with its adapters merged, which holds the base's weights and is under its
        licence; the study's base file has to be where the study says

    Raises InputError if `folder` is in use, a part is unknown or the study is not there, CheckpointError if the
    lineage, a signature or a tensor is damaged. An OSError leaves no folder behind.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(refusal(folder, "found something there", "name a folder that is not there yet"))
    trust = trust or registry.default_trust()
    verified = registry.verify(trust, registry.origin_trust(trust), objects=False)
    study = registry.study(checkpoint, study_file)
    chosen = _chosen(checkpoint, parts)
    held = {digest: entries(registry.checkpoints.objects.check(digest)) for digest in _digests(chosen)}
    release = next((r for r in verified.releases if r.checkpoint == checkpoint.hash), None)
    facts = Facts(checkpoint, release, verified, study, _counts(chosen, held), licence)
    tensors = [entry for part in sorted(chosen) for digest in chosen[part] for entry in held[digest]]
    with _named(folder), atomic.whole_folder(folder) as beside:
        if set(chosen) == {FUNDUS}:
            _write_adapters(beside, facts, tensors)
        else:
            _write_model(beside, tensors, shard_bytes)
            _write_json(beside / "config.json", architecture(study, checkpoint, chosen))
            (beside / "README.md").write_text(model_card(facts))
            if FUNDUS in chosen:
                of_fundus = [entry for digest in chosen[FUNDUS] for entry in held[digest]]
                (beside / FUNDUS).mkdir()
                _write_adapters(beside / FUNDUS, facts, of_fundus)
        if merged:
            _write_merged(beside / FUNDUS, study, registry.checkpoints.state(checkpoint))
        (beside / CHECKPOINT).write_text(checkpoint.to_json() + "\n")
        if release:
            (beside / RELEASE).write_text(release.to_json())
        if trust:
            keep_key(beside / "coordinator.pub", checkpoint, trust)
            (beside / "coordinator.pub").chmod(0o666 & ~_umask())
        if set(chosen) == set(checkpoint.parts):
            _write_json(beside / OBJECTS, {digest: [entry.name for entry in held[digest]] for digest in held})
        beside.chmod(0o777 & ~_umask())  # the temporary folder was closed to others
        files = {
            file.relative_to(beside).as_posix(): file.stat().st_size
            for file in sorted(beside.rglob("*"))
            if file.is_file()
        }
    return Exported(folder, files, len(tensors), sum(entry.parameters for entry in tensors))


def architecture(study: Study, checkpoint: Checkpoint, parts: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """The content of config.json: sizes of those parts that are there, as the config classes of pm1_core.model.

    `encoders` and `fusion` are what pm1_core.training.pm1.PM1 takes; `tasks` are sizes of an installed package's.
    """
    kinds = {part.partition(".")[0] for part in parts}
    sizes: dict[str, Any] = {}
    for phase in study.phases:
        sizes |= phase.parameters.get("encoders", {})
    for phase in study.phases:
        if "model" in phase.parameters:
            sizes[phase.task] = phase.parameters["model"]
    # Where a base lay on the coordinator's machine is nobody's business; its content is named by its hash.
    sizes = {
        name: {key: value for key, value in fields.items() if key != "base"} for name, fields in sizes.items()
    }
    encoders = {name: sizes.pop(name) for name in ("genotype", "phenotype", FUNDUS) if name in sizes}
    fusion = sizes.pop("fusion", None)
    return {
        "model_type": "pm1",
        "architectures": ["PM1"],
        "dtype": "float32",
        "study": study.name,
        "checkpoint": checkpoint.hash,
        "parts": sorted(parts),
        "encoders": {name: fields for name, fields in encoders.items() if name in kinds},
        "fusion": fusion if "fusion" in kinds else None,
        "tasks": {name: fields for name, fields in sizes.items() if name in kinds},
    }


def peft_name(name: str) -> str:
    """The name under which PEFT looks for an adapter of ours.

    >>> peft_name("fundus.lora.blocks.0.attn.qkv.lora_A")
    'base_model.model.blocks.0.attn.qkv.lora_A.weight'
    """
    return f"base_model.model.{name.removeprefix(ADAPTERS)}.weight"


def _chosen(checkpoint: Checkpoint, parts: Sequence[str]) -> dict[str, Sequence[str]]:
    kinds = {part.partition(".")[0] for part in checkpoint.parts}
    for part in parts:
        require_choice("--part", part, sorted({*checkpoint.parts, *kinds}))
    return {
        part: digests
        for part, digests in checkpoint.parts.items()
        if part in parts or part.partition(".")[0] in parts or (not parts and part not in STATE)
    }


def _digests(parts: Mapping[str, Sequence[str]]) -> list[str]:
    return [digest for part in sorted(parts) for digest in parts[part]]


def _counts(
    parts: Mapping[str, Sequence[str]], held: Mapping[str, Sequence[Entry]]
) -> dict[str, tuple[int, int]]:
    """Part -> tensors, parameters."""
    return {
        part: (
            sum(len(held[digest]) for digest in digests),
            sum(entry.parameters for digest in digests for entry in held[digest]),
        )
        for part, digests in sorted(parts.items())
    }


def _write_model(folder: Path, tensors: Sequence[Entry], limit: int) -> None:
    groups = shards(tensors, limit)
    if len(groups) == 1:
        write(folder / "model.safetensors", groups[0], _METADATA)
        return
    places: dict[str, str] = {}
    for number, group in enumerate(groups, 1):
        name = f"model-{number:05d}-of-{len(groups):05d}.safetensors"
        write(folder / name, group, _METADATA)
        places |= {entry.name: name for entry in group}
    size = sum(entry.length for entry in tensors)
    index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(places.items()))}
    _write_json(folder / "model.safetensors.index.json", index)


def _write_adapters(folder: Path, facts: Facts, tensors: Sequence[Entry]) -> None:
    # Imported here: peft brings transformers along, which only this needs.
    from peft import LoraConfig

    from pm1_core.model.fundus_lora import ADAPTED

    fields = architecture(facts.study, facts.checkpoint, {FUNDUS: ()})["encoders"][FUNDUS]
    LoraConfig(
        r=fields["lora_rank"],
        lora_alpha=fields["lora_alpha"],
        lora_dropout=fields["lora_dropout"],
        target_modules=ADAPTED,
        inference_mode=True,
    ).save_pretrained(str(folder))
    adapters = [
        replace(entry, name=peft_name(entry.name)) for entry in tensors if entry.name.startswith(ADAPTERS)
    ]
    write(folder / "adapter_model.safetensors", adapters, _METADATA)
    (folder / "README.md").write_text(adapter_card(facts, fields))


def _write_merged(folder: Path, study: Study, state: State) -> None:
    """The encoder as after adaptation, under the names of its base: it loads wherever the base did."""
    # Imported here: peft and timm take seconds, which only this needs.
    from safetensors.torch import save_file

    from pm1_core.training.adapters import build_encoder

    fields = [phase.parameters["model"] for phase in study.phases if phase.task == FUNDUS]
    if not fields or FUNDUS not in state.parts:
        raise InputError(refusal("merged encoder", "the checkpoint has no adapters", "leave --merge out"))
    folder.mkdir(exist_ok=True)
    tensors = {
        name: tensor.contiguous() for name, tensor in build_encoder(fields[0], state).state_dict().items()
    }
    save_file(tensors, folder / "merged.safetensors", _METADATA)


def _write_json(file: Path, content: object) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n")


@contextmanager
def _named(folder: Path) -> Iterator[None]:
    """Give an error of a write the name of the folder: on a full disk the system names no file."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(folder)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
