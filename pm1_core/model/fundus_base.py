"""Bases of the fundus encoder: reading RETFound's files, and making a small one from public photographs.

RETFound's weights are gated, so the project takes a local path. `pretrain_base` is the analogue at a small
size: masked autoencoding from a random start at one place, on photographs that may be shared, before any
hospital takes part. Its file has the same layout and is used in the same way.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import math
import pickle
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor
from torch.nn import functional as F

from pm1_core import atomic
from pm1_core.errors import CheckpointError, InputError
from pm1_core.model.fundus_encoder import FundusEncoder, FundusEncoderConfig
from pm1_core.validate import refusal

_RESIZED_AT_ONCE = 64

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class PretrainingReport:
    """What `pretrain_base` did: mean loss per epoch, photographs in an epoch, and the file's SHA-256."""

    losses: tuple[float, ...]
    photographs: int
    sha256: str


def base_hash(path: str | Path) -> str:
    """SHA-256 of a base file, hexadecimal. Raises CheckpointError if it cannot be read.

    It belongs to a study's parameters: adapters trained on one base mean nothing on another.
    """
    try:
        with Path(path).open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise CheckpointError(
            refusal(f"fundus base {path}", reason, "set fundus.base to a local file, or to null")
        ) from None


def load_base(path: str | Path, config: FundusEncoderConfig) -> FundusEncoder:
    """An encoder with the weights of a base file, by key.

    path: .safetensors, or a torch file whose key `model` holds the tensors, as MAE and RETFound write it.
        Nothing in it is executed: torch files are read with weights_only.

    Raises CheckpointError if the file cannot be read, is not the one of `config.base_sha256`, lacks a tensor,
    has one too many, or one of another shape; the sentence names the first of each.
    """
    found = base_hash(path)
    if config.base_sha256 not in (None, found):
        remedy = f"use the study's file, whose SHA-256 is {config.base_sha256}"
        raise CheckpointError(refusal(f"fundus base {path}", f"found SHA-256 {found}", remedy))
    tensors = _read(Path(path))
    encoder = FundusEncoder(config, device="meta")
    wanted = {name: tuple(tensor.shape) for name, tensor in encoder.state_dict().items()}
    missing = sorted(wanted.keys() - tensors.keys())
    unexpected = sorted(tensors.keys() - wanted.keys())
    misfits = [
        f"{name} {tuple(tensors[name].shape)} instead of {shape}"
        for name, shape in wanted.items()
        if name in tensors and tuple(tensors[name].shape) != shape
    ]
    problems = [
        f"{len(names)} {what} (first: {names[0]})"
        for names, what in (
            (missing, "tensors are missing"),
            (unexpected, "are unexpected"),
            (misfits, "have another shape"),
        )
        if names
    ]
    if problems:
        remedy = "give a masked autoencoder with its decoder, of the sizes in the configuration"
        raise CheckpointError(refusal(f"fundus base {path}", "; ".join(problems), remedy))
    # Fixed positions are parameters without a gradient: assigning keeps that, and needs no second copy.
    encoder.load_state_dict({name: tensor.float() for name, tensor in tensors.items()}, assign=True)
    for fixed in (encoder.pos_embed, encoder.decoder_pos_embed):
        fixed.requires_grad_(False)
    encoder.start = f"base {Path(path).name}, sha256 {found[:12]}"
    return encoder


def build_fundus_encoder(config: FundusEncoderConfig) -> FundusEncoder:
    """The encoder that `config` asks for: its base file, or a random start. `start` says which."""
    return FundusEncoder(config, config.base_seed) if config.base is None else load_base(config.base, config)


def _read(path: Path) -> dict[str, Tensor]:
    where = f"fundus base {path}"
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        # The files of MAE and RETFound carry their command line beside the weights, as plain data.
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise CheckpointError(
            refusal(where, reason, "give a .safetensors file or a torch file of weights")
        ) from None
    tensors = content.get("model") if isinstance(content, dict) else None
    if not isinstance(tensors, dict) or not all(isinstance(t, Tensor) for t in tensors.values()):
        raise CheckpointError(
            refusal(where, "no tensors below the key 'model'", "give RETFound's own layout")
        )
    return tensors


