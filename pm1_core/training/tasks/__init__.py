"""The trainable parts of PM1, by the name that a study's phases use."""

from __future__ import annotations

from pm1_core.data.summary import StudySummary
from pm1_core.errors import ConfigError
from pm1_core.training.order import Order
from pm1_core.training.tasks.base import Task
from pm1_core.training.tasks.fundus import FundusTask
from pm1_core.training.tasks.fusion import FusionTask
from pm1_core.training.tasks.genotype import GenotypeTask
from pm1_core.training.tasks.phenotype import PhenotypeTask
from pm1_core.training.tasks.statistics import StatisticsTask
from pm1_core.training.tasks.tokens import TokensTask
from pm1_core.validate import require_choice

TASKS: dict[str, type[Task]] = {
    task.name: task
    for task in (StatisticsTask, GenotypeTask, PhenotypeTask, FundusTask, TokensTask, FusionTask)
}

__all__ = ["TASKS", "Task", "build_task"]


def build_task(order: Order, study: StudySummary) -> Task:
    """The task that `order` names. Raises ConfigError naming the choices."""
    return TASKS[require_choice("order, task", order.task, TASKS, ConfigError)](order.parameters, study)
