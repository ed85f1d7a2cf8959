"""Does a JSON value have the type that a `TypedDict` says? The first place that differs is named."""

from __future__ import annotations

import math
import types
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from pm1_core.errors import StateError
from pm1_core.validate import refusal


def conform(where: str, value: Any, kind: Any) -> None:
    """Return if `value` has the type `kind` (TypedDict, list, dict, Literal, union or plain type).

    Raises StateError naming the place, what was found and what belongs there. Numbers must be finite:
    JSON has no NaN, and a page must not print one.
    """
    origin = get_origin(kind)
    if isinstance(kind, type) and hasattr(kind, "__required_keys__"):
        _conform_keys(where, value, kind)
    elif origin in (Union, types.UnionType):
        _conform_union(where, value, get_args(kind))
    elif origin is Literal:
        if value not in get_args(kind):
            raise StateError(refusal(where, f"found {value!r}", f"write one of {', '.join(get_args(kind))}"))
    elif origin is list:
        _expect(where, value, list)
        for index, item in enumerate(value):
            conform(f"{where}[{index}]", item, get_args(kind)[0])
    elif origin is dict:
        _expect(where, value, dict)
        for key, item in value.items():
            conform(f"{where}, a key", key, get_args(kind)[0])
            conform(f"{where}.{key}", item, get_args(kind)[1])
    elif kind is float:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise StateError(refusal(where, f"found {value!r}", "write a finite number"))
    else:
        _expect(where, value, kind)


def _conform_keys(where: str, value: Any, kind: Any) -> None:
    _expect(where, value, dict)
    hints = get_type_hints(kind)
    for key in value:
        if key not in hints:
            raise StateError(refusal(f"{where}, key {key!r}", "unknown", f"known are {', '.join(hints)}"))
    for key, hint in hints.items():
        if key in value:
            conform(f"{where}.{key}", value[key], hint)
        elif key in kind.__required_keys__:
            raise StateError(refusal(where, f"key {key!r} is missing", "write it"))


def _conform_union(where: str, value: Any, options: tuple[Any, ...]) -> None:
    for option in options:
        try:
            conform(where, value, option)
        except StateError:
            continue
        return
    names = " or ".join("null" if o is type(None) else o.__name__ for o in options)
    raise StateError(refusal(where, f"found {value!r}", f"write {names}"))


def _expect(where: str, value: Any, kind: type) -> None:
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise StateError(refusal(where, f"found {type(value).__name__}", f"write a {kind.__name__}"))
