"""The model card of an exported checkpoint: every figure in it comes from signed manifests, none from elsewhere.

The front matter follows Hugging Face's model card metadata (huggingface_hub.ModelCardData).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import yaml

from pm1_core.checkpoint import Checkpoint
from pm1_core.gates import ALL
from server.registry import Verified
from server.releases import Release

if TYPE_CHECKING:
    from server.study import Study

_TAGS = ["federated-learning", "flower", "medical", "genomics", "fundus", "tabular", "safetensors"]
_SHOWN_METRICS = ("loss", "accuracy", "weighted_accuracy")


@dataclass(frozen=True)
class Facts:
    """What a card is written from; counts: part -> tensors, parameters."""

    checkpoint: Checkpoint
    release: Release | None
    verified: Verified
    study: Study
    counts: Mapping[str, tuple[int, int]]
    licence: str


def energy_sentence(verified: Verified) -> str:
    """What was measured over the whole lineage, and what was not."""
    measured = [made.measured for made in verified.lineage]
    metered = [figures for figures in measured if figures.get("energy_joules") is not None]
    seconds = sum(figures.get("seconds", 0.0) for figures in measured)
    rounds = f"{len(metered)} of {len(measured)} checkpoints"
    if not metered:
        return f"Not measured: no site's machine offered a meter. The rounds took {seconds:,.0f} s."
    kilowatt_hours = sum(figures["energy_joules"] for figures in metered) / 3.6e6
    sites = max(figures.get("energy_sites", 0.0) for figures in metered)
    return (
        f"{kilowatt_hours:.4g} kWh, measured by counters of processors and GPUs at up to {sites:.0f} sites in "
        f"{rounds}; what had no meter is not in it. The rounds took {seconds:,.0f} s."
    )


def model_card(facts: Facts) -> str:
    """README.md of an export."""
    checkpoint = facts.checkpoint
    parts = [f"| `{part}` | {tensors} | {size:,} |" for part, (tensors, size) in facts.counts.items()]
    return "\n".join(
        [
            _front_matter(facts, "pm1", _TAGS),
            f"# {checkpoint.study}, checkpoint {checkpoint.sequence}",
            "",
            "Trained by sites on their own machines: tensors travelled, people's data did not.",
            "Not a medical device. Figures below are of the participating sites' held-out people alone.",
            "",
            *_status(facts),
            "",
            "## Parts",
            "",
            "| part | tensors | parameters |",
            "|---|---:|---:|",
            *parts,
            "",
            *_figures(checkpoint),
            "## Privacy",
            "",
            f"{checkpoint.privacy[:1].upper()}{checkpoint.privacy[1:]}.",
            "",
            "## Energy",
            "",
            energy_sentence(facts.verified),
            "",
            "## How to load",
            "",
            _LOAD,
            *([_LOAD_FUNDUS] if "fundus" in facts.counts else []),
            _VERIFY,
        ]
    )


def adapter_card(facts: Facts, sizes: Mapping[str, Any]) -> str:
    """README.md of the adapters: how the base is built that they belong to."""
    base = (
        f"the file with SHA-256 `{sizes['base_sha256']}` (RETFound's layout: key `model`)"
        if sizes.get("base_sha256")
        else f"a random start: `FundusEncoder(config, seed={sizes['base_seed']}).state_dict()` of pm1_core"
    )
    readout = "[:, 0]" if sizes["token"] == "cls" else "[:, 1:].mean(1)"
    return "\n".join(
        [
            _front_matter(facts, "peft", ["lora", *_TAGS]),
            f"# {facts.checkpoint.study}, checkpoint {facts.checkpoint.sequence}: adapters of the fundus encoder",
            "",
            *_status(facts),
            "",
            f"LoRA (rank {sizes['lora_rank']}, alpha {sizes['lora_alpha']:g}) for a vision transformer of timm.",
            f"Its base is not in this folder. It is {base}.",
            "",
            "```python",
            "from functools import partial",
            "import torch",
            "from peft import PeftModel",
            "from timm.models.vision_transformer import VisionTransformer",
            "",
            "base = VisionTransformer(",
            f"    img_size={sizes['image']}, patch_size={sizes['patch']}, embed_dim={sizes['width']},",
            f"    depth={sizes['depth']}, num_heads={sizes['heads']}, num_classes=0,",
            "    norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),",
            ")",
            "own = base.state_dict()",
            "base.load_state_dict({name: weights[name] for name in own})  # without the base's decoder",
            'model = PeftModel.from_pretrained(base, "this folder").eval()',
            f"token = model.base_model.model.forward_features(images){readout}  # [B, {sizes['width']}]",
            "```",
            "",
            "`images` are float [B, 3, S, S], scaled to 0..1, then ImageNet's mean and standard deviation.",
            "",
            _VERIFY,
        ]
    )


def _front_matter(facts: Facts, library: str, tags: list[str]) -> str:
    checkpoint = facts.checkpoint
    data: dict[str, Any] = {"license": facts.licence, "library_name": library, "tags": tags}
    areas = {name: area for name, area in checkpoint.areas.items() if name.endswith(ALL)}
    if areas and library != "peft":
        data["metrics"] = ["roc_auc"]
        results = [
            {
                "task": {"type": "tabular-classification", "name": name.removesuffix(ALL)},
                "dataset": {"type": checkpoint.study, "name": "held-out people of the participating sites"},
                "metrics": [{"type": "roc_auc", "value": round(area["auc"], 4)}],
            }
            for name, area in sorted(areas.items())
        ]
        data["model-index"] = [{"name": f"{checkpoint.study}-{checkpoint.sequence}", "results": results}]
    return f"---\n{yaml.safe_dump(data, sort_keys=False, allow_unicode=True)}---\n"


def _status(facts: Facts) -> list[str]:
    checkpoint, release, origin = facts.checkpoint, facts.release, facts.verified.origin
    lineage = facts.verified.lineage
    if release:
        status = (
            f"**Released** by {release.by}, {release.time[:10]} (release {release.number}): {release.because}"
        )
    else:
        status = "**A candidate: not released.** Its study's gates have not been held against it."
    signed = f"`{checkpoint.signer}`" if checkpoint.signer else "nobody: this checkpoint is not signed"
    start = f"checkpoint `{origin.hash}` of {origin.study}" if origin else "a fresh start"
    rows = [
        ("checkpoint", f"`{checkpoint.hash}`"),
        ("made by", f"phase {checkpoint.phase}, round {checkpoint.round} of {checkpoint.rounds}"),
        (
            "lineage",
            f"{checkpoint.sequence} checkpoints from `{lineage[0].hash[:16]}`, which follows {start}",
        ),
        (
            "study",
            f"{checkpoint.study}, configuration `{checkpoint.config[:16]}`, code `{checkpoint.code[:16]}`",
        ),
        ("signed by", signed),
        ("strategy", f"{facts.study.strategy['name']}, seed {facts.study.seed}"),
        ("sites", sites_sentence(checkpoint)),
    ]
    return [status, "", "| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)]


def sites_sentence(checkpoint: Checkpoint) -> str:
    """Who trained in the checkpoint's round, where that may be seen."""
    if not checkpoint.sites:
        return "not named"
    counts = ", ".join(f"{site} {count:,.0f}" for site, count in sorted(checkpoint.sites.items()))
    return f"{len(checkpoint.sites)} with {sum(checkpoint.sites.values()):,.0f} examples ({counts})"


