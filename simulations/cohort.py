"""Simulated hospitals, written as real files that the same readers read.

    out/study.yaml variants.tsv relatives.tsv      what all sites share
        sites/<name>/site.yaml + its files         members of the study
        evaluation/site.yaml + its files           test-only people of the same population
        public/index.csv photos/                   unlabelled photographs for pre-training
        truth/                                     planted SNPs, liabilities, complete phenotypes
        cohort.json                                scenario, counts, prevalences (the paper's and the raised)

The same scenario gives the same bytes, whatever the number of worker processes.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from pm1_core import atomic
from simulations.diseases import DISEASES
from simulations.genomes import PIGMENT_CHROMOSOME, Chromosome, requests, simulate_chromosome
from simulations.missingness import missing_cells
from simulations.phenotypes import (
    EXPECTED_TEST_CASES,
    EYEPACS_PREVALENCE,
    HIGHEST_FLOOR,
    PUBLIC_PREVALENCE,
    People,
    simulate_people,
    study_fields,
)
from simulations.photographs import Sitting, write_photographs
from simulations.scenarios import (
    ANCESTRIES,
    EVALUATION,
    EYEPACS,
    PUBLIC,
    SPLIT_KEY,
    TABLE_2,
    Scenario,
    roster,
    stream,
    uk_sites,
)
from simulations.site_files import (
    Alleles,
    site_alleles,
    write_genotypes,
    write_labels,
    write_phenotypes,
    write_yaml,
)

__all__ = ["Cohort", "Scenario", "load_cohort", "write_cohort"]

FORMAT = 1
"""Raised whenever the same scenario would give other bytes."""

Progress = Callable[[str, int, int], None]
_In = TypeVar("_In")
_Out = TypeVar("_Out")


@dataclass(frozen=True)
class Cohort:
    """A written cohort. sites: site.yaml of each member site, UK sites first; seconds: stage -> wall-clock
    seconds of this call, empty if the cohort was there already; summary: the content of cohort.json."""

    folder: Path
    summary: dict[str, Any]
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def study(self) -> Path:
        return self.folder / "study.yaml"

    @property
    def sites(self) -> tuple[Path, ...]:
        return tuple(self.folder / "sites" / name / "site.yaml" for name in self.summary["sites"])

    @property
    def evaluation(self) -> Path:
        return self.folder / EVALUATION / "site.yaml"

    @property
    def public(self) -> Path:
        return self.folder / PUBLIC

    @property
    def truth(self) -> Path:
        return self.folder / "truth"


def fingerprint(scenario: Scenario) -> str:
    """Hex SHA-256 of the format and the scenario: equal for cohorts of equal bytes."""
    return hashlib.sha256(json.dumps([FORMAT, scenario.to_json()], sort_keys=True).encode()).hexdigest()


def load_cohort(out: Path, scenario: Scenario | None = None) -> Cohort | None:
    """The whole cohort at `out`, or None if there is none (or not of `scenario`)."""
    try:
        summary = json.loads((out / "cohort.json").read_text())
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
        return None
    if scenario is not None and summary.get("fingerprint") != fingerprint(scenario):
        return None
    return Cohort(out, summary)


def write_cohort(
    scenario: Scenario, out: Path, progress: Progress | None = None, workers: int | None = None
) -> Cohort:
    """Write the cohort of `scenario` to `out`, replacing what was there; at once if it is there already.

    progress: called with (stage, done, total); workers: processes (default: one a core for larger cohorts,
    none else). Their number changes the time only. Raises ConfigError if the SNPs cannot be had.
    """
    out = Path(out)
    present = load_cohort(out, scenario)
    if present is not None:
        return present
    stages: dict[str, float] = {}
    report = progress or (lambda stage, done, total: None)
    if workers is None:
        large = scenario.people + scenario.test_people + scenario.public_photographs > 1000
        workers = min(8, os.cpu_count() or 1) if large else 1

    @contextmanager
    def stage(name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        stages[name] = round(time.perf_counter() - started, 2)

    with _pool(workers) as pool, atomic.whole_folder(out) as folder:
        people = roster(scenario)
        with stage("genomes"):
            asked = requests(scenario.snps, scenario.seed, people.ancestry.to_numpy(), people.family.to_numpy())
            genome = list(_counted(_map(pool, simulate_chromosome, asked), "genomes", len(asked), report))
        with stage("phenotypes"):
            truth = simulate_people(scenario, people, genome)
            report("phenotypes", 1, 1)
        with stage("files"):
            _write_study(folder, people, genome)
            _write_truth(folder / "truth", people, truth, genome)
            sittings = _write_places(folder, scenario, people, truth, genome, report)
        with stage("photographs"):
            batches = [sittings[i : i + 64] for i in range(0, len(sittings), 64)]
            done = 0
            for count in _map(pool, write_photographs, batches):
                done += count
                report("photographs", done, len(sittings))
        summary = _summary(scenario, people, truth)
        atomic.write_json(folder / "cohort.json", summary)
    return Cohort(out, summary, stages)


def _pool(workers: int) -> Any:
    """Fresh processes: forking a process that runs threads (torch, OpenCV) can deadlock."""
    if workers <= 1:
        return nullcontext(None)
    return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))


def _map(pool: Executor | None, function: Callable[[_In], _Out], items: Sequence[_In]) -> Iterator[_Out]:
    return map(function, items) if pool is None else pool.map(function, items)


def _counted(items: Iterable[_Out], name: str, total: int, report: Progress) -> Iterator[_Out]:
    for done, item in enumerate(items, 1):
        report(name, done, total)
        yield item


def _write_study(folder: Path, people: pd.DataFrame, genome: Sequence[Chromosome]) -> None:
    """study.yaml, variants.tsv and relatives.tsv."""
    columns: list[dict[str, Any]] = []
    for column in study_fields():
        entry: dict[str, Any] = {"name": column.name, "kind": column.kind}
        if column.unit:
            entry["unit"] = column.unit
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
    lines = [f"{subject}\tfamily{number:05d}" for subject, number in zip(kin.subject, kin.family, strict=True)]
    (folder / "relatives.tsv").write_text("\n".join(["subject\tfamily", *lines]) + "\n")


def _write_truth(folder: Path, people: pd.DataFrame, truth: People, genome: Sequence[Chromosome]) -> None:
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


def _write_places(
    folder: Path,
    scenario: Scenario,
    people: pd.DataFrame,
    truth: People,
    genome: Sequence[Chromosome],
    report: Progress,
) -> list[Sitting]:
    """Every site's files but its photographs, which are returned as orders to draw."""
    gone = missing_cells(scenario, people, truth.phenotypes)
    snps = sum(len(c.positions) for c in genome)
    sites = uk_sites(scenario.sites)
    same = Alleles(*np.zeros((3, snps), dtype=bool))
    places = [
        *((f"sites/{s.name}", s.name, s.coding, site_alleles(scenario.seed, i, snps)) for i, s in enumerate(sites)),
        (f"sites/{EYEPACS}", EYEPACS, "none", same),
        (EVALUATION, EVALUATION, "ukb", same),
    ]  # fmt: skip
    sittings: list[Sitting] = []
    for number, (path, place, coding, alleles) in enumerate(places):
        rows = np.flatnonzero(people.place == place)
        if not len(rows):
            continue
        # A hospital's files are in its own order, not in the order of simulation.
        rows = stream(scenario.seed, "order", number).permutation(rows)
        home = folder / path
        home.mkdir(parents=True)
        manifest: dict[str, Any] = {
            "site": place,
            "study": "../study.yaml" if place == EVALUATION else "../../study.yaml",
            "role": EVALUATION if place == EVALUATION else "member",
        }
        some = rows[people.genotype.to_numpy()[rows]]
        if len(some):
            male = truth.factors.male.to_numpy()[some] > 0
            rng = stream(scenario.seed, "calls", number)
            write_genotypes(home / "genotypes", genome, some, people.subject[some], male, alleles, rng)
            manifest["genotype"] = {"format": "pgen", "path": "genotypes/cohort", "build": "GRCh38"}
        some = rows[people.phenotype.to_numpy()[rows]]
        if len(some):
            rng = stream(scenario.seed, "codes", number)
            subjects = people.subject[some].tolist()
            manifest["phenotype"] = write_phenotypes(
                home, coding, subjects, truth.phenotypes.iloc[some], gone.iloc[some], rng
            )
        seated = _sittings(scenario, people, truth, rows, home / "photos")
        if seated:
            _write_index(home / "fundus.csv", people, seated, "subject")
            manifest["fundus"] = {"index": "fundus.csv", "folder": "photos"}
            sittings += seated
        graded = people.iloc[rows].assign(
            graded=(people.left | people.right).iloc[rows],
            diabetic_eye_disease=truth.status.diabetic_eye_disease.iloc[rows],
        )
        manifest["labels"] = write_labels(home, graded, place != EYEPACS)
        write_yaml(home / "site.yaml", manifest)
        report("files", number + 1, len(places))
    public = np.flatnonzero(people.place == PUBLIC)
    if len(public):
        (folder / PUBLIC).mkdir()
        seated = _sittings(scenario, people, truth, public, folder / PUBLIC / "photos")
        _write_index(folder / PUBLIC / "index.csv", people, seated, "subject")
        sittings += seated
    return sittings


