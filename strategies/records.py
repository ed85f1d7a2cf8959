"""Between Flower's records and ours: what a message carries, in one place for both ends.

coordinator -> site   "order": Order and signed Checkpoint as JSON    "objects": bytes of tensors by SHA-256
site -> coordinator   "site": its name, the request, further facts    "objects"    "figures": weight and metrics

Tensors travel as the very bytes of their safetensors objects (pm1_core.objects), so that what is hashed, signed,
stored and sent is one and the same. An object is cut into pieces of raw bytes, "DIGEST.000000" and so on: Flower
copies an array several times on its way through a process, and small ones cost little.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping

from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from pm1_core.errors import FederationError
from pm1_core.validate import refusal

Fact = str | int | float | list[str]
Facts = Mapping[str, Fact]

INLINE_BYTES = 32 * 2**20
"""Objects of more bytes than this in all are sent one by one, each in a message of its own."""

_PIECE_BYTES = 4 * 2**20
_RAW = "pm1.raw"


def pack(
    record: str,
    facts: Facts,
    objects: Iterable[tuple[str, bytes]] = (),
    figures: Mapping[str, float] | None = None,
) -> RecordDict:
    """The content of a message: facts under `record` ("order" or "site"), objects by digest, and figures."""
    content = RecordDict({record: ConfigRecord(dict(facts))})
    arrays = {name: array for digest, data in objects for name, array in _pieces(digest, data)}
    if arrays:
        content["objects"] = ArrayRecord(arrays)
    if figures is not None:
        content["figures"] = MetricRecord({name: float(value) for name, value in figures.items()})
    return content


def facts_of(content: RecordDict, record: str) -> dict[str, Fact]:
    """The facts under "order" or "site". Raises FederationError if the message has none."""
    if record not in content.config_records:
        raise FederationError(
            refusal("message", f"record {record!r} is missing", "run the same version at both ends")
        )
    return dict(content.config_records[record])  # type: ignore[arg-type]


def objects_of(content: RecordDict) -> Iterator[tuple[str, bytes]]:
    """Digest and bytes of each object of a message. Raises FederationError if one is not made of whole pieces."""
    record = content.array_records.get("objects", ArrayRecord())
    held: dict[str, list[str]] = {}
    for name in sorted(record):
        digest, _, number = name.rpartition(".")
        if number != f"{len(held.setdefault(digest, [])):06d}" or record[name].stype != _RAW:
            raise FederationError(
                refusal(f"object {name[:20]!r}", "it is no piece", "send its bytes in pieces")
            )
        held[digest].append(name)
    for digest, names in held.items():
        yield digest, b"".join(record[name].data for name in names)


def _pieces(digest: str, data: bytes) -> Iterator[tuple[str, Array]]:
    for number, start in enumerate(range(0, len(data), _PIECE_BYTES)):
        piece = data[start : start + _PIECE_BYTES]
        yield f"{digest}.{number:06d}", Array(dtype="uint8", shape=(len(piece),), stype=_RAW, data=piece)


def figures_of(content: RecordDict) -> dict[str, float]:
    """The numbers of a message. Raises FederationError if one is a list."""
    figures = {}
    for name, value in content.metric_records.get("figures", MetricRecord()).items():
        if isinstance(value, list):
            raise FederationError(refusal(f"figure {name!r}", "found a list", "send one number"))
        figures[name] = float(value)
    return figures


def text_of(facts: Facts, name: str) -> str:
    """A text among facts. Raises FederationError if it is absent or no text."""
    value = facts.get(name)
    if not isinstance(value, str):
        raise FederationError(refusal(f"fact {name!r}", f"found {value!r}", "send a text"))
    return value


def list_of(facts: Facts, name: str) -> list[str]:
    """A list of texts among facts; empty where there is none. Raises FederationError on anything else."""
    value = facts.get(name, [])
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise FederationError(refusal(f"fact {name!r}", f"found {value!r}", "send a list of texts"))
    return value


def request_digest(kind: str, order: str, checkpoint: str) -> str:
    """SHA-256 by which both ends know one request: what is asked, the order's JSON, and the checkpoint's hash."""
    return hashlib.sha256(json.dumps([kind, order, checkpoint]).encode()).hexdigest()
