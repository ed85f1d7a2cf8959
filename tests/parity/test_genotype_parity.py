"""Genotypes against plink2, pgenlib, bed-reader and scikit-allel, whose figures golden/allel.json holds."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pgenlib
import pytest
from bed_reader import open_bed
from data.site_files import Variant, genotype_part, write_site, write_study
from golden_numbers import ALLEL, genotypes, read

from pm1_core.data.manifest import load_manifest
from pm1_core.data.preparation import prepare
from pm1_core.data.store import Store
from pm1_core.evaluation.association import squared_correlation
from pm1_core.evaluation.genotype import rarer_allele
from pm1_core.training.order import Order
from pm1_core.training.tasks import build_task

needs_plink2 = pytest.mark.skipif(shutil.which("plink2") is None, reason="plink2 is not installed")
PEOPLE, SNPS = 80, 120
TURNED = np.array([2, 1, 0, 3], np.uint8)


def plink2(folder: Path, *arguments: str) -> None:
    run = ["plink2", *arguments, "--threads", "1"]
    subprocess.run(run, check=True, capture_output=True, cwd=folder)


def table(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, sep="\t")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Genotypes that plink2 drew, a.pgen, and b.pgen and b.bed with ref and alt changed at every other SNP.

    The study's list is that of a, less the palindromic SNPs.
    """
    folder = tmp_path_factory.mktemp("plink2")
    plink2(
        folder, "--dummy", str(PEOPLE), str(SNPS), "0.06", "acgt", "--seed", "3", "--make-pgen", "--out", "a"
    )
    variants = table(folder / "a.pvar")
    variants["#CHROM"], variants["POS"] = np.where(variants.index < 70, 1, 22), 1000 * (variants.index + 1)
    variants.to_csv(folder / "a.pvar", sep="\t", index=False)
    variants[["ID", "ALT"]][1::2].to_csv(folder / "turned", sep="\t", index=False, header=False)
    for kind in ("--make-pgen", "--make-bed"):
        plink2(folder, "--pfile", "a", "--ref-allele", "force", "turned", "2", "1", kind, "--out", "b")
    pairs = variants.REF + variants.ALT
    listed = variants[~pairs.isin(["AT", "TA", "CG", "GC"])]
    rows = listed[["#CHROM", "POS", "REF", "ALT", "ID"]].astype(str).itertuples(index=False)
    write_study(folder, [Variant(c, int(p), ref, (alt,), name) for c, p, ref, alt, name in rows])
    return folder


def stored(folder: Path, kind: str, prefix: str) -> Store:
    part = genotype_part(kind, prefix)
    manifest = load_manifest(write_site(folder, prefix, f"{prefix}-{kind}.yaml", genotype=part))
    prepare(manifest, folder / f"store-{prefix}-{kind}")
    return Store.open(folder / f"store-{prefix}-{kind}")


def everything(store: Store) -> np.ndarray:
    """uint8 [people, SNPs of the study], in the order of the files' people."""
    names = pd.Index(store.subjects["subject"])
    people = names.get_indexer([f"per{i}" for i in range(PEOPLE)])
    return np.concatenate([store.dosages(c, people) for c in (1, 22)], axis=1)


def expected(folder: Path) -> np.ndarray:
    """a.pgen's counts of the study's alternate alleles by pgenlib, uint8 [people, SNPs of the study]."""
    found = by_pgenlib(folder / "a.pgen")
    listed = table(folder / "variants.tsv").id
    return found[:, table(folder / "a.pvar").ID.isin(listed).to_numpy()]


def by_pgenlib(path: Path) -> np.ndarray:
    counts = np.empty((SNPS, PEOPLE), np.int8)
    with pgenlib.PgenReader(bytes(path)) as reader:
        reader.read_range(0, SNPS, counts)
    return np.where(counts == -9, 3, counts).astype(np.uint8).T


@needs_plink2
def test_store_pgenlib_and_bed_reader_agree_on_flipped_alleles_and_missing_calls(folder: Path) -> None:
    first, second = table(folder / "a.pvar"), table(folder / "b.pvar")
    turned = (first.ALT != second.ALT).to_numpy()
    assert turned.sum() == SNPS // 2
    drawn, pgen = by_pgenlib(folder / "a.pgen"), by_pgenlib(folder / "b.pgen")
    np.testing.assert_array_equal(np.where(turned, TURNED[pgen], pgen), drawn)
    with open_bed(folder / "b.bed") as reader:
        assert reader.allele_1.tolist() == second.ALT.tolist()
        bed = reader.read(dtype="int8", num_threads=1)
    np.testing.assert_array_equal(np.where(bed == -127, 3, bed), pgen)
    wanted = expected(folder)
    assert 0.03 < (wanted == 3).mean() < 0.1
    for kind, prefix in (("pgen", "a"), ("pgen", "b"), ("bed", "b")):
        np.testing.assert_array_equal(everything(stored(folder, kind, prefix)), wanted, err_msg=kind)


@needs_plink2
def test_allele_frequencies_are_those_of_plink2(folder: Path) -> None:
    plink2(folder, "--pfile", "a", "--freq", "--out", "a")
    listed = table(folder / "variants.tsv").id
    shares = table(folder / "a.afreq").set_index("ID").ALT_FREQS[listed].to_numpy()
    found = rarer_allele(everything(stored(folder, "bed", "b")))
    np.testing.assert_allclose(found, np.minimum(shares, 1 - shares), rtol=1e-5, atol=1e-6)


@needs_plink2
def test_dosages_that_a_site_counts_are_those_of_plink2(folder: Path) -> None:
    store = stored(folder, "pgen", "b")
    order = Order("statistics", "statistics", 1, 2, 0)
    task = build_task(order, store.study)
    update = task.train(store, order, {}, task.initial({}, 0), folder / "state")
    training = store.subjects.subject[store.subjects.split == "train"]
    (folder / "training").write_text("#IID\n" + "".join(f"{name}\n" for name in training))
    plink2(folder, "--pfile", "a", "--keep", "training", "--geno-counts", "--out", "a")
    counted = table(folder / "a.gcount").set_index("ID").loc[table(folder / "variants.tsv").id]
    wanted = counted[["HOM_REF_CT", "HET_REF_ALT_CTS", "TWO_ALT_GENO_CTS"]].to_numpy()
    found = [update.tensors[f"statistics.genotype.{c}.counts"] for c in (1, 22)]
    np.testing.assert_array_equal(np.concatenate(found), wanted)


@pytest.mark.parametrize("name", ALLEL)
def test_linkage_is_rogers_and_huffs(name: str) -> None:
    dosages = genotypes(name, 90, 24, ALLEL[name])
    pairs = zip(*np.triu_indices(24, 1), strict=True)
    found = [squared_correlation(dosages[:, a], dosages[:, b]) for a, b in pairs]
    np.testing.assert_allclose(found, read("allel")[f"r2 {name}"], rtol=0, atol=1e-6)


def test_rarer_alleles_make_scikit_allels_folded_spectrum() -> None:
    counts = np.rint(180 * rarer_allele(genotypes("complete", 90, 24, 0.0))).astype(int)
    folded = read("allel")["folded"]
    np.testing.assert_array_equal(np.bincount(counts, minlength=len(folded)), folded)
