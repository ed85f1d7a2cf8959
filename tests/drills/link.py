"""A bad line between a site and the coordinator: a relay that delays, narrows, resets and falls silent.

    with Link(("127.0.0.1", 8443), delay=0.5, rate=1e6, resets=0.05, seed=1) as link:
        ... connect to link.address ...
        link.cut()      # as a cable pulled: nothing arrives, nothing is refused, connections stay open
        link.mend()
        print(link.figures)

Kernels without netem have no other. It adds to each direction: bytes wait `delay` seconds, leave at `rate` bytes a
second, and before each chunk a connection is reset with probability `resets`.
"""

from __future__ import annotations

import asyncio
import random
import socket
import struct
import threading
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

_CHUNK = 1 << 16


@dataclass
class Figures:
    """What went over the line: connections made and reset, bytes to the coordinator and back."""

    connections: int = 0
    resets: int = 0
    sent: int = 0
    received: int = 0


class Link:
    """Relays every connection to `address` on a free port of 127.0.0.1 (or `host`), in a thread of its own."""

    def __init__(
        self,
        address: tuple[str, int],
        *,
        delay: float = 0.0,
        rate: float = float("inf"),
        resets: float = 0.0,
        seed: int = 0,
        host: str = "127.0.0.1",
        port: int = 0,
    ) -> None:
        self.figures = Figures()
        self._to = address
        self._delay, self._rate, self._resets = delay, rate, resets
        self._random = random.Random(seed)
        self._listener = socket.create_server((host, port))
        self.address: tuple[str, int] = self._listener.getsockname()[:2]
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._whole = asyncio.Event()
        self._whole.set()
        self._tasks: set[asyncio.Task[None]] = set()

    def __enter__(self) -> Link:
        self._thread.start()
        self._do(self._serve())
        return self

    def __exit__(self, *_: object) -> None:
        self._do(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._listener.close()

    def cut(self) -> None:
        """Pull the cable: bytes on their way are held, new connections are accepted and hear nothing."""
        self._loop.call_soon_threadsafe(self._whole.clear)

    def mend(self) -> None:
        """Put the cable back: what was held arrives."""
        self._loop.call_soon_threadsafe(self._whole.set)

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    async def _serve(self) -> None:
        self._server = await asyncio.start_server(self._accepted, sock=self._listener)

    async def _close(self) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.CancelledError):  # the line is closed
            await self._relayed(reader, writer)

    async def _relayed(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self.figures.connections += 1
        writers = [writer]
        try:
            await self._whole.wait()
            there, back = await asyncio.open_connection(*self._to)
            writers.append(back)
            async with asyncio.TaskGroup() as both:
                both.create_task(self._one_way(reader, back, "sent"))
                both.create_task(self._one_way(there, writer, "received"))
        except* (OSError, _ResetError):
            for one in writers:
                _reset(one)
        finally:
            for one in writers:
                one.close()

    async def _one_way(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, name: str) -> None:
        """Chunks in order, each `delay` after it came; a queue between, so that delay does not narrow the line."""
        waiting: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(1024)

        async def deliver() -> None:
            while True:
                due, chunk = await waiting.get()
                await asyncio.sleep(max(0.0, due - self._loop.time()))
                await self._whole.wait()
                if not chunk:
                    with suppress(OSError, RuntimeError):
                        writer.write_eof()
                    return
                if self._random.random() < self._resets:
                    self.figures.resets += 1
                    raise _ResetError
                setattr(self.figures, name, getattr(self.figures, name) + len(chunk))
                writer.write(chunk)
                await writer.drain()
                await asyncio.sleep(len(chunk) / self._rate)

        async with asyncio.TaskGroup() as both:
            both.create_task(deliver())
            chunk = b"-"
            while chunk:
                chunk = await reader.read(_CHUNK)
                await waiting.put((self._loop.time() + self._delay, chunk))


class _ResetError(Exception):
    """The line resets the connection."""


def _reset(writer: asyncio.StreamWriter) -> None:
    """End a connection with RST instead of FIN."""
    held = writer.get_extra_info("socket")
    with suppress(OSError):
        held.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
