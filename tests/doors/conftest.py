"""Where deployments of real processes are, which tests of the federation use as well."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "federation"))
