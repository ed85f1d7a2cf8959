"""The adapters of the fundus encoder over sites (section 4.1, appendix F.3)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pm1_core import atomic
from pm1_core.data.store import Store
from pm1_core.data.summary import StudySummary
from pm1_core.errors import ConfigError
from pm1_core.fields import EYES, Modality, Split
from pm1_core.model.fundus_base import build_fundus_encoder, resize_photographs
from pm1_core.model.fundus_encoder import FundusEncoder
from pm1_core.model.fundus_lora import (
    attach_lora,
    initial_lora,
    load_lora,
    lora_parameters,
    lora_tensors,
    set_draws,
)
from pm1_core.training.adapters import PREFIX, adapters_of, fundus_config
from pm1_core.training.ahead import drawing_on
from pm1_core.training.cached import PHOTOGRAPH_CACHES
from pm1_core.training.guide import UNGUIDED, Guide
from pm1_core.training.loop import Losses, device_of, train_epochs
from pm1_core.training.order import Order, derived_seed, generator
from pm1_core.training.parts import State
from pm1_core.training.private import Units
from pm1_core.training.processes import divided, in_turn, rows_here
from pm1_core.training.tasks.base import Metrics, Task
from pm1_core.update import Tensors, Update
from pm1_core.validate import refusal

_READ_AT_ONCE = 64


class FundusTask(Task):
    """Trains the adapters by masked autoencoding; base and decoder stay frozen and at the site.

    Keys of `parameters`:
      model: fields of FundusEncoderConfig; with `base` also `base_sha256` (see `pin_base`)
      loop: see LoopConfig; a batch counts people, so it holds up to twice as many photographs

    The loss is the mean over people of the mean over their eyes, so that sites weighted by people add up to
    the pooled gradient. Tensors travel as "fundus.lora.blocks.N.attn.{qkv,proj}.{lora_A,lora_B}".
    Raises ConfigError on a wrong parameter.
    """

    name = "fundus"
    modalities = frozenset({Modality.FUNDUS})
    private = True
    divides = True

    def __init__(self, parameters: Mapping[str, Any], study: StudySummary) -> None:
        super().__init__(parameters, study)
        self.config = fundus_config(parameters.get("model", {}))
        if self.config.base is not None and self.config.base_sha256 is None:
            remedy = "fix the file for all sites with pin_base before the study starts"
            raise ConfigError(refusal("fundus task, model.base_sha256", "found none beside a base", remedy))
        self.device = device_of(parameters)

    def initial(self, state: State, seed: int) -> Tensors:
        """Adapters that change nothing yet: A random by the seed, B zero."""
        return _as_arrays(initial_lora(self.config, derived_seed(seed, PREFIX, "initial")))

    def train(
        self,
        store: Store,
        order: Order,
        state: State,
        tensors: Tensors,
        folder: Path,
        guide: Guide = UNGUIDED,
    ) -> Update:
        """One round on the photographs of this site's training people."""
        photographs = _Photographs.of(store, Split.TRAIN, self.config.image, folder)
        encoder = self._load(tensors)

        def loss_of(indices: np.ndarray, draws: torch.Generator, step: int) -> Losses:
            drawn = drawing_on(self.device, draws)
            return Losses(self._errors(encoder, photographs, indices, drawn).mean())

        def losses_of(indices: np.ndarray, draws: torch.Generator, step: int) -> torch.Tensor:
            set_draws(encoder, draws)
            return self._each(encoder, photographs, indices, draws)

        trained = {PREFIX + name: parameter for name, parameter in lora_parameters(encoder).items()}
        units = Units(len(photographs), losses_of)
        metrics = train_epochs(encoder, trained, order, folder, len(photographs), loss_of, guide, units)
        weight = float(len(photographs))
        return Update(_as_arrays(lora_tensors(encoder)), weight, metrics, {Modality.FUNDUS: weight})

    @torch.no_grad()
    def evaluate(
        self, store: Store, order: Order, state: State, tensors: Tensors, folder: Path, split: Split
    ) -> Metrics:
        """Reconstruction loss with the same hidden patches in every round."""
        photographs = _Photographs.of(store, split, self.config.image, folder)
        if not len(photographs):
            return {"examples": 0.0}
        encoder = self._load(tensors).eval()
        draws = generator(order.seed, order.phase, "evaluate", split.value)
        total = sum(
            float(self._errors(encoder, photographs, indices, draws).sum())
            for indices in _blocks(np.arange(len(photographs)))
        )
        return {"loss": total / len(photographs), "examples": float(len(photographs))}

    def _load(self, tensors: Tensors) -> FundusEncoder:
        encoder = attach_lora(build_fundus_encoder(self.config))
        load_lora(encoder, adapters_of(tensors))
        return encoder.to(self.device)

    def _errors(
        self, encoder: FundusEncoder, photographs: _Photographs, indices: np.ndarray, draws: torch.Generator
    ) -> torch.Tensor:
        """Mean error over each person's eyes, float [n]."""
        pixels, owners = photographs.read(indices)
        images = encoder.prepare(torch.from_numpy(pixels))
        set_draws(encoder, draws, len(images), rows_here(len(images)))
        hidden = encoder.draw_hidden(len(images), draws)
        errors = divided(encoder.reconstruction_errors)(images, hidden)
        owner = torch.from_numpy(owners).to(errors.device)
        total = errors.new_zeros(len(indices)).index_add(0, owner, errors)
        return total / torch.bincount(owner, minlength=len(indices))

    def _each(
        self, encoder: FundusEncoder, photographs: _Photographs, indices: np.ndarray, draws: torch.Generator
    ) -> torch.Tensor:
        """`_errors` with a place in the batch for each eye of each person, there or not: a person is two rows."""
        pixels, has = photographs.both_eyes(indices)
        images = encoder.prepare(torch.from_numpy(pixels.reshape(-1, *pixels.shape[2:])))
        errors = encoder.reconstruction_errors(images, encoder.draw_hidden(len(images), draws))
        there = torch.from_numpy(has).to(errors.device)
        total = torch.where(there, errors.view(-1, len(EYES)), 0.0).sum(1)
        return total / there.sum(1).clamp_min(1)


