"""Tokens of a site's people as training reads them: by rows, from memory or a cache, or made on the spot."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from pm1_core.data.store import Store
from pm1_core.fields import TOKENS_OF, Modality
from pm1_core.model.fusion import Tokens
from pm1_core.training.ahead import placed
from pm1_core.training.pm1 import PM1, TokenArrays

Rows = np.ndarray | slice
Scale = Mapping[Modality, tuple[np.ndarray, np.ndarray]]


def to_bfloat16(tokens: np.ndarray) -> np.ndarray:
    """float32 rounded to bfloat16, as uint16 of the same shape: numpy has no such type."""
    rounded = torch.from_numpy(np.ascontiguousarray(tokens)).to(torch.bfloat16)
    return rounded.view(torch.int16).numpy().view(np.uint16)


@dataclass(frozen=True)
class TokenSet:
    """Tokens of n people.

    people: int64 [n]; present: bool [n, 25]
    tokens: {modality: [m, T_m, d_m]}, float32 or bfloat16 as uint16; a file is read when rows are asked for
    scale: {modality: mean, std, float32 [T_m, d_m]} that rows are standardised by (section 4.2); empty for raw ones
    at: int64 [n], row of `tokens` of each person; None if they are the same
    """

    people: np.ndarray
    tokens: TokenArrays
    present: np.ndarray
    scale: Scale = field(default_factory=dict)
    at: np.ndarray | None = None

    def rows(self, modality: Modality, chosen: Rows) -> np.ndarray:
        """Tokens of one modality of the chosen people, float32 [k, T, d]; 0 where not present if standardised."""
        return self._tensor(modality, self._read(modality, chosen), self.present[chosen]).numpy()

    def batch(self, chosen: Rows, device: torch.device | str = "cpu") -> tuple[Tokens, torch.Tensor]:
        """Tokens of the chosen people and which are present, as the fusion transformer takes them."""
        present = self.present[chosen]
        tokens = {m: self._tensor(m, self._read(m, chosen), present, device) for m in Modality}
        return tokens, placed(torch.from_numpy(present), device)

    def chosen(self, people: np.ndarray) -> TokenSet:
        """The set of the people with these indices; nothing is read."""
        at = people if self.at is None else self.at[people]
        return replace(self, people=self.people[people], present=self.present[people], at=at)

    def _read(self, modality: Modality, chosen: Rows) -> np.ndarray:
        """A copy of rows as they are stored."""
        return np.array(self.tokens[modality][chosen if self.at is None else self.at[chosen]])

    def _tensor(
        self, modality: Modality, rows: np.ndarray, present: np.ndarray, device: torch.device | str = "cpu"
    ) -> torch.Tensor:
        """Rows as they are stored -> float32 on `device`, where they are widened and standardised."""
        if rows.dtype == np.uint16:
            tensor = placed(torch.from_numpy(rows.view(np.int16)).view(torch.bfloat16), device).float()
        else:
            tensor = placed(torch.from_numpy(rows), device)
        if modality in self.scale:
            mean, std = (placed(torch.from_numpy(array), device) for array in self.scale[modality])
            missing = placed(torch.from_numpy(~present[:, TOKENS_OF[modality]]), device)
            tensor.sub_(mean).div_(std).masked_fill_(missing.unsqueeze(-1), 0)
        return tensor


@dataclass(frozen=True)
class EncodedTokens(TokenSet):
    """Tokens that the frozen encoders make whenever they are asked for; `tokens` stays empty."""

    model: PM1 | None = None
    store: Store | None = None

    def batch(self, chosen: Rows, device: torch.device | str = "cpu") -> tuple[Tokens, torch.Tensor]:
        """As `TokenSet.batch`; every encoder runs once."""
        assert self.model is not None
        assert self.store is not None
        raw, _ = self.model.raw_tokens(self.store, self.people[chosen])
        present = self.present[chosen]
        tokens = {m: self._tensor(m, raw[m], present, device) for m in Modality}
        return tokens, placed(torch.from_numpy(present), device)

    def _read(self, modality: Modality, chosen: Rows) -> np.ndarray:
        assert self.model is not None
        assert self.store is not None
        return self.model.raw_tokens(self.store, self.people[chosen])[0][modality]
