"""The three formats give the same dosages, and what cannot be used is counted with file and row."""

from __future__ import annotations

import gzip
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pgenlib
import pytest
from site_files import (
    Variant,
    genotype_part,
    random_dosages,
    reference,
    vcf_line,
    write_bed,
    write_fam,
    write_pgen,
    write_pvar,
    write_site,
    write_study,
    write_vcf,
    write_vcfs,
)

from pm1_core.data.manifest import load_manifest
from pm1_core.data.preparation import check, prepare
from pm1_core.data.preparation_report import PreparationReport
from pm1_core.data.store import Store
from pm1_core.errors import DataError, ManifestError, PM1Error

PEOPLE = [f"p{i:02d}" for i in range(9)]


def prepared(folder: Path, kind: str, path: str, **extra: object) -> tuple[Store, PreparationReport]:
    manifest = load_manifest(write_site(folder, genotype=genotype_part(kind, path, **extra)))
    checked = check(manifest)
    report = prepare(manifest, folder / f"store-{kind}")
    assert checked == report
    return Store.open(folder / f"store-{kind}"), report


def dosages(store: Store, chromosome: int) -> np.ndarray:
    return store.dosages(chromosome, store.people(None))


def places(report: PreparationReport, code: str) -> list[str]:
    return [row for finding in report.findings if finding.code == code for row in finding.rows]


def refused(folder: Path, kind: str, path: str, **extra: object) -> str:
    with pytest.raises(PM1Error) as caught:
        prepared(folder, kind, path, **extra)
    assert not (folder / f"store-{kind}").exists()
    assert not list(folder.glob(".store*"))
    return str(caught.value)


def test_pgen_bed_and_vcf_of_the_same_people_give_the_same_dosages(tmp_path: Path) -> None:
    variants = reference(9, [1, 7, 22])
    write_study(tmp_path, variants)
    truth = random_dosages(len(PEOPLE), len(variants))
    order = np.random.default_rng(1).permutation(len(PEOPLE))
    write_pgen(tmp_path / "co.hort", PEOPLE, variants, truth)
    write_bed(tmp_path / "cohort", [PEOPLE[i] for i in order], variants, truth[order])
    write_vcfs(tmp_path, PEOPLE, variants, truth)
    for kind, path in (("pgen", "co.hort"), ("bed", "cohort"), ("vcf", "chr{chrom}.vcf.gz")):
        store, report = prepared(tmp_path, kind, path)
        assert store.subjects["subject"].tolist() == PEOPLE
        got = np.concatenate([dosages(store, c) for c in (1, 7, 22)], axis=1)
        np.testing.assert_array_equal(got, truth, err_msg=kind)
        assert report.count("genotype.flipped") == report.count("genotype.absent") == 0
        assert report.count("genotype.missing-calls") == (truth == 3).sum()
        assert dosages(store, 2).shape == (len(PEOPLE), 0)


def test_blocks_of_any_size_give_the_same_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    variants = reference(101, [1, 22])
    write_study(tmp_path, variants)
    truth = random_dosages(len(PEOPLE), len(variants))
    there = np.ones(len(variants), bool)
    there[[0, 5, 6, 40, 41, 42, 43, 44, 100, 101]] = False
    there[150:190] = False
    swapped = np.random.default_rng(2).random(len(variants)) < 0.3
    theirs = [
        v.turned() if turn else v for v, turn, held in zip(variants, swapped, there, strict=True) if held
    ]
    calls = np.where(swapped, np.array([2, 1, 0, 3], np.uint8)[truth], truth)[:, there]
    order = np.random.default_rng(3).permutation(len(theirs))
    write_pgen(tmp_path / "cohort", PEOPLE, [theirs[i] for i in order], calls[:, order])
    expected = np.where(there, truth, 3)
    for size in (1 << 26, 200, 40, 1):
        monkeypatch.setattr("pm1_core.data.genotype_readers._CALL_BYTES", size)
        monkeypatch.setattr("pm1_core.data.genotype_readers._PACKED_BYTES", size)
        store, report = prepared(tmp_path, "pgen", "cohort")
        got = np.concatenate([dosages(store, c) for c in (1, 22)], axis=1)
        np.testing.assert_array_equal(got, expected)
        assert report.count("genotype.flipped") == swapped[there].sum()
        assert report.count("genotype.absent") == (~there).sum()
        shutil.rmtree(store.path)


