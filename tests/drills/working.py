"""A consortium at work on this machine: all services of a coordinator and of its sites, as both start them.

    with Working(folder, stores, study, definition, link={"delay": 0.5}) as working:
        working.submit()
        working.kill("north", "door")
        assert working.wait(600) == "finished:completed"

    sites' SuperNodes --> doors --TLS, over a Link--> nginx --> guard --> SuperLink <-- executor

Every supervisor starts again what was killed, as `restart: unless-stopped` does where there are containers.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from link import Link
from places import joined
from ports import free_ports
from processes import Closing, Family, Process, tails
from running import Coordinator

from client.enrol import install
from client.folder import DOOR, RUNTIME, TICKETS
from client.services import approvals
from pm1_core.checkpoint import CheckpointFolder
from pm1_core.enrolment import Kit
from pm1_core.errors import FederationError
from server import submission
from server.study import Study

COORDINATOR = "coordinator"
_BINARIES = Path(sys.executable).parent
_ROOT = Path(__file__).parents[2]

# What stands in the command line of a process.
_MARKS: dict[str, Callable[[list[str]], bool]] = {
    "supernode": lambda words: _runs(words, "flower-supernode"),
    "clientapp": lambda words: _runs(words, "flwr-clientapp"),
    "door": lambda words: "client.cli" in words and words[-1] == "door",
    "superlink": lambda words: _runs(words, "flower-superlink"),
    "executor": lambda words: _runs(words, "flower-superexec"),
    "serverapp": lambda words: _runs(words, "flwr-serverapp"),
    "guard": lambda words: "server.cli" in words and words[-1] == "guard",
    "gateway": lambda words: "server.cli" in words and words[-1] == "gateway",
}
_PASSING = ("serverapp", "clientapp")


@dataclass(frozen=True)
class Told:
    """What a run says of itself: phase and round, sites that have yet to answer, checkpoints, and why it ended."""

    phase: str
    round: int
    waiting: tuple[str, ...]
    checkpoints: int
    why: str


class Working(Closing):
    """stores: site -> prepared store; definition: study.yaml; link: of Link, between all sites and the gateway

    study: what `submit` submits; resumed: how often a run that had ended was gone on with
    """

    def __init__(
        self,
        folder: Path,
        stores: Mapping[str, Path],
        study: Study,
        definition: Path,
        link: Mapping[str, Any] | None = None,
    ) -> None:
        self.folder, self.study, self.definition = folder, study, definition
        # A tree that nobody edits meanwhile: sites approve its hash.
        with zipfile.ZipFile(io.BytesIO(submission.built(_ROOT))) as bundle:
            bundle.extractall(folder / "app")
        shutil.rmtree(folder / "app" / ".info")
        self.resumed = 0
        self._family = Family()
        self._sites: dict[str, subprocess.Popen[bytes]] = {}

        def way(port: int) -> int:
            self.link = Link(("127.0.0.1", port), **(link or {}))
            return self.link.address[1]

        self.coordinator = Coordinator(folder / COORDINATOR, way, self._variables(COORDINATOR))
        self.consortium = self.coordinator.consortium
        self.places = {
            site: joined(self.consortium, folder / site, site, store) for site, store in stores.items()
        }
        for site, place in self.places.items():
            kit = self.consortium.kit(site)  # again: by now it has the keys of all sites, for secure sums
            install(place, Kit.from_json(kit.read_text(), kit))
            place.file("policy.yaml").write_text("min_people: 1\n")  # a tenth of 24 people
        self._ports = {site: self._own_ports() for site in stores}

    def __enter__(self) -> Working:
        self.link.__enter__()
        try:
            self.coordinator.__enter__()
            for site in self.places:
                self.start(site)
        except BaseException:
            self.close()
            raise
        return self

    def close(self) -> None:
        """End every process of it."""
        for started in self._sites.values():
            started.send_signal(signal.SIGTERM)
        self.coordinator.close()
        for started in self._sites.values():
            with suppress(subprocess.TimeoutExpired):
                started.wait(30)
        self._end(lambda owner, words: True)
        self.link.__exit__(None, None, None)

    def start(self, owner: str) -> None:
        """Start the supervisor of a site or of the coordinator, which must not be running."""
        if owner == COORDINATOR:
            self.coordinator.__enter__()
            return
        command = [str(_BINARIES / "pm1-site"), "start", "door", "supernode", "--folder"]
        with self.log(owner).open("ab") as log:
            self._sites[owner] = subprocess.Popen(
                [*command, str(self.places[owner].path)],
                env={**os.environ, **self._variables(owner), **self._ports[owner]},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def kill(self, owner: str, what: str) -> int:
        """SIGKILL to processes of an owner; how many it hit. After "machine" nothing is left to start again."""
        if what == "nginx":  # which writes over its environment, so that it is not found by that
            return self._signal_all([self.coordinator.folder / "run/nginx.pid"], os.kill)
        if what != "machine":
            return self._end(lambda whose, words: whose == owner and _MARKS[what](words), once=True)
        started = self.coordinator.process if owner == COORDINATOR else self._sites[owner]
        assert started
        started.kill()  # the supervisor first, or it starts again what it misses
        started.wait()
        folder = self.coordinator.folder if owner == COORDINATOR else self.places[owner].path
        groups = self._signal_all(sorted((folder / "run").glob("[a-z]*.pid")), os.killpg)
        return groups + self._end(lambda whose, words: whose == owner)

    def _signal_all(self, files: list[Path], kill: Callable[[int, int], None]) -> int:
        """SIGKILL to those whose numbers stand in files; how many there were."""
        hit = 0
        for file in files:
            with suppress(OSError, ValueError):
                kill(int(file.read_text()), signal.SIGKILL)
                hit += 1
        return hit

    def submit(self) -> None:
        """Propose the study, approve it everywhere, and start it or go on with it."""
        with self.coordinator.addressed():
            made = submission.prepared(
                self.consortium, self._study_file(), self.definition, "", (), self.folder / "app"
            )
            proposal = made.propose()
            for place in self.places.values():
                held = approvals(place)
                held.approve(held.checked(proposal))
            self.run = made.start()

    def status(self) -> str:
        """Of the run, as Flower has it, "" while it cannot be asked."""
        try:
            with self.coordinator.addressed():
                return submission.control(self.consortium).status(self.run.run)
        except FederationError:
            return ""

    def wait(self, seconds: float, look: Callable[[], None] = lambda: None) -> str:
        """The status with which the study ends; a run that ended otherwise is gone on with, see `resumed`.

        look: called again and again meanwhile. Raises TimeoutError with the ends of all logs.
        """
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            look()
            # Asking takes a second of a processor: only if no ServerApp lives.
            if not self._living(lambda owner, words: owner == COORDINATOR and _MARKS["serverapp"](words)):
                status = self.status()
                if status == "finished:completed":
                    return status
                if status.startswith(("finished", "unknown")):
                    with suppress(FederationError):
                        self.submit()
                        self.resumed += 1
            time.sleep(0.05)
        raise TimeoutError(
            f"the study is {self.status()!r} after {seconds:.0f} s, {self.told()}\n{self.tail()}"
        )

    def told(self) -> Told:
        """What the run says of itself."""
        file = self.run_folder / "status.json"
        facts = json.loads(file.read_text()) if file.exists() else {}
        count = len(list((self.run_folder / "checkpoints").glob("[0-9]*.json")))
        waiting = tuple(facts.get("waiting", ()))
        return Told(facts.get("phase", ""), facts.get("round", 0), waiting, count, facts.get("why", ""))

    @property
    def run_folder(self) -> Path:
        """Of the run at the coordinator."""
        return submission.folder_of(self.consortium, self.study.name)

    @property
    def checkpoints(self) -> CheckpointFolder:
        """Of the run."""
        return CheckpointFolder(self.run_folder / "checkpoints")

    def staying(self) -> dict[tuple[str, str], tuple[int, ...]]:
        """(owner, service) -> its processes, of all that no study starts or ends."""
        found = {
            (one.owner, _name(_words(one.pid))): (one.pid,)
            for one in self._living(lambda owner, words: _name(words) not in _PASSING)
        }
        master = int((self.coordinator.folder / "run/nginx.pid").read_text())
        workers = Path(f"/proc/{master}/task/{master}/children").read_text().split()
        return {**found, (COORDINATOR, "nginx"): (master, *map(int, workers))}

    def passing(self) -> list[Process]:
        """Processes that a study started."""
        return self._living(lambda owner, words: _name(words) in _PASSING)

    def log(self, owner: str) -> Path:
        """What a site's supervisor prints."""
        return self.folder / f"{owner}.log"

    def tail(self, characters: int = 1500) -> str:
        """The ends of all logs."""
        return tails(self.folder, self.folder.rglob("*.log"), characters)

    def _study_file(self) -> Path:
        file = self.folder / "study.json"
        file.write_text(self.study.to_json())
        return file

    def _own_ports(self) -> dict[str, str]:
        names = (DOOR, TICKETS, RUNTIME)
        return {name: f"127.0.0.1:{port}" for name, port in zip(names, free_ports(len(names)), strict=True)}

    def _variables(self, owner: str) -> dict[str, str]:
        own = self.folder / "home" / owner  # so that nothing lies where nobody looks
        own.mkdir(parents=True, exist_ok=True)
        places = {"HOME": str(own), "TMPDIR": str(own)}
        return {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", **places, **self._family.entry(owner)}

    def _living(self, chosen: Callable[[str, list[str]], bool]) -> list[Process]:
        return [one for one in self._family.living() if chosen(one.owner, _words(one.pid))]

    def _end(self, chosen: Callable[[str, list[str]], bool], once: bool = False) -> int:
        """SIGKILL to the chosen; unless once, again until none is left."""
        hit: set[int] = set()
        while True:
            living = self._living(chosen)
            for process in living:
                with suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGKILL)
                hit.add(process.pid)
            for started in self._sites.values():
                started.poll()
            if once or not living:
                return len(hit)
            time.sleep(0.01)


def _runs(words: list[str], name: str) -> bool:
    return any(Path(word).name == name for word in words[:2])


def _name(words: list[str]) -> str:
    return next((name for name, marks in _MARKS.items() if marks(words)), "supervisor")


def _words(pid: int) -> list[str]:
    with suppress(OSError):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        return [word.decode(errors="replace") for word in words[:-1]] or [""]
    return [""]
