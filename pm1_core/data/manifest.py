"""The site manifest: which files one site has, and how they are to be read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pm1_core.data.builds import build_name
from pm1_core.data.codings import read_codings
from pm1_core.data.definition import StudyDefinition, load_definition
from pm1_core.data.dictionary import Rule, read_rules
from pm1_core.data.documents import is_there, list_of, mapping_of, read_yaml, text_of
from pm1_core.data.tables import TableFile
from pm1_core.errors import ManifestError
from pm1_core.fields import Modality
from pm1_core.validate import refusal, require_choice, require_keys

ROLES: tuple[str, ...] = ("member", "evaluation")
FORMATS: dict[str, tuple[str, ...]] = {
    "pgen": (".pgen", ".pvar", ".psam"),
    "bed": (".bed", ".bim", ".fam"),
    "vcf": (),
}
_SITE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")


@dataclass(frozen=True)
class GenotypeSource:
    """Genotype files. path: prefix for pgen and bed, for vcf a pattern with {chrom}."""

    format: str
    path: Path
    build: str
    keep: Path | None = None
    palindromic: str = "drop"

    def file(self, suffix: str) -> Path:
        """The file of this prefix with `suffix` (a prefix may itself hold dots)."""
        return Path(f"{self.path}{suffix}")

    def vcf(self, chromosome: int | str) -> Path:
        """The VCF file of `chromosome`."""
        return Path(str(self.path).replace("{chrom}", str(chromosome)))


@dataclass(frozen=True)
class TableSource:
    """A phenotype or label table. subject: column of identifiers, None if rows are numbered.

    identical_rows: "drop" or "keep", for tables without identifiers
    """

    table: TableFile
    subject: str | None
    rules: tuple[Rule, ...]
    identical_rows: str = "drop"


@dataclass(frozen=True)
class FundusSource:
    """Photographs: an index with columns subject, eye, file, and the folder that the files are in."""

    index: TableFile
    folder: Path


@dataclass(frozen=True)
class SiteManifest:
    """One site's files; see `load_manifest`. files: the manifest and the dictionaries it names."""

    path: Path
    site: str
    study: StudyDefinition
    role: str
    genotype: GenotypeSource | None
    phenotype: TableSource | None
    fundus: FundusSource | None
    labels: TableSource | None
    files: tuple[Path, ...]

    @property
    def modalities(self) -> frozenset[Modality]:
        """What the manifest names."""
        named = {
            Modality.GENOTYPE: self.genotype, Modality.PHENOTYPE: self.phenotype, Modality.FUNDUS: self.fundus
        }  # fmt: skip
        return frozenset(modality for modality, source in named.items() if source is not None)