@pytest.mark.skipif(shutil.which("plink2") is None, reason="plink2 is not installed")
def test_plink2_writes_a_bed_that_reads_like_its_pgen(tmp_path: Path) -> None:
    variants = reference(8, [3])
    write_study(tmp_path, variants)
    truth = random_dosages(len(PEOPLE), 8)
    write_pgen(tmp_path / "a", PEOPLE, variants, truth)
    run = [
        "plink2",
        "--pfile",
        str(tmp_path / "a"),
        "--make-bed",
        "--out",
        str(tmp_path / "b"),
        "--threads",
        "1",
    ]
    subprocess.run(run, check=True, capture_output=True)
    store, report = prepared(tmp_path, "bed", "b")
    np.testing.assert_array_equal(dosages(store, 3), truth)
    assert report.count("genotype.flipped") == 0


TURNED = [
    Variant("1", 1000, "G", ("A",)),  # flipped
    Variant("1", 2000, "T", ("C",)),  # other strand of A/G
    Variant("1", 3000, "C", ("T",)),  # other strand and flipped
    Variant("1", 4000, "A", ("T",)),  # palindromic
    Variant("1", 5000, "A", ("C",)),  # another allele than the study's A/G
    Variant("1", 7000, "A", ("G",)),  # unknown to the study
    Variant("X", 1000, "A", ("G",)),
]
STUDY = [Variant("1", p, "A", ("G",), f"rs{p}") for p in (1000, 2000, 3000)] + [
    Variant("1", 4000, "A", ("T",), "rs4000"),
    Variant("1", 5000, "A", ("G",), "rs5000"),
    Variant("1", 6000, "A", ("G",), "rs6000"),
]


@pytest.mark.parametrize("kind", ["pgen", "bed", "vcf"])
def test_orientation_is_resolved_and_counted(tmp_path: Path, kind: str) -> None:
    write_study(tmp_path, STUDY)
    given = random_dosages(len(PEOPLE), len(TURNED), missing=0.1)
    if kind == "vcf":
        write_vcfs(tmp_path, PEOPLE, TURNED, given)
    else:
        (write_pgen if kind == "pgen" else write_bed)(tmp_path / "cohort", PEOPLE, TURNED, given)
    store, report = prepared(tmp_path, kind, "chr{chrom}.vcf.gz" if kind == "vcf" else "cohort")
    turned = np.array([2, 1, 0, 3], np.uint8)[given]
    absent = np.full(len(PEOPLE), 3)
    expected = np.stack([turned[:, 0], given[:, 1], turned[:, 2], absent, absent, absent], axis=1)
    np.testing.assert_array_equal(dosages(store, 1), expected)
    found = {
        "genotype.flipped": 2,
        "genotype.strand": 2,
        "genotype.palindromic": 1,
        "genotype.allele-mismatch": 1,
        "genotype.absent": 1,
        "genotype.not-in-study": 1,
    }
    assert {code: report.count(code) for code in found} == found
    assert report.count("genotype.non-autosome") + report.count("genotype.non-autosome-file") == 1
    first = {"pgen": 3, "bed": 1, "vcf": 4}[kind]
    assert places(report, "genotype.palindromic") == [f"row {first + 3} (1:4000 A/T)"]
    assert places(report, "genotype.allele-mismatch") == [f"row {first + 4} (1:5000 A/C), study A/G"]
    assert places(report, "genotype.absent") == ["1:6000 A/G"]
    assert f"row {first + 3} (1:4000 A/T)" in report.to_markdown()


def test_a_site_that_vouches_for_its_strand_keeps_palindromic_snps(tmp_path: Path) -> None:
    write_study(tmp_path, STUDY)
    site = [Variant("1", 4000, "T", ("A",))]
    given = random_dosages(len(PEOPLE), 1)
    write_pgen(tmp_path / "cohort", PEOPLE, site, given)
    store, report = prepared(tmp_path, "pgen", "cohort", palindromic="keep")
    np.testing.assert_array_equal(dosages(store, 1)[:, 3], np.array([2, 1, 0, 3], np.uint8)[given[:, 0]])
    assert report.count("genotype.palindromic-kept") == report.count("genotype.flipped") == 1


