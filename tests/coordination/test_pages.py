"""The pages show what the commands say, to this machine only, and scrapers and browsers take them as they are."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.client import HTTPConnection
from pathlib import Path

import httpx
import pytest
import uvicorn
from exposition import parsed
from places import founded, joined
from ports import free_ports
from running import await_
from starlette.types import ASGIApp

import client.page
import server.page
from client import services
from client.audit import LEFT, STOPPED
from client.folder import SiteFolder
from pm1_core.privacy.ledger import Ledger
from pm1_core.privacy.mechanisms import GAUSSIAN, Mechanism
from server.consortium import Consortium
from server.runs import Run, Runs

_BAD = "<script>alert(1)</script>"


@pytest.fixture
def consortium(tmp_path: Path, finished: Path, under_way: Path) -> Consortium:
    """With a run that finished, one under way, and one whose folder is damaged."""
    made = founded(tmp_path / "consortium", 8443)
    (tmp_path / "broken").mkdir()
    when = (datetime.now(UTC) - timedelta(minutes=5)).isoformat(timespec="seconds")
    folders = {"finished": finished, "broken": tmp_path / "broken", "under_way": under_way}
    for name, folder in folders.items():
        Runs(made.folder).add(Run(name, len(name), "ukb", "c" * 64, "b" * 64, str(folder), when))
    (under_way / "coordinator.log").write_text(f"leeds wrote {_BAD}\n")
    return made


@pytest.fixture
def site(tmp_path: Path) -> SiteFolder:
    """A site of which something left and something was stopped, with a ledger."""
    folder = joined(founded(tmp_path / "of_site", 8443), tmp_path / "site", "leeds")
    audit = services.audit(folder)
    audit.write(LEFT, {"study": "ukb", "phase": "phenotype", "round": 1, "what": "update", "bytes": 4000})
    audit.write(STOPPED, {"study": "ukb", "phase": "fusion", "what": "update", "reason": f"tensor {_BAD}"})
    ledger = Ledger(folder.file("state") / Ledger.NAME)
    ledger.open("leeds", {"record": (8.0, 1e-5)})
    ledger.charge("ukb", "phenotype", 1, "a" * 64, "b" * 64, [Mechanism(GAUSSIAN, 4.0)], "update")
    return folder


@contextmanager
def served(app: ASGIApp, port: int) -> Iterator[httpx.Client]:
    config = uvicorn.Config(app, port=port, ws="none", lifespan="off", log_level="warning", loop="asyncio")
    running = uvicorn.Server(config)
    thread = threading.Thread(target=running.run)
    thread.start()
    await_("the page", lambda: running.started)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as reader:
            yield reader
    finally:
        running.should_exit = True
        thread.join(20)


@pytest.fixture
def coordinators_page(consortium: Consortium) -> Iterator[httpx.Client]:
    (port,) = free_ports(1)
    with served(server.page.application(consortium.folder, "127.0.0.1", port), port) as reader:
        yield reader


@pytest.fixture
def sites_page(site: SiteFolder) -> Iterator[httpx.Client]:
    (port,) = free_ports(1)
    with served(client.page.application(site, "127.0.0.1", port), port) as reader:
        yield reader


def test_the_coordinators_page_says_what_status_says(coordinators_page: httpx.Client) -> None:
    told = coordinators_page.get("/status.json").json()
    runs = {run["run"]: run for run in told["runs"]}
    assert (runs["finished"]["state"], runs["under_way"]["state"]) == ("finished", "running")
    assert "it is no run's folder" in runs["broken"]["error"]
    page = coordinators_page.get("/").text
    for words in ("cannot be read", "Waiting for west", "ukb_eyepacs", "min_group_auc"):
        assert words in page
    figures = parsed(coordinators_page.get("/metrics").text)
    assert figures["pm1_run_state", 'run="under_way",state="running"'] == 1
    assert figures["pm1_phase_rounds_done", 'run="under_way",phase="phenotype"'] == 1
    assert figures["pm1_site_waited_for", 'run="under_way",site="west"'] == 1
    assert figures["pm1_run_unreadable", 'run="broken"'] == 1
    loss = runs["finished"]["phases"][1]["loss"]["train"]
    assert figures["pm1_phase_loss", 'run="finished",phase="phenotype",split="train"'] == loss


def test_a_sites_page_shows_log_budget_and_services(sites_page: httpx.Client, site: SiteFolder) -> None:
    told = sites_page.get("/status.json").json()
    assert told["audit"]["events"] == {
        "left": 1,
        "stopped": 1,
        **dict.fromkeys(("refused", "approved", "withdrawn", "started"), 0),
    }
    assert not told["services"]["door"]["runs"]
    page = sites_page.get("/").text
    for words in ("phenotype, round 1", "4.0 kB", "of 8 is spent", "the door does not work"):
        assert words in page
    figures = parsed(sites_page.get("/metrics").text)
    spent = told["ledger"]["units"]["record"]["spent"]
    assert figures["pm1_site_ledger_epsilon_spent", 'site="leeds",unit="record"'] == spent > 0
    assert figures["pm1_site_left_bytes_total", 'site="leeds",study="ukb"'] == 4000


def test_a_site_whose_log_was_tampered_with_is_told(sites_page: httpx.Client, site: SiteFolder) -> None:
    log = services.audit(site).path
    log.write_text(log.read_text().replace("4000", "4"))
    assert "audit.jsonl" in sites_page.get("/status.json").json()["audit"]["error"]
    assert (
        parsed(client.page.metrics(client.page.Reader(site)()))["pm1_site_audit_intact", 'site="leeds"'] == 0
    )


def test_a_site_that_has_just_joined_has_a_page(tmp_path: Path) -> None:
    folder = joined(founded(tmp_path / "c", 8443), tmp_path / "s", "york")
    facts = client.page.Reader(folder)()
    assert "nothing yet" in client.page.html(facts)
    parsed(client.page.metrics(facts))
    bare = server.page.Reader(tmp_path / "c")()
    assert "No study was submitted yet" in server.page.html(bare)
    parsed(server.page.metrics(bare))


def test_new_lines_of_the_log_are_added_to_what_was_read(site: SiteFolder) -> None:
    read = client.page.Reader(site)
    assert read()["audit"]["lines"] == 2
    services.audit(site).write(LEFT, {"study": "ukb", "bytes": 5})
    assert read()["audit"]["bytes"] == {"ukb": 4005}


@pytest.mark.parametrize("page", ["coordinators_page", "sites_page"])
def test_nobody_elses_name_leads_here_and_nothing_can_be_done(
    page: str, request: pytest.FixtureRequest
) -> None:
    reader: httpx.Client = request.getfixturevalue(page)
    port = reader.base_url.port
    for host in ("evil.example", f"evil.example:{port}", "127.0.0.1", f"127.0.0.1:{port + 1}", ""):
        for path in ("/", "/status.json", "/metrics", "/page.css"):
            assert reader.get(path, headers={"host": host}).status_code in (400, 421)
    for host in (f"localhost:{port}", f"LOCALHOST:{port}"):
        assert reader.get("/", headers={"host": host}).status_code == 200
    for method in ("POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE"):
        assert reader.request(method, "/").status_code == 405


@pytest.mark.parametrize("page", ["coordinators_page", "sites_page"])
@pytest.mark.parametrize(
    "path",
    ["/../consortium.json", "/%2e%2e/site.json", "/..%2fkeys%2fnode.key", "//etc/passwd", "/page.css/../../keys",
     "/templates/site.html.j2", "/static/../page.css", "/status.json%00", "/keys/checkpoint.pem"],
)  # fmt: skip
def test_there_are_no_files_to_be_had(page: str, path: str, request: pytest.FixtureRequest) -> None:
    reader: httpx.Client = request.getfixturevalue(page)
    asked = HTTPConnection("127.0.0.1", reader.base_url.port)  # which sends a path as it is
    asked.request("GET", path)
    answer = asked.getresponse()
    assert answer.status == 404
    assert answer.read() == b"Not Found"
    asked.close()


@pytest.mark.parametrize("page", ["coordinators_page", "sites_page"])
def test_a_browser_runs_and_loads_nothing(page: str, request: pytest.FixtureRequest) -> None:
    reader: httpx.Client = request.getfixturevalue(page)
    for path in ("/", "/status.json", "/metrics", "/page.css", "/nothing"):
        headers = reader.get(path).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert "access-control-allow-origin" not in headers
    text = reader.get("/").text
    assert _BAD not in text
    assert "&lt;script&gt;" in text
    assert "style=" not in text


def test_a_page_of_a_container_answers_to_its_address() -> None:
    from strategies.loopback import names

    assert "10.231.41.200:9080" in names("10.231.41.200", 9080)
    assert "0.0.0.0:9080" not in names("0.0.0.0", 9080)
    assert "[fd00::1]:9080" in names("[fd00::1]", 9080)


def test_the_pages_write_nothing(consortium: Consortium, site: SiteFolder) -> None:
    for folder, read in (
        (consortium.folder, lambda: server.page.html(server.page.Reader(consortium.folder)())),
        (site.path, lambda: client.page.html(client.page.Reader(site)())),
    ):
        before = {file: file.stat().st_mtime_ns for file in folder.rglob("*")}
        read()
        assert {file: file.stat().st_mtime_ns for file in folder.rglob("*")} == before


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
@pytest.mark.parametrize("page", ["coordinators_page", "sites_page"])
@pytest.mark.parametrize("width", [1200, 390])
def test_a_browser_draws_the_page_without_a_complaint(
    page: str, width: int, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """The policy that it was sent refuses nothing of the page itself."""
    reader: httpx.Client = request.getfixturevalue(page)
    picture = tmp_path / "page.png"
    done = subprocess.run(
        ["chromium", "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/browser",
         "--enable-logging=stderr", f"--window-size={width},1600", f"--screenshot={picture}", str(reader.base_url)],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert "CONSOLE" not in done.stderr
    assert picture.stat().st_size > 20_000


@pytest.mark.slow
def test_pm1_server_start_page_is_healthy_and_ends(consortium: Consortium) -> None:
    (port,) = free_ports(1)
    environment = {**os.environ, "PM1_PAGE": f"127.0.0.1:{port}"}
    command = [sys.executable, "-m", "server.cli"]
    folder = ["--folder", str(consortium.folder)]
    process = subprocess.Popen([*command, "start", "page", *folder], env=environment)
    try:
        health = [*command, "health", "page", *folder]
        await_("the page", lambda: subprocess.run(health, env=environment, check=False).returncode == 0)
        assert json.loads(httpx.get(f"http://127.0.0.1:{port}/status.json", trust_env=False).text)["runs"]
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)
