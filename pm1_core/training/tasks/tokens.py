"""Token statistics: mean and standard deviation per token position and dimension, pooled over the sites.

Two rounds like the statistics of the data: sums first, then squared deviations from the pooled mean. The
tokens themselves never leave a site; they stay in its cache, from which the fusion phase reads.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pm1_core.data.store import Store
from pm1_core.fields import TOKENS_OF, Modality, Split
from pm1_core.privacy.noise import secret_generator
from pm1_core.privacy.terms import RecordTerms, record_terms
from pm1_core.training.guide import UNGUIDED, Guide
from pm1_core.training.order import Order
from pm1_core.training.parts import State
from pm1_core.training.tasks import noised_sums
from pm1_core.training.tasks.base import Task
from pm1_core.training.token_cache import ENCODERS, raw_tokens
from pm1_core.training.token_set import TokenSet
from pm1_core.update import Tensors, Update

_PEOPLE_AT_ONCE = 1024


class TokensTask(Task):
    """tokens.MODALITY.{count [T_m], mean [T_m, d_m], std [T_m, d_m]} of training people."""

    name = "tokens"
    aggregation = "sum"
    modalities = frozenset(Modality)
    private = True

    @property
    def needs(self) -> tuple[str, ...]:
        """The frozen encoders and what they standardise with."""
        return ENCODERS

    def initial(self, state: State, seed: int) -> Tensors:
        """Zeros of the shapes that the sums have; width 1 for a modality that the study has no encoder for."""
        widths = {m: int(self.parameters["widths"][m]) for m in Modality}
        tensors = {}
        for modality, span in TOKENS_OF.items():
            places = span.stop - span.start
            tensors[f"tokens.{modality}.count"] = np.zeros(places, np.float32)
            for name in ("mean", "std"):
                tensors[f"tokens.{modality}.{name}"] = np.zeros((places, widths[modality]), np.float32)
        return tensors

    def train(
        self,
        store: Store,
        order: Order,
        state: State,
        tensors: Tensors,
        folder: Path,
        guide: Guide = UNGUIDED,
    ) -> Update:
        """This site's sums over its training people."""
        raw = raw_tokens(store, state, self.parameters, folder, Split.TRAIN)
        terms = record_terms(order.privacy)
        if terms:
            return self._noised(raw, order, tensors, terms)
        sums = {name: np.zeros(array.shape, np.float64) for name, array in tensors.items()}
        for start in range(0, len(raw.people), _PEOPLE_AT_ONCE):
            rows = slice(start, start + _PEOPLE_AT_ONCE)
            for modality, span in TOKENS_OF.items():
                prefix = f"tokens.{modality}."
                present = raw.present[rows, span, None]
                values = np.where(present, raw.rows(modality, rows), 0).astype(np.float64)
                if order.round == 1:
                    sums[prefix + "count"] += raw.present[rows, span].sum(0)
                    sums[prefix + "mean"] += values.sum(0)
                else:
                    sums[prefix + "std"] += (((values - tensors[prefix + "mean"]) ** 2) * present).sum(0)
        return Update({name: total.astype(np.float32) for name, total in sums.items()}, 1.0, {})

    def _noised(self, raw: TokenSet, order: Order, tensors: Tensors, terms: RecordTerms) -> Update:
        """The same sums with a bound per person and noise, see `noised_sums`."""
        widths = {m: int(self.parameters["widths"][m]) for m in Modality}
        sums = noised_sums.token_sums(widths, order.round)
        for start in range(0, len(raw.people), _PEOPLE_AT_ONCE):
            rows = slice(start, start + _PEOPLE_AT_ONCE)
            if order.round == 1:
                sums.add("present", raw.present[rows])
            for modality, span in TOKENS_OF.items():
                tokens = np.where(raw.present[rows, span, None], raw.rows(modality, rows), 0)
                tokens = noised_sums.bounded_tokens(tokens)
                if order.round > 1:
                    mean = tensors[f"tokens.{modality}.mean"]
                    tokens = noised_sums.squared_deviations(tokens, mean, raw.present[rows, span])
                sums.add(modality, tokens)
        shapes: dict[str, tuple[int, ...]] = {"present": raw.present.shape[1:]}
        for modality, span in TOKENS_OF.items():
            places = span.stop - span.start
            shapes[modality] = (places, widths[modality]) if order.round == 1 else (places,)
        released = sums.released(terms.noise_multiplier, secret_generator(), shapes)
        out = {name: np.zeros(array.shape, np.float32) for name, array in tensors.items()}
        for modality, span in TOKENS_OF.items():
            prefix = f"tokens.{modality}."
            if order.round == 1:
                out[prefix + "count"] = released["present"][span].astype(np.float32)
                out[prefix + "mean"] = released[modality].astype(np.float32)
            else:
                every = np.broadcast_to(released[modality][:, None], out[prefix + "std"].shape)
                out[prefix + "std"] = every.astype(np.float32)
        return Update(out, 1.0, {})

    def advance(self, round_number: int, tensors: Tensors, aggregate: Tensors) -> Tensors:
        """Sums to statistics; a dimension that never varies gets a standard deviation of 1."""
        advanced = dict(tensors if round_number > 1 else aggregate)
        for modality in Modality:
            prefix = f"tokens.{modality}."
            count = np.maximum(advanced[prefix + "count"], 1)[:, None]
            if round_number == 1:
                advanced[prefix + "mean"] = (aggregate[prefix + "mean"] / count).astype(np.float32)
            else:
                deviation = np.sqrt(np.maximum(aggregate[prefix + "std"], 0) / count)
                advanced[prefix + "std"] = np.where(deviation > 1e-6, deviation, 1).astype(np.float32)
        return advanced
