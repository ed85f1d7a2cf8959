"""However long services run, and however much they say, their logs stay small."""

from __future__ import annotations

import os
import signal
import ssl
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import pytest
from gateway import await_
from places import founded
from ports import free_ports

from pm1_core import logs
from pm1_core.supervisor import Service, supervise


def _large(file: Path, size: int = logs.LARGEST + 1) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch()
    os.truncate(file, size)
    return file


def test_a_log_that_is_too_large_takes_the_place_of_the_one_before(tmp_path: Path) -> None:
    """Of a writer that opens it for every line, nothing is lost."""
    log, former = tmp_path / "guard.jsonl", tmp_path / "guard.jsonl.1"
    assert not logs.turned(log, 10)  # there is none yet
    log.write_text("ten bytes\n")
    assert not logs.turned(log, 10)
    former.write_text("older\n")
    log.write_text("eleven byte\n")
    assert logs.turned(log, 10)
    assert not log.exists()
    assert former.read_text() == "eleven byte\n"


def test_a_process_that_holds_its_log_open_goes_on_at_its_beginning(tmp_path: Path) -> None:
    """As a service's own output: opened once, by the one that started it."""
    log = tmp_path / "door.log"
    with log.open("ab", buffering=0) as held:
        held.write(b"before\n")
        assert logs.emptied(log, 5)
        held.write(b"after\n")
    assert log.read_text() == "after\n"
    assert (tmp_path / "door.log.1").read_text() == "before\n"


def test_a_disk_without_room_for_the_copy_is_relieved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log goes, and nobody ends for it."""

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(logs.shutil, "copy2", full)
    log = _large(tmp_path / "door.log")
    assert logs.emptied(log)
    assert log.stat().st_size == 0
    assert list(tmp_path.iterdir()) == [log]


def test_what_a_supervised_service_prints_is_kept_small(tmp_path: Path) -> None:
    """It prints more than a log may have, and goes on."""
    code = f"import time; print('x' * {logs.LARGEST}, flush=True); time.sleep(600)"
    log = tmp_path / "one.log"

    def look() -> None:
        try:
            await_("the log to be turned", (tmp_path / "one.log.1").exists)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=look)
    thread.start()
    assert (
        supervise([Service("one", [sys.executable, "-c", code], log=log)], tmp_path, lambda line: None) == 0
    )
    thread.join()
    assert log.stat().st_size + (tmp_path / "one.log.1").stat().st_size == logs.LARGEST + 1


def test_the_gateway_opens_its_logs_anew(tmp_path: Path) -> None:
    """nginx itself: what it writes after that is in the new one."""
    (port,) = free_ports(1)
    consortium = founded(tmp_path / "consortium", port)
    folder = consortium.folder
    log = _large(folder / "run/access.jsonl")
    command = [sys.executable, "-m", "server.cli", "start", "gateway", "--folder", str(folder)]
    environment = {**os.environ, "PM1_GATEWAY": f"127.0.0.1:{port}"}
    with subprocess.Popen(command, env=environment, cwd=Path(__file__).parents[2]) as process:
        try:
            await_("the log to be turned", (folder / "run/access.jsonl.1").exists)
            await_("the new one", log.exists)
            tls = ssl.create_default_context(cafile=folder / "ca/ca.crt")
            tls.load_cert_chain(folder / "coordinator/client.crt", folder / "coordinator/client.key")
            with httpx.Client(verify=tls, base_url=f"https://127.0.0.1:{port}", trust_env=False) as client:
                assert client.get("/health").status_code == 200
            await_("the line", lambda: "GET /health" in log.read_text())
        finally:
            process.terminate()
