"""The grid of a sweep: every combination of the values that keys are given, each a configuration with a hash.

    epsilon=0.5,1,none strategy=fedavg,fedadam seed=1,2    ->    twelve cells

Values are Hydra's: the same parser and the same expansion that its multirun uses. `epsilon` and `unit` are the
sweep's own keys; they become `privacy`, `privacy.epsilon` and `aggregation` of a cell, because a cell without
privacy is composed from another group than one with it.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from configs import compose
from pm1_core.errors import ConfigError
from pm1_core.validate import refusal, require_choice
from simulations.sweep_code import code_digest

NO_PRIVACY = "none"
"""The value of `epsilon` of a cell without differential privacy."""
UNITS = ("record", "site")
AXES = ("strategy", "unit", "sites", "epsilon", "seed")
"""Columns of every table, the slowest first: cells that share their encoders are far from each other."""
SINGLE = ("name", "runs", "cohorts")
"""Keys that say where things lie."""
_OURS = ("epsilon", "unit")
_NUMBERS = ("sites", "seed")
_ELSEWHERE = {"privacy": "unit", "privacy.unit": "unit", "privacy.epsilon": "epsilon"}
_FIGURES = 1
"""Raised when a cell's figures come to mean something else: results of before are then computed again."""

DEFAULTS = (
    "name=sweep",
    "model=tiny",
    "strategy=fedavg",
    "unit=record",
    "sites=2",
    "epsilon=0.5,1,2,4,8,none",
    "seed=1,2,3",
    "people=2400",
    "test_people=300",
    "study.phases.genotype.chromosomes=[22]",
    "study.phases.genotype.loop.epochs=2",
    "study.phases.genotype.loop.optimiser.learning_rate=0.02",
    "study.phases.phenotype.rounds=10",
    "study.phases.phenotype.loop.epochs=2",
    "study.phases.fundus.rounds=2",
    "study.phases.fundus.loop.epochs=1",
    "study.phases.fusion.rounds=6",
    "study.phases.fusion.loop.epochs=1",
    "model.genotype.position_bias=true",
    "privacy.clip=0.2",
    "privacy.sample_rate=0.05",
    "privacy.people=600",
    "privacy.tokens=identity",
    "privacy.shares={statistics:0.05,genotype:0.35,phenotype:0.35,fundus:0.02,fusion:0.23}",
)
"""The default sweep, in the words of the command line: small enough for minutes, and a budget that buys something.

Signal over noise of private training goes with the number of people over the root of the number of sites and
with the share of the budget, hardly with rate or steps: hence few sites, one chromosome, and a clip near the
gradients' median norm. The terms under privacy.* are for the unit record; a site's cells take those of
privacy=site."""


@dataclass(frozen=True)
class Cell:
    """One combination.

    values: key -> text, for every key that the sweep sets, axes first; `config`: what they compose to
    hash: SHA-256 of what the cell's figures depend on
    """

    values: Mapping[str, str]
    config: Mapping[str, Any]
    hash: str

    @property
    def axes(self) -> dict[str, str]:
        """The cell's place in the grid, key -> text; without privacy there is no unit."""
        return {key: self.values[key] for key in AXES}

    @property
    def title(self) -> str:
        """The cell in one line."""
        return ", ".join(f"{key} {value}" for key, value in self.axes.items())


@dataclass(frozen=True)
class Sweep:
    """A whole grid.

    arguments: KEY=VALUE[,VALUE...] of every key, defaults included, in the order of the expansion
    folder: runs/NAME; cells: each configuration once
    """

    arguments: tuple[str, ...]
    folder: Path
    cells: tuple[Cell, ...]


def sweep_of(arguments: Sequence[str]) -> Sweep:
    """The grid of `arguments` over the defaults. Raises ConfigError on what is wrong with any cell of it."""
    given = _by_key([*DEFAULTS, *arguments])
    order = [*(key for key in AXES if key in given), *(key for key in given if key not in AXES)]
    whole = tuple(f"{key}={given[key]}" for key in order)
    combinations = expanded(whole)
    cells: dict[str, Cell] = {}
    for combination in combinations:
        cell = cell_of(combination)
        cells.setdefault(cell.hash, cell)
    for key in given:
        if key not in AXES and len({_by_key(combination)[key] for combination in combinations}) > 1:
            remedy = f"give it one value; a sweep goes over {', '.join(AXES)}"
            raise ConfigError(refusal(f"key {key!r}", f"found {given[key]!r}", remedy))
    first, *_ = cells.values()
    return Sweep(whole, folder_of(first.config), tuple(cells.values()))


