"""Documents as somebody would send them who means no good."""

from __future__ import annotations

import json

from hypothesis import strategies as st


def mutated(message: bytes, data: st.DataObject) -> bytes:
    """Bits flipped, a piece cut out or put in, a piece of JSON exchanged, or something else altogether."""
    kind = data.draw(st.sampled_from(["flip", "cut", "insert", "value", "any"]))
    place = data.draw(st.integers(0, max(0, len(message) - 1)))
    if kind == "flip":
        out = bytearray(message)
        out[place] ^= 1 << data.draw(st.integers(0, 7))
        return bytes(out)
    if kind == "cut":
        return message[:place] + message[place + data.draw(st.integers(1, 40)) :]
    if kind == "insert":
        return message[:place] + data.draw(st.binary(min_size=1, max_size=8)) + message[place:]
    if kind == "any":
        return data.draw(st.binary(max_size=60) | st.just(b"[" * 100_000))
    content = json.loads(message)
    where = content
    while True:
        key = data.draw(st.sampled_from(sorted(where) if isinstance(where, dict) else range(len(where))))
        if not isinstance(where[key], dict | list) or not where[key] or data.draw(st.booleans()):
            break
        where = where[key]
    scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=70)
    where[key] = data.draw(
        scalars | st.lists(scalars, max_size=2) | st.dictionaries(st.text(max_size=6), scalars)
    )
    return json.dumps(content).encode()
