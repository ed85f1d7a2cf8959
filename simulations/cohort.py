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

import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from pm1_core import atomic
from simulations.cohort_record import fingerprint, summarise, write_study, write_truth
from simulations.diseases import DISEASES
from simulations.genomes import Chromosome, requests, simulate_chromosome
from simulations.missingness import missing_cells
from simulations.phenotypes import People, simulate_people
from simulations.photographs import Sitting, write_photographs
from simulations.scenarios import EVALUATION, EYEPACS, PUBLIC, Scenario, roster, stream, uk_sites
from simulations.site_files import (
    Alleles,
    site_alleles,
    write_genotypes,
    write_labels,
    write_phenotypes,
    write_yaml,
)

__all__ = ["Cohort", "Scenario", "load_cohort", "write_cohort"]

Progress = Callable[[str, int, int], None]
_In = TypeVar("_In")
_Out = TypeVar("_Out")


@dataclass(frozen=True)
class Cohort:
    """A written cohort.

    summary: the content of cohort.json; seconds: stage -> wall-clock seconds of this call, empty if the
    cohort was there already.
    """

    folder: Path
    summary: dict[str, Any]
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def study(self) -> Path:
        """The study definition."""
        return self.folder / "study.yaml"

    @property
    def sites(self) -> tuple[Path, ...]:
        """Manifests of the member sites, UK sites first."""
        return tuple(self.folder / "sites" / name / "site.yaml" for name in self.summary["sites"])

    @property
    def evaluation(self) -> Path:
        """Manifest of the test-only people."""
        return self.folder / EVALUATION / "site.yaml"

    @property
    def public(self) -> Path:
        """Folder of index.csv and photos/, no labels."""
        return self.folder / PUBLIC

    @property
    def truth(self) -> Path:
        """Folder of what nobody at a hospital knows."""
        return self.folder / "truth"


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
    none else), whose number changes the time only. They import the main module again: a script guards
    its entry with `if __name__ == "__main__"`. Raises ConfigError if the SNPs cannot be had.
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
            asked = requests(
                scenario.snps, scenario.seed, people.ancestry.to_numpy(), people.family.to_numpy()
            )
            genome = list(_counted(_map(pool, simulate_chromosome, asked), "genomes", len(asked), report))
        with stage("phenotypes"):
            truth = simulate_people(scenario, people, genome)
            report("phenotypes", 1, 1)
        with stage("files"):
            write_study(folder, people, genome)
            write_truth(folder / "truth", people, truth, genome)
            sittings = _write_places(folder, scenario, people, truth, genome, report)
        with stage("photographs"):
            batches = [sittings[i : i + 64] for i in range(0, len(sittings), 64)]
            done = 0
            for count in _map(pool, write_photographs, batches):
                done += count
                report("photographs", done, len(sittings))
        summary = summarise(scenario, people, truth)
        atomic.write_json(folder / "cohort.json", summary)
    return Cohort(out, summary, stages)


def _pool(workers: int) -> AbstractContextManager[Executor | None]:
    """Fresh processes: forking a process that runs threads (torch, OpenCV) can deadlock.

    They import the main module again, so there are none where that is text from standard input.
    """
    main = getattr(sys.modules["__main__"], "__file__", None)
    if workers <= 1 or (main is not None and not Path(main).exists()):
        return nullcontext(None)
    return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))


def _map(pool: Executor | None, function: Callable[[_In], _Out], items: Sequence[_In]) -> Iterator[_Out]:
    return map(function, items) if pool is None else pool.map(function, items)


def _counted(items: Iterable[_Out], name: str, total: int, report: Progress) -> Iterator[_Out]:
    for done, item in enumerate(items, 1):
        report(name, done, total)
        yield item


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
            _write_index(home / "fundus.csv", people, seated)
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
        _write_index(folder / PUBLIC / "index.csv", people, seated)
        public_manifest = {"site": PUBLIC, "study": "../study.yaml", "role": "evaluation"}
        fundus = {"index": "index.csv", "folder": "photos"}
        write_yaml(folder / PUBLIC / "site.yaml", {**public_manifest, "fundus": fundus})
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


def _write_index(path: Path, people: pd.DataFrame, sittings: Sequence[Sitting]) -> None:
    lines = [f"{people.subject[s.person]},{s.eye},{s.path.name}" for s in sittings]
    path.write_text("\n".join(["subject,eye,file", *lines]) + "\n")
