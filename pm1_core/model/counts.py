"""How many parameters the parts of a study have, counted without memory for them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from pm1_core.model.fundus_encoder import FundusEncoder, FundusEncoderConfig
from pm1_core.model.fundus_lora import attach_lora, lora_parameters
from pm1_core.model.fusion import FusionConfig, FusionTransformer
from pm1_core.model.genotype_vae import GenotypeVAE, GenotypeVAEConfig
from pm1_core.model.phenotype_autoencoder import PhenotypeAutoencoder, PhenotypeAutoencoderConfig


def genotype_parameters(config: GenotypeVAEConfig, snps: int) -> int:
    """Of the auto-encoder of a chromosome: linear in its padded length.

    >>> genotype_parameters(GenotypeVAEConfig(), 8000) == 6209 * 8000 + 165_771
    True
    """
    with torch.device("meta"):
        return _count(GenotypeVAE(config, snps))


def parameter_counts(
    genotype: GenotypeVAEConfig,
    phenotype: PhenotypeAutoencoderConfig,
    fundus: FundusEncoderConfig,
    fusion: FusionConfig,
    chromosomes: Mapping[int, int],
    features: int,
) -> dict[str, int]:
    """Part -> parameters: "genotype.1" ... "phenotype", "fundus" (frozen), "fundus.lora", "fusion".

    chromosomes: SNPs of each; features: columns of the phenotype matrix
    """
    with torch.device("meta"):
        table = PhenotypeAutoencoder(phenotype, features)
    encoder = FundusEncoder(fundus, device="meta")
    base = _count(encoder)
    adapters = lora_parameters(attach_lora(encoder))
    return {
        **{f"genotype.{number}": genotype_parameters(genotype, snps) for number, snps in chromosomes.items()},
        "phenotype": _count(table),
        "fundus": base,
        "fundus.lora": sum(adapter.numel() for adapter in adapters.values()),
        "fusion": _count(FusionTransformer(fusion, seed=None, device="meta")),
    }


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
