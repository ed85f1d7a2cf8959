"""Which class a phase's task is: one of PM1's own, or one that an installed package offers.

A package offers tasks under the entry point group "pm1.tasks". Its code is imported only if the task's name is on
the caller's own list, so that no message and no configuration of somebody else names code to import: a site's list
is on the site's machine, a coordinator's on the coordinator's.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Collection, Iterable
from difflib import get_close_matches
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points

from pm1_core.data.summary import StudySummary
from pm1_core.errors import ConfigError
from pm1_core.training.order import Order
from pm1_core.training.tasks.base import Task
from pm1_core.training.tasks.fundus import FundusTask
from pm1_core.training.tasks.fusion import FusionTask
from pm1_core.training.tasks.genotype import GenotypeTask
from pm1_core.training.tasks.phenotype import PhenotypeTask
from pm1_core.training.tasks.reference import ReferenceTask
from pm1_core.training.tasks.statistics import StatisticsTask
from pm1_core.training.tasks.tokens import TokensTask
from pm1_core.validate import refusal

TASKS: dict[str, type[Task]] = {
    task.name: task
    for task in (
        StatisticsTask,
        ReferenceTask,
        GenotypeTask,
        PhenotypeTask,
        FundusTask,
        TokensTask,
        FusionTask,
    )
}
"""PM1's own tasks; every site runs them."""

GROUP = "pm1.tasks"
"""The entry point group under which an installed package offers tasks of its own."""


def allowed_tasks(listed: str | Iterable[str]) -> tuple[str, ...]:
    """The names of a list of allowed tasks, sorted; `listed` is one text ("tabular, other") or several.

    Raises ConfigError on anything that is no plain name, a module path for one.

    >>> allowed_tasks("tabular, other")
    ('other', 'tabular')
    """
    names = listed.split(",") if isinstance(listed, str) else [str(name) for name in listed]
    stripped = sorted({name.strip() for name in names} - {""})
    for name in stripped:
        if not name.replace("-", "_").isidentifier():
            remedy = "list the names under which packages offer tasks, never modules"
            raise ConfigError(refusal("list of allowed tasks", f"found {name!r}", remedy))
    return tuple(stripped)


def require_known(where: str, name: str) -> str:
    """Return `name` if it is a built-in task or one that an installed package offers. Imports nothing.

    Raises ConfigError otherwise, and if more than one package, or PM1 and a package, have a task of that name.
    """
    name = str(name)  # an order's JSON may hold anything
    if not _offered(where, name) and name not in TASKS:
        raise ConfigError(_unknown(where, name, [*TASKS, *_installed(tuple(sys.path))]))
    return name


def task_class(name: str, allowed: Collection[str] = (), where: str = "order, task") -> type[Task]:
    """The class of a task. A package's code is imported only if `name` is in `allowed`.

    Raises ConfigError, each time in another sentence, if the task is installed but not allowed, allowed but not
    installed, or neither; if its name is taken; if it cannot be imported or is no task.
    """
    name = str(name)  # an order's JSON may hold anything
    offered = _offered(where, name)
    if name in TASKS:
        return TASKS[name]
    if name not in allowed:
        if offered:
            found = f"package {_package(offered)} offers {name!r}, but it is not on the list of allowed tasks"
            remedy = (
                f"add it to the site's own list: --node-config 'tasks=\"{name}\"', or site.tasks=[{name}]"
            )
            raise ConfigError(refusal(where, found, remedy))
        raise ConfigError(_unknown(where, name, [*TASKS, *allowed]))
    if not offered:
        remedy = "install the package that offers it beside PM1, or take it off the list"
        raise ConfigError(
            refusal(where, f"{name!r} is allowed here, but no installed package offers it", remedy)
        )
    return _imported(where, offered)


def build_task(order: Order, study: StudySummary, allowed: Collection[str] = ()) -> Task:
    """The task that `order` names, built in or among `allowed`. Raises ConfigError as `task_class`."""
    return task_class(order.task, allowed)(order.parameters, study)


@lru_cache(maxsize=8)
def _installed(path: tuple[str, ...]) -> dict[str, tuple[EntryPoint, ...]]:
    """What packages on `path` offer, by name. Reading all packages' metadata takes some 30 ms, hence the cache."""
    offers: dict[str, tuple[EntryPoint, ...]] = {}
    for offer in entry_points(group=GROUP):
        offers[offer.name] = (*offers.get(offer.name, ()), offer)
    return offers


def _offered(where: str, name: str) -> EntryPoint | None:
    """The one package's offer of a task called `name`. Raises ConfigError if the name is taken twice."""
    offers = _installed(tuple(sys.path)).get(name, ())
    if not offers:
        return None
    if name in TASKS:
        found = f"package {_package(offers[0])} offers {name!r}, which is the name of a task of PM1's own"
        raise ConfigError(refusal(where, found, "remove the package, or have its task renamed"))
    if len(offers) > 1:
        packages = " and ".join(sorted(_package(offer) for offer in offers))
        raise ConfigError(refusal(where, f"packages {packages} both offer {name!r}", "remove one of them"))
    return offers[0]


def _imported(where: str, offer: EntryPoint) -> type[Task]:
    package, remedy = f"package {_package(offer)}", "mend the package, or take its task off the list"
    try:
        found = offer.load()
    except (Exception, SystemExit) as error:  # whatever a stranger's module does when it is imported
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConfigError(
            refusal(where, f"{package}, {offer.value} cannot be imported ({reason})", remedy)
        ) from None
    if not (isinstance(found, type) and issubclass(found, Task)):
        kind = "subclass of pm1_core.training.tasks.Task"
        raise ConfigError(refusal(where, f"{package}, {offer.value} is no {kind}", remedy))
    if inspect.isabstract(found):
        lacking = ", ".join(sorted(found.__abstractmethods__))
        raise ConfigError(refusal(where, f"{package}, {offer.value} does not define {lacking}", remedy))
    if getattr(found, "name", None) != offer.name:
        wrong = f"{package}, {offer.value} calls itself {getattr(found, 'name', None)!r}, not {offer.name!r}"
        raise ConfigError(refusal(where, wrong, remedy))
    return found


def _package(offer: EntryPoint) -> str:
    return offer.dist.name if offer.dist is not None else "of an unknown name"


def _unknown(where: str, name: str, known: Iterable[str]) -> str:
    accepted = sorted(set(known))
    near = get_close_matches(name, accepted, n=1)
    hint = f"did you mean {near[0]!r}? accepted" if near else "accepted"
    found = f"found {name!r}, which neither PM1 nor an installed package has"
    return refusal(where, found, f"{hint}: {', '.join(accepted)}")
