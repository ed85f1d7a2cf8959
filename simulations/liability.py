"""The liability-threshold model: planted SNPs, latent risk factors, diseases and how ill each eye is.

Falconer DS (1965) Annals of Human Genetics 29:51: a disease is present where a normally distributed
liability exceeds the threshold that its prevalence sets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from simulations.diseases import DISEASES, RISK_SHARE, Disease
from simulations.genomes import DEMENTIA_CHROMOSOME, Chromosome
from simulations.scenarios import (
    ANCESTRIES,
    EVALUATION,
    EYEPACS,
    EYEPACS_PROFILE,
    PUBLIC,
    PUBLIC_PROFILE,
    Scenario,
    stream,
    uk_sites,
)

STRATIFICATION = 0.25
"""Share of the difference in mean polygenic score between ancestries that is kept. Random effects on drifted
SNPs would else make ancestry the strongest predictor of every disease."""
MEAN_AGE, SD_AGE = 56.5, 8.0
EXPECTED_TEST_CASES = 160
"""Cases that a test-only set must expect for a 95% interval of AUC 0.6 within +-0.05 (Hanley JA, McNeil BJ
(1982) Radiology 143:29: 160 cases and 1,240 controls give +-0.049)."""
HIGHEST_FLOOR = 0.30
EYEPACS_PREVALENCE = 0.27
PUBLIC_PREVALENCE = 0.20
HIDDEN = 0.17
"""Share of the ill in whose photographs nothing shows."""

# factor -> (share of variance by planted SNPs, other factors and their weights); in order of causation
FACTORS: Mapping[str, tuple[float, Mapping[str, float]]] = {
    "deprivation": (0.0, {}),
    "stature": (0.5, {}),
    "smoking": (0.1, {"deprivation": 0.3, "male": 0.15}),
    "adiposity": (0.3, {"deprivation": 0.15}),
    "glycaemia": (0.3, {"adiposity": 0.4, "age": 0.2}),
    "pressure": (0.3, {"age": 0.35, "adiposity": 0.25}),
    "lipids": (0.35, {"adiposity": 0.1, "age": 0.1}),
    "inflammation": (0.1, {"adiposity": 0.35, "smoking": 0.25}),
    "renal": (0.2, {"age": 0.35, "pressure": 0.2, "glycaemia": 0.15}),
    "frailty": (0.1, {"age": 0.4, "deprivation": 0.2, "smoking": 0.1}),
    "ocular_pressure": (0.35, {"age": 0.1, "pressure": 0.15}),
    "cognition": (0.25, {"age": -0.35, "deprivation": -0.2}),
    "mood": (0.1, {"deprivation": 0.25, "frailty": 0.2}),
}


def raised_prevalence(disease: Disease, test_people: int) -> float:
    """The paper's prevalence, or the floor at which `test_people` hold EXPECTED_TEST_CASES, at most 0.30."""
    return max(disease.prevalence, min(HIGHEST_FLOOR, EXPECTED_TEST_CASES / test_people))


