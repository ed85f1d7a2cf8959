"""Subjects: identifiers, families and the secret 80/10/10 split."""

from __future__ import annotations

import hashlib
import hmac
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import pandas as pd

from pm1_core.data.preparation_report import Findings
from pm1_core.errors import DataError
from pm1_core.fields import Split
from pm1_core.validate import refusal

COLUMNS: tuple[str, ...] = (
    "subject", "family", "split", "genotype_row", "phenotype_row", "left_row", "right_row",
)  # fmt: skip


def split_of(subject_or_family: str, key: bytes) -> Split:
    """The split of a person, or of a family, under the study's secret key (appendix E.1: 80/10/10).

    HMAC-SHA256(key, identifier), its first 8 bytes as a fraction of 2^64: below 0.8 train, below 0.9
    validation, else test. The same identifier gives the same split at every site; without the key
    nobody can compute it.
    """
    digest = hmac.new(key, subject_or_family.encode(), hashlib.sha256).digest()
    fraction = int.from_bytes(digest[:8], "big") / 2**64
    if fraction < 0.8:
        return Split.TRAIN
    return Split.VALIDATION if fraction < 0.9 else Split.TEST


def subject_text(where: str, text: str) -> str:
    """A subject identifier, stripped. Raises DataError if it is empty or holds a control character."""
    text = text.strip()
    if not text:
        raise DataError(refusal(where, "found no subject identifier", "fill it in or remove the row"))
    if any(ord(character) < 32 for character in text):
        raise DataError(refusal(where, f"found {text!r}", "use identifiers without tabs and line breaks"))
    return text


@dataclass(frozen=True)
class Person:
    """A row of a .fam or .psam file; `father` and `mother` are "0" where unknown."""

    subject: str
    family: str = "0"
    father: str = "0"
    mother: str = "0"


def note_relatives(
    people: Iterable[Person], families: Mapping[str, str], file: object, findings: Findings
) -> None:
    """Count people whom the file's pedigree ties together but the study's relatives list does not.

    PLINK writes the person's own identifier or 0 as family where none is known: that ties nobody.
    """
    members: dict[str, set[str]] = defaultdict(set)
    people = list(people)
    here = {person.subject for person in people}
    for person in people:
        if person.family not in ("0", person.subject):
            members[f"family {person.family}"].add(person.subject)
        for parent in (person.father, person.mother):
            if parent in here:
                members[f"parent {parent}"] |= {parent, person.subject}
        # A parent may carry its own identifier as family while its children carry it too.
        if person.family == person.subject:
            members[f"family {person.family}"].add(person.subject)
    apart: dict[str, str] = {}
    for tie, group in members.items():
        if len(group) > 1 and len({families.get(subject, f"\0{subject}") for subject in group}) > 1:
            for subject in group:
                apart.setdefault(subject, tie)
    findings.add_all("genotype.relatives", file, (f"{s} ({apart[s]})" for s in sorted(apart)))


def subject_table(
    genotype: Mapping[str, int],
    phenotype: Mapping[str, int],
    photographs: Mapping[tuple[str, str], int],
    families: Mapping[str, str],
    key: bytes,
    test_only: bool,
) -> pd.DataFrame:
    """The outer join of all modalities: one row per subject, sorted by subject.

    genotype, phenotype: subject -> row of the store's array; photographs: (subject, eye) -> row.
    Columns are COLUMNS; a row number is -1 where the modality is absent. `test_only` puts everybody
    into the test split (a site of role evaluation).
    """
    everybody = sorted({*genotype, *phenotype, *(subject for subject, _ in photographs)})
    rows = []
    for subject in everybody:
        family = families.get(subject, subject)
        split = Split.TEST if test_only else split_of(family, key)
        rows.append(
            (
                subject, family, split.value, genotype.get(subject, -1), phenotype.get(subject, -1),
                photographs.get((subject, "left"), -1), photographs.get((subject, "right"), -1),
            )
        )  # fmt: skip
    return pd.DataFrame(rows, columns=list(COLUMNS))
