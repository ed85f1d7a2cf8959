"""A whole study through docker-compose.yml: the demonstration's own commands, each in namespaces of its own."""

from __future__ import annotations

from pathlib import Path

import pytest
from demonstration import SITES, Demonstration

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("_namespaces")]


def test_the_demonstration_trains_in_secure_sums_and_every_site_can_prove_what_left(tmp_path: Path) -> None:
    with Demonstration(tmp_path, "study.phases.phenotype.rounds=1") as demonstration:
        demonstration.submit()
        ended = demonstration.wait(1200)
        assert ended["state"] == "finished", ended
        made = [one.round for one in demonstration.checkpoints.verify() if one.phase == "phenotype"]
        assert made == [0, 1]
        assert demonstration.told()["state"] == "finished"
        for site in SITES:
            verified = demonstration.harness.exec(f"{site}-door", "pm1-site", "audit", "verify")
            assert verified.returncode == 0, verified.stderr
            assert demonstration.harness.exec(f"{site}-door", "pm1-site", "status").returncode == 0
