"""PM1 assembled: frozen encoders and decoders, token statistics and the fusion transformer over one state.

Which parts there are follows from the global state; a study without photographs has no fundus encoder, and its
people simply miss those tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

from pm1_core.data.store import Store
from pm1_core.data.summary import StudySummary
from pm1_core.fields import CHROMOSOMES, EYES, TOKENS, TOKENS_OF, Modality
from pm1_core.model.fundus_encoder import FundusEncoder
from pm1_core.model.fusion import FusionConfig, FusionTransformer
from pm1_core.model.genotype_vae import GenotypeVAE, GenotypeVAEConfig
from pm1_core.model.phenotype_autoencoder import PhenotypeAutoencoder, PhenotypeAutoencoderConfig, standardise
from pm1_core.training.adapters import build_encoder
from pm1_core.training.order import generator
from pm1_core.training.parts import State, load_part, names_of_parts

TokenArrays = dict[Modality, np.ndarray]
_AT_ONCE = 256


class PM1:
    """All parts of the model that `state` holds, frozen and in evaluation mode.

    encoders: {"genotype": {...}, "phenotype": {...}, "fundus": {...}}, the fields of their config classes
    fusion: the fields of FusionConfig, or None to leave the transformer out
    """

    def __init__(
        self,
        state: State,
        study: StudySummary,
        encoders: Mapping[str, Any],
        fusion: Mapping[str, Any] | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.study, self.device = study, torch.device(device)
        self._state = state
        parts = names_of_parts(state)
        self.genotype: dict[int, GenotypeVAE] = {}
        chromosomes = {int(part.split(".")[1]) for part in parts if part.startswith("genotype.")}
        for chromosome in sorted(chromosomes & set(CHROMOSOMES)):
            vae = GenotypeVAE(GenotypeVAEConfig(**encoders["genotype"]), study.chromosome_sizes[chromosome])
            self.genotype[chromosome] = self._frozen(vae, f"genotype.{chromosome}.")
        self.phenotype: PhenotypeAutoencoder | None = None
        if "phenotype" in parts:
            config = PhenotypeAutoencoderConfig(**encoders["phenotype"])
            self.phenotype = self._frozen(PhenotypeAutoencoder(config, len(study.features)), "phenotype.")
        self.fundus: FundusEncoder | None = None
        if "fundus" in parts:
            self.fundus = (
                build_encoder(encoders["fundus"], state).to(self.device).eval().requires_grad_(False)
            )
        self.fusion: FusionTransformer | None = None
        if fusion is not None and "fusion" in parts:
            self.fusion = self._frozen(FusionTransformer(FusionConfig(**fusion)), "fusion.")
        self.widths = {
            Modality.GENOTYPE: int(encoders["genotype"]["latent"]) if self.genotype else 1,
            Modality.PHENOTYPE: int(encoders["phenotype"]["latent"]) if self.phenotype else 1,
            Modality.FUNDUS: int(encoders["fundus"]["width"]) if self.fundus else 1,
        }

    def _frozen(self, module: Any, prefix: str) -> Any:
        load_part(module, self._state, prefix)
        return module.to(self.device).eval().requires_grad_(False)

    # ---- encoders -------------------------------------------------------------------------------------------

    def phenotype_inputs(self, values: np.ndarray, observed: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Study units [n, K] -> standardised inputs and known entries [n, K], see `standardise`."""
        mean, std, kept = (
            torch.from_numpy(np.array(self._state[f"statistics.phenotype.{name}"])).to(self.device)
            for name in ("mean", "std", "kept")
        )
        given = torch.from_numpy(values).to(self.device), torch.from_numpy(observed).to(self.device)
        return standardise(*given, mean, std, kept)

    def raw_tokens(self, store: Store, people: np.ndarray) -> tuple[TokenArrays, np.ndarray]:
        """Tokens {modality: float32 [n, T_m, d_m]} before standardisation, and present, bool [n, 25]."""
        tokens, present = self._nothing(len(people))
        for rows, some, has in self.token_chunks(store, people):
            present[rows] = has
            for modality, array in some.items():
                tokens[modality][rows] = array
        return tokens, present

    def token_chunks(
        self, store: Store, people: np.ndarray
    ) -> Iterator[tuple[slice, TokenArrays, np.ndarray]]:
        """Rows of `people`, and what `raw_tokens` gives of them, some at a time."""
        for rows in _chunks(len(people)):
            # Only `token: sample` draws, the same for the same people in the same order.
            yield rows, *self._encode(store, people[rows], rows.start)

    @torch.inference_mode()
    def _encode(self, store: Store, people: np.ndarray, draw: int) -> tuple[TokenArrays, np.ndarray]:
        tokens, present = self._nothing(len(people))
        self._encode_genotypes(store, people, draw, tokens[Modality.GENOTYPE], present)
        if self.phenotype is not None:
            token, has = self.phenotype_tokens(store, people)
            tokens[Modality.PHENOTYPE][:, 0] = token
            present[:, TOKENS_OF[Modality.PHENOTYPE].start] = has
        self._encode_photographs(store, people, tokens[Modality.FUNDUS], present)
        return tokens, present

    def present_tokens(self, store: Store, people: np.ndarray) -> np.ndarray:
        """Which tokens `raw_tokens` would give, bool [n, 25]; nothing is encoded."""
        present = np.zeros((len(people), len(TOKENS)), bool)
        if self.genotype:
            has = np.isin(people, store.people(None, Modality.GENOTYPE))
            for chromosome in self.genotype:
                present[has, chromosome - 1] = True
        for rows in _chunks(len(people)) if self.phenotype is not None else ():
            _, known = self.phenotype_inputs(*store.phenotypes(people[rows]))
            present[rows, TOKENS_OF[Modality.PHENOTYPE].start] = known.any(1).cpu().numpy()
        if self.fundus is not None:
            present[:, TOKENS_OF[Modality.FUNDUS]] = store.eyes(people)
        return present

    def _nothing(self, people: int) -> tuple[TokenArrays, np.ndarray]:
        tokens = {
            modality: np.zeros((people, span.stop - span.start, self.widths[modality]), np.float32)
            for modality, span in TOKENS_OF.items()
        }
        return tokens, np.zeros((people, len(TOKENS)), bool)

    def _encode_genotypes(
        self, store: Store, people: np.ndarray, draw: int, out: np.ndarray, present: np.ndarray
    ) -> None:
        where = np.flatnonzero(np.isin(people, store.people(None, Modality.GENOTYPE)))
        if not len(where):
            return
        for chromosome, vae in self.genotype.items():
            dosages = torch.from_numpy(store.dosages(chromosome, people[where])).to(self.device)
            draws = generator(0, "token", chromosome, draw)
            out[where, chromosome - 1] = vae.token(dosages, draws).cpu().numpy()
            present[where, chromosome - 1] = True

    @torch.inference_mode()
    def phenotype_tokens(
        self, store: Store, people: np.ndarray, hidden_features: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Raw phenotype tokens float32 [n, dP] and who has one, bool [n].

        hidden_features: indices of features that are hidden at the input (appendix F.2); a person of whom
        nothing else is observed has no token then.
        """
        assert self.phenotype is not None, "this state holds no phenotype auto-encoder"
        values, known = self.phenotype_inputs(*store.phenotypes(people))
        if hidden_features is not None:
            known[:, hidden_features] = False
        token = self.phenotype.encode(torch.where(known, values, 0.0))
        return token.cpu().numpy(), known.any(1).cpu().numpy()

    def _encode_photographs(
        self, store: Store, people: np.ndarray, out: np.ndarray, present: np.ndarray
    ) -> None:
        if self.fundus is None:
            return
        for place, eye in enumerate(EYES):
            photographs, has = store.photographs(people, eye)
            where = np.flatnonzero(has)
            if len(where):
                images = torch.from_numpy(photographs[has]).to(self.device)
                out[where, place] = self.fundus.encode(images).cpu().numpy()
                present[where, TOKENS_OF[Modality.FUNDUS].start + place] = True

    def standardised(self, tokens: TokenArrays, present: np.ndarray) -> TokenArrays:
        """As `standardise_tokens`, with the statistics of this state."""
        return standardise_tokens(tokens, present, self._state)

    # ---- fusion and decoders --------------------------------------------------------------------------------

    @torch.inference_mode()
    def fuse(self, tokens: TokenArrays, present: np.ndarray) -> tuple[np.ndarray, TokenArrays]:
        """Standardised tokens -> hidden float32 [n, 26, h] (CLS first) and reconstructed tokens, standardised."""
        assert self.fusion is not None, "this state holds no fusion transformer"
        hidden, rebuilt = [], []
        for rows in _chunks(len(present)):
            given = {m: torch.from_numpy(tokens[m][rows]).to(self.device) for m in Modality}
            states = self.fusion(given, torch.from_numpy(present[rows]).to(self.device))
            hidden.append(states.cpu().numpy())
            rebuilt.append({m: t.cpu().numpy() for m, t in self.fusion.reconstruct(states).items()})
        return np.concatenate(hidden), {m: np.concatenate([part[m] for part in rebuilt]) for m in Modality}

    @torch.inference_mode()
    def decode_phenotype(self, token: np.ndarray) -> np.ndarray:
        """Standardised phenotype tokens [n, dP] -> z-scores and logits [n, K]."""
        assert self.phenotype is not None, "this state holds no phenotype auto-encoder"
        raw = self._raw(token, Modality.PHENOTYPE, 0)
        return self.phenotype.decode(raw).cpu().numpy()

    @torch.inference_mode()
    def decode_genotype(self, chromosome: int, token: np.ndarray) -> np.ndarray:
        """Standardised tokens of a chromosome [n, dG] -> logits of dosages [n, S, 3]."""
        raw = self._raw(token, Modality.GENOTYPE, chromosome - 1)
        return self.genotype[chromosome].decode(raw).cpu().numpy()

    def _raw(self, token: np.ndarray, modality: Modality, place: int) -> torch.Tensor:
        mean, std = (
            self._state[f"tokens.{modality}.mean"][place],
            self._state[f"tokens.{modality}.std"][place],
        )
        return torch.from_numpy(np.asarray(token * std + mean, np.float32)).to(self.device)


def _chunks(count: int) -> Iterator[slice]:
    for start in range(0, count, _AT_ONCE):
        yield slice(start, min(start + _AT_ONCE, count))


def standardise_tokens(tokens: TokenArrays, present: np.ndarray, state: State) -> TokenArrays:
    """(token - mean) / std per position and dimension (section 4.2), zero where not present."""
    scaled = {}
    for modality, span in TOKENS_OF.items():
        mean, std = state[f"tokens.{modality}.mean"], state[f"tokens.{modality}.std"]
        scaled[modality] = np.where(present[:, span, None], (tokens[modality] - mean) / std, 0).astype(
            np.float32
        )
    return scaled
