"""Everything that a study needs before its first phase: files of a cohort, prepared stores, a fundus base.

    cohorts/<scenario>-<fingerprint>/     files as hospitals have them (simulations.cohort)
        stores/<site>/                    prepared by pm1_core.data, as `pm1-site prepare` does
        base/<fingerprint>.safetensors    a small masked autoencoder of the scenario's public photographs
    cohorts/real-<fingerprint>/<key>/     the same for real people (simulations.real_cohort), per split key

All of it is keyed by what it depends on, so that a second run finds it done.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from client.site import SitePaths
from pm1_core.data.manifest import load_manifest
from pm1_core.data.preparation import prepare
from pm1_core.data.store import Store
from pm1_core.errors import ConfigError
from pm1_core.fields import EYES, Modality
from pm1_core.model.fundus_base import pretrain_base
from pm1_core.model.fundus_encoder import FundusEncoderConfig
from pm1_core.privacy.ledger import Ledger
from pm1_core.validate import refusal, require_range
from server.study import Study
from simulations.cohort import write_cohort
from simulations.enrolment import enrolled
from simulations.progress import Stages, Step
from simulations.real_cohort import REAL, RealData, write_real_cohort
from simulations.scenarios import Scenario


@dataclass(frozen=True)
class Workspace:
    """Where the prepared data are.

    stores: site -> prepared store, members of the federation only
    evaluation: prepared store of test-only people, if the data have one
    base: file of a pre-trained fundus base, if there is one
    """

    folder: Path
    definition: Path
    stores: Mapping[str, Path]
    evaluation: Path | None = None
    base: Path | None = None
    preparation: Mapping[str, Path] = field(default_factory=dict)

    def open(self) -> dict[str, Store]:
        """The members' stores."""
        return {site: Store.open(path) for site, path in self.stores.items()}


def members_of(
    study: Study,
    stores: Mapping[str, Path],
    folder: Path,
    trust: str,
    tasks: tuple[str, ...] = (),
    ledgers: Path | None = None,
    machine: Mapping[str, Any] = MappingProxyType({}),
) -> list[SitePaths]:
    """The sites of a run in `folder`; those of a private study get a ledger with its budget, if they have none.

    Those of a study under secure aggregation get identity keys, and know each other's.

    ledgers: folder of the ledgers, one of each site, where several runs share them; None for this run's own
    machine: further fields of SitePaths, alike at all sites
    """
    sites, guarantee = [], study.guarantee
    for site, store in stores.items():
        own = (folder / "sites" / site).resolve()
        ledger = Ledger((ledgers / f"{site}.jsonl").resolve() if ledgers else own / Ledger.NAME)
        if guarantee and not ledger.exists:
            ledger.path.parent.mkdir(parents=True, exist_ok=True)
            ledger.open(site, {guarantee["unit"]: (guarantee["budget"], guarantee["delta"])})
        sites.append(
            SitePaths(str(store.resolve()), str(own), trust, tasks, ledger=str(ledger.path), **machine)
        )
    if study.secure:
        return enrolled(dict(zip(stores, sites, strict=True)), folder / "keys" / "sites")
    return sites


def simulated(config: Mapping[str, Any], stages: Stages) -> Workspace:
    """Write the scenario's cohort, prepare its sites and pre-train its fundus base, where not done before.

    The scenario "real" has no cohort of its own: its manifests point at the real data sets.
    """
    if config["study"]["scenario"] == REAL:
        return _real(config, stages)
    scenario = Scenario(
        name=config["study"]["scenario"],
        people=config["people"],
        sites=config["sites"],
        seed=config["seed"],
        test_people=config["test_people"],
        public_photographs=config["public_photographs"],
    )
    folder = Path(config["cohorts"]) / f"{scenario.name}-{_digest(scenario.to_json())}"
    with stages.stage("simulating people and their files") as step:
        write_cohort(scenario, folder, step)
    manifests = {path.parent.name: path for path in sorted(folder.glob("sites/*/site.yaml"))}
    extra = {name: folder / name / "site.yaml" for name in ("evaluation", "public")}
    everybody = {**manifests, **{name: path for name, path in extra.items() if path.exists()}}
    with stages.stage("preparing the sites' data") as step:
        stores = prepare_all(everybody, folder / "stores", step)
    base = _base(config, stores.get("public"), folder / "base", stages)
    return Workspace(
        folder,
        folder / "study.yaml",
        {site: stores[site] for site in manifests},
        stores.get("evaluation"),
        base,
    )