@dataclass(frozen=True)
class _Photographs:
    """Photographs of a split at the network's size: people int64 [n], rows int64 [n, 2] (-1 absent), pixels.

    pixels: uint8 [m, S, S, 3] by memory map, resized once per site; None where the store's size is the
        network's and the store itself is read.
    """

    store: Store
    people: np.ndarray
    rows: np.ndarray
    pixels: np.ndarray | None

    def __len__(self) -> int:
        return len(self.people)

    @staticmethod
    def of(store: Store, split: Split, side: int, folder: Path) -> _Photographs:
        people = store.people(split, Modality.FUNDUS)
        if side == store.study.photograph_size or not len(people):
            return _Photographs(store, people, np.zeros((len(people), len(EYES)), np.int64), None)
        cache = folder / PHOTOGRAPH_CACHES / f"{store.fingerprint}.{split}.{side}"
        with in_turn():
            _Photographs._resize(store, people, side, cache)
        return _Photographs(
            store, people, np.load(cache / "rows.npy"), np.load(cache / "pixels.npy", mmap_mode="r")
        )

    @staticmethod
    def _resize(store: Store, people: np.ndarray, side: int, cache: Path) -> None:
        """Write the photographs at the network's size to `cache`, if they are not there."""
        if not cache.exists():
            rows = np.full((len(people), len(EYES)), -1, np.int64)
            resized, count = [], 0
            for chosen in _blocks(np.arange(len(people))):
                for place, eye in enumerate(EYES):
                    photographs, has = store.photographs(people[chosen], eye)
                    resized.append(resize_photographs(photographs[has], side))
                    rows[chosen[has], place] = count + np.arange(has.sum())
                    count += int(has.sum())
            with atomic.whole_folder(cache) as beside:
                np.save(beside / "rows.npy", rows)
                np.save(beside / "pixels.npy", np.concatenate(resized))

    def both_eyes(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Photographs uint8 [n, 2, S, S, 3], zeros where there is none, and which there are, bool [n, 2]."""
        pixels, has = [], []
        for place, eye in enumerate(EYES):
            if self.pixels is None:
                photographs, there = self.store.photographs(self.people[indices], eye)
            else:
                there = self.rows[indices, place] >= 0
                photographs = np.where(there[:, None, None, None], self.pixels[self.rows[indices, place]], 0)
            pixels.append(photographs)
            has.append(there)
        return np.stack(pixels, 1), np.stack(has, 1)

    def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Photographs uint8 [m, S, S, 3] of the people at `indices`, and whose each is, int64 [m]."""
        pixels, owners = [], []
        for place, eye in enumerate(EYES):
            if self.pixels is None:
                photographs, has = self.store.photographs(self.people[indices], eye)
                pixels.append(photographs[has])
            else:
                has = self.rows[indices, place] >= 0
                pixels.append(self.pixels[self.rows[indices[has], place]])
            owners.append(np.flatnonzero(has))
        return np.concatenate(pixels), np.concatenate(owners)


def _blocks(indices: np.ndarray) -> list[np.ndarray]:
    return [indices[start : start + _READ_AT_ONCE] for start in range(0, len(indices), _READ_AT_ONCE)]


def _as_arrays(tensors: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
    return {PREFIX + name: tensor.numpy() for name, tensor in tensors.items()}
