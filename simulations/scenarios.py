"""Who is simulated, where they are and what is kept of them.

A scenario turns one number of people into a roster: site, ancestry, camera and modalities of each
person. `ukb_eyepacs` follows supplementary tables 2 to 4 of the PM1 paper.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

from pm1_core.errors import ConfigError
from pm1_core.validate import refusal, require_choice, require_range

ANCESTRIES: tuple[str, ...] = ("EUR", "AFR", "ASN")
SPLIT_KEY = "42"
EYEPACS, EVALUATION, PUBLIC = "eyepacs", "evaluation", "public"
SCENARIOS: tuple[str, ...] = ("ukb_eyepacs",)

CITIES: tuple[str, ...] = (
    "leeds", "birmingham", "glasgow", "cardiff", "bristol", "newcastle",
    "manchester", "nottingham", "sheffield", "liverpool", "edinburgh", "oxford",
    "reading", "stoke", "croydon", "hounslow", "swansea", "wrexham", "bury", "stockport",
)  # fmt: skip

TABLE_2: Mapping[str, int] = {
    "people": 521_269,
    "genotype": 438_668,
    "phenotype": 476_569,
    "photographs": 113_951,
    "both_eyes": 97_465,
    "one_eye": 16_486,
    "eyepacs": 44_351,
    "ukb_photographs": 69_600,
    "all_three": 47_432,
}
"""Counts of supplementary table 2, with the sums that its rows imply (E.5 for phenotypes)."""

_UKB = TABLE_2["people"] - TABLE_2["eyepacs"]
_GENOTYPE_ONLY = _UKB - TABLE_2["phenotype"]
# The cells that reproduce every margin of table 2 when those few without phenotypes have genotypes only.
CELLS: Mapping[str, int] = {
    "GPI": TABLE_2["all_three"],
    "PI": TABLE_2["ukb_photographs"] - TABLE_2["all_three"],
    "GP": TABLE_2["genotype"] - TABLE_2["all_three"] - _GENOTYPE_ONLY,
    "P": TABLE_2["phenotype"] - TABLE_2["ukb_photographs"] - TABLE_2["genotype"]
    + TABLE_2["all_three"] + _GENOTYPE_ONLY,
    "G": _GENOTYPE_ONLY,
}  # fmt: skip


@dataclass(frozen=True)
class Scenario:
    """What a simulated cohort depends on; equal scenarios give equal bytes.

    name: one of SCENARIOS
    people: members of all sites together, EyePACS-like site included
    sites: UK sites, 1 to 20; the EyePACS-like site comes on top
    seed: every random number is derived from it
    test_people: additional test-only people of the UK population, with all modalities and both eyes
    snps: typed SNPs over chromosomes 1 to 22, planted ones included
    public_photographs: unlabelled photographs of people who are at no site
    heritability: share of liability variance that planted SNPs explain
    causal_snps: planted SNPs per disease
    relatives: share of people who are one of a sibling pair
    photograph_quality: JPEG quality

    Raises ConfigError if a value is out of bounds.
    """

    name: str = "ukb_eyepacs"
    people: int = 2000
    sites: int = 6
    seed: int = 42
    test_people: int = 1400
    snps: int = 2400
    public_photographs: int = 1200
    heritability: float = 0.4
    causal_snps: int = 20
    relatives: float = 0.02
    photograph_quality: int = 90

    def __post_init__(self) -> None:
        require_choice("scenario name", self.name, SCENARIOS, ConfigError)
        bounds: dict[str, tuple[float, float]] = {
            "sites": (1, len(CITIES)),
            "people": (max(100, 20 * self.sites), 1_000_000),
            "seed": (0, 2**32 - 1),
            "test_people": (50, 100_000),
            "snps": (220, 15_000),
            "public_photographs": (0, 100_000),
            "heritability": (0.0, 0.6),
            "causal_snps": (1, 30),
            "relatives": (0.0, 0.5),
            "photograph_quality": (50, 100),
        }
        for name, (low, high) in bounds.items():
            value = require_range(f"scenario {name}", getattr(self, name), low, high, ConfigError)
            if isinstance(low, int) and not isinstance(value, int):
                raise ConfigError(refusal(f"scenario {name}", f"found {value!r}", "use a whole number"))

    def to_json(self) -> dict[str, Any]:
        """The fields as plain types."""
        return asdict(self)


@dataclass(frozen=True)
class SiteProfile:
    """How a UK site differs from the others.

    share: of the UK people; ancestry: EUR, AFR, ASN shares; age: years above the UK mean;
    shifts: added to latent risk factors (standard deviations); camera: index into photographs.CAMERAS;
    coding: how its phenotype file is written (site_files.CODINGS).
    """

    name: str
    share: float
    ancestry: tuple[float, float, float]
    age: float
    shifts: Mapping[str, float]
    camera: int
    coding: str


_PROFILES: tuple[tuple[float, tuple[float, float, float], float, dict[str, float], str], ...] = (
    (0.26, (0.94, 0.02, 0.04), 0.0, {}, "ukb"),
    (0.21, (0.60, 0.17, 0.23), -2.0, {"glycaemia": 0.35, "deprivation": 0.5}, "imperial"),
    (0.17, (0.96, 0.01, 0.03), 0.5, {"pressure": 0.3, "smoking": 0.4, "deprivation": 0.3}, "lettered"),
    (0.14, (0.95, 0.02, 0.03), 4.0, {"frailty": 0.3}, "coded"),
    (0.12, (0.92, 0.04, 0.04), -1.0, {"adiposity": -0.3, "deprivation": -0.5}, "plain"),
    (0.10, (0.96, 0.01, 0.03), 1.0, {"glycaemia": 0.6, "adiposity": 0.4}, "ukb"),
)
EYEPACS_PROFILE = SiteProfile(EYEPACS, 0.0, (0.55, 0.15, 0.30), -1.0, {"glycaemia": 0.9}, 6, "none")
PUBLIC_PROFILE = SiteProfile(PUBLIC, 0.0, (0.55, 0.20, 0.25), 1.0, {"glycaemia": 0.3}, -1, "none")


def uk_sites(count: int) -> tuple[SiteProfile, ...]:
    """Profiles of `count` UK sites; beyond six the case mixes repeat under other names, at half the size."""
    chosen = [(*_PROFILES[i % 6], 0.5 ** (i // 6), i) for i in range(count)]
    total = sum(row[0] * row[5] for row in chosen)
    return tuple(
        SiteProfile(CITIES[i], share * scale / total, ancestry, age, shifts, i % 6, coding)
        for share, ancestry, age, shifts, coding, scale, i in chosen
    )


def stream(seed: int, purpose: str, *keys: int) -> np.random.Generator:
    """The generator of one purpose and key (a chromosome, a person): independent of any other's draws."""
    return np.random.default_rng(sequence(seed, purpose, *keys))


