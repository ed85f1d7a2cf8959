"""The trainable parts of PM1 by the name that a study's phases use, and how others come beside them."""

from __future__ import annotations

from pm1_core.training.tasks.base import Task
from pm1_core.training.tasks.registry import (
    GROUP,
    TASKS,
    allowed_tasks,
    build_task,
    require_known,
    task_class,
)

__all__ = ["GROUP", "TASKS", "Task", "allowed_tasks", "build_task", "require_known", "task_class"]
