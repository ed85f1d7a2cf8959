"""Curves for TensorBoard, written line by line as they arise.

TensorBoard's own writer works in a thread, which ends with a traceback when the disk is full. A curve is a nicety:
where it cannot be written, that is said once, and the study goes on.
"""

from __future__ import annotations

import io
import logging
import os
import time
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

log = logging.getLogger("pm1.coordinator")


class Board:
    """One event file in `folder`; what older ones say of steps after `step` is void."""

    def __init__(self, folder: Path, step: int) -> None:
        self._stream: io.FileIO | None = None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            name = f"events.out.tfevents.{int(time.time()):010d}.{os.getpid()}.{time.monotonic_ns()}"
            self._stream = (folder / name).open("wb", buffering=0)
        except OSError as error:
            self._give_up(error)
        self._write(Event(wall_time=time.time(), file_version="brain.Event:2"))
        self._write(Event(wall_time=time.time(), step=step, session_log=SessionLog(status=SessionLog.START)))

    def add(self, tag: str, value: float, step: int) -> None:
        """One point of the curve `tag`."""
        point: Any = Summary.Value(tag=tag, simple_value=value)
        self._write(Event(wall_time=time.time(), step=step, summary=Summary(value=[point])))

    def close(self) -> None:
        """End the file."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def _write(self, event: Event) -> None:
        if self._stream is None:
            return
        record = io.BytesIO()
        RecordWriter(record).write(event.SerializeToString())
        try:
            self._stream.write(record.getvalue())
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        log.warning("no more curves for TensorBoard (%s)", error.strerror)
        self.close()
