"""Logs that stay small, however long a service runs.

One that has grown too large becomes NAME.1, in place of the one before. A SuperNode asks for work every three
seconds: three idle sites fill tens of megabytes a day.
"""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path

LARGEST = 20 * 2**20
"""Bytes of a log; with the one before, a service's take twice as much."""


def turned(file: Path, largest: int = LARGEST) -> bool:
    """Whether a log was too large, and is NAME.1 now. Who writes it opens it anew for every line, or is told to."""
    if not _too_large(file, largest):
        return False
    file.replace(_former(file))
    return True


def emptied(file: Path, largest: int = LARGEST) -> bool:
    """`turned`, for a log that processes hold open for as long as they live, to append to.

    It is copied and emptied: what they write between the two is lost. Where the copy does not fit on the disk, all
    of it is: a full disk ends a study, a log that is missing does not.
    """
    if not _too_large(file, largest):
        return False
    _former(file).unlink(missing_ok=True)
    with suppress(OSError):
        shutil.copy2(file, _former(file))
    os.truncate(file, 0)
    return True


def _too_large(file: Path, largest: int) -> bool:
    return file.exists() and file.stat().st_size > largest


def _former(file: Path) -> Path:
    return file.with_name(f"{file.name}.1")
