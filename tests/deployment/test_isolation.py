"""What surrounds a service of docker-compose.yml: who it is, what it can write, read and reach.

The services themselves do nothing here; their folders are as `init` makes them.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from harness import Harness
from owned import give

from client.enrol import initialise
from client.folder import SECRET, SiteFolder
from server.consortium import Consortium

HOME = "/var/lib/pm1"

pytestmark = pytest.mark.usefixtures("_namespaces")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, _namespaces: None) -> Iterator[Harness]:
    """Door, SuperNode and page of a site."""
    folder = tmp_path_factory.mktemp("site")
    initialise(SiteFolder(folder / "site"), "leeds")
    (folder / "site/store/people").write_text("people")
    (folder / "site/state/ledger.jsonl").write_text("spent")
    give(folder / "site")
    variables = {"PM1_SITE": str(folder / "site"), "PM1_STORE": str(folder / "site/store")}
    with Harness(folder / "harness", "site", variables, idle=True) as harness:
        harness.start()
        yield harness


@pytest.fixture(scope="module")
def coordinator(tmp_path_factory: pytest.TempPathFactory, _namespaces: None) -> Iterator[Harness]:
    """All services of a coordinator."""
    folder = tmp_path_factory.mktemp("coordinator")
    Consortium.create(folder / "consortium", "Eyes and genes", "gateway:8443")
    give(folder / "consortium")
    variables = {"PM1_CONSORTIUM": str(folder / "consortium")}
    with Harness(folder / "harness", "coordinator", variables, idle=True) as harness:
        harness.start()
        yield harness


def said(harness: Harness, name: str, script: str) -> str:
    done = harness.exec(name, "sh", "-c", script)
    return done.stdout + done.stderr


def reaches(harness: Harness, name: str, host: str) -> bool:
    """Whether there is a way from a service to a host: whoever is there and does not listen says so."""
    code = f"import socket; print(socket.socket().connect_ex(({host!r}, 9)))"
    answer = said(harness, name, f'python -c "{code}"')
    assert answer.strip() in ("111", "101"), answer  # refused by who is there, or no route
    return answer.strip() == "111"


def writable(harness: Harness, name: str) -> set[str]:
    """Folders at any depth, outside what the kernel makes, in which the service can make a file."""
    find = "find / -xdev -type d -writable 2>/dev/null; find /tmp /var/lib/pm1 -type d -writable 2>/dev/null"
    found = set(said(harness, name, find).split())
    for folder in found:
        assert said(harness, name, f"touch {folder}/made && rm {folder}/made") == "", folder
    return found


def test_every_service_is_nobody_and_can_become_nobody_else(site: Harness, coordinator: Harness) -> None:
    for harness in (site, coordinator):
        for name in harness.containers:
            status = dict(
                line.split(":", 1) for line in said(harness, name, "cat /proc/self/status").splitlines()
            )
            assert status["Uid"].split() == ["10001"] * 4
            assert status["Gid"].split() == ["10001"] * 4
            assert status["Groups"].split() == []
            assert status["NoNewPrivs"].strip() == "1"
            for kind in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
                assert int(status[kind], 16) == 0


def test_every_service_sees_its_own_processes_only(site: Harness) -> None:
    processes = said(site, "site-door", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '")
    assert "sleep infinity" in processes
    assert "pytest" not in processes


def test_a_site_writes_where_its_work_is_and_nowhere_else(site: Harness) -> None:
    ours = {f"{HOME}/{name}" for name in ("audit", "run", "state", "store")}
    assert writable(site, "site-door") == {"/tmp", "/dev/shm"} | ours
    assert writable(site, "site-supernode") == {"/tmp", "/dev/shm"} | ours - {f"{HOME}/store"}
    assert writable(site, "site-page") == {"/tmp", "/dev/shm", f"{HOME}/store"}


def test_the_door_has_no_data_and_the_supernode_no_certificate_to_go_out_with(site: Harness) -> None:
    assert said(site, "site-supernode", f"cat {HOME}/store/people {HOME}/state/ledger.jsonl") == "peoplespent"
    for name in ("store", "state"):
        assert said(site, "site-door", f"ls {HOME}/{name}") == ""
    assert said(site, "site-page", f"ls {HOME}/store") == ""
    assert "PRIVATE KEY" in said(site, "site-door", f"cat {HOME}/keys/tls.key")
    for name in ("site-supernode", "site-page"):
        assert said(site, name, f"cat {HOME}/keys/tls.key") == ""
    for name, characters in {"site-door": 64, "site-supernode": 64, "site-page": 0}.items():
        assert len(said(site, name, f"cat {HOME}/{SECRET}")) == characters


def test_what_the_supernode_writes_beside_its_state_is_not_the_doors(site: Harness) -> None:
    """Its run/ and audit/ are its own: it can change neither the log nor what the door knows of its messages."""
    for name in ("audit", "run"):
        said(site, "site-supernode", f"echo forged > {HOME}/{name}/forged")
        assert said(site, "site-door", f"ls {HOME}/{name}") == ""


def test_only_the_door_has_a_way_out_of_a_site(site: Harness) -> None:
    outside = site.switch.gateway("outside")
    assert reaches(site, "site-door", outside)
    for name in ("site-supernode", "site-page"):
        assert reaches(site, name, "door")
        assert not reaches(site, name, outside)
        assert not reaches(site, name, "198.51.100.1")
        assert not reaches(site, name, site.address("site-door", "outside"))


def test_the_door_is_known_inside_by_its_address_there(site: Harness) -> None:
    """It listens on its name: outside nobody finds it."""
    inside = site.address("site-door", "inside")
    for name in ("site-door", "site-supernode"):
        assert said(site, name, "getent ahostsv4 door | cut -d' ' -f1 | sort -u").split() == [inside]


def test_only_the_gateway_of_a_coordinator_is_reached_from_outside(coordinator: Harness) -> None:
    outside = coordinator.switch.gateway("outside")
    for name in coordinator.containers:
        assert reaches(coordinator, name, "superlink")
        assert reaches(coordinator, name, outside) == (name == "gateway")


def test_a_coordinators_keys_are_where_they_are_used(coordinator: Harness) -> None:
    for name in coordinator.containers:
        assert said(coordinator, name, f"cat {HOME}/ca/ca.key") == ""
        signs = "PRIVATE KEY" in said(coordinator, name, f"cat {HOME}/keys/checkpoint.pem")
        assert signs == (name == "executor")


def test_a_coordinators_services_write_where_their_work_is(coordinator: Harness) -> None:
    def own(*names: str) -> set[str]:
        return {"/tmp", "/dev/shm", *(f"{HOME}/{name}" for name in names)}

    assert writable(coordinator, "executor") == own("public", "runs", "run")
    assert writable(coordinator, "guard") == own("run")
    assert writable(coordinator, "gateway") == own("public", "run")
    assert writable(coordinator, "coordinator-page") == own()


def test_a_service_ends_when_it_is_asked_to(site: Harness) -> None:
    assert site.containers["site-page"].stop() == 128 + 15
