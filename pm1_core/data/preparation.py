"""From a manifest to a prepared store: read everything, count everything, write all or nothing."""

from __future__ import annotations

import errno
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pm1_core.atomic import whole_folder
from pm1_core.data.chromosome_file import ChromosomeFiles
from pm1_core.data.documents import read_text
from pm1_core.data.genotype_readers import Genotypes, open_genotypes
from pm1_core.data.labels import read_labels
from pm1_core.data.manifest import GenotypeSource, SiteManifest
from pm1_core.data.matching import Matcher
from pm1_core.data.phenotype import write_phenotypes
from pm1_core.data.photographs import Photograph, read_index, write_photographs
from pm1_core.data.preparation_report import Findings, PreparationReport
from pm1_core.data.store import VERSION, Store, is_store
from pm1_core.data.subjects import note_relatives, subject_table
from pm1_core.data.tables import table_text
from pm1_core.errors import DataError, StoreError
from pm1_core.fields import CHROMOSOMES, EYES, Split
from pm1_core.validate import refusal

Progress = Callable[[str, int, int], None]


def _silent(stage: str, done: int, total: int) -> None:
    """Report to nobody."""


class _Inputs:
    """The opened files of one manifest, and the fingerprint of their state."""

    def __init__(self, manifest: SiteManifest) -> None:
        self.manifest = manifest
        self.findings = Findings()
        self.genotypes: Genotypes | None = None
        self.photographs: list[Photograph] = []
        if manifest.genotype is not None:
            self.genotypes = open_genotypes(manifest.genotype, self.findings)
        if manifest.fundus is not None:
            self.photographs = read_index(manifest.fundus, self.findings)

    def _data_files(self) -> Iterable[Path]:
        manifest = self.manifest
        if self.genotypes is not None and manifest.genotype is not None:
            yield from self.genotypes.files()
            if manifest.genotype.keep is not None:
                yield manifest.genotype.keep
        for table in (manifest.phenotype, manifest.labels):
            if table is not None:
                yield table.table.path
        if manifest.fundus is not None:
            yield manifest.fundus.index.path
            yield from (photograph.path for photograph in self.photographs)
        for path in (manifest.study.variants_path, manifest.study.relatives_path):
            if path is not None:
                yield path

    def fingerprint(self) -> str:
        """SHA-256 over the texts of manifest, definition and dictionaries, and data files' path, size and time."""
        digest = hashlib.sha256(f"store {VERSION}\n".encode())
        digest.update(hashlib.sha256(self.manifest.study.split_key).digest())
        for path in (*self.manifest.files, *self.manifest.study.files[:1]):
            digest.update(f"{path.resolve()}\n{read_text(path)}\n".encode())
        for path in self._data_files():
            try:
                state = path.stat()
                digest.update(f"{path.resolve()} {state.st_size} {state.st_mtime_ns}\n".encode())
            except OSError:
                digest.update(f"{path.resolve()} absent\n".encode())
        return digest.hexdigest()


def _keep(genotypes: Genotypes, source: GenotypeSource, findings: Findings) -> np.ndarray:
    """Indices of the people to read, by the manifest's `keep` list."""
    if source.keep is None:
        return np.arange(len(genotypes.people), dtype=np.int64)
    # A list of PLINK style has family and person; the person is what we know people by.
    wanted = [line.split()[-1] for line in read_text(source.keep, DataError).splitlines() if line.strip()]
    have = {person.subject for person in genotypes.people}
    findings.add_all(
        "genotype.keep-unknown", source.keep, (name for name in dict.fromkeys(wanted) if name not in have)
    )
    chosen = [i for i, person in enumerate(genotypes.people) if person.subject in set(wanted)]
    findings.add("genotype.not-kept", source.keep, count=len(genotypes.people) - len(chosen))
    if not chosen:
        raise DataError(refusal(source.keep, f"names nobody of {genotypes.people_file}", "correct the list"))
    return np.array(chosen, np.int64)


def _genotypes(
    inputs: _Inputs, folder: Path | None, progress: Progress
) -> tuple[dict[str, int], dict[str, int]]:
    """Read and write all chromosomes; subject -> row, and counts."""
    genotypes, manifest, findings = inputs.genotypes, inputs.manifest, inputs.findings
    if genotypes is None or manifest.genotype is None:
        return {}, {}
    keep = _keep(genotypes, manifest.genotype, findings)
    people = [genotypes.people[index] for index in keep]
    note_relatives(people, manifest.study.families, genotypes.people_file, findings)
    matcher = Matcher(manifest.study.variants, manifest.genotype.palindromic, findings)
    positions = manifest.study.variants["pos"].to_numpy(np.int64)
    start = dict(
        zip(matcher.chromosomes, np.cumsum([0, *matcher.chromosomes.values()]).tolist(), strict=False)
    )
    called = np.zeros(len(keep), np.int64)
    total = 0
    with ChromosomeFiles(folder, len(keep), manifest.study.summary.chromosome_sizes) as files:
        for block in genotypes.read(keep, matcher, lambda done, of: progress("genotypes", done, of)):
            file, held = genotypes.file_of(block.chromosome), int(block.held.sum())
            unknown, constant = block.statistics()
            called += held - unknown
            total += held * len(keep)
            findings.add("genotype.missing-calls", file, count=int(unknown.sum()))
            alike = start[block.chromosome] + block.first + np.flatnonzero(constant)
            texts = (f"{block.chromosome}:{positions[index]}" for index in alike)
            findings.add_some("genotype.one-value", file, len(alike), texts)
            files.put(block)
    matcher.finish(genotypes.file_of)
    if matcher.matched == 0:
        raise DataError(
            refusal(
                genotypes.files()[0],
                f"found none of the study's {len(manifest.study.variants)} SNPs",
                "compare chromosome names, positions and build with the study's list",
            )
        )
    nobody = (people[i].subject for i in np.flatnonzero(called == 0))
    findings.add_all("genotype.no-call", genotypes.people_file, nobody)
    missing = total - int(called.sum())
    counts = {
        "genotype.people": len(keep),
        "genotype.snps": matcher.matched,
        "genotype.calls": total,
        "genotype.missing": missing,
    }
    return {person.subject: row for row, person in enumerate(people)}, counts


