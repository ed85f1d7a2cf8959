"""One wording for refusals: where, what was found, what is accepted, what to do."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

import numpy as np

from pm1_core.errors import InputError
from pm1_core.words import plain

LONGEST = 5000
"""Characters of each piece of a refusal: room for what each of some twenty sites said."""


def refusal(where: object, found: str, remedy: str) -> str:
    """The sentence that every refusal is made of: one line, however long or odd what was found is.

    >>> refusal("site.yaml, key build", "found 'hg99'", "use GRCh37 or GRCh38")
    "site.yaml, key build: found 'hg99'; use GRCh37 or GRCh38."
    """
    pieces = (plain(piece) for piece in (where, found, remedy))
    return "{}: {}; {}.".format(*(one if len(one) <= LONGEST else f"{one[:LONGEST]} ..." for one in pieces))


def require_choice(
    where: object,
    value: Any,
    choices: Collection[str],
    error: type[InputError] = InputError,
) -> str:
    """Return `value` if it is one of `choices`, else raise `error` naming them and the nearest one."""
    if isinstance(value, str) and value in choices:
        return value
    near = get_close_matches(str(value), list(choices), n=1)
    hint = f"did you mean {near[0]!r}? accepted" if near else "accepted"
    raise error(refusal(where, f"found {value!r}", f"{hint}: {', '.join(sorted(choices))}"))


def require_keys(
    where: object,
    mapping: Any,
    required: Sequence[str],
    optional: Sequence[str] = (),
    error: type[InputError] = InputError,
) -> Mapping[str, Any]:
    """Return `mapping` if it is a mapping with all `required` and no unknown keys, else raise `error`."""
    if not isinstance(mapping, Mapping):
        raise error(refusal(where, f"found {type(mapping).__name__}", "write a mapping of keys to values"))
    accepted = [*required, *optional]
    for key in mapping:
        require_choice(f"{where}, key {key!r}", key, accepted, error)
    for key in required:
        if key not in mapping:
            raise error(refusal(where, f"key {key!r} is missing", "add it"))
    return mapping


def require_range(
    where: object,
    value: float,
    low: float | None = None,
    high: float | None = None,
    error: type[InputError] = InputError,
) -> float:
    """Return `value` if low <= value <= high, else raise `error` naming the bound."""
    # Only NaN differs from itself; numpy's isnan takes no whole number beyond 64 bits.
    number = isinstance(value, (int, float, np.number)) and not isinstance(value, bool) and value == value
    if number and not (low is not None and value < low) and not (high is not None and value > high):
        return value
    bounds = f"from {low} to {high}" if low is not None and high is not None else ""
    bounds = bounds or (f"of at least {low}" if low is not None else f"of at most {high}")
    raise error(refusal(where, f"found {value!r}", f"use a number {bounds}"))


def require_shape(where: object, array: np.ndarray, shape: Sequence[int | None]) -> np.ndarray:
    """Return `array` if its shape matches `shape` (None matches any size), else raise InputError."""
    if array.ndim == len(shape) and all(
        want is None or have == want for have, want in zip(array.shape, shape, strict=True)
    ):
        return array
    wanted = tuple("any" if size is None else size for size in shape)
    raise InputError(refusal(where, f"found shape {array.shape}", f"give an array of shape {wanted}"))
