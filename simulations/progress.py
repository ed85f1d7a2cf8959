"""Stages of a long command: a bar with time left on a terminal, one line per stage elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

Step = Callable[[str, int, int], None]


class Stages:
    """Shows stages one after the other.

    >>> stages = Stages(Console(quiet=True))
    >>> with stages.stage("counting") as step:
    ...     step("one", 1, 2)
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, title: str) -> Iterator[Step]:
        """Yield a function of (what, done, whole) that moves the stage's bar."""
        began = time.monotonic()
        if not self.console.is_terminal:
            self.console.print(f"{title} ...", highlight=False)
        columns = (
            TextColumn("{task.description:<34}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[what]:<22}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        with Progress(
            *columns, console=self.console, transient=True, disable=not self.console.is_terminal
        ) as bar:
            task = bar.add_task(title, total=None, what="")

            def step(what: str, done: int, whole: int) -> None:
                bar.update(task, completed=done, total=whole, what=what[:22])

            yield step
        self.seconds[title] = time.monotonic() - began
        self.console.print(f"{title:<34} {self.seconds[title]:6.1f} s", highlight=False)
