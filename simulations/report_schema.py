"""Types of the files that the run report is made from.

These `TypedDict` classes are the definition: `simulations.report_check.conform` compares a file with them.
`NotRequired` keys may be absent; unknown keys are refused, so that a misspelt one does not silently
lose a section. Shares, accuracies and areas are in 0..1, positions in base pairs of the study's build.
"""

# No `from __future__ import annotations` here: as strings, NotRequired would not be seen on Python 3.11.
from typing import Literal, NotRequired, Required, TypedDict

SplitName = Literal["train", "validation", "test"]
InputsName = Literal["P", "P+I", "P+G", "P+I+G"]  # of a table-1 row: pm1_core.evaluation.cross_modal.INPUTS


class MetricsLine(TypedDict):
    """One line of metrics.jsonl. `site` is null for the aggregate, whose `seconds` are the whole round's."""

    sequence: NotRequired[int]  # of the checkpoint that the line belongs to
    phase: str  # "genotype.22"
    round: int  # from 1; 0 before the first round
    site: str | None
    split: SplitName
    examples: int | float
    seconds: float
    metrics: dict[str, float]  # "loss" is drawn; the other names are drawn beside it


class Finding(TypedDict):
    """One code of a site's preparation report."""

    code: str
    count: int
    action: Literal["handled", "refused", "noted"]
    remedy: NotRequired[str]


class Excluded(TypedDict):
    """Who or what took no part, and why. A site, or people of a site."""

    site: str
    reason: str
    people: NotRequired[int]


class SiteEntry(TypedDict):
    """One site: who is there with what. Counts of people by modality and split."""

    site: str
    role: Literal["member", "evaluation"]
    people: dict[SplitName, int]
    modalities: dict[str, dict[SplitName, int]]  # "genotype" | "phenotype" | "fundus"
    photographs: NotRequired[int]
    ancestry: NotRequired[dict[str, int]]
    phases: NotRequired[list[str]]  # phases that the site took part in
    preparation: NotRequired[list[Finding]]


class Participants(TypedDict):
    """participants.json."""

    sites: list[SiteEntry]
    excluded: NotRequired[list[Excluded]]


class Privacy(TypedDict):
    """What protects the updates. An epsilon comes with its unit, delta and accountant or not at all."""

    mechanism: str  # "none", or the mechanism's name
    secure_aggregation: bool
    epsilon: NotRequired[float]
    delta: NotRequired[float]
    unit: NotRequired[Literal["record", "site"]]
    accountant: NotRequired[str]


class RunHeader(TypedDict):
    """What ran."""

    name: str
    study: str
    data: Literal["simulated", "real"]
    size: str  # "tiny" | "small" | "paper"
    engine: str  # "in process" | "ray"
    strategy: str  # "fedavg"
    seed: int
    started: str  # ISO 8601
    seconds: float
    privacy: Privacy
    commit: NotRequired[str]
    config_hash: NotRequired[str]
    versions: NotRequired[dict[str, str]]  # {"pm1": "0.1.0", "flwr": "1.41.0"}


class GenotypeRow(TypedDict):
    """Weighted accuracy (mean over SNPs of the mean recall of the dosages) of one chromosome, per method."""

    chromosome: int
    snps: int
    weighted_accuracy: dict[str, float]  # "pm1", "linear", "shallow_vae", "majority"


class Genotype(TypedDict):
    """Genotype reconstruction."""

    split: SplitName
    people: int
    rows: list[GenotypeRow]


class InferenceRow(TypedDict):
    """Weighted accuracy of genotypes from other modalities."""

    inputs: str  # "G+P+I" | "P+I" | "P" | "I"
    chromosome: int
    weighted_accuracy: float


class GenotypeInference(TypedDict):
    """Cross-modal genotype inference (supplementary figure 10)."""

    split: SplitName
    people: int
    rows: list[InferenceRow]


class AreaEntry(TypedDict):
    """`pm1_core.evaluation.cross_modal.AreaRow`."""

    target: str
    label: str
    inputs: InputsName
    auc: float
    low: float
    high: float
    cases: int
    controls: int


