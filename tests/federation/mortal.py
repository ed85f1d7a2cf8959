"""Processes that die on the way, for real, and are cheap to start anew.

A server process imports torch once, and forks for every call. What is called is a function of this module; it may
be told to die: by SIGKILL after some time of the processor, or at one of the steps in which it changes the disk.
"""

from __future__ import annotations

import ctypes
import io
import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

CHANGES = (
    "open", "fsync", "replace", "rename", "unlink", "remove", "mkdir", "rmdir", "truncate", "link",
)  # fmt: skip
"""Functions of `os` that are steps; so are opening a file to write to it, and each half of what is written."""


class ForkServer:
    """Calls functions of a module in processes of their own. Use as a context."""

    def __enter__(self) -> ForkServer:
        here = Path(__file__).resolve()
        paths = [str(here.parent), str(here.parents[1]), str(here.parents[2]), *sys.path]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "mortal"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=here.parents[2],
        )
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(30)

    def call(self, function: str, *arguments: object) -> Any:
        """What `mortal_work.FUNCTION(*arguments)` returned, or None if its process was killed.

        Raises AssertionError with its traceback if it raised.
        """
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps([function, arguments]) + "\n")
        self._process.stdin.flush()
        status, outcome = json.loads(self._process.stdout.readline())
        if status == -signal.SIGKILL:
            return None
        assert status == 0, outcome
        return outcome


def serve() -> None:
    """Answer calls from standard input until it ends."""
    import mortal_work

    mortal_work.warm()
    for line in sys.stdin:
        name, arguments = json.loads(line)
        status, outcome = in_process(partial(getattr(mortal_work, name), *arguments))
        print(json.dumps([status, outcome]), file=sys.__stdout__, flush=True)


def in_process(work: Callable[[], Any]) -> tuple[int, Any]:
    """Exit status (negative: the signal that killed it) and result of `work` in a process forked from this one."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        status = 0
        try:
            outcome = work()
        except BaseException:
            status, outcome = 1, traceback.format_exc()
        with os.fdopen(writing, "w") as stream:
            stream.write(json.dumps(outcome))
        os._exit(status)
    os.close(writing)
    with os.fdopen(reading) as stream:
        text = stream.read()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return status, json.loads(text) if text else None


def die_after(seconds: float) -> None:
    """SIGKILL from the kernel once this process has used the processor for that long, in whatever it does then.

    timer_create(2) on the clock of the process: neither load nor Python's own signal handling moves the instant.
    """

    class Event(ctypes.Structure):
        _fields_ = (
            ("value", ctypes.c_void_p),
            ("signal", ctypes.c_int),
            ("notify", ctypes.c_int),
            ("rest", ctypes.c_char * 48),
        )

    class Times(ctypes.Structure):
        _fields_ = tuple((name, ctypes.c_long) for name in ("every_s", "every_ns", "first_s", "first_ns"))

    libc = ctypes.CDLL(None, use_errno=True)
    timer, event = ctypes.c_void_p(), Event(None, signal.SIGKILL, 0, b"")
    times = Times(0, 0, int(seconds), max(1, int(seconds % 1 * 1e9)))
    clock = 2  # CLOCK_PROCESS_CPUTIME_ID
    assert libc.timer_create(clock, ctypes.byref(event), ctypes.byref(timer)) == 0
    assert libc.timer_settime(timer, 0, ctypes.byref(times), None) == 0


class Steps(AbstractContextManager["Steps"]):
    """Counts the steps in which a block changes the disk, and dies before the one numbered `fatal`, from 1.

    on: whether steps count; what is to be done instead of dying may be given as `deed`
    """

    def __init__(self, fatal: int = 0, deed: Callable[[], None] | None = None) -> None:
        self.fatal = fatal
        self.count = 0
        self.on = True
        self._deed = deed or (lambda: os.kill(os.getpid(), signal.SIGKILL))
        self._real: dict[str, Any] = {}

    def __enter__(self) -> Steps:
        for name in CHANGES:
            self._real[name] = getattr(os, name)
            setattr(os, name, self._stepping(self._real[name], name == "fsync"))
        self._open = io.open
        io.open = self._opening  # type: ignore[assignment]
        return self

    def __exit__(self, *_: object) -> None:
        io.open = self._open
        for name, function in self._real.items():
            setattr(os, name, function)

    def step(self) -> None:
        """One more."""
        if self.on:
            self.count += 1
            if self.count == self.fatal:
                self._deed()

    def _stepping(self, function: Callable[..., Any], skipped: bool) -> Callable[..., Any]:
        def stepping(*arguments: Any, **options: Any) -> Any:
            self.step()
            # What a disk does on fsync matters to who loses power, not to who is killed.
            return None if skipped else function(*arguments, **options)

        return stepping

    def _opening(self, file: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        if not set(mode) & set("wax+"):
            return self._open(file, mode, *arguments, **options)
        self.step()
        return _HalfByHalf(self._open(file, mode, *arguments, **options), self.step)


class _HalfByHalf:
    """A file that is written in two halves, each a step, the first of which is on disk before the second."""

    def __init__(self, stream: Any, step: Callable[[], None]) -> None:
        self._stream = stream
        self._step = step

    def write(self, content: Any) -> int:
        middle = len(content) // 2
        for half in (content[:middle], content[middle:]):
            self._step()
            self._stream.write(half)
            self._stream.flush()
        return len(content)

    def __enter__(self) -> _HalfByHalf:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


if __name__ == "__main__":
    serve()
