"""Documents as somebody would send them who means no good."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from pm1_core.validate import LONGEST

PATHS = ("../../x", "..", ".", "/", "a/b", "x" * 300, "a\0b", "\ud800", "a\nb", "~", "\x1b[2J", "")
NUMBERS = (10**400, -(2**63), 2**64, 1e308, float("nan"), float("inf"), -0.0, 1e-320)

_odd = st.sampled_from([*PATHS, *NUMBERS])
_scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=70) | _odd
values = _odd | st.recursive(
    _scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
"""Whatever JSON can hold, and often a path that leads away or a number that no machine word has."""


def places(content: Any) -> list[tuple[Any, Any]]:
    """Every mapping or list of a document with each of its keys."""
    if not isinstance(content, dict | list):
        return []
    keys = list(content) if isinstance(content, dict) else range(len(content))
    return [place for key in keys for place in ((content, key), *places(content[key]))]


def changed(document: Any, data: st.DataObject, more: st.SearchStrategy[Any] | None = None) -> Any:
    """A copy with a value or a whole branch exchanged, left out, doubled or renamed, at up to three places.

    more: values that are put in beside any
    """
    content = copy.deepcopy(document)
    for _ in range(data.draw(st.integers(1, 3))):
        if not (found := places(content)):
            break
        within, key = data.draw(st.sampled_from(found))
        how = data.draw(st.sampled_from(["exchange", "exchange", "move", "leave out", "double", "rename"]))
        if how == "leave out":
            del within[key]
        elif how == "double" and isinstance(within, list):
            within.append(copy.deepcopy(within[key]))
        elif how in ("double", "rename") and isinstance(within, dict):
            value = within[key] if how == "double" else within.pop(key)
            within[data.draw(st.text(max_size=8) | st.sampled_from(sorted(map(str, within)) or ["x"]))] = (
                value
            )
        elif how == "move":
            other, at = data.draw(st.sampled_from(found))
            within[key] = copy.deepcopy(other[at])
        else:
            within[key] = data.draw(values if more is None else more | values)
    return content


def damaged(message: bytes, data: st.DataObject, pieces: Sequence[bytes] = (b"[",)) -> bytes:
    """Bits flipped, a piece cut out or put in, or something else altogether.

    pieces: what means something in the document's language
    """
    kind = data.draw(st.sampled_from(["flip", "cut", "insert", "any"]))
    place = data.draw(st.integers(0, max(0, len(message) - 1)))
    if kind == "flip":
        out = bytearray(message)
        out[place] ^= 1 << data.draw(st.integers(0, 7))
        return bytes(out)
    if kind == "cut":
        return message[:place] + message[place + data.draw(st.integers(1, 40)) :]
    if kind == "insert":
        piece = data.draw(st.binary(min_size=1, max_size=8) | st.sampled_from(list(pieces)))
        return message[:place] + piece + message[place:]
    return data.draw(st.binary(max_size=60) | st.sampled_from([piece * 100_000 for piece in pieces]))


def mutated(message: bytes, data: st.DataObject) -> bytes:
    """JSON that was damaged, or that holds something else somewhere."""
    if data.draw(st.booleans()):
        return damaged(message, data)
    return json.dumps(changed(json.loads(message), data)).encode()


@contextmanager
def writes_only(within: Path, below: Path) -> Iterator[None]:
    """Fail if anything under `below` comes, goes or changes while the block runs, but in the folder `within`."""
    before = _seen(below, within)
    yield
    assert _seen(below, within) == before


def _seen(below: Path, within: Path) -> dict[Path, tuple[int, int, int]]:
    """Mode, size and time of whatever is not in the folder `within`; of folders, the mode."""
    found = {}
    for path in below.rglob("*"):
        if path != within and within not in path.parents:
            state = path.lstat()
            size = (0, 0) if path.is_dir() else (state.st_size, state.st_mtime_ns)
            found[path] = (state.st_mode, *size)
    return found


def sentence(act: Callable[[], Any], *refusals: type[Exception]) -> str:
    """The one line with which `act` is refused, "" if it is not; any other exception is raised."""
    try:
        act()
    except refusals as error:
        said = str(error)
        assert said.isprintable(), "more than one line, or what a terminal would obey"
        assert said.endswith(".")
        assert len(said) < 4 * LONGEST
        return said
    return ""