def test_multiallelic_sites_count_the_studys_alleles_in_pgen_and_vcf(tmp_path: Path) -> None:
    write_study(tmp_path, [Variant("1", 1000, "A", ("G",))])
    site = Variant("1", 1000, "T", ("A", "G"))  # the study's alleles are codes 1 and 2
    calls = ["1|1", "1|2", "2|2", "0|1", "0|0", ".|.", "2|1", "1|1", "2|2"]
    expected = [0, 1, 2, 3, 3, 3, 1, 0, 2]
    write_vcf(tmp_path / "chr1.vcf.gz", PEOPLE, [vcf_line(site, calls)])
    codes = np.array([[-9 if a == "." else int(a) for a in c.split("|")] for c in calls], np.int32)
    with pgenlib.PgenWriter(
        bytes(tmp_path / "cohort.pgen"), len(PEOPLE), variant_ct=1, nonref_flags=False, allele_ct_limit=3
    ) as writer:
        writer.append_alleles(codes.reshape(-1), all_phased=False, allele_ct=3)
    write_pvar(tmp_path / "cohort", [site])
    (tmp_path / "cohort.psam").write_text("#IID\n" + "".join(f"{p}\n" for p in PEOPLE))
    for kind, path in (("vcf", "chr{chrom}.vcf.gz"), ("pgen", "cohort")):
        store, report = prepared(tmp_path, kind, path)
        assert dosages(store, 1)[:, 0].tolist() == expected, kind
        assert report.count("genotype.multiallelic") == 1
        assert report.count("genotype.other-allele") == 2


def test_one_record_may_hold_two_snps_of_the_study(tmp_path: Path) -> None:
    write_study(tmp_path, [Variant("1", 1000, "A", ("C",)), Variant("1", 1000, "A", ("G",))])
    line = vcf_line(Variant("1", 1000, "A", ("C", "G")), ["0|1", "0|2", "1|2", "2|2"])
    write_vcf(tmp_path / "chr1.vcf.gz", PEOPLE[:4], [line])
    store, _ = prepared(tmp_path, "vcf", "chr{chrom}.vcf.gz")
    assert dosages(store, 1).tolist() == [[1, 3], [3, 1], [3, 3], [3, 2]]


def test_half_calls_and_haploid_calls_are_missing(tmp_path: Path) -> None:
    write_study(tmp_path, [Variant("1", 1000, "A", ("G",))])
    line = vcf_line(Variant("1", 1000, "A", ("G",)), [".|1", "1|.", "1", "0/1", "./."])
    write_vcf(tmp_path / "chr1.vcf.gz", PEOPLE[:5], [line])
    store, report = prepared(tmp_path, "vcf", "chr{chrom}.vcf.gz")
    assert dosages(store, 1)[:, 0].tolist() == [3, 3, 3, 1, 3]
    assert report.count("genotype.half-call") == 3
    assert places(report, "genotype.half-call") == ["row 4 (1:1000 A/G)"]


def test_a_variant_listed_twice_is_used_once(tmp_path: Path) -> None:
    write_study(tmp_path, [Variant("1", 1000, "A", ("G",))])
    site = [Variant("1", 1000, "A", ("G",), "rs1"), Variant("1", 1000, "G", ("A",), "rs1")]
    given = random_dosages(len(PEOPLE), 2)
    write_bed(tmp_path / "cohort", PEOPLE, site, given)
    store, report = prepared(tmp_path, "bed", "cohort")
    np.testing.assert_array_equal(dosages(store, 1)[:, 0], given[:, 0])
    assert places(report, "genotype.duplicate-variant") == ["row 2 (1:1000 G/A)"]


def test_a_file_with_one_known_allele_is_oriented_by_it(tmp_path: Path) -> None:
    write_study(tmp_path, [Variant("1", p, "A", ("G",)) for p in (1000, 2000)])
    site = [Variant("1", 1000, "A", ("0",)), Variant("1", 2000, "G", ("0",))]
    write_bed(tmp_path / "cohort", PEOPLE, site, np.zeros((len(PEOPLE), 2), np.uint8))
    store, report = prepared(tmp_path, "bed", "cohort")
    assert (dosages(store, 1) == [0, 2]).all()
    assert report.count("genotype.one-allele") == report.count("genotype.one-value") == 2


def test_vcfs_with_people_in_another_order_are_joined_by_identifier(tmp_path: Path) -> None:
    variants = reference(4, [1, 2])
    write_study(tmp_path, variants)
    truth = random_dosages(len(PEOPLE), 8)
    write_vcfs(tmp_path, PEOPLE, variants, truth)
    order = [4, 2, 8, 0, 1, 3]  # and three people are absent
    lines = [
        vcf_line(v, [["0/0", "0/1", "1/1", "./."][truth[p, 4 + i]] for p in order])
        for i, v in enumerate(variants[4:])
    ]
    write_vcf(tmp_path / "chr2.vcf.gz", [PEOPLE[p] for p in order], lines)
    store, report = prepared(tmp_path, "vcf", "chr{chrom}.vcf.gz")
    expected = truth.copy()
    expected[[5, 6, 7], 4:] = 3
    np.testing.assert_array_equal(np.concatenate([dosages(store, 1), dosages(store, 2)], axis=1), expected)
    assert report.count("genotype.sample-order") == 1
    assert places(report, "genotype.sample-missing") == ["p05", "p06", "p07"]
    assert report.count("genotype.absent-file") == 20


