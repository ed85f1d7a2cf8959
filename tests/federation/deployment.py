"""A deployment of real processes on this machine: SuperLink, SuperNodes, and the app as a run.

    with Deployment(folder, {"north": {"store": ..., "folder": ...}}) as deployment:
        run = deployment.submit({"study": ..., "definition": ..., "run": ...})
        deployment.kill("north")
        deployment.start("north")
        assert deployment.wait(run, 300) == "finished:completed"

Processes are found, named and ended by what they inherit, see processes.py: no other process is touched, and none
is forgotten.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from ports import free_ports
from processes import Closing, Family, Memory, Process, tails

ROOT = Path(__file__).parent.parent.parent
COORDINATOR = "coordinator"
SERVER_APP = "flwr-serverapp"
CLIENT_APP = "flwr-clientapp"

_BINARIES = Path(sys.executable).parent


class Deployment(Closing):
    """A SuperLink and a SuperNode per site below one folder, with telemetry and update checks off.

    folder: logs, Flower's own folders, and `superlink.db` appear in it
    sites: site -> its --node-config
    app: the folder with the pyproject.toml of the app
    database: False keeps the SuperLink's state in memory only
    separate: the coordinator's SuperExec is started beside the SuperLink and not by it; only so does a ServerApp
        outlive its SuperLink, since a SuperExec ends with whoever started it, and a ServerApp with the SuperExec
    environment: further variables for all processes
    """

    def __init__(
        self,
        folder: Path,
        sites: Mapping[str, Mapping[str, str]],
        *,
        app: Path = ROOT,
        database: bool = True,
        separate: bool = False,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.folder = folder
        self.sites = dict(sites)
        self.app = app
        self.database = database
        self.separate = separate
        self.memory = Memory()
        self._family = Family()
        self._environment = dict(environment or {})
        self._ports = dict(zip([COORDINATOR, *self.sites], free_ports(1 + len(self.sites)), strict=True))
        self._started: dict[str, subprocess.Popen[bytes]] = {}
        self._connections: dict[str, int] = {}
        self._stop = threading.Event()
        self._sampler = threading.Thread(
            target=self.memory.watch, args=(self._family, self._stop), daemon=True
        )

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

    def close(self) -> None:
        """End every process of this deployment, and return when none is left."""
        self._stop.set()
        if self._sampler.is_alive():
            self._sampler.join()
        self._end(lambda process: True)

    def start(self, owner: str, wait: bool = True) -> None:
        """Start the SuperLink ("coordinator") or the SuperNode of a site, which must not be running."""
        port, link = self._ports[owner], f"127.0.0.1:{self._ports[COORDINATOR]}"
        running = {process.command for process in self.processes(owner)}
        if owner == COORDINATOR:
            command = ["flower-superlink", "--insecure", "--port", str(port)]
            command += ["--disable-runtime-dependency-installation"]
            command += ["--database", str(self.folder / "superlink.db")] if self.database else []
            command += ["--isolation", "process"] if self.separate else []
        else:
            config = " ".join(f'{key}="{value}"' for key, value in self.sites[owner].items())
            command = ["flower-supernode", "--insecure", "--superlink", link, "--port", str(port)]
            command += ["--node-config", config]
        assert command[0] not in running, f"{owner} is running"
        self._started[owner] = self._launch(owner, command)
        if owner == COORDINATOR and self.separate and "flower-superexec" not in running:
            command = ["flower-superexec", "--insecure", "--runtime-api-address", link]
            self._started["executor"] = self._launch(owner, command)
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
        return self._family.living(owner)

    def log(self, owner: str) -> Path:
        """The file with all that the processes of an owner print."""
        return self.folder / f"{owner}.log"

    def tail(self, characters: int = 2000) -> str:
        """The ends of all logs, for the message of a test that fails."""
        return tails(self.folder, self.folder.glob("*.log"), characters)

    def _launch(self, owner: str, command: list[str]) -> subprocess.Popen[bytes]:
        with self.log(owner).open("ab") as log:
            return subprocess.Popen(
                [str(_BINARIES / command[0]), *command[1:]],
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                cwd=self._home(owner),
                env=self._variables(owner),
                start_new_session=True,
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
            **self._family.entry(owner),
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


def _listens(port: int) -> bool:
    with socket.socket() as sock:
        sock.settimeout(1)
        return sock.connect_ex(("127.0.0.1", port)) == 0