def folder_of(config: Mapping[str, Any]) -> Path:
    """The folder of a sweep, runs/NAME. Raises ConfigError if the name is none."""
    if Path(config["name"]).name != config["name"] or config["name"].startswith("."):
        raise ConfigError(refusal("key 'name'", f"found {config['name']!r}", "use a plain folder name"))
    return Path(config["runs"]) / str(config["name"])


def expanded(arguments: Sequence[str]) -> list[list[str]]:
    """Every combination, each as KEY=VALUE of all keys, in Hydra's order: the first key is the slowest."""
    try:
        parsed = OverridesParser.create().parse_overrides(overrides=list(arguments))
        values = [
            [*item.sweep_string_iterator()] if item.is_sweep_override() else [item.get_value_element_as_str()]
            for item in parsed
        ]
    except HydraException as error:
        found = str(error).strip().splitlines()[0]
        raise ConfigError(refusal("arguments", found, "write KEY=VALUE[,VALUE...]")) from None
    keys = [item.get_key_element() for item in parsed]
    return [[f"{k}={v}" for k, v in zip(keys, chosen, strict=True)] for chosen in itertools.product(*values)]


def cell_of(combination: Sequence[str]) -> Cell:
    """The cell of one combination. Raises ConfigError if it composes to no configuration."""
    values = _by_key(combination)
    epsilon = values["epsilon"]
    if epsilon == NO_PRIVACY:
        values["unit"] = NO_PRIVACY  # whose privacy it is not makes no difference: one cell
        terms = ["privacy=none"]
    else:
        unit = require_choice("key 'unit'", values["unit"], UNITS, ConfigError)
        terms = [f"privacy={unit}"]
        terms += ["aggregation=secure"] if unit == "site" and "aggregation" not in values else []
    rest = [
        f"{key}={value}"
        for key, value in values.items()
        if key not in (*_OURS, *_NUMBERS) and not (key.startswith("privacy.") and _idle(values, key))
    ]
    config = copy.deepcopy(_composed((*terms, *rest)))
    config |= {key: _number(key, values[key], int) for key in _NUMBERS}
    if epsilon != NO_PRIVACY:
        config["privacy"]["epsilon"] = _number("epsilon", epsilon, float)
    kept = {key: value for key, value in config.items() if key not in (*SINGLE, "resume", "workers")}
    text = json.dumps({"figures": _FIGURES, "code": code_digest(), "config": kept}, sort_keys=True)
    return Cell(values, config, hashlib.sha256(text.encode()).hexdigest())


def _idle(values: Mapping[str, str], key: str) -> bool:
    """Whether a term of privacy says nothing to a cell: it has no privacy, or a default is of the other unit."""
    usual = _by_key(DEFAULTS)
    return values["unit"] == NO_PRIVACY or (values["unit"] == "site" and values[key] == usual.get(key))


@lru_cache(maxsize=64)
def _composed(overrides: tuple[str, ...]) -> dict[str, Any]:
    """Composing takes a second, and the cells of a grid differ in numbers mostly."""
    return compose.load("simulation", overrides)


def _number(key: str, text: str, kind: type[int] | type[float]) -> int | float:
    try:
        return kind(text)
    except ValueError:
        wanted = "a whole number" if kind is int else f"a number above 0, or {NO_PRIVACY}"
        raise ConfigError(refusal(f"key {key!r}", f"found {text!r}", f"use {wanted}")) from None


def _by_key(arguments: Sequence[str]) -> dict[str, str]:
    """KEY=VALUE as key -> value, the last one of a key; raises ConfigError on keys that a sweep does not take."""
    values: dict[str, str] = {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals or not key or key[0] in "+~":
            raise ConfigError(
                refusal(f"argument {argument!r}", "is no KEY=VALUE", "write KEY=VALUE[,VALUE...]")
            )
        if key in _ELSEWHERE:
            remedy = f"sweeps say it with {_ELSEWHERE[key]}=..."
            raise ConfigError(refusal(f"argument {argument!r}", "is not a key of a sweep", remedy))
        if key == "resume":
            remedy = "run the same command again: cells that are done stay as they are"
            raise ConfigError(refusal(f"argument {argument!r}", "is not a key of a sweep", remedy))
        values[key] = value
    return values
