"""The configuration's schema: what keys there are, of which type, with which defaults.

Sizes and optimisers are not written down twice: `editable` makes an OmegaConf node of a frozen dataclass of
pm1_core or strategies, field by field, and `frozen` turns a composed node back into it, which checks the bounds.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from dataclasses import dataclass, field
from typing import Any, TypeVar

from hydra.core.config_store import ConfigStore

from pm1_core.gates import Gates
from pm1_core.model.fundus_encoder import FundusEncoderConfig
from pm1_core.model.fusion import FusionConfig
from pm1_core.model.fusion_objectives import FusionObjective
from pm1_core.model.genotype_vae import GenotypeVAEConfig
from pm1_core.model.phenotype_autoencoder import PhenotypeAutoencoderConfig
from pm1_core.training.loop import LoopConfig
from pm1_core.training.optimisers import OptimiserConfig
from strategies import STRATEGIES

T = TypeVar("T")


def editable(core: type, **first: str) -> type:
    """A mutable dataclass with the fields and defaults of `core`: OmegaConf makes frozen ones read-only.

    first: texts that come before the fields of `core`, with their defaults
    """
    hints = typing.get_type_hints(core)
    fields: list[tuple[str, Any, Any]] = [(key, str, field(default=value)) for key, value in first.items()]
    for item in dataclasses.fields(core):
        kind: Any = hints[item.name]
        if dataclasses.is_dataclass(kind) and isinstance(kind, type):
            kind = editable(kind)
            fields.append((item.name, kind, field(default_factory=kind)))
        elif typing.get_origin(kind) is tuple:
            default = [*typing.cast(tuple[Any, ...], item.default)]
            inner = typing.get_args(kind)[0]
            fields.append((item.name, types.GenericAlias(list, inner), field(default_factory=default.copy)))
        else:
            fields.append((item.name, kind, field(default=item.default)))
    return dataclasses.make_dataclass(core.__name__, fields)


def frozen(core: type[T], values: dict[str, Any]) -> T:
    """An instance of `core` from a composed node. Raises ConfigError on a value out of bounds."""
    hints = typing.get_type_hints(core)
    given: dict[str, Any] = {}
    for name, value in values.items():
        kind = hints[name]
        if dataclasses.is_dataclass(kind) and isinstance(kind, type):
            given[name] = frozen(kind, value)
        else:
            given[name] = tuple(value) if isinstance(value, list) else value
    return core(**given)


PARTS: dict[str, type] = {
    "genotype": GenotypeVAEConfig,
    "phenotype": PhenotypeAutoencoderConfig,
    "fundus": FundusEncoderConfig,
    "fusion": FusionConfig,
}

Optimiser = editable(OptimiserConfig)
Loop = editable(LoopConfig)
Objective = editable(FusionObjective)
GenotypeModel = editable(GenotypeVAEConfig)
PhenotypeModel = editable(PhenotypeAutoencoderConfig)
FundusModel = editable(FundusEncoderConfig)
FusionModel = editable(FusionConfig)
GatesNode = editable(Gates)


@dataclass
class PhaseNode:
    """One phase of a study.

    task: statistics, genotype, phenotype, fundus, tokens or fusion, or what an installed package offers
    rounds: federated rounds
    min_sites, min_share: fewer sites, or sites with a smaller share of the people, end the study with a sentence
    patience: end after so many rounds without a better validation loss, on the best model; 0 runs all rounds
    chromosomes: of a genotype phase; empty takes all 22, each a phase of its own
    parameters: of a task that an installed package offers, whatever that task reads
    """

    task: str = "???"
    rounds: int = 1
    min_sites: int = 1
    min_share: float = 0.0
    patience: int = 0
    chromosomes: list[int] = field(default_factory=list)
    parameters: dict[str, Any] = field(default_factory=dict)
    loop: Loop = field(default_factory=Loop)  # type: ignore[valid-type]
    objective: Objective = field(default_factory=Objective)  # type: ignore[valid-type]


@dataclass
class StudyNode:
    """A study: a scenario that makes its data in simulations, and phases in the order in which they run."""

    name: str = "???"
    scenario: str = "ukb_eyepacs"
    phases: dict[str, PhaseNode] = field(default_factory=dict)


@dataclass
class ModelNode:
    """Sizes of all parts."""

    size: str = "???"
    genotype: GenotypeModel = field(default_factory=GenotypeModel)  # type: ignore[valid-type]
    phenotype: PhenotypeModel = field(default_factory=PhenotypeModel)  # type: ignore[valid-type]
    fundus: FundusModel = field(default_factory=FundusModel)  # type: ignore[valid-type]
    fusion: FusionModel = field(default_factory=FusionModel)  # type: ignore[valid-type]


@dataclass
class StrategyNode:
    """How updates become one model: a name, and beside it the options of that strategy, see `strategy_nodes`."""

    name: str = "???"


@dataclass
class PrivacyNode:
    """The guarantee: `unit` none prints "no differential privacy" in report and manifests; docs/privacy.md.

    unit: none; record (adding or removing one person at a site); site (adding or removing a whole site)
    epsilon, delta: of all releases of the study together, at every site
    clip: L2 bound of a unit's gradient (record), or of all that a site's update changes (site)
    sample_rate: chance that a person, or a group, is in a step; an epoch is 1 / sample_rate steps
    group_size: people whom the fusion transformer's contrastive loss couples, on average; they are clipped together
    people: a public number that a step's gradient is divided by, in place of the site's own, which is not public
    weights: equal, or noised: sites weigh by counts that are paid for
    statistics: noised, or public: those of `reference`, a file that comes from people at no site
    tokens: noised, or identity: tokens are taken as they are, without standardisation
    shares: of the budget, by phase ("genotype" stands for all chromosomes; "counts" for noised weights)
    colluding: sites whose shares of the noise are not counted (site)
    """

    unit: str = "none"
    epsilon: float | None = None
    delta: float = 1e-5
    clip: float = 1.0
    sample_rate: float = 0.1
    group_size: int = 8
    people: int = 300
    weights: str = "equal"
    statistics: str = "noised"
    tokens: str = "noised"
    reference: str | None = None
    shares: dict[str, float] = field(default_factory=dict)
    colluding: int = 1


@dataclass
class AggregationNode:
    """How updates are added up: `clear`, or `secure`, where only sums are opened; docs/privacy.md.

    bits: of a word, 32 or 16; range: the largest change of one element that is not cut
    threshold: share of the sites that has to stay to the end of a round, above two thirds
    """

    mode: str = "clear"
    bits: int = 32
    range: float = 8.0
    threshold: float = 0.67


@dataclass
class SiteNode:
    """A site's own machine.

    threads: cores that one site's training uses; 0 leaves it to torch
    tasks: tasks of installed packages that may run here, by the names under which they are offered
    batch_size, precision: of this machine instead of the study's, TASK:VALUE,TASK:VALUE or a VALUE for all tasks
    processes: that share every batch, one on each GPU, given alike; "" is one
    cache: how tokens of the frozen encoders are kept: float32 ("" is that), bfloat16 in half the bytes, or off
    """

    device: str = "auto"
    threads: int = 1
    tasks: list[str] = field(default_factory=list)
    batch_size: str = ""
    precision: str = ""
    processes: str = ""
    cache: str = ""


@dataclass
class PretrainNode:
    """Central masked pre-training of a small fundus base on public photographs (needs public_photographs > 0).

    The analogue of RETFound's own pre-training, for studies that are given no base (model.fundus.base).
    epochs 0, the default, leaves a random start: minutes of pre-training did not beat it at size small.
    """

    epochs: int = 0
    batch_size: int = 64
    learning_rate: float = 1e-3


@dataclass
class AttackNode:
    """Of `pm1-sim attack`; docs/privacy.md.

    candidates: people among whom members are sought, half of them in training
    models: trained on random halves of them; each is attacked with the others as its shadows. 8 take some five
        minutes at size tiny on two cores; 16 make LiRA stronger and intervals narrower
    epochs: of each of them
    epsilons: guarantees beside which the unprotected model stands, at privacy.delta
    chromosome: whose auto-encoder is attacked
    canaries, audit_steps, audit_runs: of an audit, which reports the median of its runs
    """

    candidates: int = 200
    models: int = 8
    epochs: int = 60
    epsilons: list[float] = field(default_factory=lambda: [1.0, 4.0])
    chromosome: int = 22
    canaries: int = 10000
    audit_steps: int = 10
    audit_runs: int = 1


@dataclass
class SearchNode:
    """Of `pm1-sim search`; the defaults are the paper's space (appendix F.2).

    trials, epochs: at most; reduction_factor: of Hyperband, one in so many goes on
    learning_rate: from and to, log-uniform; depth: from and to; batch_size, momentum: choices
    """

    trials: int = 150
    epochs: int = 81
    reduction_factor: int = 3
    learning_rate: list[float] = field(default_factory=lambda: [1e-3, 1e-1])
    batch_size: list[int] = field(default_factory=lambda: [512, 1024, 2048])
    depth: list[int] = field(default_factory=lambda: [4, 9])
    momentum: list[float] = field(default_factory=lambda: [0.8, 0.9, 0.95])


@dataclass
class Study:
    """What every command composes: a study of phases, sizes, strategy, privacy and the site's machine.

    timeout, gather, grace: seconds that a round waits for answers, for enough sites to begin, and for the others
        once enough have answered (null waits for all)
    norm_limit: an update that moves the model this many times further than the others' is refused; 0 refuses none
    encoding: how updates travel: full, difference, bfloat16 or int8
    """

    study: StudyNode = field(default_factory=StudyNode)
    model: ModelNode = field(default_factory=ModelNode)
    strategy: StrategyNode = field(default_factory=StrategyNode)
    privacy: PrivacyNode = field(default_factory=PrivacyNode)
    aggregation: AggregationNode = field(default_factory=AggregationNode)
    site: SiteNode = field(default_factory=SiteNode)
    gates: GatesNode = field(default_factory=GatesNode)  # type: ignore[valid-type]
    seed: int = 42
    timeout: float = 3600.0
    gather: float = 600.0
    grace: float | None = None
    norm_limit: float = 10.0
    encoding: str = "full"
    start_from: str = ""


@dataclass
class Simulation(Study):
    """What `pm1-sim` composes on top.

    name: of the run, runs/NAME; resume: name of a run to continue
    sites: UK sites of the scenario (the eye-screening site comes on top); people: at all sites together
    test_people: held-out people of the same population, in no site's training
    public_photographs: unlabelled photographs of people at no site, for `pretrain`
    engine: in_process, or ray (Flower's own simulation)
    workers: sites that train at a time in this process; the numbers do not depend on it
    compare: also train the fusion phase on pooled data and at each site alone, for the report
    real_data: folder of the real data sets for study=real; default: the environment's PM1_REAL_DATA
    """

    name: str = ""
    resume: str | None = None
    gather: float = 0.0
    sites: int = 6
    people: int = 2000
    test_people: int = 1400
    public_photographs: int = 0
    engine: str = "in_process"
    workers: int = 2
    compare: bool = True
    baselines: bool = True
    runs: str = "runs"
    cohorts: str = "cohorts"
    real_data: str | None = None
    split_keys: int = 10
    pretrain: PretrainNode = field(default_factory=PretrainNode)
    attack: AttackNode = field(default_factory=AttackNode)
    search: SearchNode = field(default_factory=SearchNode)


@dataclass
class Site:
    """What `pm1-site` composes: the site's files and machine.

    manifest: the site's manifest; store: folder of the prepared store, by default `store` beside the manifest
    """

    site: SiteNode = field(default_factory=SiteNode)
    manifest: str = "???"
    store: str | None = None


ROOTS: dict[str, type] = {"simulation": Simulation, "server": Study, "client": Site}


def strategy_nodes() -> dict[str, type]:
    """For each strategy there is, a node with its name and its options."""
    nodes: dict[str, type] = {}
    for name, core in STRATEGIES.items():
        node = editable(core, name=name)
        nodes[name] = dataclasses.make_dataclass(core.__name__, [], bases=(node, StrategyNode))
    return nodes


def register() -> None:
    """Make the schema known to Hydra, and every strategy as a choice of its group."""
    store = ConfigStore.instance()
    for name, node in strategy_nodes().items():
        store.store(group="strategy", name=name, node=node)
    for name, root in ROOTS.items():
        store.store(name=f"{name}_schema", node=root)