def test_keep_leaves_people_out_and_names_strangers(tmp_path: Path) -> None:
    variants = reference(5, [1])
    write_study(tmp_path, variants)
    truth = random_dosages(len(PEOPLE), 5)
    write_pgen(tmp_path / "cohort", PEOPLE, variants, truth)
    (tmp_path / "people.txt").write_text("p07\np02\nstranger\n")
    store, report = prepared(tmp_path, "pgen", "cohort", keep="people.txt")
    assert store.subjects["subject"].tolist() == ["p02", "p07"]
    np.testing.assert_array_equal(dosages(store, 1), truth[[2, 7]])
    assert report.count("genotype.not-kept") == 7
    assert places(report, "genotype.keep-unknown") == ["stranger"]
    (tmp_path / "people.txt").write_text("nobody\n")
    with pytest.raises(DataError, match=r"people\.txt: names nobody"):
        prepare(load_manifest(tmp_path / "site.yaml"), tmp_path / "other")


def test_another_build_is_refused_by_name_by_header_and_by_identifiers(tmp_path: Path) -> None:
    variants = reference(12, [1])
    write_study(tmp_path, variants)
    truth = random_dosages(len(PEOPLE), 12)
    write_pgen(tmp_path / "cohort", PEOPLE, variants, truth)
    with pytest.raises(ManifestError, match=r"genotype\.build: found GRCh37, but the study is on GRCh38"):
        load_manifest(write_site(tmp_path, genotype=genotype_part("pgen", "cohort") | {"build": "hg19"}))
    write_pvar(tmp_path / "cohort", variants, "##contig=<ID=chr1,length=249250621>\n")
    assert "header line of chromosome 1: found length 249250621, which is GRCh37's" in refused(
        tmp_path, "pgen", "cohort"
    )
    moved = [Variant(v.chrom, v.pos + 7, v.ref, v.alts, v.name) for v in variants]
    write_pvar(tmp_path / "cohort", moved)
    sentence = refused(tmp_path, "pgen", "cohort")
    assert "cohort.pvar, row 3: found rs10000 at 1:1007, where the study has it at 1:1000" in sentence
    assert "12 of 12 shared identifiers lie elsewhere" in sentence
    write_vcfs(tmp_path, PEOPLE, moved, truth)
    assert "chr1.vcf.gz, row 4: found rs10000 at 1:1007" in refused(tmp_path, "vcf", "chr{chrom}.vcf.gz")
    write_vcf(tmp_path / "chr1.vcf.gz", PEOPLE, [], "##contig=<ID=1,length=249250621>\n")
    assert "which is GRCh37's" in refused(tmp_path, "vcf", "chr{chrom}.vcf.gz")


@pytest.mark.parametrize("kind", ["pgen", "bed"])
def test_broken_plink_files_are_refused_with_file_and_row(tmp_path: Path, kind: str) -> None:
    variants = reference(6, [1])
    write_study(tmp_path, variants)
    write = write_pgen if kind == "pgen" else write_bed
    data, table, people = ("pgen", "pvar", "psam") if kind == "pgen" else ("bed", "bim", "fam")

    def fresh() -> None:
        write(tmp_path / "cohort", PEOPLE, variants, random_dosages(len(PEOPLE), 6))

    fresh()
    file = tmp_path / f"cohort.{people}"
    file.write_text(file.read_text().replace("p05", "p03"))
    first = 2 if kind == "pgen" else 1
    assert f"cohort.{people}, rows {first + 3} and {first + 5}: found subject 'p03' twice" in refused(
        tmp_path, kind, "cohort"
    )
    fresh()
    file.write_text("\n".join(file.read_text().splitlines()[:-1]) + "\n")
    assert f"cohort.{data}: could not be read with 8 people of cohort.{people}" in refused(
        tmp_path, kind, "cohort"
    )
    fresh()
    file = tmp_path / f"cohort.{table}"
    file.write_text(file.read_text().replace("4000", "4k"))
    first = 3 if kind == "pgen" else 1
    assert f"cohort.{table}, row {first + 3}: found position '4k'" in refused(tmp_path, kind, "cohort")
    fresh()
    lines = file.read_text().splitlines()
    file.write_text("\n".join([*lines[:-1], "1\t9"]))
    empty = f"cohort.{table}, row {first + 5}: found an empty or missing cell"
    assert empty in refused(tmp_path, kind, "cohort")
    fresh()
    file = tmp_path / f"cohort.{data}"
    file.write_bytes(file.read_bytes()[:-7])
    assert f"cohort.{data}" in refused(tmp_path, kind, "cohort")
    file.write_bytes(b"not genotypes")
    assert f"cohort.{data}: could not be read" in refused(tmp_path, kind, "cohort")
    file.unlink()
    assert f"found no file {file}" in refused(tmp_path, kind, "cohort")


