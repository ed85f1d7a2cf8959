"""Reading a run's folder: every file is checked against its type, and refused by place where it differs."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from pm1_core.errors import StateError
from pm1_core.validate import refusal
from simulations.report_check import conform
from simulations.report_schema import MetricsLine, Participants, Results, SamplePhotograph

_SECRET = re.compile(r"(?im)^(\s*-?\s*[\w.]*(?:key|secret|password|token)\s*:\s*)(\S.*)$")
_POINTS = ("tokens", "people")


@dataclass(frozen=True)
class Run:
    """A run's folder, read and checked."""

    folder: Path
    results: Results
    participants: Participants | None
    metrics: list[MetricsLine]
    config: str | None
    config_hash: str | None
    embeddings: Mapping[str, np.ndarray]
    association: Mapping[str, np.ndarray]
    photographs: list[SamplePhotograph]


def read_run(folder: Path) -> Run:
    """Read and check the files of a run. Raises StateError as `write_report`."""
    results = _json(folder / "results.json", Results)
    if results is None:
        raise StateError(refusal(folder / "results.json", "not there", "finish the run, or resume it"))
    require_whole_epsilon(results)
    config = folder / "config.yaml"
    text = config.read_text() if config.exists() else None
    photographs = _json(folder / "sample_photographs" / "index.json", list[SamplePhotograph])
    return Run(
        folder,
        cast(Results, results),
        cast("Participants | None", _json(folder / "participants.json", Participants)),
        _metrics(folder / "metrics.jsonl"),
        _SECRET.sub(r"\1(not shown)", text) if text is not None else None,
        hashlib.sha256(text.encode()).hexdigest()[:12] if text is not None else None,
        _embeddings(folder / "embeddings.npz"),
        _association(folder / "association.npz"),
        photographs or [],
    )


def _json(path: Path, kind: Any) -> Any:
    """The content of `path`, checked; None if there is no such file."""
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise StateError(refusal(path, f"not JSON ({error})", "write the run's results again")) from error
    conform(path.name, content, kind)
    return content


def _metrics(path: Path) -> list[MetricsLine]:
    """Lines of metrics.jsonl; of lines for one phase, round, site and split the last counts (resumed runs)."""
    if not path.exists():
        return []
    latest: dict[tuple[Any, ...], MetricsLine] = {}
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        where = f"{path.name}, line {number}"
        try:
            content = json.loads(line)
        except ValueError as error:
            raise StateError(refusal(where, f"not JSON ({error})", "delete the line and resume")) from error
        conform(where, content, MetricsLine)
        key = tuple(content[name] for name in ("phase", "round", "site", "split"))
        latest[key] = content
    return list(latest.values())


def _arrays(path: Path) -> dict[str, np.ndarray]:
    if not path.exists():
        return {}
    with np.load(path, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def _embeddings(path: Path) -> dict[str, np.ndarray]:
    arrays = _arrays(path)
    for family in _POINTS:
        mine = {name: a for name, a in arrays.items() if name.startswith(f"{family}.")}
        if len({len(a) for a in mine.values()}) > 1:
            found = ", ".join(f"{name} {len(a)}" for name, a in mine.items())
            raise StateError(refusal(path, f"found lengths {found}", "write one row per point"))
        for name, array in mine.items():
            if name.rsplit(".", 1)[1] in ("pca", "tsne") and array.shape[1:] != (2,):
                raise StateError(refusal(path, f"found {name} of shape {array.shape}", "write [n, 2]"))
    return arrays


def _association(path: Path) -> dict[str, np.ndarray]:
    arrays = _arrays(path)
    missing = [name for name in ("chrom", "pos", "log10_p") if arrays and name not in arrays]
    if missing:
        raise StateError(refusal(path, f"array {missing[0]!r} is missing", "write the scan again"))
    if arrays and len({arrays[name].shape for name in ("chrom", "pos", "log10_p")}) != 1:
        raise StateError(refusal(path, "found arrays of different lengths", "write one value per SNP"))
    return arrays


def require_whole_epsilon(results: Results) -> None:
    """An epsilon says nothing without its unit, delta and accountant, so it is not printed without."""
    privacy = results["run"]["privacy"]
    lacking = [name for name in ("delta", "unit", "accountant") if name not in privacy]
    if "epsilon" in privacy and lacking:
        where = "results.json, run.privacy"
        raise StateError(refusal(where, f"epsilon without {', '.join(lacking)}", "write them too"))
