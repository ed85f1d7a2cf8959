"""Reading what somebody else sent in a secure sum: whatever it is, it is checked or refused with PrivacyError.

Messages are JSON in the canonical form (`primitives.canonical`), bytes in it as lower-case hex.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from pm1_core.errors import InputError, PrivacyError
from pm1_core.privacy.primitives import canonical, digest
from pm1_core.validate import refusal, require_keys

_HEX = re.compile(r"(?:[0-9a-f]{2})*")
_REMEDY = "do not go on with it: whoever sent it does not keep to the protocol"


def parsed(where: str, message: bytes) -> Mapping[str, Any]:
    """A JSON object. Raises PrivacyError on anything else."""
    try:
        content = json.loads(bytes(message))
    except (ValueError, RecursionError, TypeError):
        raise PrivacyError(refusal(where, "it cannot be read", _REMEDY)) from None
    if not isinstance(content, Mapping):
        raise PrivacyError(refusal(where, "it is no JSON object", _REMEDY))
    return content


def fields(where: str, content: Any, names: Sequence[str]) -> list[Any]:
    """The values of exactly these keys."""
    try:
        return [require_keys(where, content, names)[name] for name in names]
    except InputError as error:
        raise PrivacyError(str(error)) from None


def raw(where: str, value: Any, size: int | None = None) -> bytes:
    """Bytes from hex, `size` of them."""
    if isinstance(value, str) and _HEX.fullmatch(value) and size in (None, len(value) // 2):
        return bytes.fromhex(value)
    wanted = "hex" if size is None else f"{size} bytes in hex"
    raise PrivacyError(refusal(where, f"found {str(value)[:40]!r} in place of {wanted}", _REMEDY))


def mapping(where: str, value: Any) -> Mapping[str, Any]:
    """A JSON object inside a message."""
    if isinstance(value, Mapping):
        return value
    raise PrivacyError(refusal(where, f"found {type(value).__name__} in place of an object", _REMEDY))


def names(where: str, value: Any, among: Collection[str]) -> tuple[str, ...]:
    """Sorted names without repetition, all of them from `among`."""
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise PrivacyError(refusal(where, "found no list of sites", _REMEDY))
    for item in value:
        if item not in among:
            raise PrivacyError(refusal(where, f"found {item[:40]!r}, who is not among them", _REMEDY))
    if list(value) != sorted(set(value)):
        raise PrivacyError(refusal(where, "found a site twice, or out of order", _REMEDY))
    return tuple(value)


def broken(where: str, found: str, remedy: str = _REMEDY) -> PrivacyError:
    """The error for somebody who does not keep to the protocol."""
    return PrivacyError(refusal(where, found, remedy))


def sealed_state(content: Mapping[str, Any]) -> bytes:
    """Our own state as bytes, with a digest that tells damage."""
    return canonical({"digest": digest(content), "content": content})


def opened_state(where: str, state: bytes) -> dict[str, Any]:
    """What `sealed_state` was given. Raises PrivacyError if it is damaged."""
    held = parsed(where, state)
    if set(held) != {"digest", "content"} or digest(held["content"]) != held["digest"]:
        raise PrivacyError(refusal(where, "it is damaged", "begin a new attempt"))
    return dict(held["content"])
