"""Genomes under the out-of-Africa model with recombination.

The demography is that of Gutenkunst RN et al. (2009) "Inferring the Joint Demographic History of Multiple
Populations from Multidimensional SNP Frequency Data", PLoS Genetics 5:e1000695, table 1, simulated by
msprime (Baumdicker F et al. (2022) Genetics 220:iyab229). Each chromosome is one piece of 1% of the human
chromosome's length, so neighbouring typed SNPs are in linkage disequilibrium as on a genotyping array.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msprime
import numpy as np
import tskit
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from pm1_core.errors import ConfigError
from pm1_core.fields import CHROMOSOMES
from pm1_core.validate import refusal
from simulations.scenarios import apportion, stream

POPULATIONS: tuple[str, ...] = ("CEU", "YRI", "CHB")  # in the order of scenarios.ANCESTRIES

HUMAN_MEGABASES: dict[int, float] = dict(zip(CHROMOSOMES, (
    248.96, 242.19, 198.30, 190.21, 181.54, 170.81, 159.35, 145.14, 138.39, 133.80, 135.09,
    133.28, 114.36, 107.04, 101.99, 90.34, 83.26, 80.37, 58.62, 64.44, 46.71, 50.82,
), strict=True))  # fmt: skip
"""Chromosome lengths of GRCh38."""

PIECE = 0.01
RECOMBINATION = 1.0e-8  # per base and generation
MUTATION = 1.25e-8
RARE = 0.05
PIGMENT_CHROMOSOME, DEMENTIA_CHROMOSOME = 15, 19
# GRCh38 positions that the pieces of two chromosomes are centred on: HERC2 rs1129038 and APOE rs429358.
_CENTRES = {PIGMENT_CHROMOSOME: 28_111_713, DEMENTIA_CHROMOSOME: 44_908_684}
_PARTNER = {"A": "G", "G": "A", "C": "T", "T": "C"}
_PALINDROME = {"A": "T", "T": "A", "C": "G", "G": "C"}
_OTHER = {"A": "C", "C": "A", "G": "T", "T": "G"}


def out_of_africa() -> msprime.Demography:
    """The three-population model of Gutenkunst et al. 2009 (25 years a generation)."""
    europe, asia = 848, 848
    demography = msprime.Demography()
    demography.add_population(name="YRI", initial_size=12_300)
    demography.add_population(name="CEU", initial_size=1_000 * np.exp(0.004 * europe), growth_rate=0.004)
    demography.add_population(name="CHB", initial_size=510 * np.exp(0.0055 * asia), growth_rate=0.0055)
    demography.add_population(name="OOA", initial_size=2_100)
    demography.add_population(name="AMH", initial_size=12_300)
    demography.add_population(name="ANC", initial_size=7_300)
    demography.set_symmetric_migration_rate(["CEU", "CHB"], 9.6e-5)
    demography.set_symmetric_migration_rate(["YRI", "CHB"], 1.9e-5)
    demography.set_symmetric_migration_rate(["YRI", "CEU"], 3.0e-5)
    demography.add_population_split(time=europe, derived=["CEU", "CHB"], ancestral="OOA")
    demography.add_symmetric_migration_rate_change(time=europe, populations=["YRI", "OOA"], rate=2.5e-4)
    demography.add_population_split(time=5_600, derived=["YRI", "OOA"], ancestral="AMH")
    demography.add_population_split(time=8_800, derived=["AMH"], ancestral="ANC")
    return demography


@dataclass(frozen=True)
class ChromosomeRequest:
    """One chromosome to simulate, small enough to hand to another process.

    ancestry: uint8 [n] index of POPULATIONS per person; family: int64 [n], -1 none; snps: how many to type.
    """

    chromosome: int
    snps: int
    seed: int
    ancestry: np.ndarray
    family: np.ndarray


@dataclass(frozen=True)
class Chromosome:
    """Typed SNPs of one chromosome.

    positions: int64 [S], increasing; ref, alt: tuple of letters; dosages: uint8 [n, S], count of alt 0-2;
    locus: index of the SNP that was chosen for its frequencies (pigment, dementia), -1 elsewhere.
    """

    chromosome: int
    positions: np.ndarray
    ref: tuple[str, ...]
    alt: tuple[str, ...]
    dosages: np.ndarray
    locus: int

    @property
    def palindromic(self) -> np.ndarray:
        """Which SNPs read alike on both strands: bool [S]. A hospital's preparation drops them."""
        return np.array([_PALINDROME[r] == a for r, a in zip(self.ref, self.alt, strict=True)], dtype=bool)

    @property
    def identifiers(self) -> tuple[str, ...]:
        """Stable names, "sim<chromosome>_<position>": made up, so that nobody takes them for an rs number."""
        return tuple(f"sim{self.chromosome}_{position}" for position in self.positions)