def _sittings(
    scenario: Scenario, people: pd.DataFrame, truth: People, rows: np.ndarray, photos: Path
) -> list[Sitting]:
    """Orders for the photographs of `rows`, left eye first."""
    eyes = {eye: people[eye].to_numpy() for eye in ("left", "right")}
    severity = {name: truth.severity[name].to_numpy() for name in truth.severity}
    ill = [disease.name for disease in DISEASES if disease.eye]
    subjects, cameras = people.subject.to_numpy(), people.camera.to_numpy()
    years, pressure = truth.factors.years.to_numpy(), truth.factors.pressure.to_numpy()
    orders = [
        Sitting(
            path=photos / f"{subjects[row]}_{eye}.jpg",
            seed=scenario.seed,
            person=int(row),
            eye=eye,
            camera=int(cameras[row]),
            pigment=float(truth.pigment[row]),
            age=float(years[row]),
            pressure=float(pressure[row]),
            quality=scenario.photograph_quality,
            severity={name: float(severity[f"{name}_{eye}"][row]) for name in ill},
        )
        for row in rows
        for eye in ("left", "right")
        if eyes[eye][row]
    ]
    if orders:
        photos.mkdir()
    return orders


def _write_index(path: Path, people: pd.DataFrame, sittings: Sequence[Sitting], subject: str) -> None:
    lines = [f"{people.subject[s.person]},{s.eye},{s.path.name}" for s in sittings]
    path.write_text("\n".join([f"{subject},eye,file", *lines]) + "\n")


def _summary(scenario: Scenario, people: pd.DataFrame, truth: People) -> dict[str, Any]:
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
