"""Which code a task's name stands for, and that no name imports code that the machine's own list does not allow.

`tabular` is the example of examples/, really installed. The broken packages are written to a folder on sys.path as
an installer would leave them.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from configs import compose
from pm1_core.data.store import Store
from pm1_core.errors import ConfigError
from pm1_core.training.order import Order
from pm1_core.training.tasks import GROUP, TASKS, Task, allowed_tasks, build_task, require_known, task_class
from server.configure import build_study
from server.study import Phase

Install = Callable[..., None]

GOOD = """
from pm1_core.training.tasks import Task

class Good(Task):
    name = "good"
    modalities = frozenset()
    def initial(self, state, seed): return {}
    def train(self, store, order, state, tensors, folder, guide=None): raise NotImplementedError
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Leave a package `name` with one module and one entry point where Python looks for installed packages."""

    def write(name: str, offer: str, code: str = GOOD) -> None:
        folder = tmp_path / name
        about = folder / f"{name}-1.0.dist-info"
        about.mkdir(parents=True)
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (about / "entry_points.txt").write_text(f"[{GROUP}]\n{offer}\n")
        (folder / f"module_of_{name}.py").write_text(code)
        monkeypatch.syspath_prepend(str(folder))

    return write


def order(task: str) -> Order:
    return Order("phase", task, 1, 1, 0, {"target": "disease"})


def run(code: str) -> str:
    """Output of `code` in a fresh Python."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_example_is_installed_and_built_where_it_is_allowed(hospitals: dict[str, Path]) -> None:
    (offer,) = [offer for offer in entry_points(group=GROUP) if offer.name == "tabular"]
    assert offer.dist is not None
    assert offer.dist.name == "pm1-tabular"
    task = build_task(order("tabular"), Store.open(hospitals["north"]).study, ["tabular"])
    assert isinstance(task, Task)
    assert type(task).__module__ == "pm1_tabular"


def test_nothing_of_a_package_is_imported_before_its_task_is_allowed() -> None:
    code = """
import sys
from pm1_core.errors import ConfigError
from pm1_core.training.tasks import require_known, task_class
require_known("phase", "tabular")
try: task_class("tabular")
except ConfigError as error: print(error)
print("pm1_tabular" in sys.modules)
task_class("tabular", ["tabular"])
print("pm1_tabular" in sys.modules)
"""
    sentence, before, after = run(code).splitlines()
    assert "package pm1-tabular offers 'tabular'" in sentence
    assert (before, after) == ("False", "True")


def test_the_default_allows_the_built_in_tasks_alone() -> None:
    assert {name: task_class(name) for name in TASKS} == TASKS
    with pytest.raises(ConfigError, match="not on the list"):
        task_class("tabular")


@pytest.mark.parametrize(
    ("name", "allowed", "sentence"),
    [
        (
            "tabular",
            [],
            r"package pm1-tabular offers 'tabular', .*; add it to the site's own list: .*node-config",
        ),
        ("forest", ["forest"], r"'forest' is allowed here, but no installed package offers it; install"),
        (
            "tabulr",
            ["tabular"],
            r"found 'tabulr', which neither .*; did you mean 'tabular'\? accepted: .*fusion",
        ),
        ("pm1_tabular:TabularTask", ["tabular"], r"found 'pm1_tabular:TabularTask', which neither"),
    ],
)
def test_what_cannot_be_run_is_refused_with_the_reason_and_the_remedy(
    name: str, allowed: list[str], sentence: str, hospitals: dict[str, Path]
) -> None:
    with pytest.raises(ConfigError, match=sentence):
        build_task(order(name), Store.open(hospitals["north"]).study, allowed)


def test_a_package_that_is_put_beside_is_found(install: Install) -> None:
    install("extra", "good = module_of_extra:Good")
    assert require_known("phase", "good") == "good"
    assert task_class("good", ["good"]).__module__ == "module_of_extra"


def test_a_package_cannot_take_the_place_of_a_built_in_task(install: Install) -> None:
    install("thief", "fusion = module_of_thief:Good", GOOD.replace("good", "fusion"))
    for allowed in ([], ["fusion"]):
        with pytest.raises(
            ConfigError, match=r"package thief offers 'fusion', .* PM1's own; remove the package"
        ):
            task_class("fusion", allowed)
    assert "module_of_thief" not in sys.modules
    assert task_class("genotype") is TASKS["genotype"]


