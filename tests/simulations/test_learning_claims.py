"""Claims over seeds: numbers that can be checked by eye, and the files that are made of them."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from learning_seeds import seeds_of

from simulations.learning.claims import ABSENT, APPEARS, UNDECIDED, Claim
from simulations.learning.page import document, outcome, table_of, write_document, write_outcome
from simulations.learning.paper import CLAIMS, held

CLAIM = Claim("a", "figure 0", "one beats two", ("one", "two"), "full/one.*", "full/two.*")
RUN = {
    "study": "ukb_eyepacs", "size": "tiny", "people": 400, "test_people": 200, "sites": 2, "strategy": "fedavg",
    "seeds": [0, 1, 2], "date": "2026-01-01", "versions": {"pm1": "0", "torch": "0"},
}  # fmt: skip


def _seeds(*gains: tuple[float, float]) -> dict[str, dict[str, dict[str, float]]]:
    """A seed for each pair of differences, of the keys a and b."""
    return {
        str(number): {"full": {"one.a": 1 + a, "one.b": 1 + b, "two.a": 1.0, "two.b": 1.0}}
        for number, (a, b) in enumerate(gains)
    }


def test_a_seed_gives_the_mean_of_its_differences_or_the_smallest_one() -> None:
    seeds = _seeds((0.1, 0.3), (0.2, 0.4), (0.3, 0.5))
    mean, smallest = CLAIM.held(seeds), replace(CLAIM, every=True).held(seeds)
    assert mean
    assert smallest
    assert list(mean["difference"]["seeds"].values()) == pytest.approx([0.2, 0.3, 0.4])
    assert list(smallest["difference"]["seeds"].values()) == pytest.approx([0.1, 0.2, 0.3])
    # 0.3 +- t(0.975, 2) * 0.1 / sqrt(3)
    assert mean["difference"]["low"] == pytest.approx(0.3 - 4.302653 * 0.1 / 3**0.5, abs=1e-6)
    assert (mean["first"]["mean"], mean["second"]["mean"]) == pytest.approx((1.3, 1.0))
    assert (mean["verdict"], smallest["verdict"]) == (APPEARS, UNDECIDED)


def test_where_smaller_is_better_the_difference_turns_round() -> None:
    seeds = _seeds((-0.2, -0.2), (-0.21, -0.21), (-0.19, -0.19))
    worse, better = CLAIM.held(seeds), replace(CLAIM, lower=True).held(seeds)
    assert worse
    assert worse["verdict"] == ABSENT
    assert better
    assert better["verdict"] == APPEARS
    assert better["difference"]["mean"] == pytest.approx(0.2)


def test_a_margin_lets_first_be_a_little_worse() -> None:
    seeds = _seeds((-0.004, -0.004), (-0.005, -0.005), (-0.006, -0.006))
    strict, lenient = CLAIM.held(seeds), replace(CLAIM, margin=0.01).held(seeds)
    assert strict
    assert strict["verdict"] == ABSENT
    assert lenient
    assert lenient["verdict"] == APPEARS


def test_what_is_the_same_in_every_seed_does_not_appear() -> None:
    found = CLAIM.held(_seeds((0.0, 0.0), (0.0, 0.0), (0.0, 0.0)))
    assert found
    assert found["verdict"] == ABSENT


def test_one_seed_decides_nothing_and_no_figures_make_no_claim() -> None:
    found = CLAIM.held(_seeds((0.5, 0.5)))
    assert found
    assert found["verdict"] == UNDECIDED
    assert found["difference"]["low"] is None
    assert CLAIM.held({"0": {"full": {"other": 1.0}}}) is None


def test_every_claim_of_the_paper_finds_its_figures() -> None:
    rows = {row["name"]: row for row in held(seeds_of("0", "1", "2"), {})}
    assert list(rows) == [claim.name for claim in CLAIMS]
    assert len(rows) == len(CLAIMS), "names are each once"
    verdicts = {name: row["verdict"] for name, row in rows.items()}
    expected = {
        "genotype.linear.every": APPEARS, "genotype.shallow.mean": APPEARS,
        "imputation.soft_impute.binary": ABSENT, "imputation.means.binary": APPEARS,
        "ablation.third_of_layers": APPEARS, "eyes.closer": APPEARS, "eyes.contrast": APPEARS,
        "auc.photographs": APPEARS, "auc.genotypes": APPEARS,
        "inference.mean": APPEARS, "bare.token.P": APPEARS,
    }  # fmt: skip
    assert {name: verdicts[name] for name in expected} == expected
    eyes = rows["auc.photographs"]
    assert eyes["first"]["mean"] == pytest.approx(0.66, abs=1e-3)


def test_files_say_what_the_claims_say(tmp_path: Path) -> None:
    (tmp_path / "reasons.json").write_text('{"imputation.soft_impute.binary": "It saw few people."}')
    results = write_outcome(tmp_path, RUN, seeds_of("0", "1", "2"))
    assert json.loads((tmp_path / "learning.json").read_text()) == results
    rows = list(csv.DictReader(io.StringIO((tmp_path / "learning.csv").read_text())))
    assert len(rows) == 3 * len(CLAIMS)
    for row in rows:
        sides = float(row["first"]) - float(row["second"])
        assert abs(abs(sides) - abs(float(row["difference"]))) < 1e-3
    for kind in ("html", "md"):
        text = (tmp_path / f"learning.{kind}").read_text()
        assert "It saw few people." in text
        for title in ("Genotype reconstruction", "Ablations side by side", "Macular degeneration (eye)"):
            assert title in text
    assert len((tmp_path / "learning.html").read_text().split("<h2>")) == 7


def test_pages_of_one_seed_say_that_nothing_is_decided() -> None:
    seeds = seeds_of("0")
    run = {**RUN, "seeds": [0]}
    text = document(outcome(run, seeds, {}))
    assert "undecided otherwise, as is every claim of one seed" in " ".join(text.replace("*", "").split())
    assert f"Verdicts: undecided {len(CLAIMS)}." in " ".join(text.split())
    assert table_of(held(seeds, {})).count(",,") == len(CLAIMS), "low and high are empty"


def test_a_document_is_written_anew_of_the_figures_alone(tmp_path: Path) -> None:
    write_outcome(tmp_path, RUN, seeds_of("0", "1", "2"))
    file = tmp_path / "learning.json"
    before = file.read_bytes(), (tmp_path / "learning.md").read_bytes()
    document_of = write_document(file)
    assert (file.read_bytes(), document_of.read_bytes()) == before
    file.write_text(
        json.dumps({**json.loads(before[0]), "claims": [], "reasons": {"eyes.closer": "By camera."}})
    )
    assert "By camera." in write_document(file).read_text()
    assert len(json.loads(file.read_text())["claims"]) == len(CLAIMS)
