"""docs/paper.md against configuration and code: every key that it names is there, with the value that it names."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml

from configs import compose
from pm1_core.data.builds import LENGTHS
from pm1_core.model.counts import genotype_parameters, parameter_counts
from pm1_core.model.genotype_vae import GenotypeVAEConfig
from server.configure import build_study

REPOSITORY = Path(__file__).parent.parent
PAGE = (REPOSITORY / "docs" / "paper.md").read_text()
SHORT = {"G": "genotype", "P": "phenotype", "I": "fundus", "F": "fusion"}
ROW = re.compile(r"^\| (?P<what>.+) \| `(?P<key>[^`]+)` \| (`(?P<value>[^`]+)` )?\|$", re.MULTILINE)
ROWS = [match.groupdict() for match in ROW.finditer(PAGE)]
VARIANTS, FEATURES = 658_720, 3_421


@cache
def configuration() -> dict[str, Any]:
    return compose.load("simulation", ["study=paper"])


def found(key: str) -> Any:
    """What a key of the configuration is set to, or what a name of the code is bound to."""
    if key.startswith("pm1_core."):
        module, _, name = key.partition(":")
        return getattr(import_module(module), name) if name else import_module(module)
    first, _, rest = key.partition(".")
    value: Any = configuration()
    for piece in (f"study.phases.{SHORT[first]}.{rest}" if first in SHORT else key).split("."):
        assert piece in value, f"{key}: there is no {piece!r}"
        value = value[piece]
    return value


def number(value: Any) -> Any:
    """YAML reads 1e-6 without a dot as a text."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def test_the_tables_have_as_many_rows_as_are_read() -> None:
    lines = [line for line in PAGE.splitlines() if line.startswith("| ") and "`" in line]
    counts = ("| fusion transformer, without", "| with one (`true`)")
    assert len(ROWS) == sum(not line.startswith(counts) for line in lines)
    assert len(ROWS) > 100


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['key']}: {row['what'][:40]}")
def test_what_the_table_names_is_there_and_has_the_value_named(row: dict[str, Any]) -> None:
    value = found(row["key"])
    if row["value"] is None:
        assert row["key"].startswith("pm1_core."), "a key without a value"
        return
    wanted = number(yaml.safe_load(row["value"]))
    wanted = [number(item) for item in wanted] if isinstance(wanted, list) else wanted
    assert (list(value) if isinstance(value, tuple) else value) == wanted


def leaves(value: Any, path: str = "") -> Iterator[str]:
    """Keys of a nested mapping, with dots."""
    if not isinstance(value, dict):
        yield path
        return
    for key, item in value.items():
        yield from leaves(item, f"{path}.{key}" if path else key)


def test_every_number_of_the_model_and_of_its_training_is_in_the_tables() -> None:
    told = {row["key"] for row in ROWS}
    model = {f"model.{key}" for key in leaves(configuration()["model"])}
    study = yaml.safe_load((REPOSITORY / "configs/study/paper.yaml").read_text())
    phases = {f"{short}.{key}" for short, name in SHORT.items() for key in leaves(study["phases"][name])}
    # A size's name, a phase's task, and the hash of a base that a site has.
    untold = {"model.size", "model.fundus.base_sha256", *(f"{short}.task" for short in SHORT)}
    assert not sorted((model | phases) - told - untold)


def test_the_study_builds_with_the_papers_rounds_and_patience() -> None:
    study = build_study(compose.load("server", ["study=paper"]))
    phases = {phase.name: phase for phase in study.phases}
    assert [phases[f"genotype.{c}"].patience for c in (1, 22)] == [5, 5]
    assert phases["fusion"].rounds == 25
    assert phases["fusion"].parameters["model"]["width"] == 2048


def test_parameters_on_the_meta_device_are_those_of_the_page() -> None:
    lengths = LENGTHS["GRCh37"]
    snps = {c: round(VARIANTS * length / sum(lengths)) for c, length in enumerate(lengths, 1)}
    model = {
        part: compose.schema.frozen(core, configuration()["model"][part])
        for part, core in compose.schema.PARTS.items()
    }
    counts = parameter_counts(**model, chromosomes=snps, features=FEATURES)
    assert counts["fusion"] == 1_095_502_848
    assert counts["phenotype"] == 76_099_959
    assert counts["fundus.lora"] == 1_179_648
    for part in ("fusion", "phenotype", "fundus", "fundus.lora"):
        assert f"| {counts[part]:,} |" in PAGE
    config = GenotypeVAEConfig()
    for c, count in snps.items():
        made = counts[f"genotype.{c}"]
        assert made == 6209 * config.padded(count) + 165_771 == genotype_parameters(config, count)
        assert f"| {c} | {count:,} | {config.padded(count):,} | {made:,} |" in PAGE
    whole = sum(value for part, value in counts.items() if part.startswith("genotype."))
    assert f"{whole:,} parameters" in PAGE
