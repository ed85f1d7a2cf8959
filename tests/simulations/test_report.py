"""The report shows what the files say, nothing else, on one page that needs nothing else."""

from __future__ import annotations

import copy
import html
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_fixture import write_run

from pm1_core.errors import StateError
from simulations.report import write_participants, write_report, write_results
from simulations.report_check import conform
from simulations.report_run import read_run
from simulations.report_schema import Participants, Results

SECTION_OF = {
    "genotype": "genotype",
    "diseases": "diseases",
    "methods": "methods",
    "ancestry": "ancestry",
    "superpopulation": "superpopulation",
    "heart_disease": "heart_disease",
    "pigmentation": "pigmentation",
}
FROM_FILES = ("participants", "preparation", "training", "embeddings", "photographs")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "whole"
    write_run(folder, real=True, photograph_count=45)
    return folder


@pytest.fixture(scope="module")
def results(run: Path) -> dict[str, Any]:
    return dict(json.loads((run / "results.json").read_text()))


@pytest.fixture(scope="module")
def page(run: Path) -> str:
    return write_report(run).read_text()


def minimal(folder: Path, results: dict[str, Any], *kept: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "results.json").write_text(json.dumps({k: results[k] for k in ("run", *kept)}))
    return folder


def section(page: str, name: str) -> str:
    found = re.search(rf'<section id="{name}">.*?</section>', page, re.DOTALL)
    assert found, f"no section {name}"
    return found.group()


def text_of(fragment: str) -> str:
    bare = re.sub(r"<svg.*?</svg>", "", fragment, flags=re.DOTALL)
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", bare)))


def test_every_section_is_there_and_in_the_contents(page: str) -> None:
    for name in ("findings", *FROM_FILES, *SECTION_OF.values(), "notes", "configuration"):
        assert section(page, name)
        assert f'<a href="#{name}">' in page


@pytest.mark.parametrize("name", list(SECTION_OF))
def test_a_section_is_shown_alone_and_the_absent_ones_are_not(
    name: str, results: dict[str, Any], tmp_path: Path
) -> None:
    alone = write_report(minimal(tmp_path / "run", results, name)).read_text()
    present = set(re.findall(r'<section id="(\w+)">', alone))
    assert present == {"findings", SECTION_OF[name], "notes"}


def test_a_run_without_results_has_a_header_and_no_empty_frame(
    results: dict[str, Any], tmp_path: Path
) -> None:
    bare = write_report(minimal(tmp_path / "run", results)).read_text()
    assert results["run"]["name"] in bare
    assert re.findall(r'<section id="(\w+)">', bare) == ["notes"]
    assert "<figure" not in bare
    assert "<table" not in bare


def test_empty_lists_make_no_section(results: dict[str, Any], tmp_path: Path) -> None:
    some = copy.deepcopy(results)
    some["diseases"] |= {"rows": [], "differences": []}
    some["methods"]["rows"] = []
    some["genotype"]["rows"] = []
    bare = write_report(minimal(tmp_path / "run", some, "diseases", "methods", "genotype")).read_text()
    assert not re.findall(r'<section id="(?:diseases|methods|genotype)">', bare)


def test_page_needs_nothing_from_elsewhere(page: str) -> None:
    assert not re.findall(r"https?:|//[a-z0-9.-]+\.[a-z]{2,}/|@import|<script|<link", page)
    for address in re.findall(r'(?:src|href)="([^"]{0,30})', page):
        assert address.startswith(("#", "data:image/")), address
    for target in re.findall(r"url\(([^)]{0,20})", page):
        assert target.startswith("#"), target


def test_references_inside_the_page_resolve_to_one_element_each(page: str) -> None:
    names = re.findall(r'\bid="([^"]+)"', page)
    assert len(names) == len(set(names))
    used = set(re.findall(r'href="#([^"]+)"', page)) | set(re.findall(r"url\(#([^)]+)\)", page))
    assert used <= set(names)


def test_page_is_light(run: Path) -> None:
    assert write_report(run).stat().st_size < 6_000_000


def test_page_is_a_function_of_the_files(run: Path, page: str) -> None:
    assert write_report(run).read_text() == page


