"""A strategy is added by one class in one file, and chosen by its name and options."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest
from folded import EVERY, fold, scalars

import strategies
from configs import compose
from pm1_core.errors import ConfigError
from strategies import registry
from strategies.registry import Registry, build

DOCUMENT = Path(__file__).parents[2] / "docs" / "strategies.md"
HALFWAY = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)[0]
"""The class that the document tells a researcher to write."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that counts as part of the package, and a registry that has not looked yet."""
    monkeypatch.setattr(strategies, "__path__", [*strategies.__path__, str(tmp_path)])
    monkeypatch.setattr(strategies.STRATEGIES, "_found", {})
    yield tmp_path
    for module in ("strategies.halfway", "strategies.other", "strategies.broken"):
        sys.modules.pop(module, None)


def offer(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    """An installed package that offers `value`."""
    point = EntryPoint("theirs", value, registry.GROUP)
    monkeypatch.setattr(registry, "entry_points", lambda group: [point] if group == registry.GROUP else [])


def test_all_that_the_package_promises_are_there() -> None:
    averaging = {
        "fedavg",
        "fedavgm",
        "fedprox",
        "fedadam",
        "fedyogi",
        "fedadagrad",
        "scaffold",
        "fedbn",
        "ditto",
    }
    assert set(EVERY) == averaging | {"trimmed_mean", "median", "krum", "bulyan"}


def test_a_file_of_its_own_is_all_that_a_new_strategy_takes(folder: Path) -> None:
    (folder / "halfway.py").write_text(HALFWAY)
    config = compose.load("server", ["strategy=halfway", "strategy.pull=0.25"])
    assert config["strategy"] == {"name": "halfway", "pull": 0.25}
    after = fold(build(config["strategy"]), {"w": np.zeros(1, np.float32)}, scalars({"a": 2.0, "b": 6.0}))
    assert after["w"][0] == 1.0
    with pytest.raises(ConfigError, match=r"'strategy.pull': found 2.0; use a number above 0 and at most 1"):
        compose.load("server", ["strategy=halfway", "strategy.pull=2"])


def test_an_installed_package_may_offer_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "halfway.py").write_text(HALFWAY.replace('"halfway"', "None"))
    site_packages = folder / "site-packages"
    site_packages.mkdir()
    (site_packages / "pm1_theirs.py").write_text(HALFWAY.replace('"halfway"', '"theirs"'))
    monkeypatch.syspath_prepend(str(site_packages))
    offer(monkeypatch, "pm1_theirs:Halfway")
    assert build({"name": "theirs", "pull": 1}).options() == {"name": "theirs", "pull": 1.0}
    assert "halfway" not in strategies.STRATEGIES


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ("nowhere:Missing", r"entry point 'nowhere:Missing' of pm1.strategies: cannot be imported"),
        ("json:loads", r"found <function loads.*; name a subclass of strategies.Strategy with a `name`"),
        ("strategies.summation:Summation", r"name a subclass of strategies.Strategy with a `name`"),
        ("strategies.fedavg:FedAvg", r"strategy 'fedavg' is also in strategies.fedavg; rename one"),
    ],
)
def test_what_a_package_offers_is_refused_with_a_sentence_if_it_is_none(
    value: str, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer(monkeypatch, value)
    with pytest.raises(ConfigError, match=sentence):
        list(Registry())


def test_a_file_that_cannot_be_imported_is_named(folder: Path) -> None:
    (folder / "broken.py").write_text("import nothing_of_this_name")
    with pytest.raises(ConfigError, match=r"strategies/broken.py: cannot be imported \(ModuleNotFoundError"):
        list(Registry())


def test_two_of_one_name_are_refused(folder: Path) -> None:
    (folder / "halfway.py").write_text(HALFWAY)
    (folder / "other.py").write_text(HALFWAY)
    with pytest.raises(
        ConfigError, match=r"strategies/other.py: strategy 'halfway' is also in strategies.halfway"
    ):
        list(Registry())


@pytest.mark.parametrize("name", EVERY)
def test_options_make_the_same_strategy_again(name: str) -> None:
    strategy = build({"name": name})
    assert build(strategy.options()) == strategy


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({}, r"key 'strategy.name': found None; accepted: bulyan, ditto"),
        ({"name": "fedadm"}, r"did you mean 'fedadam'"),
        ({"name": "fedavg", "mu": 1}, r"key 'strategy.mu': 'fedavg' has no such option; it takes no options"),
        ({"name": "fedprox", "m": 1}, r"key 'strategy.m': 'fedprox' has no such option; it takes mu"),
        ({"name": "fedprox", "mu": "x"}, r"key 'strategy.mu': found 'x'; give a number"),
        ({"name": "fedprox", "mu": True}, r"found True; give a number"),
        ({"name": "fedprox", "mu": float("nan")}, r"found nan; use a number of at least 0"),
        ({"name": "krum", "malicious": 1.0}, r"found 1.0; give a whole number"),
        ({"name": "krum", "select": 0}, r"found 0; use a number of at least 1"),
        ({"name": "fedbn", "local": "*"}, r"found '\*'; give a list, each a text"),
        ({"name": "fedbn", "local": [1]}, r"found 1; give a text"),
        ({"name": "fedyogi", "beta2": 1.0}, r"found 1.0; use a number of at least 0 and below 1"),
        ({"name": "ditto", "regularisation": -1.0}, r"found -1.0; use a number of at least 0"),
        ({"name": "fedadam", "tau": 0.0}, r"found 0.0; use a number above 0"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_is_accepted(given: dict, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        build(given)


@pytest.mark.parametrize(
    ("given", "method"),
    [
        ({"name": "fedavg"}, {}),
        ({"name": "fedprox", "mu": 0.1}, {"proximal": 0.1}),
        ({"name": "scaffold"}, {"control": True}),
        ({"name": "fedbn", "local": ["*norm*"]}, {"local": ["*norm*"]}),
        ({"name": "ditto", "regularisation": 0.5}, {"personal": 0.5}),
        ({"name": "krum"}, {}),
    ],
)
def test_what_sites_are_asked_for(given: dict, method: dict) -> None:
    assert build(given).method() == method


def test_local_tensors_are_those_whose_names_fit_a_pattern() -> None:
    strategy = build({"name": "fedbn", "local": ["*norm*", "fusion.head.?"]})
    names = ["fusion.0.attention_norm.weight", "fusion.head.1", "fusion.head.10", "fusion.cls"]
    assert [name for name in names if strategy.stays(name)] == names[:2]
    assert not any(build({"name": "fedavg"}).stays(name) for name in names)


def test_robust_rules_say_that_they_need_single_updates() -> None:
    hidden = {name for name, strategy in strategies.STRATEGIES.items() if not strategy.linear}
    assert hidden == {"median", "trimmed_mean", "krum", "bulyan"}
