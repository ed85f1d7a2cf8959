"""A small study over the three hospitals of tests/hospitals.py."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from client.site import SitePaths
from configs import compose
from pm1_core.data.store import Store
from pm1_core.signing import Signer, public_file
from server.configure import build_study
from server.coordinator import Coordinator
from server.study import Study
from simulations.enrolment import enrolled

PHASES = {
    "genotype.rounds": 2,
    "genotype.chromosomes": "[3,22]",
    "genotype.loop.epochs": 1,
    "phenotype.rounds": 2,
    "phenotype.loop.epochs": 1,
    "fundus.rounds": 1,
    "fundus.loop.epochs": 1,
    "fusion.rounds": 2,
    "fusion.loop.epochs": 1,
    "fusion.loop.batch_size": 16,
}


def tiny_study(left_out: Sequence[str] = (), **changes: Any) -> Study:
    """The configured study at size tiny with few rounds; `changes` are overrides with dots as __.

    left_out: phases that it does not have
    """
    overrides = ["model=tiny", *(f"study.phases.{key}={value}" for key, value in PHASES.items())]
    overrides += [f"{key.replace('__', '.')}={value}" for key, value in changes.items()]
    overrides += [f"~study.phases.{name}" for name in left_out]
    return build_study(compose.load("simulation", overrides))


def site_paths(stores: dict[str, Path], folder: Path, secure: bool = False) -> list[SitePaths]:
    """Sites whose own folders lie below `folder`, and who trust the key of the run in `folder`.

    secure: they have identity keys, and know each other's
    """
    trust = str(public_file(run_key(folder)))
    sites = [SitePaths(str(store), str(folder / "sites" / site), trust) for site, store in stores.items()]
    if secure:
        return enrolled(dict(zip(stores, sites, strict=True)), folder / "keys" / "sites")
    return sites


def run_key(folder: Path) -> Path:
    """The signing key of the run in `folder`, made when it is first asked for."""
    file = folder / "keys" / "coordinator.pem"
    Signer.at(file)
    return file


def coordinate(study: Study, stores: dict[str, Path], folder: Path) -> Any:
    """grid -> Coordinator, what both engines take."""
    summary = Store.open(next(iter(stores.values()))).study
    return lambda grid: Coordinator(study, summary, folder, grid, Signer.load(run_key(folder)))
