"""The bad line is as bad as it says: what the drills over it show depends on that."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest
from drills.link import Link


@pytest.fixture
def echo() -> Iterator[tuple[str, int]]:
    """A server that sends everything back."""
    server = socket.create_server(("127.0.0.1", 0))

    def answer(one: socket.socket) -> None:
        with one, suppress(OSError):
            while data := one.recv(1 << 16):
                one.sendall(data)

    def serve() -> None:
        while True:
            try:
                one, _ = server.accept()
            except OSError:
                return
            threading.Thread(target=answer, args=(one,), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    yield server.getsockname()
    server.shutdown(socket.SHUT_RDWR)
    server.close()


def asked(link: Link, size: int = 1000) -> float:
    """Seconds until `size` bytes have come back."""
    began = time.monotonic()
    with socket.create_connection(link.address, timeout=20) as line:
        line.sendall(b"x" * size)
        left = size
        while left:
            got = line.recv(left)
            if not got:
                raise ConnectionResetError
            left -= len(got)
    return time.monotonic() - began


def test_bytes_come_through_whole(echo: tuple[str, int]) -> None:
    with Link(echo) as link:
        asked(link, 1_000_000)
        assert (link.figures.sent, link.figures.received) == (1_000_000, 1_000_000)


def test_every_way_takes_the_delay_and_the_rate(echo: tuple[str, int]) -> None:
    with Link(echo, delay=0.2) as link:
        assert asked(link) >= 0.4
    with Link(echo, rate=1e6) as link:
        assert asked(link, 500_000) >= 0.4


def test_connections_are_reset(echo: tuple[str, int]) -> None:
    with Link(echo, resets=1.0) as link:
        with pytest.raises(ConnectionResetError):
            asked(link)
        assert link.figures.resets == 1


def test_a_cut_line_holds_everything_until_it_is_mended(echo: tuple[str, int]) -> None:
    with Link(echo) as link:
        link.cut()
        threading.Timer(0.5, link.mend).start()
        assert asked(link) >= 0.4