def polygenic_scores(
    scenario: Scenario, roster: pd.DataFrame, genome: Sequence[Chromosome]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Scores [n, traits] with unit variance in Europeans, and the planted SNPs behind them."""
    # A palindromic SNP is dropped by every hospital: nothing is planted on it.
    where = [
        (c, int(i)) for c, chromosome in enumerate(genome) for i in np.flatnonzero(~chromosome.palindromic)
    ]
    european = roster.ancestry.to_numpy() == 0
    scores: dict[str, np.ndarray] = {}
    rows: list[dict[str, object]] = []
    traits = [*(d.name for d in DISEASES), *(f for f, (share, _) in FACTORS.items() if share > 0)]
    for number, trait in enumerate(traits):
        rng = stream(scenario.seed, "planted", number)
        chosen = [where[k] for k in rng.choice(len(where), scenario.causal_snps, replace=False)]
        effects = rng.normal(size=len(chosen))
        effects = np.sign(effects) * (0.3 + np.abs(effects))  # no planted SNP without an effect
        if trait in ("alzheimers_disease", "dementia"):
            locus = next(i for i, c in enumerate(genome) if c.chromosome == DEMENTIA_CHROMOSOME)
            chosen[0] = (locus, genome[locus].locus)
            # A quarter of the polygenic variance by one SNP, as of APOE in Alzheimer's disease.
            effects[0] = np.sqrt(np.sum(effects[1:] ** 2) / 3) if len(effects) > 1 else 1.0
        score = np.zeros(len(roster))
        kept: list[tuple[Chromosome, int, float]] = []
        for (c, i), effect in zip(chosen, effects, strict=True):
            dosage = genome[c].dosages[:, i].astype(np.float64)
            frequency = dosage.mean() / 2
            beta = effect / np.sqrt(2 * frequency * (1 - frequency))
            score += beta * dosage
            kept.append((genome[c], i, float(beta)))
        scale = score[european].std() if european.sum() > 1 else score.std()
        scale = max(float(scale), 1e-9)
        score = (score - score[european].mean()) / scale
        for ancestry in range(1, len(ANCESTRIES)):
            rows_of = roster.ancestry.to_numpy() == ancestry
            if rows_of.any():
                score[rows_of] -= (1 - STRATIFICATION) * score[rows_of].mean()
        scores[trait] = score
        for chromosome, i, beta in kept:
            rows.append({
                "trait": trait, "chrom": chromosome.chromosome, "pos": int(chromosome.positions[i]),
                "id": chromosome.identifiers[i], "ref": chromosome.ref[i], "alt": chromosome.alt[i],
                "beta": round(beta / scale, 6),
            })  # fmt: skip
    # Dementia and Alzheimer's disease share most of their heritability.
    scores["dementia"] = 0.8 * scores["alzheimers_disease"] + 0.6 * scores["dementia"]
    return pd.DataFrame(scores), pd.DataFrame(rows)


def latent_factors(scenario: Scenario, roster: pd.DataFrame, scores: pd.DataFrame) -> pd.DataFrame:
    """Age, sex and the latent risk factors [n, ...], unit variance before a site's case mix is added."""
    rng = stream(scenario.seed, "factors")
    count = len(roster)
    homes = {-1: EYEPACS_PROFILE, -2: PUBLIC_PROFILE, **dict(enumerate(uk_sites(scenario.sites)))}
    age_shift = roster.home.map({home: profile.age for home, profile in homes.items()}).to_numpy(float)
    years = np.clip(rng.normal(MEAN_AGE, SD_AGE, count) + age_shift, 38, 82).round()
    factors: dict[str, np.ndarray] = {
        "years": years,
        "age": (years - MEAN_AGE) / SD_AGE,
        "male": np.where(rng.random(count) < 0.456, 1.0, -1.0),
    }
    for name, (share, causes) in FACTORS.items():
        value = sum((weight * factors[cause] for cause, weight in causes.items()), np.zeros(count))
        noise = np.sqrt(max(0.05, 1 - share - sum(weight**2 for weight in causes.values())))
        value = value + noise * rng.normal(size=count)
        if share > 0:
            value = value + np.sqrt(share) * scores[name].to_numpy()
        shift = roster.home.map({home: profile.shifts.get(name, 0.0) for home, profile in homes.items()})
        factors[name] = value + shift.to_numpy(float)
    return pd.DataFrame(factors)


def disease_status(
    scenario: Scenario, roster: pd.DataFrame, factors: pd.DataFrame, scores: pd.DataFrame
) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, dict[str, float]]]:
    """Liabilities, status, and the prevalences of the paper and of the cohort.

    Thresholds are quantiles over the UK people, so that the cohort holds the stated share of cases.
    """
    rng = stream(scenario.seed, "liability")
    uk = roster.home.to_numpy() >= 0
    shared = {name: rng.normal(size=len(roster)) for name in ("retina", "vessel", "neuron")}
    liabilities: dict[str, np.ndarray] = {}
    status: dict[str, np.ndarray] = {}
    prevalences: dict[str, dict[str, float]] = {}
    for disease in DISEASES:
        risk = sum((w * factors[f].to_numpy() for f, w in disease.risks.items()), np.zeros(len(roster)))
        risk = (risk - risk[uk].mean()) / risk[uk].std()
        noise = rng.normal(size=len(roster))
        for name, weight in disease.shared.items():
            noise = weight * shared[name] + np.sqrt(1 - weight**2) * noise
        liability = (
            np.sqrt(RISK_SHARE) * risk
            + np.sqrt(scenario.heritability) * scores[disease.name].to_numpy()
            + np.sqrt(1 - RISK_SHARE - scenario.heritability) * noise
        )
        prevalence = raised_prevalence(disease, scenario.test_people)
        case = liability > np.quantile(liability[uk], 1 - prevalence)
        for place, share in ((EYEPACS, EYEPACS_PREVALENCE), (PUBLIC, PUBLIC_PREVALENCE)):
            rows = roster.place.to_numpy() == place
            # Photographs are collected where eyes are ill: a threshold of their own.
            if rows.any() and (disease.name == "diabetic_eye_disease" or (place == PUBLIC and disease.eye)):
                case[rows] = liability[rows] > np.quantile(liability[rows], 1 - share)
        liabilities[disease.name], status[disease.name] = liability, case
        prevalences[disease.name] = {
            "paper": round(disease.prevalence, 6),
            "cohort": round(prevalence, 6),
            "cases_members": int(case[uk & (roster.place != EVALUATION).to_numpy()].sum()),
            "cases_test_only": int(case[(roster.place == EVALUATION).to_numpy()].sum()),
        }
    return pd.DataFrame(liabilities), pd.DataFrame(status), prevalences


def eye_severity(
    scenario: Scenario, age: np.ndarray, liabilities: pd.DataFrame, status: pd.DataFrame
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Which eyes are ill (bool) and how much of it shows (0 to 1): columns "<disease>_left", "_right".

    Three in four of the ill are ill in both eyes. In one of six of the ill nothing shows (early, treated, an
    operated cataract), and healthy old eyes show traces: no photograph decides every case.
    """
    affected: dict[str, np.ndarray] = {}
    shown: dict[str, np.ndarray] = {}
    for number, disease in enumerate(d for d in DISEASES if d.eye):
        rng = stream(scenario.seed, "severity", number)
        ill = status[disease.name].to_numpy()
        excess = liabilities[disease.name].to_numpy()
        excess = np.clip((excess - (excess[ill].min() if ill.any() else 0)) / 1.5, 0, 1)
        side = rng.random(len(ill))
        visible = rng.random(len(ill)) >= HIDDEN
        aged = rng.random(len(ill)) < 0.12 * np.clip(1 + (age - MEAN_AGE) / 20, 0.2, 2)
        trace = rng.uniform(0.05, 0.35, len(ill))
        for eye, spared in (("left", side < 0.125), ("right", side > 0.875)):
            affected[f"{disease.name}_{eye}"] = ill & ~spared
            degree = np.clip(0.22 + 0.55 * excess + rng.normal(0, 0.13, len(ill)), 0.08, 1.0)
            traces = np.where(aged, np.clip(trace + rng.normal(0, 0.04, len(ill)), 0, 1), 0.0)
            shown[f"{disease.name}_{eye}"] = np.where(ill & ~spared & visible, degree, traces).round(4)
    return pd.DataFrame(affected), pd.DataFrame(shown)