def sequence(seed: int, purpose: str, *keys: int) -> np.random.SeedSequence:
    """The SeedSequence behind `stream`, the child of `seed` with the spawn key (purpose, *keys)."""
    return np.random.SeedSequence(seed, spawn_key=(zlib.crc32(purpose.encode()), *keys))


def apportion(total: int, shares: Sequence[float] | np.ndarray) -> np.ndarray:
    """Whole numbers int64 [len(shares)] that sum to `total`, by largest remainders.

    >>> apportion(10, [0.55, 0.45])
    array([6, 4])
    """
    weights = np.asarray(shares, dtype=np.float64)
    exact = total * weights / weights.sum()
    counts: np.ndarray = np.floor(exact).astype(np.int64)
    order = np.argsort(-(exact - counts), kind="stable")
    counts[order[: total - int(counts.sum())]] += 1
    return counts


def _dealt(total: int, shares: Sequence[float], rng: np.random.Generator) -> np.ndarray:
    """Category of each of `total` people int64 [total], in exact shares and random order."""
    dealt = np.repeat(np.arange(len(shares)), apportion(total, shares))
    rng.shuffle(dealt)
    return dealt


def roster(scenario: Scenario) -> pd.DataFrame:
    """Everybody of a scenario, one row each: members, test-only people, people of the public photographs.

    Columns: subject (str), place (site, "evaluation" or "public"), home (int: UK site whose case mix the
    person has, -1 EyePACS, -2 public), ancestry (int index of ANCESTRIES), camera (int), genotype,
    phenotype, left, right (bool: what is kept), family (int, -1 none).
    """
    rng = stream(scenario.seed, "roster")
    sites = uk_sites(scenario.sites)
    shares = [site.share for site in sites]
    eyepacs = int(apportion(scenario.people, [TABLE_2["eyepacs"], _UKB])[0])
    uk = scenario.people - eyepacs
    home_of_members = np.repeat(np.arange(len(sites)), apportion(uk, shares))
    home = np.concatenate([
        home_of_members,
        np.full(eyepacs, -1),
        _dealt(scenario.test_people, shares, rng),
        np.full(scenario.public_photographs, -2),
    ])  # fmt: skip
    place = np.concatenate([
        np.array([site.name for site in sites], dtype=object)[home_of_members],
        np.full(eyepacs, EYEPACS, dtype=object),
        np.full(scenario.test_people, EVALUATION, dtype=object),
        np.full(scenario.public_photographs, PUBLIC, dtype=object),
    ])  # fmt: skip
    people = pd.DataFrame({"place": place, "home": home})
    people["ancestry"] = 0
    people["camera"] = 0
    for index, profile in [*enumerate(sites), (-1, EYEPACS_PROFILE), (-2, PUBLIC_PROFILE)]:
        for group in (people.place != EVALUATION, people.place == EVALUATION):
            rows = np.flatnonzero((people.home == index) & group)
            people.loc[rows, "ancestry"] = _dealt(len(rows), profile.ancestry, rng)
        people.loc[people.home == index, "camera"] = profile.camera
    public = np.flatnonzero(people.home == -2)
    people.loc[public, "camera"] = _dealt(len(public), [1.0] * 7, rng)
    # Test-only people are photographed where they live, by the camera of that site.
    people = people.sort_values(["place", "home", "ancestry"], kind="stable").reset_index(drop=True)
    _deal_modalities(people, rng)
    people["subject"] = _identifiers(people, rng)
    people["family"] = _families(people, scenario, rng)
    return people


