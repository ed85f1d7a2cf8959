"""pm1-site check of a machine: each thing that keeps a site out is named, with what to do."""

from __future__ import annotations

import json
import os
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import formatdate
from pathlib import Path

import pytest
from places import founded, joined
from ports import free_ports
from running import await_

from client import environment
from client.cli import main
from client.environment import FAIL, OK, WARN, Answered, Finding
from client.folder import SiteFolder
from pm1_core.errors import PM1Error
from server import services
from server.consortium import Consortium


@pytest.fixture(scope="module")
def consortium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Consortium]:
    """One whose gateway is up, and nothing behind it."""
    port = free_ports(1)[0]
    made = founded(tmp_path_factory.mktemp("consortium"), port)
    command = [sys.executable, "-m", "server.cli", "start", "gateway", "--folder", str(made.folder)]
    address = {services.GATEWAY: f"127.0.0.1:{port}"}
    with (made.folder / "start.log").open("ab") as log:
        process = subprocess.Popen(command, env={**os.environ, **address}, stdout=log, stderr=log)

    def answers() -> bool:
        try:
            services.health(made, "gateway")
        except PM1Error:
            return False
        return True

    try:
        await_("the gateway", answers)
        yield made
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture
def site(consortium: Consortium, tmp_path: Path) -> SiteFolder:
    """A site that has joined, of a name of its own."""
    return joined(consortium, tmp_path / "site", f"site{len(consortium.sites())}")


def looked(site: SiteFolder) -> dict[str, Finding]:
    """Findings by name."""
    return {one.check: one for one in environment.findings(SiteFolder(site.path))}


def way(site: SiteFolder, gateway: str, proxy: str | None = None) -> dict[str, Finding]:
    return {one.check: one for one in environment.route(site, gateway, proxy)}


