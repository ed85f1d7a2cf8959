"""The SuperLink of `pm1-server start`, killed in its very first start."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from gateway import await_
from places import founded
from ports import free_ports

from pm1_core.errors import PM1Error
from server import services

_KILLED = """
import os, signal, sys
from alembic import op
from server.cli import main

left, make = int(sys.argv.pop(1)), op.create_table

def create_table(*given, **more):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return make(*given, **more)

op.create_table = create_table
sys.exit(main(sys.argv[1:]))
"""
"""pm1-server, whose process is killed before it makes the nth table."""


def test_a_superlink_killed_while_its_tables_are_made_starts_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flower refuses a database of which the first tables are there."""
    port, superlink = free_ports(2)
    consortium = founded(tmp_path / "consortium", port)
    monkeypatch.setenv("PM1_SUPERLINK", f"127.0.0.1:{superlink}")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    command, database = ["start", "superlink", "--folder", str(consortium.folder)], "superlink.db"
    for table in (2, 12):
        killed = _started([sys.executable, "-c", _KILLED, str(table), *command])
        assert killed.wait(300) == -signal.SIGKILL
        assert not (consortium.folder / database).exists()

    def works() -> bool:
        assert again.poll() is None
        try:
            return bool(services.health(consortium, "superlink"))
        except PM1Error:
            return False

    again = _started([sys.executable, "-m", "server.cli", *command])
    try:
        await_("the SuperLink", works, 300)
    finally:
        again.terminate()
        again.wait(60)


def _started(command: Sequence[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command, cwd=Path(__file__).parents[2], env={**os.environ})