def test_broken_vcfs_are_refused_with_file_and_row(tmp_path: Path) -> None:
    variants = reference(6, [1])
    write_study(tmp_path, variants)
    pattern = "chr{chrom}.vcf.gz"
    path = tmp_path / "chr1.vcf.gz"
    calls = ["0/1"] * len(PEOPLE)
    write_vcf(path, PEOPLE, [vcf_line(variants[0], calls), "1\tgarbage"])
    assert "chr1.vcf.gz, row 5: could not be read" in refused(tmp_path, "vcf", pattern)
    write_vcf(path, PEOPLE, [vcf_line(variants[0], calls), vcf_line(Variant("2", 5, "A", ("G",)), calls)])
    assert "chr1.vcf.gz, row 5: found chromosome 2" in refused(tmp_path, "vcf", pattern)
    path.write_text("##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n")
    assert "chr1.vcf.gz, header: found no people" in refused(tmp_path, "vcf", pattern)
    write_vcf(path, ["p1", "p1"], [vcf_line(variants[0], ["0/0", "0/1"])])
    assert "chr1.vcf.gz: could not be opened as VCF" in refused(tmp_path, "vcf", pattern)
    path.write_text("subject,eye\n")
    assert "chr1.vcf.gz: could not be opened as VCF" in refused(tmp_path, "vcf", pattern)
    many = reference(20_000, [1])
    write_vcfs(tmp_path, PEOPLE, many, random_dosages(len(PEOPLE), len(many)))
    whole = path.read_bytes()
    path.write_bytes(whole[:-40])
    assert "chr1.vcf.gz, row" in refused(tmp_path, "vcf", pattern)
    # As block-gzipped by htslib, but without the empty block that ends such a file.
    path.write_bytes(whole[:3] + b"\x04\0\0\0\0\0\xff\x06\0BC\x02\0\0\0" + gzip.compress(b"x")[10:])
    assert "chr1.vcf.gz" in refused(tmp_path, "vcf", pattern)


def test_a_file_without_any_snp_of_the_study_is_refused(tmp_path: Path) -> None:
    write_study(tmp_path, reference(3, [1]))
    write_pgen(tmp_path / "cohort", PEOPLE, [Variant("2", 5, "A", ("G",))], random_dosages(len(PEOPLE), 1))
    assert "cohort.pgen: found none of the study's 3 SNPs" in refused(tmp_path, "pgen", "cohort")


def test_relatives_that_the_studys_list_does_not_know_are_noted(tmp_path: Path) -> None:
    variants = reference(4, [1])
    (tmp_path / "relatives.tsv").write_text("subject\tfamily\np06\tF9\np07\tF9\n")
    write_study(tmp_path, variants, relatives="relatives.tsv")
    write_bed(tmp_path / "cohort", PEOPLE, variants, random_dosages(len(PEOPLE), 4))
    rows = ["p00 p00 0 0 0 -9", "0 p01 0 0 0 -9", "0 p02 p01 0 0 -9", "f p03 0 0 0 -9", "f p04 0 0 0 -9"]
    rows += ["g p05 0 0 0 -9", "h p06 0 0 0 -9", "h p07 0 0 0 -9", "p08 p08 0 absent 0 -9"]
    write_fam(tmp_path / "cohort.fam", [], rows)
    store, report = prepared(tmp_path, "bed", "cohort")
    assert places(report, "genotype.relatives") == [
        "p01 (parent p01)", "p02 (parent p01)", "p03 (family f)", "p04 (family f)",
    ]  # fmt: skip
    families = store.subjects.set_index("subject")["family"]
    assert families["p06"] == families["p07"] == "F9"
    assert families["p03"] == "p03"
