"""Starts the processes of `pm1_core.training.processes` by torch's launcher, for one round at one site.

Of the launcher (`torch.distributed.elastic`) it is the part that starts, watches and ends processes. Its agent is
left out: on one machine nobody has to be found, and it would listen to the whole network and unpickle what it is
sent. Processes meet in a file, and talk to each other over the loopback.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, start_processes
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from pm1_core import errors
from pm1_core.data.store import Store
from pm1_core.data.summary import StudySummary
from pm1_core.errors import ConfigError, PM1Error, StateError
from pm1_core.training import methods
from pm1_core.training.loop import device_of
from pm1_core.training.order import Order
from pm1_core.training.parts import State
from pm1_core.training.tasks.base import Task
from pm1_core.update import Tensors, Update
from pm1_core.validate import refusal

_POLL = 0.1  # seconds
_LAUNCHER = ("torch.distributed.elastic.multiprocessing.api", "torch.multiprocessing.spawn")
_TAKEN = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
_FIRST = "first.json"


def train(
    processes: int, task: Task, store: Store, order: Order, state: State, tensors: Tensors, folder: Path
) -> Update:
    """`methods.train` by several processes, one on each GPU, or on the CPU where there is none.

    One process trains a task that does not divide its batches. Raises as `methods.train`, ConfigError if there are
    fewer GPUs than processes, and StateError if a process died.
    """
    if processes <= 1 or not task.divides:
        return methods.train(task, store, order, state, tensors, folder)
    _require_devices(processes, device_of(order.parameters))
    found = together(processes, _update, type(task), task.study, store, order, state, tensors, folder)
    update: Update = found[0]
    return update


def together(processes: int, function: Callable[..., Any], *given: Any) -> list[Any]:
    """`function(*given)` in so many processes that train together: what each of them returned.

    If one of them fails, the others are ended. Raises the PM1Error that it raised, or StateError.
    """
    threads = max(1, torch.get_num_threads() // processes)
    with tempfile.TemporaryDirectory(prefix="pm1-processes-") as name, _quiet():
        folder = Path(name)
        work = folder, processes, threads, function, given
        with _handlers_kept():
            context = start_processes(
                "training",
                _joined,
                {rank: (rank, *work) for rank in range(processes)},
                {rank: _loopback() for rank in range(processes)},
                DefaultLogsSpecs(str(folder / "logs")),
            )
        try:
            result = context.wait(period=_POLL)
        finally:
            context.close()
        assert result is not None, "without a limit it waits for all of them"
        if result.failures:
            raise _error(folder, next(iter(result.failures.values())))
    return [result.return_values[rank] for rank in range(processes)]


def _joined(
    rank: int,
    folder: Path,
    processes: int,
    threads: int,
    function: Callable[..., Any],
    given: tuple[Any, ...],
) -> Any:
    """What one process does. If it fails it says why before the others notice that it is gone."""
    torch.set_num_threads(threads)
    gpus = torch.cuda.is_available()
    if gpus:
        torch.cuda.set_device(rank % torch.cuda.device_count())
    backend = "cpu:gloo,cuda:nccl" if gpus else "gloo"
    meeting = (folder / "meeting").as_uri()
    dist.init_process_group(backend, init_method=meeting, rank=rank, world_size=processes)
    try:
        return function(*given)
    except Exception as error:
        if not isinstance(error, PM1Error):
            traceback.print_exc()
        own = folder / f"{rank}.json"
        own.write_text(json.dumps([type(error).__name__, str(error)]))
        with suppress(FileExistsError):
            os.link(own, folder / _FIRST)
        raise
    finally:
        dist.destroy_process_group()


def _loopback() -> dict[str, str]:
    """Where gloo and NCCL listen, as a child's environment."""
    name = next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
    return {"GLOO_SOCKET_IFNAME": name, "NCCL_SOCKET_IFNAME": name}


def _update(
    kind: type[Task],
    study: StudySummary,
    store: Store,
    order: Order,
    state: State,
    tensors: Tensors,
    folder: Path,
) -> Update | None:
    """The first process's update; all have the same."""
    update = methods.train(kind(order.parameters, study), store, order, state, tensors, folder)
    return None if dist.get_rank() else update


def _require_devices(processes: int, device: torch.device) -> None:
    if device.type == "cpu":
        return
    where, remedy = "site's processes", "use as many as there are GPUs, and device=auto"
    if device.type != "cuda" or device.index is not None:
        raise ConfigError(refusal(where, f"found {processes} for device {str(device)!r}", remedy))
    if processes > torch.cuda.device_count():
        found = f"found {processes} for {torch.cuda.device_count()} GPUs"
        raise ConfigError(refusal(where, found, remedy))
    kinds = sorted({torch.cuda.get_device_name(number) for number in range(processes)})
    if len(kinds) > 1:
        # Each draws all random numbers for itself, and GPUs of two kinds draw different ones from a seed.
        found, remedy = f"found GPUs of several kinds ({', '.join(kinds)})", "choose by CUDA_VISIBLE_DEVICES"
        raise ConfigError(refusal(where, found, remedy))


def _error(folder: Path, failure: ProcessFailure) -> PM1Error:
    """What the first one that failed raised; a killed one left nothing but its signal."""
    first = folder / _FIRST
    name, sentence = json.loads(first.read_text()) if first.exists() else ("", str(failure.message))
    kind = getattr(errors, name, None)
    if isinstance(kind, type) and issubclass(kind, PM1Error):
        return kind(sentence)
    reason = " ".join(f"{name} {sentence}".split())[:200]
    return StateError(refusal("a training process", reason, "see the site's log, or set processes=1"))


@contextmanager
def _handlers_kept() -> Iterator[None]:
    """The launcher takes over signals for good: they would no longer end this process. Its children follow it."""
    main = threading.current_thread() is threading.main_thread()
    handlers = {number: signal.getsignal(number) for number in _TAKEN} if main else {}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the launcher's log, which repeats at length what is raised."""
    levels = [(logging.getLogger(name), logging.getLogger(name).level) for name in _LAUNCHER]
    for logger, _ in levels:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in levels:
            logger.setLevel(level)