def _deal_modalities(people: pd.DataFrame, rng: np.random.Generator) -> None:
    """Fill genotype, phenotype, left and right in the shares of table 2, exactly over the UK members."""
    for column in ("genotype", "phenotype", "left", "right"):
        people[column] = False
    uk = np.flatnonzero(people.home.ge(0) & people.place.ne(EVALUATION))
    cells = np.array(list(CELLS), dtype=object)[_dealt(len(uk), list(CELLS.values()), rng)]
    for letter, column in (("G", "genotype"), ("P", "phenotype")):
        people.loc[uk, column] = np.array([letter in cell for cell in cells])
    seen = uk[np.array(["I" in cell for cell in cells], dtype=bool)]
    both = TABLE_2["both_eyes"] - TABLE_2["eyepacs"]
    eyes = _dealt(len(seen), [both, TABLE_2["one_eye"] / 2, TABLE_2["one_eye"] / 2], rng)
    people.loc[seen, "left"] = eyes != 2
    people.loc[seen, "right"] = eyes != 1
    elsewhere = people.place.isin([EYEPACS, EVALUATION])
    people.loc[elsewhere, ["left", "right"]] = True
    people.loc[people.place == EVALUATION, ["genotype", "phenotype"]] = True
    public = np.flatnonzero(people.place == PUBLIC)
    right = rng.random(len(public)) < 0.5
    people.loc[public, "right"] = right
    people.loc[public, "left"] = ~right


def _identifiers(people: pd.DataFrame, rng: np.random.Generator) -> list[str]:
    """Seven-digit identifiers in random order for the UK; other prefixes for the two other collections."""
    digits = 1_000_000 + rng.permutation(max(4_000_000, len(people)))[: len(people)]
    prefix = people.place.map({EYEPACS: "ep", PUBLIC: "public"}).fillna("")
    return [f"{kind}{number}" for kind, number in zip(prefix, digits, strict=True)]


def _families(people: pd.DataFrame, scenario: Scenario, rng: np.random.Generator) -> np.ndarray:
    """Family numbers int64 [n], -1 for none. Pairs are neighbours of one ancestry, one in five over two sites.

    Members and test-only people never share a family: a sibling in training would leak into the test.
    """
    family = np.full(len(people), -1, dtype=np.int64)
    number = 0
    for rows in (
        np.flatnonzero(people.home.ge(0) & people.place.ne(EVALUATION)),
        np.flatnonzero(people.place == EVALUATION),
    ):
        wanted = round(scenario.relatives * len(rows) / 2)
        for ancestry, count in enumerate(apportion(wanted, np.bincount(people.ancestry[rows], minlength=3))):
            kin = rows[people.ancestry.to_numpy()[rows] == ancestry]
            starts = rng.permutation(len(kin) // 2)[: int(count)] * 2
            apart = rng.random(len(starts)) < 0.2
            for start in starts[~apart]:
                family[kin[start : start + 2]] = number
                number += 1
            # Pairs over two sites: halves of the remaining chosen places, re-paired far apart.
            spread = np.sort(np.concatenate([kin[starts[apart]], kin[starts[apart] + 1]])).astype(np.int64)
            half = len(spread) // 2
            for first, second in zip(spread[:half], spread[half:], strict=True):
                family[[first, second]] = number
                number += 1
    return family
