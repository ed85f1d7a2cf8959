"""make drills: a consortium of real processes disturbed in every way; docs/reliability.md says what came of it.

python -m drills              all of them, some two and a half hours on two cores
python -m drills NAME ...     these, such as kills.3 or line.delay
python -m drills --list       their names

Figures are kept in tests/drills/results.json; a drill that is done again replaces its own.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

_TESTS = Path(__file__).resolve().parents[1]
for _room in ("", "federation", "doors", "drills", "deployment"):
    sys.path.insert(0, str(_TESTS / _room))
os.environ |= {"FLWR_TELEMETRY_ENABLED": "0", "OMP_NUM_THREADS": "1"}

from alike import prepared_sites  # noqa: E402
from demonstration import SITES, Demonstration  # noqa: E402
from hospitals import prepare_hospitals  # noqa: E402
from jinja2 import Environment, FileSystemLoader, StrictUndefined  # noqa: E402
from rehearsal import (  # noqa: E402
    KINDS,
    TARGETS,
    killed,
    parts,
    plan,
    private_study,
    privately,
    pulled,
    secure_study,
    small_study,
    undisturbed,
)
from week import MEMORY, WARM, figures, lived, require_flat, short_study  # noqa: E402
from working import Working  # noqa: E402

from bench.report import machine  # noqa: E402
from pm1_core import atomic  # noqa: E402
from server.study import Study  # noqa: E402

_RESULTS = Path(__file__).with_name("results.json")
_PAGE = _TESTS.parent / "docs" / "reliability.md"
_LINES: dict[str, dict[str, float]] = {
    "line.good": {},
    "line.delay": {"delay": 0.5},
    "line.resets": {"resets": 0.02},
    "line.rate": {"rate": 1e6},
}
_NAMES = {
    "supernode": "SuperNode",
    "clientapp": "ClientApp",
    "door": "door",
    "superlink": "SuperLink",
    "executor": "executor",
    "serverapp": "ServerApp",
    "guard": "guard",
    "nginx": "nginx",
    "gateway": "nginx's keeper",
    "supervisor": "supervisor",
    "machine": "machine",
}
_PULLED = 330.0
"""Seconds without a cable: longer than nginx (300), a door (60), Flower's heartbeats and the study (60) wait."""
_DAYS = 7


def main() -> int:
    """Run what was asked for; 0 if every study ended as it should have."""
    drills = _drills()
    options = argparse.ArgumentParser("make drills", description=__doc__.split("\n\n")[0])
    options.add_argument("names", nargs="*", metavar="NAME", help="drills, all if none is named")
    options.add_argument("--list", action="store_true", help="only say which there are")
    given = options.parse_args()
    if unknown := set(given.names) - set(drills):
        options.error(f"found no drill {sorted(unknown)[0]!r}: see --list")
    if given.list:
        print("\n".join(drills))
        return 0
    warnings.filterwarnings("ignore")
    failed = 0
    with tempfile.TemporaryDirectory(prefix="pm1-drills-") as place:
        stores = prepare_hospitals(Path(place) / "hospitals")
        for name in given.names or drills:
            print(f"{name} ...", flush=True)
            result = _done(partial(drills[name], stores, Path(place) / name))
            failed += not result["held"]
            print(f"  {'held' if result['held'] else 'FAILED: ' + result['why']}, {result['seconds']:.0f} s")
            held = atomic.read_json(_RESULTS) if _RESULTS.exists() else {}
            atomic.write_text(_RESULTS, json.dumps({**held, name: result}, indent=1, sort_keys=True) + "\n")
            write_page()
    return 1 if failed else 0


