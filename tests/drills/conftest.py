"""Where consortia and deployments of real processes are."""

from __future__ import annotations

import sys
from pathlib import Path

for _room in ("federation", "doors", "drills", "deployment"):
    sys.path.insert(0, str(Path(__file__).parent.parent / _room))