class DifferenceEntry(TypedDict):
    """`pm1_core.evaluation.cross_modal.DifferenceRow`."""

    target: str
    label: str
    inputs: InputsName
    versus: InputsName
    difference: float
    low: float
    high: float
    p: float
    p_holm: float


class OmittedEntry(TypedDict):
    """`pm1_core.evaluation.cross_modal.OmittedRow`."""

    target: str
    label: str
    cases: int
    controls: int


class Prevalence(TypedDict):
    """Share of people with a disease: in the population that is imitated, and in the cohort."""

    population: float
    cohort: float


class Diseases(TypedDict):
    """`CrossModalTable.to_json()` plus what a reader must know of the people."""

    split: SplitName
    rows: list[AreaEntry]
    differences: list[DifferenceEntry]
    omitted: list[OmittedEntry]
    raised: NotRequired[dict[str, Prevalence]]  # label of a disease -> its prevalences


class MethodEntry(AreaEntry):
    """An area of a model trained in one way. `site` names who trained alone."""

    method: Literal["federated", "pooled", "alone"]
    site: NotRequired[str]


class Methods(TypedDict):
    """Federated beside pooled beside each site alone, all on the same test people."""

    phase: str  # "fusion"
    rows: list[MethodEntry]


class RecallEntry(TypedDict):
    """`pm1_core.evaluation.probe.Recall`."""

    recall: float
    low: float
    high: float
    people: int


class ProbeEntry(TypedDict):
    """`Probe.to_json()` under the name of what was probed."""

    representation: str
    balanced_accuracy: float
    accuracy: float
    recalls: dict[str, RecallEntry]
    strength: float
    chosen: bool
    dimensions: int
    train_people: int
    test_people: int


class Ancestry(TypedDict):
    """Ancestry probe; the first row is the fusion embedding, the others what it is compared with."""

    rows: list[ProbeEntry]


class LocusEntry(TypedDict):
    """`pm1_core.evaluation.association.Locus`."""

    chrom: int
    pos: int
    log10_p: float


class Pigmentation(TypedDict):
    """`Recovery.to_json()` and what the scan was. The Manhattan plot comes from association.npz."""

    chrom: int
    pos: int
    log10_p: float
    rank: int
    snps: int
    region_rank: int
    lead: LocusEntry
    lead_r2: float
    genome_wide: bool
    name: str  # the planted SNP's identifier
    inflation: float
    people: int
    components: int  # principal components of the embedding
    covariates: list[str]


class LocatedEntry(TypedDict):
    """Photographs of one site."""

    site: str
    located: int
    total: int


class Photographs(TypedDict):
    """Retinas found in photographs. Pictures come from sample_photographs/index.json."""

    sites: list[LocatedEntry]


class RepeatEntry(TypedDict):
    """One figure per split key, for one representation or method at one site."""

    name: str  # "trained" | "untrained" | "principal components" | "federated" | "pooled logistic regression"
    values: list[float]
    site: NotRequired[str]
    dimensions: NotRequired[int]


class Repeats(TypedDict):
    """The same evaluation under several split keys. margin: how far below the reference it may stay."""

    keys: list[str]
    rows: list[RepeatEntry]
    reference: str  # name of the row that the first is held against
    absent: NotRequired[list[str]]  # sites that had no figure under some key
    margin: float


class Results(TypedDict, total=False):
    """results.json. Everything but `run` is optional: a section is shown when its data are here."""

    run: Required[RunHeader]
    genotype: Genotype
    genotype_inference: GenotypeInference
    diseases: Diseases
    methods: Methods
    ancestry: Ancestry
    pigmentation: Pigmentation
    photographs: Photographs
    superpopulation: Repeats
    heart_disease: Repeats
    notes: list[str]


class SamplePhotograph(TypedDict):
    """One entry of sample_photographs/index.json. Files are relative to that folder."""

    crop: str
    site: str
    eye: str
    original: NotRequired[str]
    box: NotRequired[list[float]]  # left, top, width, height in pixels of the original
    label: NotRequired[str]
