"""Services of one machine under one parent: started, started again when they end, and ended together.

A service that ends is started again, first after a second, then after twice as long, up to a minute; one that ran
for a minute begins anew. A code of PERMANENT says that something has to be put right by a person: then all are
ended, and that is the code of `supervise`. SIGTERM and SIGINT end all, which is code 0. What services print is
kept small (pm1_core.logs).
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

from pm1_core import atomic, logs

PERMANENT = (2, 3, 5)
"""Exit codes of pm1_core.command after which another start would end the same way."""

_LONGEST = 60.0
_GRACE = 15.0
_LOOK = 0.1


@dataclass(frozen=True)
class Service:
    """A command that runs until it is ended.

    log: what it prints is appended there; None leaves it to this process's own output
    """

    name: str
    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    log: Path | None = None


def supervise(services: Sequence[Service], folder: Path, say: Callable[[str], None] = print) -> int:
    """Run services until SIGTERM or SIGINT, or until one cannot be helped, and return the exit code.

    folder: NAME.pid of each service that runs, and a lock, so that nobody else supervises them

    Raises StateError if another supervisor works in `folder`.
    """
    ended = threading.Event()
    with ExitStack() as kept:
        kept.enter_context(atomic.locked(folder / "supervisor.lock", "it runs already: end that one first"))
        for number in (signal.SIGTERM, signal.SIGINT):
            before = signal.signal(number, lambda *_: ended.set())
            kept.callback(signal.signal, number, before)
        running = [_Running(service, folder) for service in services]
        kept.callback(_end, running)
        while not ended.wait(_LOOK):
            for one in running:
                if one.service.log:
                    logs.emptied(one.service.log)
                code = one.look(say)
                if code in PERMANENT:
                    say(f"{one.service.name} ended with code {code}: another start would not help")
                    return int(code)
        say("asked to end")
        return 0


def replace(service: Service) -> None:
    """Become this service: what a container, or systemd, runs. Does not return."""
    os.execvpe(service.command[0], list(service.command), {**os.environ, **service.environment})


class _Running:
    """One service: its process, and when it may be started again."""

    def __init__(self, service: Service, folder: Path) -> None:
        self.service = service
        self.pid_file = folder / f"{service.name}.pid"
        self.process: subprocess.Popen[bytes] | None = None
        self._since = self._next = 0.0
        self._pause = 1.0

    def look(self, say: Callable[[str], None]) -> int | None:
        """Start it if it does not run and its time has come; the exit code if it has just ended."""
        now = time.monotonic()
        if self.process is None:
            if now >= self._next:
                self._start()
                say(f"{self.service.name} started, process {self.process.pid if self.process else 0}")
            return None
        code = self.process.poll()
        if code is None:
            return None
        self.end(0)  # whatever it started
        self._pause = 1.0 if now - self._since > _LONGEST else min(2 * self._pause, _LONGEST)
        self._next = now + self._pause / 2
        if code not in PERMANENT:
            say(f"{self.service.name} ended with code {code}, is started again in {self._pause / 2:.0f} s")
        return code

    def ask(self) -> None:
        """Ask it, and what it started, to end."""
        self._signal(signal.SIGTERM)

    def end(self, grace: float) -> None:
        """Wait for it to end, at most `grace` seconds, and make sure that nothing of it is left."""
        if self.process is None:
            return
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(grace)
        self._signal(signal.SIGKILL)
        self.process.wait()
        self.process = None
        self.pid_file.unlink(missing_ok=True)

    def _start(self) -> None:
        with ExitStack() as kept:
            log = None
            if self.service.log:
                self.service.log.parent.mkdir(parents=True, exist_ok=True)
                log = kept.enter_context(self.service.log.open("ab"))
            self.process = subprocess.Popen(
                list(self.service.command),
                env={**os.environ, **self.service.environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT if log else None,
                start_new_session=True,  # so that it can be ended with all that it starts
            )
        self._since = time.monotonic()
        atomic.write_text(self.pid_file, f"{self.process.pid}\n")

    def _signal(self, number: int) -> None:
        if self.process is not None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, number)


def _end(running: Sequence[_Running]) -> None:
    for one in running:
        one.ask()
    end = time.monotonic() + _GRACE
    for one in running:
        one.end(max(0.0, end - time.monotonic()))