def _real(config: Mapping[str, Any], stages: Stages) -> Workspace:
    """The sites of the first split key; the other keys lie beside it (simulations.real_keys)."""
    data, folder = real_data(config), real_folder(config)
    key = split_keys(config)[0]
    with stages.stage("pointing at real people's files") as step:
        manifests = write_real_cohort(data, folder / key, key)
        step("", 1, 1)
    with stages.stage("preparing the sites' data") as step:
        stores = prepare_all(manifests, folder / key / "stores", step)
    base = _base(config, None, folder / "base", stages)
    return Workspace(folder / key, folder / key / "study.yaml", stores, None, base)


def real_data(config: Mapping[str, Any]) -> RealData:
    """Where the real data sets are. Raises ConfigError if neither key nor environment says so."""
    named = config["real_data"] or os.environ.get("PM1_REAL_DATA")
    if not named:
        raise ConfigError(
            refusal(
                "study real",
                "the environment variable PM1_REAL_DATA is not set",
                "set it, or the key real_data, to the folder that holds the real data sets",
            )
        )
    return RealData(Path(named))


def real_folder(config: Mapping[str, Any]) -> Path:
    """cohorts/real-FINGERPRINT, with a folder per split key."""
    return Path(config["cohorts"]) / f"{REAL}-{real_data(config).fingerprint()[:12]}"


def split_keys(config: Mapping[str, Any]) -> list[str]:
    """The split keys "1", "2", ...; the study itself runs under the first."""
    count = int(require_range("key 'split_keys'", config["split_keys"], 1, error=ConfigError))
    return [str(number) for number in range(1, count + 1)]


def prepare_all(manifests: Mapping[str, Path], out: Path, step: Step) -> dict[str, Path]:
    """Prepare each manifest into out/NAME; stores that are whole and up to date are left alone."""
    stores = {}
    for done, (name, path) in enumerate(manifests.items()):
        step(name, done, len(manifests))
        prepare(load_manifest(path), out / name)
        stores[name] = out / name
    step("", len(manifests), len(manifests))
    return stores


def _base(config: Mapping[str, Any], public: Path | None, folder: Path, stages: Stages) -> Path | None:
    """Pre-train a base on public photographs, unless one is given or none is wanted."""
    given, wanted = config["model"]["fundus"]["base"], config["pretrain"]
    if given:
        return Path(given)
    if not wanted["epochs"]:
        return None
    if public is None:
        raise ConfigError(
            refusal(
                "key 'pretrain.epochs'", "there are no public photographs", "set public_photographs as well"
            )
        )
    model = FundusEncoderConfig(**config["model"]["fundus"])
    store = Store.open(public)
    key = _digest({"model": config["model"]["fundus"], "pretrain": wanted, "public": store.fingerprint})
    out = folder / f"{key}.safetensors"
    if not out.exists():
        people = store.people(None, Modality.FUNDUS)
        pictures = [store.photographs(people, eye) for eye in EYES]
        photographs = np.concatenate([images[has] for images, has in pictures])
        with stages.stage("pre-training the public fundus base") as step:
            pretrain_base(
                photographs,
                model,
                epochs=wanted["epochs"],
                seed=config["seed"],
                out=out,
                batch_size=wanted["batch_size"],
                learning_rate=wanted["learning_rate"],
                progress=step,
            )
    return out


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]
