"""The files of one hospital: genotypes (.pgen), phenotypes (.csv), a column dictionary, photographs, labels.

Hospitals write the same study differently (names, units, letters, code lists, alleles and strands); each
one's dictionary says how, so that harmonisation is exercised by every simulation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pgenlib
import yaml

from simulations.columns import Field
from simulations.diseases import DISEASES
from simulations.genomes import Chromosome
from simulations.missingness import NO_CODE
from simulations.phenotypes import study_fields
from simulations.scenarios import ANCESTRIES, stream

CODINGS: tuple[str, ...] = ("ukb", "imperial", "lettered", "coded", "plain")
MISSING_CALLS = 0.002
_COMPLEMENT = str.maketrans("ACGT", "TGCA")
# study column -> (suffix of the file column, dictionary keys, study value -> file value)
_Conversion = tuple[str, dict[str, Any], float, float]
_IMPERIAL: Mapping[str, _Conversion] = {
    "weight": ("lb", {"unit": "lb"}, 1 / 0.45359237, 0.0),
    "height": ("m", {"unit": "m"}, 0.01, 0.0),
    "glucose": ("mg_dl", {"factor": 0.0555, "offset": 0.0}, 1 / 0.0555, 0.0),
}
_PLAIN: Mapping[str, _Conversion] = {
    "weight": ("lb", {"unit": "lb"}, 1 / 0.45359237, 0.0),
    # NGSP percent from IFCC mmol/mol: Hoelzel W et al. (2004) Clinical Chemistry 50:166.
    "hba1c": ("percent", {"factor": 10.929, "offset": -23.5}, 1 / 10.929, 23.5 / 10.929),
}
_OTHER_CODES = ("Z00.0", "J06.9", "M54.5", "K21.9", "R07.4", "N39.0", "L30.9")


def write_yaml(path: Path, content: Any) -> None:
    """YAML in the order of `content`."""
    path.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=110))


@dataclass(frozen=True)
class Alleles:
    """How a site's genotype file differs from the study's list. Boolean arrays [S] over all chromosomes."""

    swapped: np.ndarray
    other_strand: np.ndarray
    absent: np.ndarray


def site_alleles(seed: int, site: int, count: int) -> Alleles:
    """The first site follows the study's list; others swap 3% of alleles, report 2% on the other strand.

    The third of every six sites has an array without 1% of the SNPs.
    """
    rng = stream(seed, "alleles", site)
    swapped, strand, absent = rng.random((3, count))
    first = site == 0
    return Alleles(
        (swapped < 0.03) & (not first), (strand < 0.02) & (not first), (absent < 0.01) & (site % 6 == 2)
    )


def write_genotypes(
    folder: Path,
    genome: Sequence[Chromosome],
    rows: np.ndarray,
    subjects: Sequence[str],
    male: np.ndarray,
    alleles: Alleles,
    rng: np.random.Generator,
) -> int:
    """Write cohort.pgen, .pvar and .psam of people `rows`; returns the number of variants."""
    folder.mkdir(parents=True)
    lines = ["##fileformat=VCFv4.2", "##reference=GRCh38", "#CHROM\tPOS\tID\tREF\tALT"]
    start = 0
    kept_total = int((~alleles.absent).sum())
    with pgenlib.PgenWriter(
        str(folder / "cohort.pgen").encode(), len(rows), variant_ct=kept_total, nonref_flags=False
    ) as writer:
        for chromosome in genome:
            part = slice(start, start + len(chromosome.positions))
            start = part.stop
            calls = chromosome.dosages[rows].T.astype(np.int8)  # [S, n]
            swapped = alleles.swapped[part]
            calls[swapped] = 2 - calls[swapped]
            calls[rng.random(calls.shape, dtype=np.float32) < MISSING_CALLS] = -9
            keep, names = ~alleles.absent[part], chromosome.identifiers
            writer.append_biallelic_batch(np.ascontiguousarray(calls[keep]))
            for i in np.flatnonzero(keep):
                ref, alt = chromosome.ref[i], chromosome.alt[i]
                if swapped[i]:
                    ref, alt = alt, ref
                if alleles.other_strand[part][i]:
                    ref, alt = ref.translate(_COMPLEMENT), alt.translate(_COMPLEMENT)
                place = f"{chromosome.chromosome}\t{chromosome.positions[i]}"
                lines.append(f"{place}\t{names[i]}\t{ref}\t{alt}")
    (folder / "cohort.pvar").write_text("\n".join(lines) + "\n")
    sexes = [f"{subject}\t{1 if is_male else 2}" for subject, is_male in zip(subjects, male, strict=True)]
    (folder / "cohort.psam").write_text("\n".join(["#IID\tSEX", *sexes]) + "\n")
    return kept_total


def _cells(
    field: Field, coding: str, values: np.ndarray, gone: np.ndarray
) -> tuple[str, dict[str, Any], list[str]]:
    """File column, dictionary entry and cells of one study column."""
    name = field.name if coding == "plain" else field.ukb
    entry: dict[str, Any] = {"column": name, "to": field.name}
    numbers, decimals = values, field.decimals
    answers: dict[float, str] = {}
    if field.kind == "continuous":
        converted = {"imperial": _IMPERIAL, "plain": _PLAIN}.get(coding, {}).get(field.name)
        if converted:
            suffix, keys, factor, offset = converted
            entry["column"] = f"{field.name}_{suffix}"
            entry |= keys
            numbers, decimals = values * factor + offset, 3 if suffix in ("m", "percent") else 1
        elif field.unit:
            entry["unit"] = field.unit
    elif field.kind == "categorical":
        spelled = [str(code) for code in field.answers] if coding != "plain" else list(field.categories)
        answers = {float(i): text for i, text in enumerate(spelled)}
        entry["values"] = {
            (text if coding == "plain" else int(text)): category
            for text, category in zip(spelled, field.categories, strict=True)
        }
    elif field.name == "sex" and coding in ("lettered", "plain"):
        answers, entry["values"] = {0.0: "F", 1.0: "M"}, {"F": 0, "M": 1}
    elif coding == "lettered":
        answers, entry["values"] = {0.0: "no", 1.0: "yes"}, {"no": 0, "yes": 1}
    else:
        decimals = 0
    if field.missing:
        entry["missing"] = list(field.missing)
    cells = [
        (str(code) if code != NO_CODE else "") if code is not None
        else answers[value] if answers
        else f"{value:.{decimals}f}"
        for value, code in zip(numbers.tolist(), gone, strict=True)
    ]  # fmt: skip
    return entry["column"], entry, cells


def _code_lists(values: pd.DataFrame, fields: Sequence[Field], rng: np.random.Generator) -> list[str]:
    """ICD-10 codes of each person, joined by "|": those of their diseases and some of no interest."""
    result = []
    columns = {field.name: (values[field.name].to_numpy(), field.codes["ICD-10"]) for field in fields}
    targets = {disease.name for disease in DISEASES}
    for row in range(len(values)):
        codes = [
            # Diabetic eye disease is coded under either of its chapters, others by their first prefix.
            prefixes[int(rng.integers(len(prefixes)))] if name in targets else prefixes[-1]
            for name, (known, prefixes) in columns.items()
            if known[row] == 1
        ]
        codes += [str(code) for code in rng.choice(_OTHER_CODES, int(rng.integers(0, 4)), replace=False)]
        result.append("|".join(sorted(set(codes))))
    return result


def write_phenotypes(
    folder: Path,
    coding: str,
    subjects: Sequence[str],
    values: pd.DataFrame,
    gone: pd.DataFrame,
    rng: np.random.Generator,
) -> dict[str, Any]:
    """Write the phenotype table and dictionary.yaml; returns the manifest's phenotype part.

    values: study columns in study units; gone: as `missing_cells` gives it, same rows.
    """
    table: dict[str, list[str]] = {"eid": list(subjects)}
    entries: list[dict[str, Any]] = []
    listed = [field for field in study_fields() if coding == "coded" and "ICD-10" in field.codes]
    for field in study_fields():
        if field not in listed:
            column, entry, cells = _cells(
                field, coding, values[field.name].to_numpy(), gone[field.name].to_numpy()
            )
            table[column] = cells
            entries.append(entry)
    if listed:
        table["41270-0.0"] = _code_lists(values, listed, rng)
        entries.append({"column": "41270-0.0", "system": "ICD-10", "separator": "|"})
    suffix, separator = ("tsv", "\t") if coding == "lettered" else ("csv", ",")
    pd.DataFrame(table).to_csv(
        folder / f"phenotypes.{suffix}", sep=separator, index=False, lineterminator="\n"
    )
    write_yaml(folder / "dictionary.yaml", {"columns": entries})
    return {"path": f"phenotypes.{suffix}", "subject": "eid", "dictionary": "dictionary.yaml"}


def write_labels(folder: Path, people: pd.DataFrame, with_ancestry: bool) -> dict[str, Any]:
    """Write labels.csv: grading of the photographs and, at UK sites, ancestry; returns the manifest's part.

    people: subject, ancestry (index), graded (bool), diabetic_eye_disease (bool).
    """
    table: dict[str, list[str]] = {"eid": people.subject.tolist()}
    columns: dict[str, str] = {}
    if with_ancestry:
        table["ancestry"] = [ANCESTRIES[a] for a in people.ancestry]
        columns["ancestry"] = "ancestry"
    if people.graded.any():
        table["dr"] = [
            str(int(ill)) if graded else ""
            for ill, graded in zip(people.diabetic_eye_disease, people.graded, strict=True)
        ]
        columns["dr"] = "diabetic_retinopathy"
    pd.DataFrame(table).to_csv(folder / "labels.csv", index=False, lineterminator="\n")
    return {"path": "labels.csv", "subject": "eid", "columns": columns}