def requests(snps: int, seed: int, ancestry: np.ndarray, family: np.ndarray) -> list[ChromosomeRequest]:
    """One request per autosome; SNPs in proportion to chromosome length, at least 8 each."""
    extra = apportion(snps - 8 * len(CHROMOSOMES), list(HUMAN_MEGABASES.values()))
    return [
        ChromosomeRequest(c, 8 + int(more), seed, ancestry.astype(np.uint8), family)
        for c, more in zip(CHROMOSOMES, extra, strict=True)
    ]


def simulate_chromosome(request: ChromosomeRequest) -> Chromosome:
    """Simulate one chromosome. A function of the request alone, whichever process runs it.

    Raises ConfigError if more SNPs are wanted than are common (minor allele frequency >= 0.05).
    """
    rng = stream(request.seed, "genome", request.chromosome)
    length = round(HUMAN_MEGABASES[request.chromosome] * 1e6 * PIECE)
    counts = np.bincount(request.ancestry, minlength=len(POPULATIONS))
    genealogy = msprime.sim_ancestry(
        [
            msprime.SampleSet(int(count), population=name, ploidy=2)
            for name, count in zip(POPULATIONS, counts, strict=True)
            if count
        ],
        demography=out_of_africa(),
        sequence_length=length,
        recombination_rate=RECOMBINATION,
        random_seed=int(rng.integers(1, 2**31)),
    )
    mutated = msprime.sim_mutations(
        genealogy,
        rate=MUTATION,
        model=msprime.BinaryMutationModel(),
        random_seed=int(rng.integers(1, 2**31)),
    )
    common = _common_sites(mutated)
    if len(common) < request.snps:
        where = f"chromosome {request.chromosome}"
        raise ConfigError(
            refusal(where, f"only {len(common)} common SNPs for {request.snps}", "ask for fewer snps")
        )
    locus_site = _locus_site(mutated, common, request.chromosome, counts)
    typed = rng.choice(common, size=request.snps, replace=False)
    if locus_site >= 0 and locus_site not in typed:
        typed[0] = locus_site
    typed = np.sort(typed)
    haplotypes = _haplotypes(mutated, typed)
    # msprime's samples come population by population; people are in the roster's order.
    order = np.argsort(np.argsort(request.ancestry, kind="stable"), kind="stable")
    haplotypes = haplotypes.reshape(-1, 2, len(typed))[order]
    offsets = mutated.tables.sites.position[typed].astype(np.int64)
    _transmit(haplotypes, offsets / length, request.family, HUMAN_MEGABASES[request.chromosome] / 100, rng)
    locus = int(np.searchsorted(typed, locus_site)) if locus_site >= 0 else -1
    ref, alt = _letters(len(typed), locus, rng)
    centre = _CENTRES.get(request.chromosome, 10_000_000 + length // 2)
    start = centre - (int(offsets[locus]) if locus >= 0 else length // 2)
    return Chromosome(
        request.chromosome, offsets + start, ref, alt, haplotypes.sum(axis=1, dtype=np.uint8), locus
    )


def _common_sites(mutated: tskit.TreeSequence) -> np.ndarray:
    """Sites int64 with one mutation and minor allele frequency >= RARE over all samples."""
    total = mutated.num_samples
    low, high = RARE * total, (1 - RARE) * total
    common = [
        site.id
        for tree in mutated.trees()
        for site in tree.sites()
        if len(site.mutations) == 1 and low <= tree.num_samples(site.mutations[0].node) <= high
    ]
    return np.array(common, dtype=np.int64)


def _haplotypes(mutated: tskit.TreeSequence, sites: np.ndarray) -> np.ndarray:
    """Derived alleles uint8 [haplotypes, len(sites)]."""
    rest = np.setdiff1d(np.arange(mutated.num_sites), sites)
    matrix = mutated.delete_sites(rest).genotype_matrix()  # [sites, haplotypes]
    return np.ascontiguousarray(matrix.T.astype(np.uint8))


def _locus_site(mutated: tskit.TreeSequence, common: np.ndarray, chromosome: int, counts: np.ndarray) -> int:
    """The site that stands for HERC2 or APOE: the one whose allele frequencies are nearest to the real ones.

    HERC2 rs1129038: about 0.7 in Europeans, rare elsewhere; APOE e4: about 0.15 to 0.25 everywhere
    (1000 Genomes phase 3).
    """
    wanted = {PIGMENT_CHROMOSOME: (0.7, 0.05, 0.05), DEMENTIA_CHROMOSOME: (0.2, 0.2, 0.2)}.get(chromosome)
    if wanted is None:
        return -1
    haplotypes = _haplotypes(mutated, common)
    ends = np.cumsum([0, *(2 * counts)])
    distance = np.zeros(len(common))
    for index, target in enumerate(wanted):
        if counts[index]:
            frequency = haplotypes[ends[index] : ends[index + 1]].mean(axis=0)
            distance += (frequency - target) ** 2 * (2.0 if index == 0 else 1.0)
    return int(common[np.argmin(distance)])


def _transmit(
    haplotypes: np.ndarray,
    places: np.ndarray,
    family: np.ndarray,
    morgans: float,
    rng: np.random.Generator,
) -> None:
    """Replace each two members of a family, in place, by two children of theirs.

    haplotypes uint8 [n, 2, S]; places: positions in 0..1. The piece stands for its whole chromosome, so
    crossovers fall at the rate of the full genetic map (1 cM a megabase): siblings share whole stretches.
    """
    for number in range(int(family.max(initial=-1)) + 1):
        pair = np.flatnonzero(family == number)
        parents = haplotypes[pair].copy()
        for child in pair:
            for side in (0, 1):
                crossovers = np.sort(rng.random(rng.poisson(morgans)))
                strand = (np.searchsorted(crossovers, places) + rng.integers(2)) % 2
                haplotypes[child, side] = np.where(strand == 0, parents[side, 0], parents[side, 1])


def _letters(count: int, locus: int, rng: np.random.Generator) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Alleles with two transitions to a transversion; 0.7% are palindromic (A/T, C/G), `locus` never is."""
    ref = [str(letter) for letter in rng.choice(list("ACGT"), count, p=[0.295, 0.205, 0.205, 0.295])]
    kind = rng.random(count)
    if locus >= 0:
        kind[locus] = 0.5
    alt = [
        _PALINDROME[letter] if draw < 0.007 else _PARTNER[letter] if draw < 0.67 else _OTHER[letter]
        for letter, draw in zip(ref, kind, strict=True)
    ]
    return tuple(ref), tuple(alt)


def principal_components(chromosomes: Sequence[Chromosome], rows: np.ndarray, count: int = 10) -> np.ndarray:
    """Genetic principal components float64 [len(rows), count] by truncated SVD (appendix E.3).

    SNPs are standardised by sqrt(2pq) (Patterson N, Price AL, Reich D (2006) PLoS Genetics 2:e190). At most
    1,000 evenly spaced ones are used, as components are usually taken from pruned SNPs. Scaled so that
    the first has a standard deviation of 10; signs are fixed by the largest loading.
    """
    step = max(1, -(-sum(len(c.positions) for c in chromosomes) // 1000))
    dosages = np.concatenate([c.dosages[rows, ::step] for c in chromosomes], axis=1)
    mean = dosages.mean(axis=0, dtype=np.float64)
    scale = np.sqrt(np.maximum(mean * (1 - mean / 2), 1e-6))
    gram = np.zeros((dosages.shape[1], dosages.shape[1]))
    chunks = [slice(start, start + 8192) for start in range(0, len(rows), 8192)]
    # One thread: sums are then formed in one order on every machine.
    with threadpool_limits(1):
        for chunk in chunks:
            x = (dosages[chunk] - mean) / scale
            gram += x.T @ x
        values, vectors = np.linalg.eigh(gram)
    loadings = vectors[:, ::-1][:, :count]
    loadings = loadings * np.sign(loadings[np.abs(loadings).argmax(axis=0), np.arange(loadings.shape[1])])
    scores = np.concatenate([((dosages[chunk] - mean) / scale) @ loadings for chunk in chunks])
    scaled: np.ndarray = scores * 10 * np.sqrt(len(rows) / max(float(values[-1]), 1e-12))
    return scaled