def _gather(
    inputs: _Inputs, folder: Path | None, progress: Progress
) -> tuple[PreparationReport, pd.DataFrame, pd.DataFrame | None]:
    """Read every input; write arrays into `folder` unless it is None."""
    manifest, findings = inputs.manifest, inputs.findings
    study = manifest.study

    def stage(name: str) -> Callable[[int, int], None]:
        return lambda done, total: progress(name, done, total)

    # Tables first: they are read in seconds and hold most mistakes.
    phenotype: dict[str, int] = {}
    if manifest.phenotype is not None:
        phenotype = write_phenotypes(
            manifest, manifest.phenotype, folder and folder / "phenotype", findings, stage("phenotypes")
        )
    genotype, counts = _genotypes(inputs, folder and folder / "genotype", progress)
    photographs: dict[tuple[str, str], int] = {}
    if manifest.fundus is not None:
        photographs = write_photographs(
            inputs.photographs,
            manifest.fundus,
            folder and folder / "fundus",
            study.photograph_size,
            findings,
            stage("photographs"),
        )
    subjects = subject_table(
        genotype, phenotype, photographs, study.families, study.split_key, manifest.role == "evaluation"
    )
    labels = None
    if manifest.labels is not None:
        labels = read_labels(manifest, manifest.labels, set(subjects["subject"]), findings, stage("labels"))
    has = np.stack(
        [
            subjects["genotype_row"] >= 0,
            subjects["phenotype_row"] >= 0,
            (subjects[["left_row", "right_row"]] >= 0).any(axis=1),
        ]
    )
    if len(manifest.modalities) > 1:
        findings.add("subjects.joined", manifest.path, count=int((has.sum(axis=0) == 1).sum()))
    counted = {
        "subjects": len(subjects), **counts, "phenotype.people": len(phenotype),
        "fundus.people": int(has[2].sum()),
        **{f"fundus.{eye}": sum(e == eye for _, e in photographs) for eye in EYES},
        "all modalities": int(has.all(axis=0).sum()), 
        "labels.people": 0 if labels is None else int(labels.notna().any(axis=1).sum()),
        **{f"split.{split}": int((subjects["split"] == split.value).sum()) for split in Split},
    }  # fmt: skip
    return PreparationReport(manifest.site, study.name, counted, findings.sorted()), subjects, labels


def check(manifest: SiteManifest, progress: Progress | None = None) -> PreparationReport:
    """Read everything that `prepare` would read and write nothing.

    Raises DataError naming file, row and what to do for whatever `prepare` would refuse.
    """
    return _gather(_Inputs(manifest), None, progress or _silent)[0]


def prepare(manifest: SiteManifest, out: Path | str, progress: Progress | None = None) -> PreparationReport:
    """Write the store of a site to the folder `out`, whole or not at all.

    Returns the report; if `out` is already the whole store of the same inputs, the report that was
    written with it, with `skipped` set. progress is called with (stage, done, total); total 0 means
    unknown. An interrupted run leaves what was at `out` before.

    Raises DataError naming file and row for what cannot be used, or `out` if it holds something else or cannot
    be written.
    """
    out = Path(out)
    inputs = _Inputs(manifest)
    fingerprint = inputs.fingerprint()
    if out.exists() and not is_store(out) and (not out.is_dir() or any(out.iterdir())):
        raise DataError(refusal(out, "found something that is no store", "name an empty or new folder"))
    if is_store(out):
        try:
            store = Store.open(out)
            if store.fingerprint == fingerprint:
                return store.report(skipped=True)
        except StoreError:
            pass  # damaged or of an older version: prepared again
    try:
        with whole_folder(out) as folder:
            report = _write(inputs, fingerprint, folder, progress or _silent)
    except OSError as problem:
        remedy = (
            "make room there" if problem.errno == errno.ENOSPC else "name a folder that can be written to"
        )
        raise DataError(
            refusal(out, f"could not be written ({problem.strerror})", f"{remedy} and prepare again")
        ) from None
    return report


def _write(inputs: _Inputs, fingerprint: str, folder: Path, progress: Progress) -> PreparationReport:
    """Write every file of a store into the fresh `folder`, its description last."""
    manifest = inputs.manifest
    report, subjects, labels = _gather(inputs, folder, progress)
    subjects.to_csv(folder / "subjects.tsv", sep="\t", index=False)
    if labels is not None:
        labels.to_csv(folder / "labels.tsv", sep="\t")
    if inputs.genotypes is not None:
        (folder / "genotype" / "variants.tsv").write_bytes(table_text(manifest.study.variants, "\t"))
    (folder / "study.json").write_text(manifest.study.to_json(), encoding="utf-8")
    (folder / "preparation.json").write_text(report.to_text(), encoding="utf-8")
    (folder / "preparation.md").write_text(report.to_markdown(), encoding="utf-8")
    content: Mapping[str, Any] = {
        "version": VERSION, "site": manifest.site, "role": manifest.role, "study": manifest.study.name,
        "fingerprint": fingerprint, "counts": dict(report.counts),
        "chromosomes": list(CHROMOSOMES) if inputs.genotypes is not None else [],
        "files": {
            str(path.relative_to(folder)): path.stat().st_size
            for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix != ".png"
        },
    }  # fmt: skip
    (folder / "store.json").write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return report