def save_base(encoder: FundusEncoder, path: Path) -> str:
    """Write `encoder` in RETFound's layout (.safetensors, or .pth with the key `model`); return its SHA-256.

    Equal weights give equal bytes.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in encoder.state_dict().items()}
    config = {name: value for name, value in asdict(encoder.config).items() if not name.startswith("base")}
    if path.suffix == ".safetensors":
        content = save(tensors, {"config": json.dumps(config, sort_keys=True)})
    else:
        buffer = io.BytesIO()
        torch.save({"model": tensors, "config": config}, buffer)
        content = buffer.getvalue()
    atomic.write_bytes(path, content)
    return hashlib.sha256(content).hexdigest()


def resize_photographs(photographs: Iterable[np.ndarray], side: int) -> np.ndarray:
    """Photographs uint8 [H, W, 3] of any sizes -> uint8 [n, side, side, 3], antialiased bilinear.

    An array [n, H, W, 3] is resized in blocks; one that already fits is returned as it is.
    """
    if isinstance(photographs, np.ndarray) and photographs.shape[1:3] == (side, side):
        return photographs
    blocks: Iterable[np.ndarray] = (photograph[None] for photograph in photographs)
    if isinstance(photographs, np.ndarray):
        starts = range(0, len(photographs), _RESIZED_AT_ONCE)
        blocks = (photographs[start : start + _RESIZED_AT_ONCE] for start in starts)
    resized = []
    for block in blocks:
        pixels = torch.from_numpy(np.ascontiguousarray(block)).permute(0, 3, 1, 2).float()
        pixels = F.interpolate(pixels, (side, side), mode="bilinear", antialias=True, align_corners=False)
        resized.append(pixels.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy())
    return np.concatenate(resized) if resized else np.zeros((0, side, side, 3), np.uint8)


def random_views(images: Tensor, draws: torch.Generator, smallest: float = 0.5) -> Tensor:
    """Crop `smallest` to all of the area at random, resize back, flip at random: [B, 3, S, S].

    The augmentation of MAE pre-training; `smallest` is larger than its 0.2 because a retina fills the frame.
    """
    n = len(images)
    scale = (smallest + (1 - smallest) * torch.rand(n, generator=draws)).sqrt()
    shift = (2 * torch.rand(n, 2, generator=draws) - 1) * (1 - scale)[:, None]
    flip = torch.where(torch.rand(n, generator=draws) < 0.5, -1.0, 1.0)
    maps = torch.zeros(n, 2, 3)
    maps[:, 0, 0], maps[:, 1, 1], maps[:, :, 2] = scale * flip, scale, shift
    grid = F.affine_grid(maps, list(images.shape), align_corners=False).to(images.device)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


def pretrain_base(
    photographs: Iterable[np.ndarray],
    config: FundusEncoderConfig,
    epochs: int,
    seed: int,
    out: Path,
    progress: Progress | None = None,
    batch_size: int = 64,
    learning_rate: float = 1.5e-3,
) -> PretrainingReport:
    """Pre-train a masked autoencoder on public photographs at one place and write it to `out`.

    photographs: uint8 [n, H, W, 3], or single photographs uint8 [H, W, 3] one after the other
    out: .safetensors or .pth, in RETFound's layout, for `load_base`
    learning_rate: AdamW (betas 0.9, 0.95; weight decay 0.05), warm-up over a tenth of the steps, then cosine
    progress: called after each epoch with ("fundus base", epoch, epochs)

    Equal arguments give equal bytes on one machine. Raises InputError if there is no photograph.
    """
    pixels = resize_photographs(photographs, config.image)
    if not len(pixels):
        raise InputError(refusal("photographs for a fundus base", "found none", "give at least one"))
    encoder = FundusEncoder(config, seed).train()
    encoder.start = f"pre-trained on {len(pixels)} photographs, seed {seed}"
    draws = torch.Generator().manual_seed(seed + 1)
    trainable = [parameter for parameter in encoder.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(trainable, learning_rate, (0.9, 0.95), weight_decay=0.05)
    steps = epochs * math.ceil(len(pixels) / batch_size)
    warmup, step, losses = max(1, steps // 10), 0, []
    for epoch in range(epochs):
        total = 0.0
        shuffled = torch.randperm(len(pixels), generator=draws).numpy()
        for start in range(0, len(pixels), batch_size):
            rows = shuffled[start : start + batch_size]
            images = random_views(encoder.prepare(torch.from_numpy(pixels[rows])), draws)
            rate = min((step + 1) / warmup, 0.5 * (1 + math.cos(math.pi * step / steps)))
            for group in optimiser.param_groups:
                group["lr"] = learning_rate * rate
            loss = encoder.reconstruction_errors(images, encoder.draw_hidden(len(rows), draws)).mean()
            optimiser.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            optimiser.step()
            total += float(loss.detach()) * len(rows)
            step += 1
        losses.append(total / len(pixels))
        if progress is not None:
            progress("fundus base", epoch + 1, epochs)
    return PretrainingReport(tuple(losses), len(pixels), save_base(encoder, out))
