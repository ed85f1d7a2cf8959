"""Simulated people: shares of the paper, linkage, heritability, leakage and missing codes as promised."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pm1_core.errors import ConfigError
from pm1_core.evaluation.association import squared_correlation
from simulations.diseases import DISEASES, RELATED
from simulations.genomes import Chromosome, requests, simulate_chromosome
from simulations.liability import EXPECTED_TEST_CASES, raised_prevalence
from simulations.missingness import NO_CODE, missing_cells
from simulations.phenotypes import People, simulate_people, study_fields
from simulations.scenarios import CELLS, TABLE_2, Scenario, apportion, roster, uk_sites

SCENARIO = Scenario(people=1500, test_people=1400, snps=900, public_photographs=0)


@pytest.fixture(scope="module")
def crowd() -> pd.DataFrame:
    return roster(SCENARIO)


@pytest.fixture(scope="module")
def genome(crowd: pd.DataFrame) -> list[Chromosome]:
    asked = requests(SCENARIO.snps, SCENARIO.seed, crowd.ancestry.to_numpy(), crowd.family.to_numpy())
    return [simulate_chromosome(request) for request in asked]


@pytest.fixture(scope="module")
def people(crowd: pd.DataFrame, genome: list[Chromosome]) -> People:
    return simulate_people(SCENARIO, crowd, genome)


def _auc(score: np.ndarray, case: np.ndarray) -> float:
    ranks = pd.Series(score).rank().to_numpy()
    cases, controls = int(case.sum()), int((~case).sum())
    return float((ranks[case].sum() - cases * (cases + 1) / 2) / (cases * controls))


@given(st.integers(0, 10_000), st.lists(st.floats(0.01, 1), min_size=1, max_size=12))
def test_apportioned_counts_sum_up_and_stay_within_one_of_their_share(
    total: int, shares: list[float]
) -> None:
    counts = apportion(total, shares)
    exact = total * np.array(shares) / np.sum(shares)
    assert counts.sum() == total
    assert (np.abs(counts - exact) < 1 + 1e-6).all()


@pytest.mark.parametrize(
    "wrong",
    [{"people": 50}, {"sites": 21}, {"sites": 0}, {"name": "ukb"}, {"heritability": 0.9}, {"seed": -1},
     {"people": 150.5}, {"people": 200, "sites": 20}],
)  # fmt: skip
def test_a_scenario_out_of_bounds_is_refused_by_name(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=f"scenario {next(iter(wrong))}"):
        Scenario(**wrong)  # type: ignore[arg-type]


def test_cells_reproduce_every_margin_of_table_2() -> None:
    def total(*letters: str) -> int:
        return sum(count for cell, count in CELLS.items() if all(letter in cell for letter in letters))

    assert total() == TABLE_2["people"] - TABLE_2["eyepacs"]
    assert total("G") == TABLE_2["genotype"]
    assert total("P") == TABLE_2["phenotype"]
    assert total("I") == TABLE_2["ukb_photographs"]
    assert total("G", "P", "I") == TABLE_2["all_three"]
    assert TABLE_2["both_eyes"] + TABLE_2["one_eye"] == TABLE_2["photographs"]


def test_cases_controls_and_missing_add_up_to_the_same_people_for_every_disease() -> None:
    sums = [disease.cases + disease.controls + disease.missing for disease in DISEASES]
    assert max(sums) - min(sums) <= 1


def test_members_have_modalities_in_the_shares_of_the_paper(crowd: pd.DataFrame) -> None:
    members = crowd[crowd.place != "evaluation"]
    for column, count in (("genotype", "genotype"), ("phenotype", "phenotype")):
        assert members[column].mean() == pytest.approx(TABLE_2[count] / TABLE_2["people"], abs=0.002)
    either = (members.left | members.right).mean()
    assert either == pytest.approx(TABLE_2["photographs"] / TABLE_2["people"], abs=0.002)


def test_one_site_is_far_more_diverse_than_the_others(crowd: pd.DataFrame) -> None:
    uk = crowd[(crowd.home >= 0) & (crowd.place != "evaluation")]
    share = (uk.ancestry > 0).groupby(uk.place).mean()
    assert share["birmingham"] == pytest.approx(0.4, abs=0.02)
    assert share.drop("birmingham").max() < 0.12


@pytest.mark.parametrize("count", [1, 6, 20])
def test_any_number_of_uk_sites_shares_all_people(count: int) -> None:
    sites = uk_sites(count)
    assert len({site.name for site in sites}) == count
    assert sum(site.share for site in sites) == pytest.approx(1)


def test_typed_snps_are_common_ordered_and_linked(genome: list[Chromosome]) -> None:
    near, far = [], []
    for chromosome in genome:
        frequency = chromosome.dosages.mean(axis=0) / 2
        assert (np.minimum(frequency, 1 - frequency) > 0.035).all()  # 0.05 before siblings were made
        assert (np.diff(chromosome.positions) > 0).all()
        near += [squared_correlation(*pair) for pair in pairwise(chromosome.dosages.T)]
        far.append(squared_correlation(chromosome.dosages[:, 0], chromosome.dosages[:, -1]))
    assert sum(len(c.positions) for c in genome) == SCENARIO.snps
    assert np.mean(near) > 3 * np.mean(far)


def test_pigment_allele_is_common_in_europeans_and_lightens(
    genome: list[Chromosome], crowd: pd.DataFrame, people: People
) -> None:
    chromosome = genome[14]
    dosage = chromosome.dosages[:, chromosome.locus]
    european = (crowd.ancestry == 0).to_numpy()
    assert 0.45 < dosage[european].mean() / 2 < 0.9
    assert dosage[~european].mean() / 2 < 0.3
    assert np.corrcoef(dosage[european], people.pigment[european])[0, 1] < -0.9


def test_principal_components_separate_ancestries(crowd: pd.DataFrame, people: People) -> None:
    kept = crowd.genotype.to_numpy()
    components = people.phenotypes.loc[kept, ["genetic_pc_1", "genetic_pc_2"]].to_numpy()
    ancestry = crowd.ancestry.to_numpy()[kept]
    centres = np.stack([components[ancestry == a].mean(axis=0) for a in range(3)])
    nearest = np.argmin(((components[:, None] - centres) ** 2).sum(axis=2), axis=1)
    assert (nearest == ancestry).mean() > 0.97
    assert people.phenotypes.loc[~kept, "genetic_pc_1"].isna().all()


def test_planted_snps_explain_the_stated_heritability(crowd: pd.DataFrame, people: People) -> None:
    european = (crowd.ancestry == 0).to_numpy()
    for disease in DISEASES:
        r = np.corrcoef(people.scores[disease.name][european], people.liabilities[disease.name][european])[
            0, 1
        ]
        assert r**2 == pytest.approx(SCENARIO.heritability, abs=0.15)
    assert (people.planted.groupby("trait").size() == SCENARIO.causal_snps).all()


@pytest.mark.parametrize(("test_people", "floor"), [(1400, 160 / 1400), (16_000, 0.01), (200, 0.30)])
def test_prevalence_floor_gives_the_test_its_cases(test_people: int, floor: float) -> None:
    for disease in DISEASES:
        assert raised_prevalence(disease, test_people) == max(disease.prevalence, floor)
    assert EXPECTED_TEST_CASES == 160


def test_test_only_people_hold_enough_cases_of_every_disease(people: People) -> None:
    for row in people.prevalences.values():
        assert row["cases_test_only"] > 115


def test_masked_columns_leak_and_the_others_predict_moderately(crowd: pd.DataFrame, people: People) -> None:
    """A masked column alone finds most cases; the best unmasked one does not."""
    names = [field.name for field in study_fields()]
    filled = people.phenotypes.notna().astype(float) + people.phenotypes.fillna(0).clip(0, 1)
    for disease in DISEASES:
        assert set(disease.masked) <= set(names)
        case = people.status[disease.name].to_numpy()
        leaks = {name: _auc(filled[name].to_numpy(), case) for name in disease.masked}
        assert max(leaks.values()) > 0.85
        risks = people.phenotypes.drop(columns=[disease.name, *disease.masked]).dropna(axis=1)
        best = max(abs(_auc(risks[name].to_numpy(), case) - 0.5) for name in risks) + 0.5
        # Nobody has diabetic eye disease without diabetes: that column alone tells much.
        assert 0.58 < best < (0.90 if disease.name == "diabetic_eye_disease" else 0.80)


def test_diabetic_eye_disease_implies_diabetes(people: People) -> None:
    ill = people.status.diabetic_eye_disease.to_numpy()
    assert (people.phenotypes.diabetes[ill] == 1).all()
    assert people.phenotypes.diabetes[~ill].mean() < 0.4


def test_missing_disease_status_has_the_shares_of_the_paper(crowd: pd.DataFrame, people: People) -> None:
    gone = missing_cells(SCENARIO, crowd, people.phenotypes)
    members = (crowd.phenotype & (crowd.place != "evaluation")).to_numpy()
    tested = (crowd.place == "evaluation").to_numpy()
    for disease in DISEASES:
        missing = gone[disease.name].notna().to_numpy()
        assert missing[members].mean() == pytest.approx(disease.missing_share, abs=1 / members.sum())
        assert not missing[tested].any()


def test_missing_cells_come_in_blocks_and_with_the_codes_of_their_field(
    crowd: pd.DataFrame, people: People
) -> None:
    gone = missing_cells(SCENARIO, crowd, people.phenotypes)
    for field in study_fields():
        codes = set(gone[field.name].dropna().unique())
        assert codes <= {NO_CODE, *field.missing}
    used = {code for column in gone for code in gone[column].dropna().unique()}
    assert {-1, -3, -10, -11, -13, -818} <= used
    blood = gone[["ldl", "urea", "calcium"]].isna()
    assert (blood.all(axis=1) | ~blood.any(axis=1)).all()
    assert 0.04 < (~blood.any(axis=1)).mean() < 0.1


def test_columns_are_named_once_and_related_ones_are_declared() -> None:
    fields = study_fields()
    assert len({field.name for field in fields}) == len({field.ukb for field in fields}) == len(fields)
    assert {related.name for related in RELATED} <= {field.name for field in fields}
    assert 80 <= len(fields) <= 180
