"""Services under one parent: started again, ended together, given up where another start would not help."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pm1_core.errors import StateError
from pm1_core.supervisor import Service, supervise


def _python(name: str, code: str) -> Service:
    return Service(name, [sys.executable, "-c", code])


def _await(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def _alive(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


def test_a_service_that_is_killed_is_started_again_and_sigterm_ends_all_that_was_started(
    tmp_path: Path,
) -> None:
    """What a service has started itself is ended with it."""
    child = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(600)'])"
    pid = tmp_path / "one.pid"
    seen: list[int] = []

    def disturb() -> None:
        for _ in range(2):
            _await(lambda: pid.exists() and int(pid.read_text() or 0) not in [0, *seen])
            seen.append(int(pid.read_text()))
            _await(lambda: b"time.sleep(600)" in _family(seen[-1]))
            if len(seen) == 1:
                os.kill(seen[0], signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=disturb)
    thread.start()
    said: list[str] = []
    assert supervise([_python("one", child)], tmp_path, said.append) == 0
    thread.join()
    assert not pid.exists()
    assert all(b"time.sleep(600)" not in _family(group) for group in seen)
    assert said[1].startswith("one ended with code -9, is started again")


def _family(group: int) -> bytes:
    """Command lines of living processes of a process group."""
    found = b""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if os.getpgid(int(folder.name)) == group and _alive(int(folder.name)):
                found += (folder / "cmdline").read_bytes()
        except (ProcessLookupError, FileNotFoundError):
            continue
    return found


def test_what_a_person_has_to_put_right_ends_all_with_its_code(tmp_path: Path) -> None:
    """Code 2 of one service is the code of all."""
    services = [_python("bad", "raise SystemExit(2)"), _python("good", "import time; time.sleep(600)")]
    assert supervise(services, tmp_path, lambda line: None) == 2
    assert list(tmp_path.glob("*.pid")) == []


def test_two_supervisors_of_one_folder_are_refused(tmp_path: Path) -> None:
    """Another process holds the lock."""
    code = (
        "import fcntl, sys; s = open(sys.argv[1], 'a'); fcntl.flock(s, fcntl.LOCK_EX); "
        "print('held', flush=True); input()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "supervisor.lock")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout
    assert holder.stdin
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(StateError, match="runs already"):
        supervise([], tmp_path)
    holder.communicate("\n")
