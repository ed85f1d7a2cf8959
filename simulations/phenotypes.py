"""Study columns of simulated people: measures from latent factors, diseases, and what follows from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import pandas as pd

from simulations.columns import FIELDS, Field
from simulations.diseases import DISEASES, RELATED, disease_field
from simulations.genomes import PIGMENT_CHROMOSOME, Chromosome, principal_components
from simulations.liability import disease_status, eye_severity, latent_factors, polygenic_scores
from simulations.scenarios import Scenario, stream


@dataclass(frozen=True)
class People:
    """Everybody's truth, rows as in the roster.

    factors: float64 latent factors with years, age (standardised) and male; scores: polygenic, by trait
    liabilities, status (bool): by disease
    severity: float 0 to 1, what shows in an eye; affected: bool; both by "<disease>_left" and "_right"
    pigment: float64 [n], melanin of the fundus 0 to 1; pigment_dosage: int64 [n], alleles that lighten
    phenotypes: study columns in study units, NaN where there is nothing to tell (no event, no age)
    planted: one row per planted SNP; prevalences: figures for cohort.json
    """

    factors: pd.DataFrame
    scores: pd.DataFrame
    liabilities: pd.DataFrame
    status: pd.DataFrame
    severity: pd.DataFrame
    affected: pd.DataFrame
    pigment: np.ndarray
    pigment_dosage: np.ndarray
    phenotypes: pd.DataFrame
    planted: pd.DataFrame
    prevalences: Mapping[str, Mapping[str, float]]


def study_fields() -> tuple[Field, ...]:
    """Every study column in file order: measures, then each disease and its related columns."""
    return (*FIELDS, *map(disease_field, DISEASES), *(related.as_field() for related in RELATED))


def simulate_people(scenario: Scenario, roster: pd.DataFrame, genome: Sequence[Chromosome]) -> People:
    """Draw everybody's phenotypes. Raises nothing: a scenario was validated when it was made."""
    scores, planted = polygenic_scores(scenario, roster, genome)
    factors = latent_factors(scenario, roster, scores)
    liabilities, status, prevalences = disease_status(scenario, roster, factors, scores)
    affected, severity = eye_severity(scenario, factors.years.to_numpy(), liabilities, status)
    phenotypes = _phenotypes(scenario, factors, scores, status, affected)
    kept = np.flatnonzero(roster.genotype)
    for k, component in enumerate(principal_components(genome, kept).T, start=1):
        phenotypes.loc[roster.index[kept], f"genetic_pc_{k}"] = component.round(4)
    chromosome = next(c for c in genome if c.chromosome == PIGMENT_CHROMOSOME)
    dosage = chromosome.dosages[:, chromosome.locus].astype(np.int64)
    tone = np.array([0.62, 0.92, 0.70])[roster.ancestry]
    noise = stream(scenario.seed, "pigment").normal(0, 0.05, len(roster))
    pigment = np.clip(tone - 0.24 * dosage + noise, 0.0, 1.0)
    order = [field.name for field in study_fields()]
    return People(
        factors, scores, liabilities, status, severity, affected, pigment, dosage, phenotypes[order], planted,
        prevalences,
    )  # fmt: skip


def _phenotypes(
    scenario: Scenario,
    factors: pd.DataFrame,
    scores: pd.DataFrame,
    status: pd.DataFrame,
    affected: pd.DataFrame,
) -> pd.DataFrame:
    """Study columns [n, fields] in study units; NaN where there is nothing to tell (no event, no age)."""
    count = len(factors)
    causes: dict[str, np.ndarray] = {str(name): factors[name].to_numpy() for name in factors}
    causes |= {f"case={name}": status[name].to_numpy() * 2.0 - 0.2 for name in status}
    causes |= {f"gene={name}": scores[name].to_numpy() for name in scores}
    values: dict[str, np.ndarray] = {}
    for number, field in enumerate(FIELDS):
        rng = stream(scenario.seed, "field", number)
        signal = sum((w * causes[cause] for cause, w in field.loadings.items()), np.zeros(count))
        rest = np.sqrt(max(0.02, 1 - sum(w**2 for w in field.loadings.values())))
        standard = signal + rest * rng.normal(size=count)
        if field.kind == "continuous":
            value = np.clip(field.mean + field.sd * standard, field.low, field.high)
        elif field.kind == "binary":
            value = (standard > NormalDist().inv_cdf(1 - field.prevalence)).astype(float)
        else:
            edges = [NormalDist().inv_cdf(float(p)) for p in np.cumsum(field.shares[:-1])]
            value = np.searchsorted(edges, standard).astype(float)
        values[field.name] = value.round(field.decimals)
    values["age"] = factors["years"].to_numpy()
    values["sex"] = (factors["male"].to_numpy() > 0).astype(float)
    values["weight"] = (values["bmi"] * (values["height"] / 100) ** 2).round(1)
    glycaemia, eye = factors["glycaemia"].to_numpy(), status["diabetic_eye_disease"].to_numpy()
    # Diabetes stays more frequent than its eye disease, however far that prevalence was raised.
    diabetic = glycaemia > np.quantile(glycaemia, 1 - min(0.5, max(0.08, 2.5 * eye.mean())))
    values["diabetes"] = (diabetic | eye).astype(float)
    values["insulin"] = values["insulin"] * values["diabetes"]
    for k in range(1, 11):
        values[f"genetic_pc_{k}"] = np.full(count, np.nan)
    for disease in DISEASES:
        values[disease.name] = status[disease.name].to_numpy().astype(float)
    retina = status[["macular_degeneration", "diabetic_eye_disease", "glaucoma"]].any(axis=1).to_numpy()
    onset = {name: _onset(scenario, i, values["age"]) for i, name in enumerate([*status, "retina"])}
    for number, related in enumerate(RELATED):
        rng = stream(scenario.seed, "related", number)
        ill = retina if related.disease == "retina" else status[related.disease].to_numpy()
        told = rng.random(count) < np.where(ill, related.agree, related.background)
        if related.kind in ("eye_right", "eye_left"):
            here = affected[f"{related.disease}_{related.kind[4:]}"].to_numpy(float)
            values[related.name] = np.where(ill & told, here, np.nan)
        elif related.kind == "answer":
            values[related.name] = told.astype(float)
        else:
            spread = rng.normal(0, 1.5, count)
            age = np.clip(onset[related.disease] + spread, 20, values["age"]).round(1)
            values[related.name] = np.where(told, age, np.nan)
    return pd.DataFrame(values)


def _onset(scenario: Scenario, number: int, age: np.ndarray) -> np.ndarray:
    """Age at which a disease began, some years ago: float64 [n]."""
    return age - stream(scenario.seed, "onset", number).gamma(2.0, 3.0, len(age))
