"""Three hospitals that have everything: genotypes, phenotypes and photographs, of different people."""

from __future__ import annotations

import shutil
from pathlib import Path

import hospitals
import yaml

from pm1_core.data.manifest import load_manifest
from pm1_core.data.preparation import prepare

SITES = ("birmingham", "glasgow", "leeds")


def prepared_sites(folder: Path) -> dict[str, Path]:
    """Site -> prepared store; study.yaml lies above them."""
    stores = {}
    for seed, site in enumerate(SITES):
        manifest = hospitals.write_hospitals(folder / "files" / site, seed)["north"]
        content = yaml.safe_load(manifest.read_text())
        manifest.write_text(yaml.safe_dump({**content, "site": site}))
        stores[site] = folder / "stores" / site
        prepare(load_manifest(manifest), stores[site])
    for name in ("study.yaml", "variants.tsv"):
        shutil.copy(folder / "files" / SITES[0] / name, folder / name)
    return stores