def test_area_table_shows_the_numbers_of_the_results(page: str, results: dict[str, Any]) -> None:
    shown = text_of(section(page, "diseases"))
    for row in results["diseases"]["rows"]:
        assert f"{row['auc']:.3f} {row['low']:.2f}–{row['high']:.2f}" in shown
        assert f"{row['label']} {row['cases']:,} {row['controls']:,}" in shown
    assert "Alzheimer's disease (3)" in shown


def test_stars_mark_the_differences_that_stand_and_no_others(page: str, results: dict[str, Any]) -> None:
    clear = [d for d in results["diseases"]["differences"] if d["p_holm"] < 0.05]
    assert section(page, "diseases").count("<sup>*</sup>") == len(clear) > 0
    assert f"{len(clear)} of {len(results['diseases']['differences'])} differences" in text_of(page)


def test_other_tables_show_the_numbers_of_the_results(page: str, results: dict[str, Any]) -> None:
    methods = text_of(section(page, "methods"))
    assert all(f"{row['auc']:.3f}" in methods for row in results["methods"]["rows"])
    ancestry = text_of(section(page, "ancestry"))
    assert all(f"{row['balanced_accuracy']:.3f}" in ancestry for row in results["ancestry"]["rows"])
    for name in ("superpopulation", "heart_disease"):
        shown = text_of(section(page, name))
        assert all(f"{np.mean(row['values']):.3f}" in shown for row in results[name]["rows"])
    snp = results["pigmentation"]
    assert f"{snp['rank']:,} of {snp['snps']:,}" in text_of(section(page, "pigmentation"))
    pm1 = np.mean([row["weighted_accuracy"]["pm1"] for row in results["genotype"]["rows"]])
    assert f"{pm1:.3f}" in text_of(section(page, "genotype"))
    assert f"{pm1:.3f}" in text_of(section(page, "findings"))


def test_people_and_findings_of_sites_add_up(run: Path, page: str) -> None:
    sites = json.loads((run / "participants.json").read_text())["sites"]
    shown = text_of(section(page, "participants"))
    for modality in ("genotype", "phenotype", "fundus"):
        total = sum(sum(site["modalities"].get(modality, {}).values()) for site in sites)
        assert f"{total:,}" in shown
    assert "withdrew consent" in shown
    assert "in genotype, phenotype, fundus, fusion" in shown
    counts = [f["count"] for site in sites for f in site.get("preparation", [])]
    preparation = text_of(section(page, "preparation"))
    assert all(f"{count:,}" in preparation for count in counts)


def test_all_photographs_are_shown_with_their_crops(page: str) -> None:
    assert section(page, "photographs").count("<img ") == 2 * 45


def test_missing_margin_is_said(results: dict[str, Any], tmp_path: Path) -> None:
    worse = copy.deepcopy(results)
    worse["superpopulation"]["rows"][0]["values"] = [0.9] * 10
    shown = text_of(write_report(minimal(tmp_path / "run", worse, "superpopulation")).read_text())
    assert "0.900 is not within 0.02 of principal components" in shown


def test_an_unrecovered_snp_is_called_so(results: dict[str, Any], tmp_path: Path) -> None:
    lost = copy.deepcopy(results)
    lost["pigmentation"] |= {"genome_wide": False, "rank": 812}
    shown = text_of(write_report(minimal(tmp_path / "run", lost, "pigmentation")).read_text())
    assert "not recovered" in shown


def test_no_difference_is_called_none(results: dict[str, Any], tmp_path: Path) -> None:
    none = copy.deepcopy(results)
    for row in none["diseases"]["differences"]:
        row["p_holm"] = 1.0
    shown = text_of(write_report(minimal(tmp_path / "run", none, "diseases")).read_text())
    assert "None of the 24 differences" in shown