def write_page() -> None:
    """docs/reliability.md of what was measured."""
    results = atomic.read_json(_RESULTS)
    killing = {name: one for name, one in results.items() if name.startswith("kills.")}
    kills = {
        (kill["owner"], kill["what"], kill["kind"]): f"{kill['seconds']:.0f}"
        for one in killing.values()
        for kill in one.get("kills", ())
    }
    newest = max(results.values(), key=lambda one: str(one["date"]))
    facts = {
        "kinds": KINDS,
        "targets": TARGETS,
        "names": _NAMES,
        "cell": lambda *key: kills.get(key, ""),
        "count": len(kills),
        "studies": len(killing),
        "held": sum(one["held"] for one in killing.values()),
        "resumed": sum(one.get("resumed", 0) for one in killing.values()),
        "failures": [(name, one["why"]) for name, one in killing.items() if not one["held"]],
        "secure": results.get("whole.secure"),
        "private": results.get("whole.private"),
        "lines": [(_words(bad), results[name]) for name, bad in _LINES.items() if name in results],
        "cable": results.get("line.cable"),
        "week": results.get("week"),
        "warm": WARM,
        "tolerance": MEMORY,
        "down": results.get("line.down"),
        "machine": newest["machine"],
        "processors": " and ".join(sorted({one["machine"]["processor"] for one in results.values()})),
        "dates": " to ".join(sorted({one["date"] for one in results.values()})),
        "loads": _range([one["machine"]["load"] for one in results.values()]),
    }
    templates = Environment(
        loader=FileSystemLoader(_RESULTS.parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    text = templates.get_template("reliability.md.j2").render(facts)
    atomic.write_text(_PAGE, text.strip() + "\n")


def _words(bad: Mapping[str, float]) -> str:
    units = {
        "delay": "{:.1f} s of delay each way",
        "resets": "a reset at {:.0%} of all chunks of 64 KiB",
        "rate": "{:,.0f} bytes a second",
    }
    return ", ".join(units[name].format(value) for name, value in bad.items()) or "good"


def _range(values: list[float]) -> str:
    return " to ".join(str(value) for value in dict.fromkeys((min(values), max(values))))


def _drills() -> dict[str, Callable[[Mapping[str, Path], Path], dict[str, Any]]]:
    kills = {f"kills.{number}": partial(_kills, number) for number in range(len(TARGETS))}
    lines = {name: partial(_line, bad) for name, bad in _LINES.items()}
    whole = {"whole.secure": _secure, "whole.private": _private}
    return {**whole, **kills, **lines, "line.cable": _cable, "line.down": _down, "week": _week}


def _done(drill: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Figures of a drill, and whether it held."""
    began = time.monotonic()
    try:
        found = {"held": True, "why": "", **drill()}
    except (AssertionError, TimeoutError) as error:
        found = {"held": False, "why": str(error).splitlines()[0]}
    # Asked for now: the load is that under which it ran.
    facts = {"machine": machine(), "date": datetime.now(UTC).date().isoformat()}
    return {**facts, "seconds": round(time.monotonic() - began, 1), **found}


def _kills(number: int, stores: Mapping[str, Path], folder: Path) -> dict[str, Any]:
    with _working(stores, folder, small_study()) as working:
        found = killed(working, plan(number))
        return {"kills": [asdict(kill) for kill in found], **_ended(working, stores, folder)}


def _secure(_: Mapping[str, Path], folder: Path) -> dict[str, Any]:
    stores = prepared_sites(folder)
    with _working(stores, folder, secure_study()) as working:
        killed(working, {})
        return _ended(working, stores, folder)


def _private(_: Mapping[str, Path], folder: Path) -> dict[str, Any]:
    with _working(prepared_sites(folder), folder, private_study()) as working:
        return {**privately(working), "resumed": working.resumed, **asdict(working.link.figures)}


def _line(bad: Mapping[str, float], stores: Mapping[str, Path], folder: Path) -> dict[str, Any]:
    with _working(stores, folder, small_study(), bad) as working:
        killed(working, {})
        return _ended(working, stores, folder)


def _cable(stores: Mapping[str, Path], folder: Path) -> dict[str, Any]:
    with _working(stores, folder, small_study(timeout="60", gather="60")) as working:
        sentence = pulled(working, _PULLED)
        return {"pulled": _PULLED, "sentence": sentence, **_ended(working, stores, folder)}


def _week(stores: Mapping[str, Path], folder: Path) -> dict[str, Any]:
    with _working(stores, folder, short_study("statistics", "phenotype")) as working:
        evenings = lived(working, _DAYS)
        require_flat(evenings)
        return {**figures(evenings), **_ended(working, stores, folder)}


def _down(_: Mapping[str, Path], folder: Path) -> dict[str, Any]:
    with Demonstration(folder, "timeout=60", "gather=60") as demonstration:
        sentence = demonstration.unplugged(_PULLED)
        study = Study.from_json((demonstration.demo / "exchange/study.json").read_text())
        stores = {site: demonstration.demo / site / "store" for site in SITES}
        same = parts(demonstration.checkpoints) == undisturbed(stores, study, folder / "undisturbed")
        assert same, "its checkpoints are not those of an undisturbed study"
        return {"pulled": _PULLED, "sentence": sentence}


def _working(
    stores: Mapping[str, Path], folder: Path, study: Study, bad: Mapping[str, float] | None = None
) -> Working:
    definition = next(iter(stores.values())).parent.parent / "study.yaml"
    return Working(folder / "working", stores, study, definition, bad)


def _ended(working: Working, stores: Mapping[str, Path], folder: Path) -> dict[str, Any]:
    """What a study ended with, held against an undisturbed one. Raises AssertionError if they differ."""
    same = parts(working.checkpoints) == undisturbed(stores, working.study, folder / "undisturbed")
    assert same, "its checkpoints are not those of an undisturbed study"
    return {"resumed": working.resumed, **asdict(working.link.figures)}


if __name__ == "__main__":
    sys.exit(main())