def test_a_name_that_two_packages_offer_is_refused_with_both(install: Install) -> None:
    install("first", "good = module_of_first:Good")
    install("second", "good = module_of_second:Good")
    with pytest.raises(ConfigError, match="packages first and second both offer 'good'; remove one"):
        task_class("good", ["good"])


@pytest.mark.parametrize(
    ("offer", "code", "sentence"),
    [
        (
            "good = module_of_broken:Good",
            "import a_module_that_is_not_there",
            "cannot be imported .ModuleNotFound",
        ),
        ("good = module_of_broken:Good", "raise SystemExit(3)", "cannot be imported .SystemExit: 3"),
        ("good = module_of_broken:Missing", GOOD, "cannot be imported .AttributeError"),
        ("good = module_of_broken:Good", "class Good: name = 'good'", "is no subclass of pm1_core.*Task"),
        ("good = module_of_broken:Good", "Good = 3", "is no subclass of pm1_core.*Task"),
        ("good = module_of_broken:Good", GOOD.replace("def train", "def fit"), "does not define train"),
        (
            "good = module_of_broken:Good",
            GOOD.replace('"good"', '"other"'),
            "calls itself 'other', not 'good'",
        ),
    ],
)
def test_a_package_whose_task_is_none_is_refused_by_name(
    offer: str, code: str, sentence: str, install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("broken", offer, code)
    monkeypatch.delitem(sys.modules, "module_of_broken", raising=False)
    with pytest.raises(ConfigError, match=f"package broken, .*{sentence}.*; mend the package"):
        task_class("good", ["good"])


def test_a_list_holds_plain_names() -> None:
    assert allowed_tasks("tabular, other,") == ("other", "tabular")
    assert allowed_tasks(["tabular", "tabular"]) == ("tabular",)
    assert allowed_tasks("") == ()
    for listed in ("pm1_tabular:TabularTask", "os.path", "a b", "../x"):
        with pytest.raises(ConfigError, match="never modules"):
            allowed_tasks(listed)


def configured(*overrides: str) -> Phase:
    study = build_study(compose.load("simulation", ["study=tabular", *overrides]))
    (phase,) = [phase for phase in study.phases if phase.task == "tabular"]
    return phase


def test_a_study_gives_a_phase_the_parameters_that_its_task_reads() -> None:
    phase = configured("site.tasks=[tabular]", "study.phases.heart_failure.parameters.hidden=[8]")
    assert phase.parameters["target"] == "heart_failure"
    assert phase.parameters["hidden"] == [8]
    assert phase.parameters["loop"]["device"] == "auto"
    assert set(phase.parameters) == {"target", "hidden", "penalty", "loop"}


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        ([], r"phase 'heart_failure', task: package pm1-tabular offers 'tabular'.* site.tasks=\[tabular\]"),
        (["site.tasks=[pm1_tabular:TabularTask]"], "never modules"),
        (
            ["site.tasks=[tabular]", "+study.phases.heart_failure.parameters.rounds=3"],
            r"key 'study.phases.heart_failure.parameters': found 'rounds'; write that one level higher",
        ),
        (
            ["site.tasks=[tabular]", "+study.phases.statistics.parameters.a=3"],
            r"key 'study.phases.statistics.parameters': found a; task 'statistics' is PM1's own",
        ),
        (["site.tasks=[tabular]", "study.phases.heart_failure.task=tabulr"], "did you mean 'tabular'"),
        (
            ["study.phases.heart_failure.parameters.hiden=3"],
            r"key 'study.phases.heart_failure.parameters.hiden': .*; give \+KEY=..., if the task reads it",
        ),
    ],
)
def test_a_configuration_is_refused_before_the_work(overrides: list[str], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        configured(*overrides)


def test_a_phase_names_a_task_that_there_is() -> None:
    assert Phase("risk", "tabular", 1).task == "tabular"
    with pytest.raises(ConfigError, match=r"phase 'risk', task: found 'tabulr'.*did you mean 'tabular'"):
        Phase("risk", "tabulr", 1)
