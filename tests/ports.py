"""Ports of this machine for a test's processes to listen on."""

from __future__ import annotations

import random
import socket
from pathlib import Path

_LOWEST = 10000


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on, all different.

    They lie below those that the kernel gives to outgoing connections: nothing takes what a process listens on some
    seconds after this was asked, or again after it was killed.
    """
    (beneath, _) = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text(encoding="ascii").split()
    chosen: list[int] = []
    for port in random.SystemRandom().sample(range(_LOWEST, int(beneath)), 1000):
        if len(chosen) == count:
            return chosen
        with socket.socket() as every:
            try:
                every.bind(("", port))
            except OSError:
                continue
        chosen.append(port)
    raise OSError(f"{count} ports between {_LOWEST} and {beneath} are not free")