def _figures(checkpoint: Checkpoint) -> list[str]:
    lines: list[str] = []
    pooled = checkpoint.metrics.get("all", {})
    shown = [name for name in sorted(pooled) if name.partition(".")[2] in _SHOWN_METRICS]
    if shown:
        lines += ["## Figures over all sites", "", "| figure | value |", "|---|---:|"]
        lines += [*(f"| {name} | {pooled[name]:.4g} |" for name in shown), ""]
    if checkpoint.areas:
        lines += ["## Areas under the ROC curve by group", "", "| target | group | AUC | cases | controls |"]
        lines += ["|---|---|---:|---:|---:|"]
        targets = sorted((name.removesuffix(ALL) for name in checkpoint.areas if name.endswith(ALL)), key=len)
        for name, area in sorted(checkpoint.areas.items()):
            target = next((t for t in reversed(targets) if name.startswith(t + ".")), name.partition(".")[0])
            group = name[len(target) + 1 :]
            counts = f"{area['cases']:,.0f} | {area['controls']:,.0f}"
            lines.append(f"| {target} | {group} | {area['auc']:.3f} | {counts} |")
        lines.append("")
    return lines


_LOAD = """\
```python
import json
from safetensors.numpy import load_file

config = json.load(open("config.json"))
state = load_file("model.safetensors")  # several files: see weight_map in model.safetensors.index.json
```

With pm1_core, `PM1(state, definition.summary, config["encoders"], config["fusion"])` of `pm1_core.training.pm1` is
the model; `definition` is the study definition that the sites prepared their data from.
"""

_LOAD_FUNDUS = """\
The adapters of the fundus encoder lie in PEFT's format in `fundus/`, with a card of their own.
"""

_VERIFY = """\
`checkpoint.json` is the manifest under the coordinator's signature (Ed25519). `coordinator.pub`, if it came along,
is the public key that fits it: compare its fingerprint with what the coordinator says before you trust it.
"""
