"""A study: what is trained, in which order, with which parameters. Plain data, checked once."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import strategies
from pm1_core.encoding import ENCODINGS
from pm1_core.errors import ConfigError
from pm1_core.fields import CHROMOSOMES
from pm1_core.gates import Gates
from pm1_core.proposal import study_hash
from pm1_core.training.order import Order
from pm1_core.training.tasks import require_known
from pm1_core.validate import refusal, require_choice, require_range


@dataclass(frozen=True)
class Phase:
    """One step of a study, ended by an evaluation.

    name: "genotype.22"; task: built in, or of an installed package; rounds: federated rounds
    min_sites, min_share: a round in which fewer sites answer, or sites with less than this share of the people
        of all sites that have the phase's modalities, ends the study with a sentence
    parameters: the task's own ("model", "loop", "chromosome", ...)
    privacy: the guarantee under which sites answer, see pm1_core.privacy.terms; {} for none
    patience: rounds without a better validation loss after which the phase ends, see server.patience; 0 for never
    """

    name: str
    task: str
    rounds: int
    min_sites: int = 1
    parameters: Mapping[str, Any] = field(default_factory=dict)
    min_share: float = 0.0
    privacy: Mapping[str, Any] = field(default_factory=dict)
    patience: int = 0

    def __post_init__(self) -> None:
        require_known(f"phase {self.name!r}, task", self.task)
        require_range(f"phase {self.name!r}, rounds", self.rounds, 1, error=ConfigError)
        require_range(f"phase {self.name!r}, min_sites", self.min_sites, 1, error=ConfigError)
        require_range(f"phase {self.name!r}, min_share", self.min_share, 0, 1, ConfigError)
        require_range(f"phase {self.name!r}, patience", self.patience, 0, error=ConfigError)
        if self.patience and self.privacy:
            found = (
                f"found {self.patience}, under differential privacy, where no validation loss leaves a site"
            )
            remedy = "use patience=0, and as many rounds as the budget is for"
            raise ConfigError(refusal(f"phase {self.name!r}, patience", found, remedy))


@dataclass(frozen=True)
class Study:
    """A list of phases under one seed.

    strategy: {"name": ..., its options}, see strategies.build; of training phases: statistics are always summed
    timeout: seconds that a round waits for answers at most
    gather: seconds that a round waits for enough sites to be connected before it begins
    grace: seconds that a round goes on waiting for the others once enough have answered; None waits for all
    norm_limit: an update is refused if it moves the model by more than this many times what the others do, see
        server.updates; 0 refuses none for its norm
    encoding: how updates travel, see pm1_core.encoding
    privacy: the guarantee in words, for manifests and reports
    gates: what a checkpoint has to keep before it may be released
    start_from: hash of the released checkpoint of another run that this one starts from; "" starts afresh
    secure: how sums over sites are formed without opening an update; {} sends updates in the clear
    guarantee: {"epsilon", "accountant", "delta", "unit"} of all releases of the study at a site, and the "budget"
        that was asked for; {} for none
    """

    name: str
    seed: int
    phases: tuple[Phase, ...]
    strategy: Mapping[str, Any] = field(default_factory=lambda: {"name": "fedavg"})
    timeout: float = 3600.0
    privacy: str = "no differential privacy"
    gather: float = 600.0
    grace: float | None = None
    norm_limit: float = 10.0
    encoding: str = "full"
    gates: Gates = field(default_factory=Gates)
    start_from: str = ""
    secure: Mapping[str, Any] = field(default_factory=dict)
    guarantee: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require_choice(f"study {self.name!r}, encoding", self.encoding, ENCODINGS, ConfigError)
        strategies.build(self.strategy)
        if not self.phases:
            raise ConfigError(refusal(f"study {self.name!r}", "found no phase", "name at least one phase"))
        names = [phase.name for phase in self.phases]
        for name in names:
            if names.count(name) > 1:
                raise ConfigError(
                    refusal(f"study {self.name!r}", f"phase {name!r} stands twice", "rename one")
                )

    @property
    def hash(self) -> str:
        """SHA-256 of the resolved study, see `pm1_core.proposal.study_hash`."""
        return study_hash(asdict(self))

    def order(self, phase: Phase, round_number: int) -> Order:
        """The order for one round of `phase`."""
        method = strategies.build(self.strategy).method()
        return Order(
            phase.name,
            phase.task,
            round_number,
            phase.rounds,
            self.seed,
            phase.parameters,
            method,
            self.encoding,
            phase.privacy,
            self.secure,
        )

    @property
    def unprotected(self) -> Study:
        """The same study without privacy, which no site that has a ledger answers: what privacy is held against."""
        phases = tuple(replace(phase, privacy={}) for phase in self.phases)
        return replace(self, phases=phases, secure={}, guarantee={}, privacy="no differential privacy")

    def to_json(self) -> str:
        """Text with sorted keys."""
        return json.dumps(asdict(self), sort_keys=True)

    @staticmethod
    def from_json(text: str) -> Study:
        """Read what `to_json` wrote."""
        content = json.loads(text)
        phases = tuple(Phase(**phase) for phase in content.pop("phases"))
        gates = Gates(**content.pop("gates", {}))
        return Study(**content, phases=phases, gates=gates)


def expand(phases: Mapping[str, Mapping[str, Any]]) -> tuple[Phase, ...]:
    """Phases as configured, the one of task "genotype" once per chromosome.

    A mapping name -> {task, rounds, min_sites, min_share, patience, chromosomes, ...}; whatever is not a field of
    Phase becomes a parameter of the task.
    """
    own = ("task", "rounds", "min_sites", "min_share", "patience")
    expanded: list[Phase] = []
    for name, given in phases.items():
        rest = dict(given)
        fixed = {key: rest.pop(key) for key in own if key in rest}
        if fixed.get("task") != "genotype":
            expanded.append(Phase(name=name, **fixed, parameters=rest))
            continue
        for chromosome in rest.pop("chromosomes", None) or CHROMOSOMES:
            require_range(f"phase {name!r}, chromosomes", chromosome, 1, 22, ConfigError)
            parameters = {**rest, "chromosome": chromosome}
            expanded.append(Phase(name=f"{name}.{chromosome}", **fixed, parameters=parameters))
    return tuple(expanded)
