"""From a composed configuration (plain dicts) to a study: which phase gets which parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import strategies
from pm1_core.errors import ConfigError
from pm1_core.gates import Gates
from pm1_core.privacy.accounting import Epsilon
from pm1_core.training.adapters import pin_base
from pm1_core.training.tasks import TASKS, allowed_tasks, task_class
from pm1_core.validate import refusal, require_choice
from server.privacy_plan import NO_PRIVACY, public_phase, with_record_terms
from server.secure_plan import with_site_terms
from server.secure_study import secure_of, secure_phases
from server.study import Phase, Study, expand

ENCODERS = {"genotype": "latent", "phenotype": "latent", "fundus": "width"}
"""Trained encoders, and the key of their sizes that is the width of their tokens."""

UNITS = ("none", "record", "site")
_OF_PEOPLE = ("max_auc_fall", "min_group_auc", "min_people", "max_loss_rise")
"""Gates that are held against figures on people at the sites, or their number."""


def build_study(config: Mapping[str, Any]) -> Study:
    """The study that `config` describes (the keys of configs.schema.Study).

    Every phase gets its part's sizes under "model" and its training under "loop"; tokens and fusion also get
    the sizes of the encoders whose tokens they read. A strategy that needs more sites than a training phase asks
    for raises that phase's "min_sites": a round waits for them before anybody trains. Raises ConfigError on a
    value out of bounds.
    """
    model = {**config["model"], "fusion": fusion_model(config)}
    if model["fundus"]["base"] and not model["fundus"]["base_sha256"]:
        model["fundus"] = pin_base(model["fundus"])
    encoders = {part: model[part] for part in ENCODERS}
    widths = {part: model["fusion"][f"{part}_width"] for part in ENCODERS}
    strategy = strategies.build(config["strategy"])
    phases: dict[str, dict[str, Any]] = {}
    for name, given in config["study"]["phases"].items():
        phase = public_phase(given, config["privacy"])
        objective, chromosomes = phase.pop("objective"), phase.pop("chromosomes")
        phase["loop"] = {**phase["loop"], "device": config["site"]["device"]}
        task = phase["task"]
        cls = task_class(task, allowed_tasks(config["site"].get("tasks", ())), f"phase {name!r}, task")
        if cls.aggregation == "mean":
            phase["min_sites"] = max(phase["min_sites"], strategy.fewest_sites)
        phase |= own_parameters(name, given)
        phase.pop("parameters", None)
        if task == "genotype":
            phase["chromosomes"] = chromosomes
        if task in model:
            phase["model"] = model[task]
        if task in ("tokens", "fusion"):
            phase["encoders"] = encoders
        if task == "tokens" or phase.get("kind") == "tokens":
            phase["widths"] = widths
        if task == "fusion":
            phase["objective"] = objective
        if task in ("statistics", "tokens", "reference"):
            phase.pop("loop")
        phases[name] = phase
    secure = secure_of(config, strategy)
    planned, epsilon = with_privacy(secure_phases(expand(phases), secure), config, secure)
    return Study(
        name=config["study"]["name"],
        seed=config["seed"],
        phases=planned,
        strategy=strategy.options(),
        timeout=config["timeout"],
        gather=config["gather"],
        grace=config["grace"],
        norm_limit=0.0 if secure else config["norm_limit"],
        encoding=config["encoding"],
        privacy=f"differential privacy: {epsilon}" if epsilon else NO_PRIVACY,
        gates=_gates(config, private=epsilon is not None),
        start_from=config["start_from"],
        secure=secure,
        guarantee=_figures(epsilon, config["privacy"]),
    )


def with_privacy(
    phases: tuple[Phase, ...], config: Mapping[str, Any], secure: Mapping[str, Any]
) -> tuple[tuple[Phase, ...], Epsilon | None]:
    """The phases under the study's guarantee, and what it is. Raises ConfigError if it cannot be kept."""
    privacy = config["privacy"]
    unit = require_choice("key 'privacy.unit'", privacy["unit"], UNITS, ConfigError)
    if unit == "none":
        if privacy["epsilon"] is not None:
            remedy = "choose privacy=record, or leave epsilon out"
            raise ConfigError(refusal("key 'privacy.epsilon'", "privacy.unit is none", remedy))
        return phases, None
    allowed = allowed_tasks(config["site"].get("tasks", ()))
    if unit == "site":
        return with_site_terms(phases, privacy, secure, allowed)
    return with_record_terms(phases, privacy, config["seed"], allowed)


def _gates(config: Mapping[str, Any], private: bool) -> Gates:
    """The gates; of those that need figures from people at sites, a private study has none.

    Raises ConfigError if one of them was given another bound than the default, as if it could be held.
    """
    gates = Gates(**config["gates"])
    if not private:
        return gates
    usual = Gates()
    for name in _OF_PEOPLE:
        value = getattr(gates, name)
        if value is not None and value != getattr(usual, name):
            found, remedy = f"found {value}; nobody pays for such figures", "use null, and evaluate elsewhere"
            raise ConfigError(refusal(f"key 'gates.{name}', with privacy", found, remedy))
    off: dict[str, Any] = dict.fromkeys(_OF_PEOPLE)
    return replace(gates, **off)


def _figures(epsilon: Epsilon | None, privacy: Mapping[str, Any]) -> dict[str, Any]:
    """An epsilon with all that it depends on."""
    if epsilon is None:
        return {}
    return {
        "budget": float(privacy["epsilon"]),
        "epsilon": epsilon.value,
        "delta": epsilon.delta,
        "unit": epsilon.unit,
        "accountant": epsilon.accountant,
    }


def own_parameters(name: str, phase: Mapping[str, Any]) -> Mapping[str, Any]:
    """The parameters of a task that an installed package offers; none for a task of PM1's own.

    Raises ConfigError if the latter has some, or if a parameter is called like a key that every phase has.
    """
    where = f"key 'study.phases.{name}.parameters'"
    parameters: Mapping[str, Any] = phase.get("parameters", {})
    if parameters and phase["task"] in TASKS:
        remedy = f"task {phase['task']!r} is PM1's own: use the keys beside it, loop for one"
        raise ConfigError(refusal(where, f"found {', '.join(parameters)}", remedy))
    for key in parameters:
        if key in phase:
            raise ConfigError(refusal(where, f"found {key!r}", "write that one level higher"))
    return parameters


def fusion_model(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fusion transformer's sizes; a modality whose encoder no phase trains has tokens of width 1.

    A study that starts from a release has its encoders from there. Raises ConfigError if a token width is not
    that of its encoder.
    """
    model, tasks = config["model"], {phase["task"] for phase in config["study"]["phases"].values()}
    sizes = dict(model["fusion"])
    for part, key in ENCODERS.items():
        wanted, found = model[part][key], sizes[f"{part}_width"]
        if wanted != found:
            raise ConfigError(
                refusal(
                    f"key 'model.fusion.{part}_width'", f"found {found}", f"use model.{part}.{key} = {wanted}"
                )
            )
        if part not in tasks and not config.get("start_from"):
            sizes[f"{part}_width"] = 1
    return sizes