def test_a_machine_that_is_well_gets_a_line_for_each_thing(
    site: SiteFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", "--folder", str(site.path), "--json"]) == 0
    found = {one["check"]: one for one in json.loads(capsys.readouterr().out)["environment"]}
    well = {"keys", "policy", "certificate", "dns", "tcp", "tls", "gateway", "clock"}
    assert {name for name, one in found.items() if one["state"] == OK} >= well
    assert set(found) == well | {"disk", "memory", "gpu", "store"}
    assert found["store"]["state"] == WARN
    assert "pm1-site prepare" in found["store"]["remedy"]
    assert main(["check", "--folder", str(site.path)]) == 0
    assert [line.split()[1] for line in capsys.readouterr().out.splitlines()] == list(found)


def test_what_fails_is_exit_code_2_and_a_remedy(site: SiteFolder, capsys: pytest.CaptureFixture[str]) -> None:
    site.file("keys/tls.key").chmod(0o644)
    assert main(["check", "--folder", str(site.path)]) == 2
    said = capsys.readouterr()
    assert "fail  keys         keys/tls.key can be read by others (0644); chmod 600" in said.out
    assert "failed: keys" in said.err


def test_no_folder_is_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--folder", str(tmp_path / "none")]) == 3
    assert "run pm1-site init" in capsys.readouterr().err


def test_a_site_that_has_not_joined_is_told_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", "--folder", str(tmp_path / "site"), "--site", "york"]) == 0
    assert main(["check", "--folder", str(tmp_path / "site")]) == 2
    assert "run pm1-site join with the kit" in capsys.readouterr().out


def test_a_site_that_was_revoked_learns_it_here(consortium: Consortium, site: SiteFolder) -> None:
    consortium.revoke(site.name, "test")
    await_("the list", lambda: looked(site).get("gateway", Finding("", "", "")).state == FAIL)
    assert "does not take this site's certificate" in looked(site)["gateway"].found


def test_a_name_that_nobody_knows_and_a_port_that_is_closed(site: SiteFolder) -> None:
    found = way(site, "nowhere.invalid:8443")
    assert (found["dns"].state, found["clock"].state) == (FAIL, WARN)
    found = way(site, f"127.0.0.1:{free_ports(1)[0]}")
    assert (found["dns"].state, found["tcp"].state, found["clock"].state) == (OK, FAIL, WARN)
    assert "let TCP out to 127.0.0.1" in found["tcp"].remedy


@pytest.mark.parametrize("proxy", ["proxy", "socks5://a:1", "http://[::1", "http://a:many", "http://"])
def test_a_way_out_that_is_no_address_is_a_sentence(proxy: str, site: SiteFolder) -> None:
    found = way(site, site.facts["gateway"], proxy)
    assert (found["way out"].state, found["clock"].state) == (FAIL, WARN)


def test_the_way_out_is_tried_before_the_gateway(site: SiteFolder) -> None:
    found = way(site, "nowhere.invalid:8443", f"http://127.0.0.1:{free_ports(1)[0]}")
    assert (found["dns"].state, found["tcp"].state) == (OK, FAIL)


@contextmanager
def answering(*, certified: Consortium | None) -> Iterator[str]:
    """A server that answers one connection; without certificate it only hangs up. Its HOST:PORT"""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            for _ in range(2):
                try:
                    line, _address = listening.accept()
                except OSError:
                    return
                with line:
                    if certified:
                        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                        folder = certified.folder / "gateway"
                        context.load_cert_chain(folder / "server.crt", folder / "server.key")
                        try:
                            context.wrap_socket(line, server_side=True)
                        except OSError:
                            continue

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"127.0.0.1:{listening.getsockname()[1]}"
        thread.join(10)


def test_who_opens_tls_on_the_way_is_noticed(site: SiteFolder, tmp_path: Path) -> None:
    with answering(certified=founded(tmp_path / "other", 1)) as address:
        found = way(site, address)
    assert found["tls"].state == FAIL
    assert "no certificate for it" in found["tls"].found
    assert "a firewall that opens TLS" in found["tls"].remedy


def test_who_hangs_up_is_no_traceback(site: SiteFolder) -> None:
    with answering(certified=None) as address:
        found = way(site, address)
    assert (found["tcp"].state, found["tls"].state, found["clock"].state) == (OK, FAIL, WARN)


def test_certificates_near_their_end_or_of_another_key(site: SiteFolder, tmp_path: Path) -> None:
    (found,) = environment.dates(site)
    assert found.state == OK
    (found,) = environment.dates(site, datetime.now(UTC) + timedelta(days=380))
    assert found.state == WARN
    assert "16 days" in found.found
    assert "--renew" in found.remedy
    (found,) = environment.dates(site, datetime.now(UTC) + timedelta(days=400))
    assert found.state == FAIL
    main(["init", "--folder", str(tmp_path / "other"), "--site", "york"])
    site.file("keys/tls.key").write_bytes((tmp_path / "other/keys/tls.key").read_bytes())
    (found,) = environment.dates(site)
    assert "for another key" in found.found


@pytest.mark.parametrize(
    ("ahead", "state"), [(0, OK), (4, WARN), (8, FAIL), (-100, WARN), (-299, WARN), (-400, FAIL)]
)
def test_a_clock_is_judged_by_what_flower_bears(ahead: float, state: str) -> None:
    ours = 1_800_000_000.5
    said = Answered(200, formatdate(ours - ahead, usegmt=True), ours - 0.01, ours + 0.01, datetime.now(UTC))
    assert environment.clock(said).state == state


@pytest.mark.parametrize("date", ["", "yesterday", "Fri, 99 Foo 2026 00:00:00 GMT"])
def test_a_gateway_without_a_date_tells_nothing_of_the_clock(date: str) -> None:
    assert environment.clock(Answered(200, date, 0.0, 0.0, datetime.now(UTC))).state == WARN


def test_memory_is_that_of_the_container(tmp_path: Path) -> None:
    assert environment.memory(tmp_path).state == WARN
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text(f"MemTotal: {64 << 20} kB\n")
    assert environment.memory(tmp_path).state == OK
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup/memory.max").write_text("max\n")
    assert environment.memory(tmp_path).found == "64.0 GiB"
    (tmp_path / "sys/fs/cgroup/memory.max").write_text(f"{2 << 30}\n")
    assert environment.memory(tmp_path).state == FAIL
