"""A ledger under kills, torn lines and processes that charge at the same time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from charged import STEP, charge, charged, opened

from pm1_core.errors import StateError
from pm1_core.privacy.accounting import tightest
from pm1_core.privacy.ledger import Ledger
from pm1_core.privacy.mechanisms import Mechanism


def test_every_place_at_which_a_line_can_be_torn_is_survived(tmp_path: Path):
    written = charged(tmp_path / "whole")
    whole, head = written.path.read_bytes(), written.path.with_suffix(".head").read_bytes()
    charge(written, 6)
    longer = written.path.read_bytes()
    for cut in range(len(whole), len(longer) + 1, 7):
        other = Ledger(tmp_path / f"cut{cut}" / Ledger.NAME)
        other.path.parent.mkdir()
        other.path.write_bytes(longer[:cut])
        other.path.with_suffix(".head").write_bytes(head)
        lines = 7 if cut >= len(longer) - 1 else 6
        assert other.verify().lines == lines
        assert charge(other, 6) == (lines == 6)
        charge(other, 7)
        assert Ledger(other.path).verify().lines == 8
        assert Ledger(other.path).spent() == tightest([STEP] * 7, 1e-5)
        # A torn line that a later one vouches for is no place to hide a change.
        torn = other.path.read_bytes()
        if lines == 6 and cut > len(whole):
            other.path.write_bytes(torn.replace(longer[len(whole) : cut] + b"\n", b"x\n", 1))
            with pytest.raises(StateError, match="between lines 6 and 7"):
                Ledger(other.path).verify()


_MORTAL = """
import os, random, signal, sys
from pathlib import Path
from pm1_core.privacy.ledger import Ledger
from pm1_core.privacy.mechanisms import Mechanism

path, sent, seed = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
left = random.Random(seed).randrange(40)

def mortal(name):
    real = getattr(os, name)
    def step(*arguments, **options):
        global left
        for after in (False, True):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            if not after:
                result = real(*arguments, **options)
        return result
    setattr(os, name, step)

for name in ("open", "fsync", "replace", "rename", "unlink"):
    mortal(name)

class Torn:
    def __init__(self, stream):
        self.stream = stream
    def write(self, content):
        global left
        left -= 1
        if left <= 0:
            self.stream.write(content[: random.Random(seed).randrange(len(content) + 1)])
            self.stream.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        return self.stream.write(content)
    def __getattr__(self, name):
        return getattr(self.stream, name)
    def __enter__(self):
        return self
    def __exit__(self, *_):
        self.stream.close()

real_open = Path.open
def torn_open(self, mode="r", *arguments, **options):
    stream = real_open(self, mode, *arguments, **options)
    return Torn(stream) if "+" in mode else stream
Path.open = torn_open

ledger = Ledger(path)
for number in range(1000):
    held = sent / str(number)
    if held.exists():
        continue
    ledger.charge("s", "p", number, f"q{number}", f"h{number}", [Mechanism("gaussian", 100.0)])
    real_open(held, "w").close()
    if number % 8 == 7:
        break
"""


@pytest.mark.slow
def test_killed_at_any_instant_it_is_never_behind_what_has_left(tmp_path: Path):
    ledger, sent = Ledger(tmp_path / Ledger.NAME), tmp_path / "sent"
    ledger.open("Freiburg", {"record": (8.0, 1e-5)})
    sent.mkdir()
    killed = 0
    for seed in range(40):
        ended = subprocess.run(
            [sys.executable, "-c", _MORTAL, str(ledger.path), str(sent), str(seed)],
            capture_output=True,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        assert ended.returncode in (0, -signal.SIGKILL), ended.stderr
        killed += ended.returncode != 0
        state = Ledger(ledger.path)
        charged = state.verify().lines - 1
        left = len(list(sent.iterdir()))
        assert left <= charged <= left + 1
        if charged:
            assert state.spent() == tightest([Mechanism("gaussian", 100.0)] * charged, 1e-5)
    assert killed > 20
    assert left > 20


_CROWD = """
import sys
from pathlib import Path
from pm1_core.errors import PrivacyError
from pm1_core.privacy.ledger import Ledger
from pm1_core.privacy.mechanisms import Mechanism
refused = 0
for number in range(12):
    try:
        Ledger(Path(sys.argv[1])).charge("s", sys.argv[2], number, sys.argv[2] + str(number), "h",
                                         [Mechanism("gaussian", 3.0)])
    except PrivacyError:
        refused += 1
print(refused)
"""


def test_processes_that_charge_at_the_same_time_never_pass_the_budget_together(tmp_path: Path):
    ledger = opened(tmp_path)
    crowd = [
        subprocess.Popen(
            [sys.executable, "-c", _CROWD, str(ledger.path), str(number)],
            stdout=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        for number in range(3)
    ]
    refused = sum(int(process.communicate()[0]) for process in crowd)
    lines = ledger.verify().lines - 1
    assert lines == 36 - refused
    assert ledger.spent().value <= 3.0 < tightest([Mechanism("gaussian", 3.0)] * (lines + 1), 1e-5).value
