"""Preparation streams: memory does not grow with the number of people.

Blocks are made small first, so that both sizes fill them; a process of its own tells its peak.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from site_files import (
    Variant,
    disc,
    genotype_part,
    jpeg,
    random_dosages,
    reference,
    write_pgen,
    write_site,
    write_study,
    write_vcfs,
)

_CHILD = """
import sys
from pathlib import Path
from pm1_core.data import genotype_readers, genotype_vcf, tables
from pm1_core.data.manifest import load_manifest
from pm1_core.data.preparation import prepare

genotype_readers._CALL_BYTES = genotype_readers._PACKED_BYTES = genotype_vcf._BLOCK_BYTES = 1 << 20
tables._BLOCK, tables._CELLS = 1 << 20, 1 << 17
prepare(load_manifest(sys.argv[1]), sys.argv[2])
lines = Path("/proc/self/status").read_text().splitlines()
print(next(line.split()[1] for line in lines if line.startswith("VmHWM:")))
"""
# What a person may take for good: identifier, family, row numbers.
_A_PERSON = 2 << 10


def peak(manifest: Path) -> int:
    """Bytes of memory that a process takes at most to prepare `manifest`."""
    command = [sys.executable, "-c", _CHILD, str(manifest), str(manifest.parent / "store")]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout) << 10


def genotypes(folder: Path, people: int, variants: list[Variant], kind: str) -> Path:
    folder.mkdir()
    names = [f"p{i:06d}" for i in range(people)]
    dosages = random_dosages(people, len(variants))
    write_study(folder, variants)
    if kind == "pgen":
        write_pgen(folder / "cohort", names, variants, dosages)
        return write_site(folder, genotype=genotype_part("pgen", "cohort"))
    write_vcfs(folder, names, variants, dosages)
    return write_site(folder, genotype=genotype_part("vcf", "chr{chrom}.vcf.gz"))


@pytest.mark.parametrize(("kind", "few", "many"), [("pgen", 1000, 15_000), ("vcf", 1500, 6000)])
def test_genotypes(tmp_path: Path, kind: str, few: int, many: int) -> None:
    snps = 4000
    variants = reference(snps // 2, [1, 2])
    small = peak(genotypes(tmp_path / "few", few, variants, kind))
    large = peak(genotypes(tmp_path / "many", many, variants, kind))
    more = (many - few) * snps  # bytes, if calls were held
    assert large - small < (many - few) * _A_PERSON + 0.15 * more


def tables(folder: Path, rows: int, columns: int, kind: str) -> Path:
    folder.mkdir()
    names = [f"value{i}" for i in range(columns)]
    write_study(folder, columns=[{"name": name, "kind": "continuous"} for name in names])
    table = pd.DataFrame(np.random.default_rng(0).integers(0, 1000, (rows, columns)), columns=names)
    table.insert(0, "id", [f"p{i:06d}" for i in range(rows)])
    if kind == "csv":
        table.to_csv(folder / "table.csv", index=False)
    else:
        table.to_parquet(folder / "table.parquet")
    rules = [{"column": name, "to": name} for name in names]
    return write_site(folder, phenotype={"path": f"table.{kind}", "subject": "id", "columns": rules})


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_phenotype_tables(tmp_path: Path, kind: str) -> None:
    few, many, columns = 1500, 15_000, 200
    small = peak(tables(tmp_path / "few", few, columns, kind))
    large = peak(tables(tmp_path / "many", many, columns, kind))
    more = (many - few) * columns * (8 + 50)  # bytes, if cells as text and their numbers were held
    assert large - small < (many - few) * _A_PERSON + 0.15 * more


def photographs(folder: Path, people: int) -> Path:
    (folder / "photos").mkdir(parents=True)
    write_study(folder)
    content = jpeg(disc(300, 400, (200, 150), 120))
    lines = ["subject,eye,file"]
    for number in range(people):
        lines.append(f"p{number:04d},left,{number}.jpg")
        # The same photograph, told apart by what follows its end.
        (folder / "photos" / f"{number}.jpg").write_bytes(content + number.to_bytes(4))
    (folder / "fundus.csv").write_text("\n".join(lines) + "\n")
    return write_site(folder, fundus={"index": "fundus.csv", "folder": "photos"})


def test_photographs(tmp_path: Path) -> None:
    few, many = 60, 360
    small, large = peak(photographs(tmp_path / "few", few)), peak(photographs(tmp_path / "many", many))
    more = (many - few) * (587 * 587 + 224 * 224) * 3  # bytes, if crops were held
    assert large - small < 0.15 * more
