"""`pm1-sim search`: hyperparameters of the phenotype auto-encoder by Hyperband (appendix F.2).

Li L et al. (2018) "Hyperband: a novel bandit-based approach to hyperparameter optimization", JMLR 18, as Optuna's
pruner has it: configurations are drawn at random, all begin with few epochs, and a third of each bracket goes on to
three times as many. Trials train on the pooled people of a scenario, without a federation, and are judged by the
loss on validation people.

    runs/NAME/search.json    every trial so far, and the keys that give the best one to a study

A trial's configuration follows from the seed and its number. So the same command, or resume=NAME, goes on after the
last trial that ended, and finds what it would have found without the interruption.
"""

from __future__ import annotations

import math
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pm1_core import atomic
from pm1_core.errors import ConfigError
from pm1_core.fields import Split
from pm1_core.training.local import train_locally
from pm1_core.training.order import Order, derived_seed
from pm1_core.training.parts import State
from pm1_core.training.tasks import build_task
from pm1_core.validate import refusal
from server.configure import build_study
from server.study import Phase, Study
from simulations.pooled import PooledStore
from simulations.progress import Stages
from simulations.request import Request
from simulations.run import run_folder
from simulations.search_space import distributions, require_space, row_of, trial_of
from simulations.workspace import simulated

if TYPE_CHECKING:
    import optuna

TASK = "phenotype"
REQUEST = Request("search-request.json", apart=("resume", "runs", "attack"))


def search(config: dict[str, Any], stages: Stages) -> dict[str, Any]:
    """Search the space `config["search"]` and return the content of RUN/search.json.

    {"trials": [{"learning_rate", "batch_size", "depth", "momentum", "state", "epochs", "loss", ...}, ...],
    "best": one of them, "overrides": [...]}. "loss" is the best one of validation, None if the trial diverged.

    Raises ConfigError if Optuna is not installed, the study has no phenotype phase, a bound is out of range, a
    search of the same name had another configuration, or every trial diverged.
    """
    if find_spec("optuna") is None:
        raise ConfigError(refusal("pm1-sim search", "found no Optuna", "pip install 'pm1[search]'"))
    config = {
        **config,
        "name": config["name"] or f"search-{config['study']['name']}-{config['model']['size']}",
    }
    folder = run_folder(config)
    config = REQUEST.settled(config, folder)
    space = config["search"]
    require_space(space)
    study = build_study(config).unprotected
    phase = _phase(study, TASK)
    if config["site"]["threads"]:
        torch.set_num_threads(config["site"]["threads"])
    with atomic.locked(folder / "lock", "wait until it has ended"):
        store = PooledStore(list(simulated(config, stages).open().values()))
        REQUEST.remember(config, folder)
        state = _statistics(study, store, folder / "statistics")
        work = _Work(space, phase, study.seed, store, state, folder / "trial")
        return _searched(work, folder / "search.json", stages)


@dataclass(frozen=True)
class _Work:
    """What every trial needs; `folder` is the disk of one at a time."""

    space: Mapping[str, Any]
    phase: Phase
    seed: int
    store: PooledStore
    state: State
    folder: Path

    def train(self, trial: optuna.Trial) -> float:
        """The best validation loss of one configuration, infinite if it diverges. Raises TrialPruned."""
        import optuna

        first = self._order(trial.number, trial.params)
        task = build_task(first, self.store.study)
        shutil.rmtree(self.folder, ignore_errors=True)  # of a trial that was interrupted
        self.folder.mkdir(parents=True)
        tensors, losses = task.initial(self.state, self.seed), []
        for epoch in range(1, self.space["epochs"] + 1):
            order = replace(first, round=epoch)
            tensors = task.train(self.store, order, self.state, tensors, self.folder).tensors
            figures = task.evaluate(self.store, order, self.state, tensors, self.folder, Split.VALIDATION)
            losses.append(figures["loss"] if math.isfinite(figures["loss"]) else math.inf)
            trial.report(losses[-1], epoch)
            if trial.should_prune() and epoch < self.space["epochs"]:
                raise optuna.TrialPruned
            if self.phase.patience and epoch - losses.index(min(losses)) > self.phase.patience:
                break
        return min(losses)

    def _order(self, number: int, chosen: Mapping[str, Any]) -> Order:
        """The first epoch's."""
        parameters = self.phase.parameters
        loop = parameters["loop"]
        optimiser = {**loop["optimiser"], **{key: chosen[key] for key in ("learning_rate", "momentum")}}
        loop = {**loop, "batch_size": chosen["batch_size"], "epochs": 1, "optimiser": optimiser}
        model = {**parameters["model"], "depth": chosen["depth"]}
        parameters = {**parameters, "loop": loop, "model": model}
        return Order(f"{self.phase.name}/{number}", TASK, 1, self.space["epochs"], self.seed, parameters)


def _searched(work: _Work, file: Path, stages: Stages) -> dict[str, Any]:
    """Run what is left of the trials, and write `file` after each of them."""
    import optuna

    space, rows = work.space, atomic.read_json(file)["trials"] if file.exists() else []
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with warnings.catch_warnings(), stages.stage("Hyperband") as step:
        warnings.simplefilter("ignore")  # parts of Optuna say of themselves that they are experimental
        # Which bracket a trial is in follows from its number and the name.
        pruner = optuna.pruners.HyperbandPruner(1, space["epochs"], space["reduction_factor"])
        trials = optuna.create_study(study_name=TASK, pruner=pruner)
        trials.add_trials([trial_of(row, space) for row in rows])
        for number in range(len(rows), space["trials"]):
            step(f"trial {number + 1}", number, space["trials"])
            seed = derived_seed(work.seed, "search", number) % 2**32
            trials.sampler = optuna.samplers.RandomSampler(seed)
            trial = trials.ask(distributions(space))
            try:
                trials.tell(trial, work.train(trial))
            except optuna.TrialPruned:
                trials.tell(trial, state=optuna.trial.TrialState.PRUNED)
            rows.append(row_of(trials.trials[number]))
            atomic.write_json(file, _outcome(rows, work.phase))
    shutil.rmtree(work.folder, ignore_errors=True)
    found: dict[str, Any] = atomic.read_json(file)
    if found["best"] is None:
        raise ConfigError(refusal("pm1-sim search", "every trial diverged", "lower search.learning_rate"))
    return found


def _outcome(rows: list[dict[str, Any]], phase: Phase) -> dict[str, Any]:
    """The content of search.json."""
    best = min((row for row in rows if row["loss"] is not None), key=lambda row: row["loss"], default=None)
    if best is None:
        return {"trials": rows, "best": None, "overrides": []}
    where = f"study.phases.{phase.name}.loop"
    overrides = [
        f"{where}.optimiser.learning_rate={best['learning_rate']:.6g}",
        f"{where}.batch_size={best['batch_size']}",
        f"{where}.optimiser.momentum={best['momentum']}",
        f"model.phenotype.depth={best['depth']}",
    ]
    return {"trials": rows, "best": best, "overrides": overrides}


def _phase(study: Study, task: str) -> Phase:
    phase = next((phase for phase in study.phases if phase.task == task), None)
    if phase is None:
        raise ConfigError(refusal("key 'study.phases'", f"no phase is of task {task}", "use study=paper"))
    return phase


def _statistics(study: Study, store: PooledStore, folder: Path) -> State:
    """Moments of the pooled people, for standardisation."""
    phase = _phase(study, "statistics")
    orders = [study.order(phase, number) for number in range(1, phase.rounds + 1)]
    return train_locally(build_task(orders[0], store.study), store, orders, {}, folder)