class _Reader:
    """Reads one manifest; keeps the path for messages and the files that were read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.files = [path]

    def file(self, where: str, value: Any) -> Path:
        """A path beside the manifest, or ManifestError."""
        file = self.path.parent / text_of(where, value)
        if not is_there(file):
            raise ManifestError(refusal(where, f"found no file {file}", "correct the path or add the file"))
        return file

    def table(self, where: str, entry: Mapping[str, Any], key: str) -> TableFile:
        """The table that `entry[key]` names."""
        names = entry.get("names")
        if names is not None:
            names = tuple(
                text_of(f"{where}, key names", name) for name in list_of(f"{where}, key names", names)
            )
        separator = entry.get("separator")
        if separator is not None and (not isinstance(separator, str) or len(separator) != 1):
            raise ManifestError(
                refusal(f"{where}, key separator", f"found {separator!r}", "write one character")
            )
        return TableFile(self.file(f"{where}, key {key}", entry[key]), separator, names)

    def genotype(self, entry: Any, study: StudyDefinition) -> GenotypeSource:
        """The part `genotype`."""
        where = f"{self.path}, key genotype"
        require_keys(where, entry, ("format", "path", "build"), ("keep", "palindromic"), ManifestError)
        kind = require_choice(f"{where}.format", entry["format"], FORMATS, ManifestError)
        build = build_name(f"{where}.build", entry["build"])
        if build != study.build:
            raise ManifestError(
                refusal(
                    f"{where}.build",
                    f"found {build}, but the study is on {study.build}",
                    f"lift the genotypes over to {study.build} and name the new files",
                )
            )
        if study.variants_path is None:
            raise ManifestError(
                refusal(study.path, "found no key variants", "give the study's reference list")
            )
        source = GenotypeSource(
            kind,
            self.path.parent / text_of(f"{where}.path", entry["path"]),
            build,
            None if entry.get("keep") is None else self.file(f"{where}.keep", entry["keep"]),
            require_choice(
                f"{where}.palindromic", entry.get("palindromic", "drop"), ("drop", "keep"), ManifestError
            ),
        )
        for suffix in FORMATS[kind]:
            if not is_there(source.file(suffix)):
                raise ManifestError(
                    refusal(
                        f"{where}.path",
                        f"found no file {source.file(suffix)}",
                        f"give the prefix of {', '.join(FORMATS[kind])}",
                    )
                )
        if kind == "vcf" and not any(is_there(source.vcf(chromosome)) for chromosome in range(1, 23)):
            raise ManifestError(
                refusal(
                    f"{where}.path",
                    f"found no file {source.vcf(1)} to {source.vcf(22)}",
                    "write a pattern such as chr{chrom}.vcf.gz",
                )
            )
        return source

    def phenotype(self, entry: Any, study: StudyDefinition) -> TableSource:
        """The part `phenotype`."""
        where = f"{self.path}, key phenotype"
        require_keys(
            where, entry, ("path", "subject"),
            ("separator", "names", "dictionary", "columns", "missing", "codings", "identical_rows"), ManifestError,
        )  # fmt: skip
        if ("dictionary" in entry) == ("columns" in entry):
            raise ManifestError(
                refusal(where, "found none or both of dictionary and columns", "write exactly one")
            )
        columns, missing, source = entry.get("columns"), entry.get("missing"), where
        named, beside = entry.get("codings"), self.path.parent
        if "dictionary" in entry:
            file = self.file(f"{where}.dictionary", entry["dictionary"])
            self.files.append(file)
            content, source = read_yaml(file), str(file)
            if isinstance(content, list):
                content = {"columns": content}
            require_keys(source, content, ("columns",), ("missing", "codings"), ManifestError)
            columns = content["columns"]
            if "codings" in content:
                named, beside = content["codings"], file.parent
            missing = [
                code
                for owner, codes in ((where, missing), (source, content.get("missing")))
                for code in list_of(f"{owner}, key missing", codes or [])
            ]
        choice = require_choice(
            f"{where}.identical_rows", entry.get("identical_rows", "drop"), ("drop", "keep"), ManifestError
        )
        subject = None if entry["subject"] is None else text_of(f"{where}.subject", entry["subject"])
        if not study.columns:
            raise ManifestError(
                refusal(study.path, "found no key columns", "describe the study's phenotype columns")
            )
        listed = [text_of(f"{source}, codings", name) for name in list_of(f"{source}, codings", named or [])]
        codings, files = read_codings(f"{source}, key codings", listed, beside)
        self.files += files
        return TableSource(
            self.table(where, entry, "path"),
            subject,
            read_rules(source, columns, study.columns, missing, codings),
            choice,
        )

    def fundus(self, entry: Any) -> FundusSource:
        """The part `fundus`."""
        where = f"{self.path}, key fundus"
        require_keys(where, entry, ("index", "folder"), ("separator",), ManifestError)
        folder = self.path.parent / text_of(f"{where}.folder", entry["folder"])
        if not is_there(folder, folder=True):
            raise ManifestError(refusal(f"{where}.folder", f"found no folder {folder}", "correct the path"))
        return FundusSource(self.table(where, entry, "index"), folder)

    def labels(self, entry: Any, study: StudyDefinition) -> TableSource:
        """The part `labels`."""
        where = f"{self.path}, key labels"
        require_keys(
            where, entry, ("path", "subject", "columns"), ("separator", "names", "missing"), ManifestError
        )
        entries = []
        for column, target in mapping_of(f"{where}.columns", entry["columns"]).items():
            rule = (
                {"to": target}
                if isinstance(target, str)
                else dict(mapping_of(f"{where}.columns.{column}", target))
            )
            entries.append({"column": str(column), **rule})
        subject = None if entry["subject"] is None else text_of(f"{where}.subject", entry["subject"])
        rules = read_rules(where, entries, study.labels, entry.get("missing"))
        return TableSource(self.table(where, entry, "path"), subject, rules, "keep")


def load_manifest(path: Path | str) -> SiteManifest:
    """Read site.yaml and the study definition that it names.

    Raises ManifestError naming file, key, what was found and what is accepted; among others for an
    unknown key, a file that is not there and a genome build other than the study's.
    """
    path = Path(path)
    reader = _Reader(path)
    content = require_keys(
        str(path),
        read_yaml(path),
        ("site", "study"),
        ("role", "genotype", "phenotype", "fundus", "labels"),
        ManifestError,
    )
    site = text_of(f"{path}, key site", content["site"])
    if not _SITE_NAME.fullmatch(site):
        raise ManifestError(
            refusal(
                f"{path}, key site", f"found {site!r}", "use letters, digits, dots, dashes and underscores"
            )
        )
    study = load_definition(reader.file(f"{path}, key study", content["study"]))
    parts = {name: content.get(name) for name in ("genotype", "phenotype", "fundus", "labels")}
    if all(parts[name] is None for name in ("genotype", "phenotype", "fundus")):
        raise ManifestError(
            refusal(path, "found none of genotype, phenotype and fundus", "describe at least one")
        )
    return SiteManifest(
        path=path,
        site=site,
        study=study,
        role=require_choice(f"{path}, key role", content.get("role", "member"), ROLES, ManifestError),
        genotype=None if parts["genotype"] is None else reader.genotype(parts["genotype"], study),
        phenotype=None if parts["phenotype"] is None else reader.phenotype(parts["phenotype"], study),
        fundus=None if parts["fundus"] is None else reader.fundus(parts["fundus"]),
        labels=None if parts["labels"] is None else reader.labels(parts["labels"], study),
        files=tuple(reader.files),
    )
