"""Composes the groups with overrides, and turns every refusal of Hydra and OmegaConf into one sentence."""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import resources
from typing import Any

from hydra import compose, initialize_config_module
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

import strategies
from configs import schema
from pm1_core.errors import ConfigError
from pm1_core.model.fusion_objectives import FusionObjective
from pm1_core.training.loop import LoopConfig
from pm1_core.training.machine import Machine
from pm1_core.validate import refusal

_BESIDE_PHASES = {"shares": ("counts",)}
"""What keys that go by phases have beside them."""

GROUPS = ("study", "model", "strategy", "privacy", "aggregation", "site")


def load(name: str, overrides: Sequence[str]) -> dict[str, Any]:
    """The composed configuration `name` (a key of schema.ROOTS) as plain dicts and lists.

    Raises ConfigError naming the key and what it accepts.
    """
    schema.register()
    for override in overrides:
        if not re.match(r"^([~+]*[\w./@]+=|~[\w./@]+$)", override):
            raise ConfigError(refusal(f"argument {override!r}", "is no override", "write key=value"))
        _require_group(override)
    with initialize_config_module("configs", version_base="1.3"):
        phases, strategy = _chosen(overrides, name)
        for override in overrides:
            key = override.partition("=")[0].lstrip("+~")
            unknown = None if key in GROUPS else _unknown(key, schema.ROOTS[name], phases, strategy)
            if unknown:
                raise ConfigError(unknown)
        try:
            config = compose(name, overrides=list(overrides))
            content = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
        except (HydraException, OmegaConfBaseException) as error:
            raise _sentence(error, overrides, schema.ROOTS[name], strategy) from None
    checked = typing.cast(dict[str, Any], content)
    LoopConfig(device=checked["site"]["device"])
    Machine.of(*(checked["site"][key] for key in ("batch_size", "precision", "processes", "cache")))
    for part, core in schema.PARTS.items() if "model" in checked else ():
        schema.frozen(core, checked["model"][part])
    for phase in checked["study"]["phases"].values() if "study" in checked else ():
        schema.frozen(LoopConfig, phase["loop"])
        schema.frozen(FusionObjective, phase["objective"])
    if "strategy" in checked:
        strategies.build(checked["strategy"])
    return checked


def to_yaml(content: dict[str, Any]) -> str:
    """The resolved configuration as YAML."""
    return OmegaConf.to_yaml(DictConfig(content), sort_keys=False)


def choices(group: str) -> list[str]:
    """What a group may be set to: its files, and the strategies that are found by name."""
    folder = resources.files("configs") / group
    files = [file.name for file in folder.iterdir()] if folder.is_dir() else []
    named = strategies.STRATEGIES if group == "strategy" else ()
    return sorted({*named, *(file.removesuffix(".yaml") for file in files if file.endswith(".yaml"))})


def _require_group(override: str) -> None:
    key, _, value = override.partition("=")
    name = key.lstrip("+~")
    if name in GROUPS and not key.startswith("~") and value not in choices(name):
        near = get_close_matches(value, choices(name), n=1)
        hint = f"did you mean {near[0]!r}? accepted" if near else "accepted"
        raise ConfigError(refusal(f"key {name!r}", f"found {value!r}", f"{hint}: {', '.join(choices(name))}"))


def _sentence(error: Exception, overrides: Sequence[str], root: type, strategy: type) -> ConfigError:
    text = str(error.__cause__ or error)
    full = re.search(r"full_key: (\S+)", text)
    key = full.group(1) if full else next((o.split("=")[0] for o in overrides if o.split("=")[0] in text), "")
    first = text.strip().splitlines()[0]
    if "Missing mandatory value" in first:
        return ConfigError(refusal(f"key {key!r}", "it is not set", f"give it as {key}=..."))
    if not key and len(overrides) == 1:
        return ConfigError(refusal(f"argument {overrides[0]!r}", first, "mend its value"))
    where = f"key {key!r}" if key else "configuration"
    kind = _type_of(key, root, strategy)
    return ConfigError(refusal(where, first, f"give {kind}" if kind else "see --help for the keys"))


def _unknown(key: str, root: type, phases: Sequence[str], strategy: type) -> str | None:
    """A refusal if `key` leads nowhere in the schema, naming what its last known level accepts."""
    node: Any = root
    walked: list[str] = []
    for piece in key.split("."):
        if typing.get_origin(node) is dict:
            names, below = [*phases, *_BESIDE_PHASES.get(walked[-1], ())], typing.get_args(node)[1]
            if below is Any:
                return None  # a free mapping: its reader knows its keys
        elif dataclasses.is_dataclass(node):
            names, below = [item.name for item in dataclasses.fields(node)], None
        else:
            return None
        if piece not in names:
            near = get_close_matches(piece, names, n=1)
            hint = f"did you mean {near[0]!r}? accepted" if near else "accepted"
            where = f"key {'.'.join([*walked, piece])!r}"
            return refusal(where, "there is no such key", f"{hint}: {', '.join(names)}")
        walked.append(piece)
        node = below or _below(node, piece, strategy)
    return None


def _below(node: Any, piece: str, strategy: type) -> Any:
    """The type of a field; that of the strategy is the chosen strategy's."""
    kind = typing.get_type_hints(node)[piece]
    return strategy if kind is schema.StrategyNode else kind


def _chosen(overrides: Sequence[str], name: str) -> tuple[list[str], type]:
    """Phases of the chosen study and node of the chosen strategy, without the override that went wrong."""
    chosen = [override for override in overrides if override.startswith(("study=", "strategy="))]
    try:
        config = compose(name, overrides=chosen)
        return list(config["study"]["phases"]), schema.strategy_nodes()[config["strategy"]["name"]]
    except (HydraException, OmegaConfBaseException, KeyError):
        return [], schema.StrategyNode


def _type_of(key: str, root: type, strategy: type) -> str:
    node: Any = root
    for piece in key.split(".") if key else []:
        if typing.get_origin(node) is dict:
            node = typing.get_args(node)[1]
            continue
        if not dataclasses.is_dataclass(node) or piece not in typing.get_type_hints(node):
            return ""
        node = _below(node, piece, strategy)
    names = {
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        str: "a text",
        list[str]: "a list of texts, [a,b]",
        Any: "+KEY=..., if the task reads it",
    }
    return names.get(node, "" if dataclasses.is_dataclass(node) else str(node)) if key else ""