def test_notes_say_what_the_numbers_do_not(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    shown = text_of(section(write_report(tmp_path / "run").read_text(), "notes"))
    for words in (
        "simulated",
        "negatives",
        "test only",
        "Dementia 0.8% to 6.0%",
        "Lines per site exist in simulations",
    ):
        assert words in shown


def test_epsilon_comes_whole_or_not_at_all(results: dict[str, Any], tmp_path: Path) -> None:
    private = copy.deepcopy(results)
    private["run"]["privacy"] = {"mechanism": "DP-SGD", "secure_aggregation": True, "epsilon": 3.0}
    with pytest.raises(StateError, match="epsilon without delta, unit, accountant"):
        write_report(minimal(tmp_path / "run", private))
    private["run"]["privacy"] |= {"delta": 1e-5, "unit": "record", "accountant": "PRV"}
    shown = text_of(write_report(minimal(tmp_path / "run", private)).read_text())
    assert "ε = 3 per record at δ = 1e-05 (PRV accountant)" in shown


def test_names_are_escaped_and_secrets_blanked(results: dict[str, Any], tmp_path: Path) -> None:
    odd = copy.deepcopy(results)
    odd["methods"]["rows"][2]["site"] = "<b>leeds</b>"
    odd["pigmentation"]["name"] = "<i>rs1</i>"
    folder = minimal(tmp_path / "run", odd, "methods", "pigmentation")
    (folder / "config.yaml").write_text("study:\n  split_key: very-secret\n  rounds: 3\n")
    shown = write_report(folder).read_text()
    assert "<b>leeds" not in shown
    assert "<i>rs1" not in shown
    assert "very-secret" not in shown
    assert "rounds: 3" in shown


def test_of_lines_written_twice_by_a_resumed_run_the_last_counts(
    results: dict[str, Any], tmp_path: Path
) -> None:
    folder = minimal(tmp_path / "run", results)
    line = {"phase": "fusion", "round": 1, "site": None, "split": "train", "examples": 9, "seconds": 1.0}
    lines = [{**line, "metrics": {"loss": value}} for value in (5.0, 4.0)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in lines))
    assert [entry["metrics"]["loss"] for entry in read_run(folder).metrics] == [4.0]


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("results.json", "{", "results.json: not JSON"),
        ("results.json", "{}", "key 'run' is missing"),
        ("metrics.jsonl", '{"phase": 3}', "metrics.jsonl, line 1.phase: found int"),
        ("metrics.jsonl", "{", "metrics.jsonl, line 1: not JSON"),
        ("participants.json", '{"sites": [], "colour": 1}', "key 'colour': unknown"),
        (
            "sample_photographs/index.json",
            '[{"crop": "x.png", "site": "a", "eye": "left"}]',
            "x.png: missing",
        ),
    ],
)
def test_damaged_files_are_named(
    file: str, content: str, said: str, results: dict[str, Any], tmp_path: Path
) -> None:
    folder = minimal(tmp_path / "run", results)
    (folder / file).parent.mkdir(exist_ok=True)
    (folder / file).write_text(content)
    with pytest.raises(StateError, match=re.escape(said)):
        write_report(folder)
    assert not (folder / "report.html").exists()


def test_unfinished_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StateError, match=r"results\.json: not there; finish the run"):
        write_report(tmp_path)


def test_arrays_that_disagree_are_refused(results: dict[str, Any], tmp_path: Path) -> None:
    folder = minimal(tmp_path / "run", results)
    arrays: Any = {"tokens.pca": np.zeros((3, 2)), "tokens.kind": np.array(["phenotype"])}
    np.savez(folder / "embeddings.npz", **arrays)
    with pytest.raises(StateError, match=r"tokens\.pca 3, tokens\.kind 1"):
        write_report(folder)


def test_results_are_checked_before_they_are_written(
    results: dict[str, Any], run: Path, tmp_path: Path
) -> None:
    wrong = copy.deepcopy(results)
    wrong["diseases"]["rows"][0]["auc"] = float("nan")
    with pytest.raises(StateError, match=r"diseases\.rows\[0\]\.auc: found nan"):
        write_results(tmp_path, wrong)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())
    written = write_results(tmp_path, results)  # type: ignore[arg-type]
    assert json.loads(written.read_text()) == results
    people = json.loads((run / "participants.json").read_text())
    assert json.loads(write_participants(tmp_path, people).read_text()) == people


def test_schema_tells_numbers_from_truth_values_and_optional_from_required() -> None:
    conform("participants", {"sites": []}, Participants)
    with pytest.raises(StateError, match="key 'sites' is missing"):
        conform("participants", {}, Participants)
    site = {"site": "a", "role": "member", "people": {"train": True}, "modalities": {}}
    with pytest.raises(StateError, match=r"people\.train: found bool"):
        conform("participants", {"sites": [site]}, Participants)
    assert Results.__required_keys__ == {"run"}
