"""A deployment of real processes on this machine: SuperLink, SuperNodes, and the app as a run.

    with Deployment(folder, {"north": {"store": ..., "folder": ...}}) as deployment:
        run = deployment.submit({"study": ..., "definition": ..., "run": ...})
        deployment.kill("north")
        deployment.start("north")
        assert deployment.wait(run, 300) == "finished:completed"

Every process that is started, and whatever it starts in turn, carries an entry of this deployment in its
environment. That is how processes are found, named and ended: no other process is touched, and none is forgotten,
although Flower's own start sessions of their own and outlive those that started them.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

ROOT = Path(__file__).parent.parent.parent
COORDINATOR = "coordinator"
SERVER_APP = "flwr-serverapp"
CLIENT_APP = "flwr-clientapp"

_ENTRY = "PM1_TEST_DEPLOYMENT"
_BINARIES = Path(sys.executable).parent


@dataclass(frozen=True)
class Process:
    """A living process of a deployment.

    owner: "coordinator" or the site that it belongs to
    command: the name of what runs, such as "flower-supernode" or "flwr-clientapp"
    """

    pid: int
    owner: str
    command: str


@dataclass
class Memory:
    """Memory of all processes, in bytes.

    peaks: (owner, command) -> largest VmHWM of any such process
    together: largest sum over all processes at one moment, pages that they share counted once per sharer (Pss)
    at_peak: the share of each (owner, command) in that sum
    """

    peaks: dict[tuple[str, str], int] = field(default_factory=dict)
    together: int = 0
    at_peak: dict[tuple[str, str], int] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """A table for people: name, peak, share of the largest sum, in MiB."""
        rows = [
            f"{' '.join(name):40} {peak / 2**20:9.0f} {self.at_peak.get(name, 0) / 2**20:9.0f}"
            for name, peak in sorted(self.peaks.items())
        ]
        return [*rows, f"{'all together':40} {'':9} {self.together / 2**20:9.0f}"]


class Deployment:
    """A SuperLink and a SuperNode per site below one folder, with telemetry and update checks off.

    folder: logs, Flower's own folders, and `superlink.db` appear in it
    sites: site -> its --node-config
    app: the folder with the pyproject.toml of the app
    database: False keeps the SuperLink's state in memory only
    environment: further variables for all processes
    """

    def __init__(
        self,
        folder: Path,
        sites: Mapping[str, Mapping[str, str]],
        *,
        app: Path = ROOT,
        database: bool = True,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.folder = folder
        self.sites = dict(sites)
        self.app = app
        self.database = database
        self.memory = Memory()
        self._token = secrets.token_hex(8)
        self._environment = dict(environment or {})
        self._ports = dict(zip([COORDINATOR, *self.sites], _free_ports(1 + len(self.sites)), strict=True))
        self._started: dict[str, subprocess.Popen[bytes]] = {}
        self._connections: dict[str, int] = {}
        self._stop = threading.Event()
        self._sampler = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> Deployment:
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            for owner in self._ports:
                self.start(owner, wait=False)
            for owner in self._ports:
                self._await_ready(owner)
        except BaseException:
            self.close()
            raise
        self._sampler.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End every process of this deployment, and return when none is left."""
        self._stop.set()
        if self._sampler.is_alive():
            self._sampler.join()
        self._end(lambda process: True)

    def start(self, owner: str, wait: bool = True) -> None:
        """Start the SuperLink ("coordinator") or the SuperNode of a site, which must not be running."""
        port = str(self._ports[owner])
        if owner == COORDINATOR:
            database = ["--database", str(self.folder / "superlink.db")] if self.database else []
            without = "--disable-runtime-dependency-installation"
            command = ["flower-superlink", "--insecure", "--port", port, without, *database]
        else:
            link = f"127.0.0.1:{self._ports[COORDINATOR]}"
            config = " ".join(f'{key}="{value}"' for key, value in self.sites[owner].items())
            command = ["flower-supernode", "--insecure", "--superlink", link, "--port", port]
            command += ["--node-config", config]
        assert command[0] not in [process.command for process in self.processes(owner)], f"{owner} is running"
        with self.log(owner).open("ab") as log:
            self._started[owner] = subprocess.Popen(
                [str(_BINARIES / command[0]), *command[1:]],
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                cwd=self._home(owner),
                env=self._variables(owner),
                start_new_session=True,
            )
        if wait:
            self._await_ready(owner)

    def kill(self, owner: str, command: str | None = None) -> list[Process]:
        """SIGKILL to the processes of an owner, or to those of one command; return whom it hit.

        A site is hit with its ClientApps, the coordinator with its ServerApp. `kill("coordinator", SERVER_APP)`
        leaves the SuperLink alone, `kill("coordinator", "flower-superlink")` the ServerApp.
        """
        return self._end(lambda process: process.owner == owner and command in (None, process.command))

    def submit(self, run_config: Mapping[str, str]) -> str:
        """Start the app as a run and return the run's id."""
        connection = f'[superlink.here]\naddress = "127.0.0.1:{self._ports[COORDINATOR]}"\ninsecure = true\n'
        (self._home("operator") / "config.toml").write_text(connection)
        config = " ".join(f'{key}="{value}"' for key, value in run_config.items())
        answer = self._flwr("run", str(self.app), "here", "--run-config", config)
        return str(answer["run-id"])

    def status(self, run: str) -> str:
        """Such as "running", "finished:completed" or "finished:failed"."""
        runs = self._flwr("ls", "here", "--run-id", run)["runs"]
        assert isinstance(runs, list)
        return str(runs[0]["status"])

    def wait(self, run: str, seconds: float) -> str:
        """The status of a run as soon as it has finished. Raises TimeoutError with the last status."""
        deadline = time.monotonic() + seconds
        # Asking takes a second of a processor: look whether a ServerApp lives, and ask only if none does.
        while True:
            if not any(process.command == SERVER_APP for process in self.processes(COORDINATOR)):
                status = self.status(run)
                if status.startswith("finished"):
                    return status
            if time.monotonic() > deadline:
                raise TimeoutError(f"run {run} is {self.status(run)} after {seconds:.0f} s\n{self.tail()}")
            time.sleep(0.5)

    def said(self, run: str) -> str:
        """What the ServerApp of a run printed: Flower keeps it at the SuperLink, not in a file."""
        command = [str(_BINARIES / "flwr"), "log", run, "here", "--show"]
        return self._operator(command).stdout

    def await_(self, what: str, condition: Callable[[], bool], seconds: float) -> None:
        """Return as soon as `condition` holds. Raises TimeoutError naming `what`."""
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                raise TimeoutError(f"{what} did not come in {seconds:.0f} s\n{self.tail()}")
            time.sleep(0.05)

    def processes(self, owner: str | None = None) -> list[Process]:
        """Living processes of this deployment, or of one owner, by pid."""
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            with suppress(OSError):  # it ended while we looked, or is not ours to look at
                process = self._recognise(entry)
                if process and owner in (None, process.owner):
                    found.append(process)
        return sorted(found, key=lambda process: process.pid)

    def log(self, owner: str) -> Path:
        """The file with all that the processes of an owner print."""
        return self.folder / f"{owner}.log"

    def tail(self, characters: int = 2000) -> str:
        """The ends of all logs, for the message of a test that fails."""
        return "\n".join(
            f"--- {log.name}\n{log.read_text(errors='replace')[-characters:]}"
            for log in sorted(self.folder.glob("*.log"))
        )

    def _await_ready(self, owner: str) -> None:
        port = self._ports[owner]
        if owner == COORDINATOR:
            self.await_("the SuperLink", lambda: self._alive(owner) and _listens(port), 60)
            return
        # The log may hold earlier starts; a SuperNode says its id once in each.
        expected = self._connections.get(owner, 0) + 1
        self.await_(
            f"the SuperNode of {owner}",
            lambda: self._alive(owner) and self.log(owner).read_text().count("SuperNode ID:") >= expected,
            60,
        )
        self._connections[owner] = expected

    def _alive(self, owner: str) -> bool:
        code = self._started[owner].poll()
        assert code is None, f"{owner} ended with {code}\n{self.tail()}"
        return True

    def _home(self, owner: str) -> Path:
        home = self.folder / "flower" / owner
        home.mkdir(parents=True, exist_ok=True)
        return home

    def _variables(self, owner: str) -> dict[str, str]:
        return {
            **os.environ,
            "PATH": f"{_BINARIES}:{os.environ['PATH']}",
            "FLWR_HOME": str(self._home(owner)),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "OMP_NUM_THREADS": "1",
            "PYTHONUNBUFFERED": "1",
            **self._environment,
            _ENTRY: f"{self._token}:{owner}",
        }

    def _flwr(self, *arguments: str) -> dict[str, object]:
        """What a command of the operator answers as JSON."""
        done = self._operator([str(_BINARIES / "flwr"), *arguments, "--format", "json"])
        answer = json.loads(done.stdout) if done.returncode == 0 else {}
        assert isinstance(answer, dict)
        assert answer.get("success"), f"{arguments}: {done.stdout}{done.stderr}\n{self.tail()}"
        return answer

    def _operator(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            capture_output=True,
            text=True,
            cwd=self._home("operator"),
            env=self._variables("operator"),
            timeout=120,
            check=False,
        )

    def _recognise(self, entry: Path) -> Process | None:
        """The process under /proc/PID, unless it is of somebody else or has ended."""
        prefix = f"{_ENTRY}={self._token}:".encode()
        for variable in (entry / "environ").read_bytes().split(b"\0"):
            if variable.startswith(prefix):
                words = (entry / "cmdline").read_bytes().split(b"\0")
                if not words[0]:
                    return None  # ended, and not yet collected
                names = [Path(word.decode(errors="replace")).name for word in words[:2]]
                command = names[1] if names[0].startswith("python") and len(names) > 1 else names[0]
                return Process(int(entry.name), variable[len(prefix) :].decode(), command)
        return None

    def _end(self, chosen: Callable[[Process], bool]) -> list[Process]:
        """SIGKILL to the chosen, and again to whatever they started meanwhile, until none is left."""
        hit: dict[int, Process] = {}
        deadline = time.monotonic() + 30
        while living := [process for process in self.processes() if chosen(process)]:
            assert time.monotonic() < deadline, f"cannot be ended: {living}"
            for process in living:
                with suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGKILL)
                hit[process.pid] = process
            for started in self._started.values():
                started.poll()  # collects our own children
            time.sleep(0.01)
        for started in self._started.values():
            if started.pid in hit:
                started.wait()
        return list(hit.values())

    def _sample(self) -> None:
        """Measure until told to stop: every process a few times a second."""
        while not self._stop.wait(0.2):
            now: dict[tuple[str, str], int] = {}
            for process in self.processes():
                with suppress(OSError, KeyError):
                    name = (process.owner, process.command)
                    peak = _kilobytes(Path(f"/proc/{process.pid}/status"), "VmHWM:") * 1024
                    share = _kilobytes(Path(f"/proc/{process.pid}/smaps_rollup"), "Pss:") * 1024
                    self.memory.peaks[name] = max(self.memory.peaks.get(name, 0), peak)
                    now[name] = now.get(name, 0) + share
            if sum(now.values()) > self.memory.together:
                self.memory.together, self.memory.at_peak = sum(now.values()), now


def _kilobytes(file: Path, key: str) -> int:
    for line in file.read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1])
    raise KeyError(key)


def _free_ports(count: int) -> list[int]:
    """Ports that nobody listens on, all held at once so that they differ."""
    held = [socket.socket() for _ in range(count)]
    try:
        for sock in held:
            sock.bind(("127.0.0.1", 0))
        return [sock.getsockname()[1] for sock in held]
    finally:
        for sock in held:
            sock.close()


def _listens(port: int) -> bool:
    with socket.socket() as sock:
        sock.settimeout(1)
        return sock.connect_ex(("127.0.0.1", port)) == 0
