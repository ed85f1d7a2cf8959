"""What describes a cohort as a whole: the study definition, the truth, and cohort.json."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from pm1_core import atomic
from simulations.diseases import DISEASES
from simulations.genomes import PIGMENT_CHROMOSOME, Chromosome
from simulations.liability import (
    EXPECTED_TEST_CASES,
    EYEPACS_PREVALENCE,
    HIGHEST_FLOOR,
    PUBLIC_PREVALENCE,
)
from simulations.phenotypes import People, study_fields
from simulations.scenarios import (
    ANCESTRIES,
    EVALUATION,
    EYEPACS,
    PUBLIC,
    SPLIT_KEY,
    TABLE_2,
    Scenario,
    uk_sites,
)
from simulations.site_files import write_yaml

FORMAT = 3
"""Raised whenever the same scenario would give other bytes."""

_RANGE = 5.0
"""Standard deviations of a column, in the population, to which noised statistics cut its values."""


def fingerprint(scenario: Scenario) -> str:
    """Hex SHA-256 of the format and the scenario: equal for cohorts of equal bytes."""
    return hashlib.sha256(json.dumps([FORMAT, scenario.to_json()], sort_keys=True).encode()).hexdigest()


def write_study(folder: Path, people: pd.DataFrame, genome: Sequence[Chromosome]) -> None:
    """study.yaml, variants.tsv and relatives.tsv."""
    columns: list[dict[str, Any]] = []
    for column in study_fields():
        entry: dict[str, Any] = {"name": column.name, "kind": column.kind}
        if column.unit:
            entry["unit"] = column.unit
        if column.kind == "continuous":
            low, high = column.mean - _RANGE * column.sd, column.mean + _RANGE * column.sd
            entry["range"] = [round(max(low, column.low), 6), round(min(high, column.high), 6)]
        if column.categories:
            entry["categories"] = list(column.categories)
        if column.codes:
            entry["codes"] = {system: list(codes) for system, codes in column.codes.items()}
        columns.append(entry)
    write_yaml(folder / "study.yaml", {
        "study": "ukb_eyepacs",
        "build": "GRCh38",
        "split_key": SPLIT_KEY,
        "variants": "variants.tsv",
        "relatives": "relatives.tsv",
        "photograph_size": 224,
        "columns": columns,
        "targets": [
            {"name": d.name, "label": d.label, "masked": list(dict.fromkeys([d.name, *d.masked]))}
            for d in DISEASES
        ],
        "labels": [
            {"name": "ancestry", "kind": "categorical", "categories": list(ANCESTRIES)},
            {"name": "diabetic_retinopathy", "kind": "binary"},
        ],
    })  # fmt: skip
    variants = ["chrom\tpos\tid\tref\talt"]
    for c in genome:
        rows = zip(c.positions, c.identifiers, c.ref, c.alt, strict=True)
        variants += [f"{c.chromosome}\t{pos}\t{name}\t{ref}\t{alt}" for pos, name, ref, alt in rows]
    (folder / "variants.tsv").write_text("\n".join(variants) + "\n")
    kin = people[people.family >= 0].sort_values(["family", "subject"])
    lines = [
        f"{subject}\tfamily{number:05d}" for subject, number in zip(kin.subject, kin.family, strict=True)
    ]
    (folder / "relatives.tsv").write_text("\n".join(["subject\tfamily", *lines]) + "\n")


def write_truth(folder: Path, people: pd.DataFrame, truth: People, genome: Sequence[Chromosome]) -> None:
    """What nobody at a hospital knows, to measure what was recovered."""
    folder.mkdir()
    table = people[["subject", "place", "home", "family"]].copy()
    table["ancestry"] = [ANCESTRIES[a] for a in people.ancestry]
    table["pigment_dosage"] = truth.pigment_dosage
    table["pigment"] = truth.pigment.round(4)
    parts = [
        table,
        truth.status.astype(int).add_prefix("status."),
        truth.liabilities.round(4).add_prefix("liability."),
        truth.scores.round(4).add_prefix("score."),
        truth.affected.astype(int).add_prefix("affected."),
        truth.severity.add_prefix("severity."),
        truth.factors.round(4).add_prefix("factor."),
    ]
    pd.concat(parts, axis=1).to_csv(folder / "people.tsv", sep="\t", index=False, lineterminator="\n")
    truth.planted.to_csv(folder / "planted.tsv", sep="\t", index=False, lineterminator="\n")
    complete = truth.phenotypes.copy()
    complete.insert(0, "subject", people.subject)
    complete[(people.place != PUBLIC) & (people.place != EYEPACS)].to_csv(
        folder / "phenotypes.csv", index=False, lineterminator="\n"
    )
    c = next(c for c in genome if c.chromosome == PIGMENT_CHROMOSOME)
    frequency = {
        name: round(float(c.dosages[people.ancestry == i, c.locus].mean() / 2), 4)
        for i, name in enumerate(ANCESTRIES)
        if (people.ancestry == i).any()
    }
    atomic.write_json(folder / "pigment.json", {
        "chrom": c.chromosome, "pos": int(c.positions[c.locus]), "id": c.identifiers[c.locus],
        "ref": c.ref[c.locus], "alt": c.alt[c.locus], "alt_frequency": frequency,
        "effect": "each alternate allele lightens the fundus (the analogue of HERC2 rs1129038)",
    })  # fmt: skip


def summarise(scenario: Scenario, people: pd.DataFrame, truth: People) -> dict[str, Any]:
    """cohort.json: figures and the statement of what was changed against the paper."""
    members = ~people.place.isin([EVALUATION, PUBLIC])
    kept = people[members]
    complete = kept.genotype & kept.phenotype & (kept.left | kept.right)
    shares = {
        "genotype": (kept.genotype.mean(), TABLE_2["genotype"]),
        "phenotype": (kept.phenotype.mean(), TABLE_2["phenotype"]),
        "photographs": ((kept.left | kept.right).mean(), TABLE_2["photographs"]),
        "both_eyes": ((kept.left & kept.right).mean(), TABLE_2["both_eyes"]),
        "one_eye": ((kept.left ^ kept.right).mean(), TABLE_2["one_eye"]),
        "all_three": (complete.mean(), TABLE_2["all_three"]),
        "eyepacs": ((kept.place == EYEPACS).mean(), TABLE_2["eyepacs"]),
    }
    places = people.groupby("place", sort=True)[["genotype", "phenotype", "left", "right"]].sum()
    counts = {
        str(place): {"people": int((people.place == place).sum()), **{k: int(v) for k, v in row.items()}}
        for place, row in places.iterrows()
    }
    names = [site.name for site in uk_sites(scenario.sites)]
    present = set(people.place)
    return {
        "format": FORMAT,
        "fingerprint": fingerprint(scenario),
        "scenario": scenario.to_json(),
        "sites": [name for name in (*names, EYEPACS) if name in present],
        "counts": counts,
        "families": int(people.family.max() + 1),
        "shares": {
            name: {"cohort": round(float(have), 4), "paper": round(want / TABLE_2["people"], 4)}
            for name, (have, want) in shares.items()
        },
        "prevalences": truth.prevalences,
        "missing": {disease.name: round(disease.missing_share, 6) for disease in DISEASES},
        "statement": (
            "Shares of modalities and eyes follow supplementary table 2 of the PM1 paper, missing disease "
            "status tables 3 and 4. A prevalence below "
            f"{min(HIGHEST_FLOOR, EXPECTED_TEST_CASES / scenario.test_people):.4f} was raised to it, so that "
            f"the {scenario.test_people} test-only people hold about {EXPECTED_TEST_CASES} cases of every "
            "disease and a 95% interval of its AUC is within +-0.05 (at most a prevalence of "
            f"{HIGHEST_FLOOR}). Predictive values and calibration therefore do not transfer to the paper's "
            f"population. Diabetic retinopathy at the EyePACS-like site ({EYEPACS_PREVALENCE}) and eye "
            f"diseases among the public photographs ({PUBLIC_PREVALENCE}) are choices of this simulation."
        ),
    }
