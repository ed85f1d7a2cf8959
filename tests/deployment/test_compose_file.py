"""What docker-compose.yml and the Dockerfile promise, read off them; docker-compose says whether they are valid."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from composed import ROOT, Composed, Image, instructions

LONG_RUNNING = ("coordinator", "site", "demo")
GPU = ("-f", "docker-compose.yml", "-f", "docker-compose.gpu.yml")


@pytest.fixture(scope="module")
def composed() -> Composed:
    return Composed.read({})


def _of(composed: Composed, *profiles: str) -> dict[str, Any]:
    services = composed.raw["services"]
    return {name: one for name, one in services.items() if set(profiles) & set(one["profiles"])}


@pytest.mark.parametrize("profile", [*LONG_RUNNING, "gpu"])
def test_docker_compose_accepts_the_file_for_every_profile(profile: str) -> None:
    """It looks at the services of other profiles as well."""
    if not (command := shutil.which("docker-compose")):
        pytest.skip("docker-compose is not installed")
    files, profile = (GPU, "site") if profile == "gpu" else ((), profile)
    options = [*files, "--env-file", ".env.example", "--profile", profile]
    done = subprocess.run(
        [command, *options, "config", "--quiet"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_every_service_of_ours_runs_one_thing_with_no_right_that_it_does_not_need(composed: Composed) -> None:
    for name, service in _of(composed, *LONG_RUNNING, "command", "demo-setup").items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", service["user"]), name
        assert service["pids_limit"], name
        assert "privileged" not in service, name
        assert not any("docker.sock" in volume for volume in service["volumes"]), name


def test_every_service_that_stays_has_bounds_a_health_check_and_one_process(composed: Composed) -> None:
    for name, service in _of(composed, *LONG_RUNNING).items():
        assert service["mem_limit"], name
        assert service["cpus"], name
        program, start, what = service["command"]
        assert start == "start", name
        assert service["healthcheck"]["test"] == ["CMD", program, "health", what], name


def test_a_site_has_one_way_out_which_is_its_door(composed: Composed) -> None:
    for profile in ("site", "demo"):
        sites = {name: one for name, one in _of(composed, profile).items() if "pm1-site" in one["command"]}
        ways = {name for name, one in sites.items() if set(one["networks"]) - composed.internal}
        assert ways == {name for name in sites if name.endswith("-door")}
        assert not any(one.get("ports") for one in sites.values())


def test_a_coordinator_is_reached_at_its_gateway_only(composed: Composed) -> None:
    services = _of(composed, "coordinator")
    reached = [name for name, one in services.items() if set(one["networks"]) - composed.internal]
    assert reached == [name for name, one in services.items() if one.get("ports")] == ["gateway"]


def test_the_demonstration_has_three_sites_that_share_nothing_but_the_gateway(composed: Composed) -> None:
    insides: dict[str, set[str]] = {}
    for name, service in _of(composed, "demo").items():
        site, _, what = name.partition("-")
        if what in ("door", "supernode"):
            insides.setdefault(site, set()).update(set(service["networks"]) - {"outside"})
            assert all(volume.startswith(("./demo/" + site, "/dev/null")) for volume in service["volumes"])
    assert len(insides) == 3
    assert all(len(networks) == 1 for networks in insides.values())
    assert len(set.union(*insides.values())) == 3


def test_data_are_mounted_read_only_and_secrets_are_no_variables(composed: Composed) -> None:
    for name, service in _of(composed, *LONG_RUNNING, "command", "demo-setup").items():
        for volume in service["volumes"]:
            if "/store" in volume or volume.split(":")[1] == "/data":
                assert volume.endswith(":ro"), (name, volume)
        for variable in service.get("environment", {}):
            assert not re.search("KEY|SECRET|PASS|TOKEN", variable), (name, variable)


def test_nobody_but_the_executor_signs_and_nobody_certifies(composed: Composed) -> None:
    nothing = "/dev/null:/var/lib/pm1/"
    for name, service in _of(composed, "coordinator").items():
        assert f"{nothing}ca/ca.key:ro" in service["volumes"], name
        assert (f"{nothing}keys/checkpoint.pem:ro" in service["volumes"]) == (name != "executor"), name


def test_a_site_without_a_gpu_asks_for_none(composed: Composed) -> None:
    assert not any("deploy" in service for service in composed.raw["services"].values())


def test_the_example_names_every_setting_there_is() -> None:
    text = "".join((ROOT / name).read_text() for name in ("docker-compose.yml", "docker-compose.gpu.yml"))
    used = dict(re.findall(r"\$\{(PM1_\w+):-([^}]*)\}", text))
    example = (ROOT / ".env.example").read_text()
    listed = dict(re.findall(r"^#?(\w+)=(\S*)", example, re.MULTILINE))
    assert used == {name: value for name, value in listed.items() if name.startswith("PM1_")}


def test_the_image_is_pinned_belongs_to_nobody_and_holds_no_secret() -> None:
    file = ROOT / "Dockerfile"
    lines = instructions(file)
    (base,) = (text for name, text in lines if name == "ARG")
    assert re.fullmatch(r"BASE=[a-z]+:\d+\.\d+\.\d+-\S+|BASE=\S+@sha256:[0-9a-f]{64}", base)
    assert {text.split()[0] for name, text in lines if name == "FROM"} == {"${BASE}"}
    image = Image.read(file)
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", image.user)
    assert image.environment["FLWR_TELEMETRY_ENABLED"] == "0"
    assert image.environment["FLWR_DISABLE_UPDATE_CHECK"] == "1"
    assert "umask 077" in " ".join(image.entrypoint)
    assert not any(name == "ADD" for name, _ in lines)
    assert not re.search(r"curl|wget|https?://|--mount=type=secret", file.read_text())
    assert "HEALTHCHECK" in dict(lines)
    user = [name for name, _ in lines].index("USER")
    assert not any(name in ("RUN", "COPY") for name, _ in lines[user:])


def test_the_build_sees_nothing_that_is_not_listed() -> None:
    """Runs, data, keys and history stay out of the image: .dockerignore shuts out all, and lets in by name."""
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] not in ("", "#")]
    assert lines[0] == "*"
    admitted = {line[1:] for line in lines if line.startswith("!")}
    assert all((ROOT / name).exists() for name in admitted)
    assert not admitted & {".git", ".env", "runs", "cohorts", "consortium", "site", "demo", "tests"}
    assert Path("requirements.lock").name in admitted
