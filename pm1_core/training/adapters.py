"""The fundus encoder of a study: its configuration, its pinned base, and the adapters of a state merged into it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from pm1_core.errors import ConfigError
from pm1_core.model.fundus_base import base_hash, build_fundus_encoder
from pm1_core.model.fundus_encoder import FundusEncoder, FundusEncoderConfig
from pm1_core.model.fundus_lora import attach_lora, load_lora, merge_lora
from pm1_core.training.parts import State, part
from pm1_core.validate import require_keys

PREFIX = "fundus.lora."


def fundus_config(fields: Mapping[str, Any]) -> FundusEncoderConfig:
    """The encoder's configuration from its fields. Raises ConfigError naming an unknown one."""
    known = tuple(FundusEncoderConfig.__dataclass_fields__)
    return FundusEncoderConfig(**require_keys("fundus task, model", fields, (), known, ConfigError))


def pin_base(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The same fields with the content hash of their base file, which a coordinator fixes for all sites."""
    path = fields.get("base")
    return {**fields, "base_sha256": None if path is None else base_hash(path)}


def build_encoder(fields: Mapping[str, Any], state: State) -> FundusEncoder:
    """The adapted encoder for use: base, adapters of `state` merged into it, frozen, in evaluation mode.

    Raises StateError if `state` holds no adapters, or those of another configuration.
    """
    encoder = attach_lora(build_fundus_encoder(fundus_config(fields)))
    load_lora(encoder, adapters_of(state))
    return merge_lora(encoder).eval().requires_grad_(False)


def adapters_of(state: State) -> dict[str, torch.Tensor]:
    """The adapters of `state` by their names inside the encoder. Raises StateError if there are none."""
    return {name: torch.from_numpy(np.array(array)) for name, array in part(state, PREFIX).items()}
