"""Flower's Fleet API, by which SuperNodes talk to a SuperLink: its calls, what is in one, and passing one on.

A call is a protobuf message, POSTed to /v1/fleet/NAME, answered by another one. Whoever stands between a SuperNode
and its SuperLink (a site's door, the coordinator's guard) reads each call strictly: a request that is not, byte for
byte, how Flower writes the fields that it names is refused, so that nothing travels beside them. Flower 1.41.

A call with an object may have 256 MiB and more. It is held once: in the buffer that it was received into, of which
`Request.content` is a view, and from which it is sent on.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterable, AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import httpx
from flwr.proto import fab_pb2, fleet_pb2, heartbeat_pb2, message_pb2, run_pb2
from google.protobuf.message import DecodeError, Message

from pm1_core.errors import FederationError
from pm1_core.validate import refusal

PREFIX = "/v1/fleet/"
MEDIA_TYPE = "application/protobuf"
# What SuperNodes sign, and which version they are. Nothing else of a request's headers is passed on.
HEADERS = (
    "flwr-public-key",
    "flwr-signature",
    "flwr-timestamp",
    "flwr-package-name",
    "flwr-package-version",
    "flwr-component-name",
)
ANSWER_HEADERS = ("content-type", "content-length", "flwr-version-incompatibility-message")
NONCE = "x-pm1-nonce"
"""MILLISECONDS-RANDOM: a number used once."""
_LONGEST_HEADER = 1024
_CONTENT = 4  # number of the field object_content of PushObjectRequest
_SLICE = 1 << 20

_SMALL = 64 << 10
_LARGE = 384 << 20


class CallError(FederationError):
    """A call that is not let pass. status: of HTTP"""

    def __init__(self, status: int, where: object, found: str, remedy: str) -> None:
        super().__init__(refusal(where, found, remedy))
        self.status = status


@dataclass(frozen=True)
class Call:
    """One call. largest: bytes that its request may have; answered: bytes that its answer may have."""

    name: str
    request: type[Message]
    response: type[Message]
    largest: int = _SMALL
    answered: int = _SMALL

    @property
    def path(self) -> str:
        """Where it is POSTed to."""
        return PREFIX + self.name


CALLS = {
    call.name: call
    for call in (
        Call("register-node", fleet_pb2.RegisterNodeFleetRequest, fleet_pb2.RegisterNodeFleetResponse),
        Call("activate-node", fleet_pb2.ActivateNodeRequest, fleet_pb2.ActivateNodeResponse),
        Call("deactivate-node", fleet_pb2.DeactivateNodeRequest, fleet_pb2.DeactivateNodeResponse),
        Call("unregister-node", fleet_pb2.UnregisterNodeFleetRequest, fleet_pb2.UnregisterNodeFleetResponse),
        Call(
            "send-node-heartbeat",
            heartbeat_pb2.SendNodeHeartbeatRequest,
            heartbeat_pb2.SendNodeHeartbeatResponse,
        ),
        Call(
            "pull-messages", fleet_pb2.PullMessagesRequest, fleet_pb2.PullMessagesResponse, answered=16 << 20
        ),
        Call(
            "push-messages", fleet_pb2.PushMessagesRequest, fleet_pb2.PushMessagesResponse, 16 << 20, 16 << 20
        ),
        Call("get-run", run_pb2.GetRunRequest, run_pb2.GetRunResponse, answered=16 << 20),
        Call("get-fab", fab_pb2.GetFabRequest, fab_pb2.GetFabResponse, answered=64 << 20),
        Call("push-object", message_pb2.PushObjectRequest, message_pb2.PushObjectResponse, _LARGE),
        Call("pull-object", message_pb2.PullObjectRequest, message_pb2.PullObjectResponse, answered=_LARGE),
        Call(
            "confirm-message-received",
            message_pb2.ConfirmMessageReceivedRequest,
            message_pb2.ConfirmMessageReceivedResponse,
        ),
    )
}
"""By name. Nodes are registered by the coordinator's own hand: see OPEN for what sites may call."""

OPEN = frozenset(CALLS) - {"register-node", "unregister-node"}


@dataclass(frozen=True)
class Request:
    """A call as it was received.

    message: its fields, but for the content of an object; content: a view of that, for push-object only
    body: all of it, as it is sent on
    """

    call: Call
    message: Any
    body: bytes | bytearray
    content: memoryview | None = None

    @property
    def caller(self) -> int | None:
        """Id of the node that it says it is from; None for activate-node, which says a public key."""
        return caller(self.message)

    @property
    def run(self) -> int | None:
        """Id of the run that it is about, None if it is about none. Raises CallError if about several."""
        if isinstance(self.message, fleet_pb2.PushMessagesRequest):
            runs = {message.metadata.run_id for message in self.message.messages_list}
            if len(runs) > 1:
                raise CallError(
                    403, self.call.name, f"found messages of {len(runs)} runs", "send one at a time"
                )
            return next(iter(runs), None)
        found = getattr(self.message, "run_id", None)
        return None if found is None else int(found)

    @property
    def objects(self) -> list[str]:
        """Ids of the objects that it names, of trees all nodes, roots first."""
        message = self.message
        if isinstance(message, fleet_pb2.PushMessagesRequest):
            return [name for tree in message.message_object_trees for name in tree_ids(tree)]
        for name in ("object_id", "message_object_id"):
            if hasattr(message, name):
                return [str(getattr(message, name))]
        return []


def call_of(path: str) -> Call:
    """The call that is POSTed to `path`. Raises CallError if there is none, or if it is not for sites."""
    name = path.removeprefix(PREFIX)
    if not path.startswith(PREFIX) or name not in CALLS:
        raise CallError(
            403, "call", f"found {path[:80]!r}", f"use one of {PREFIX}: {', '.join(sorted(OPEN))}"
        )
    if name not in OPEN:
        raise CallError(403, f"call {name!r}", "it is not for sites", "the coordinator enrols and revokes")
    return CALLS[name]


def read(call: Call, body: bytes | bytearray) -> Request:
    """A received call. Raises CallError if `body` is not how Flower writes it."""
    content, rest = _without_content(call, body)
    message = call.request()
    try:
        message.ParseFromString(bytes(rest))
    except DecodeError:
        raise _malformed(call) from None
    message.DiscardUnknownFields()
    if message.SerializeToString(deterministic=True) != rest:
        raise _malformed(call)
    return Request(call, message, body, content)


def caller(message: Message) -> int | None:
    """Id of the node that a request says it is from, None if it says none."""
    names = message.DESCRIPTOR.fields_by_name
    if "node" in names:
        return int(message.node.node_id)
    return int(message.node_id) if "node_id" in names else None


def tree_ids(tree: message_pb2.ObjectTree) -> Iterator[str]:
    """Ids of a tree's objects, the root first."""
    yield tree.object_id
    for child in tree.children:
        yield from tree_ids(child)


def headers(found: Mapping[str, str]) -> dict[str, str]:
    """Of a request's headers those that are passed on. Raises CallError on a long one."""
    kept = {name: found[name] for name in HEADERS if name in found}
    for name, value in kept.items():
        if len(value) > _LONGEST_HEADER:
            raise CallError(
                400, f"header {name}", f"it has {len(value)} characters", f"use {_LONGEST_HEADER}"
            )
    return kept | {"content-type": MEDIA_TYPE, "accept": MEDIA_TYPE, "accept-encoding": "identity"}


async def received(call: Call, chunks: AsyncIterable[bytes], declared: str | None) -> bytearray:
    """The body of a request, of which a sender said that it has `declared` bytes. Raises CallError if too large."""
    length = int(declared) if declared and declared.isascii() and declared.isdecimal() else 0
    too_large = CallError(
        413, f"call {call.name!r}", "its body is too large", f"send at most {call.largest} bytes"
    )
    if length > call.largest:
        raise too_large
    body, end = bytearray(length), 0
    async for chunk in chunks:
        if end + len(chunk) > call.largest:
            raise too_large
        body[end : end + len(chunk)] = chunk  # grows only where a sender declared nothing, or too little
        end += len(chunk)
    del body[end:]
    return body


async def forward(
    client: httpx.AsyncClient, call: Call, body: bytes | bytearray, passed: Mapping[str, str]
) -> httpx.Response:
    """Send a call on, and return the answer once its head is there; its body is still to be read, or closed.

    It goes under a number of its own, by which the coordinator's guard knows it from one that is sent twice.

    client: knows the base address; passed: what `headers` gave. Raises httpx.TransportError.
    """
    own = {NONCE: f"{time.time_ns() // 1_000_000}-{secrets.token_hex(8)}", "content-length": str(len(body))}
    request = client.build_request("POST", call.path, content=_slices(body), headers={**passed, **own})
    return await client.send(request, stream=True)


async def answered(call: Call, response: httpx.Response) -> Any:
    """The answer to a call as a message. Raises CallError if it is an error, too large or no such message."""
    where = f"answer to {call.name!r}"
    try:
        body = bytearray()
        async for chunk in response.aiter_raw():
            body += chunk
            if len(body) > call.answered:
                raise CallError(502, where, "it is too large", f"send at most {call.answered} bytes")
    finally:
        await response.aclose()
    if response.status_code != httpx.codes.OK:
        raise CallError(response.status_code, where, f"found HTTP status {response.status_code}", "try again")
    message = call.response()
    try:
        message.ParseFromString(bytes(body))
    except DecodeError:
        raise CallError(502, where, "it is no protobuf message of this call", "use Flower 1.41") from None
    return message


async def _slices(body: bytes | bytearray) -> AsyncIterator[bytes]:
    view = memoryview(body)
    for start in range(0, len(view), _SLICE):
        yield bytes(view[start : start + _SLICE])


def _malformed(call: Call) -> CallError:
    return CallError(400, f"call {call.name!r}", "its body is not how Flower writes it", "use Flower 1.41")


def _without_content(call: Call, body: bytes | bytearray) -> tuple[memoryview | None, bytes | bytearray]:
    """The content of an object, as a view, and the request without that field."""
    if call.request is not message_pb2.PushObjectRequest:
        return None, body
    view, rest, content, at = memoryview(body), bytearray(), None, 0
    while at < len(view):
        start = at
        tag, at = _varint(call, view, at)
        kind = tag & 7
        if kind == 0:
            _, at = _varint(call, view, at)
        elif kind == 2:
            size, at = _varint(call, view, at)
            if at + size > len(view):
                raise _malformed(call)
            if tag >> 3 == _CONTENT:
                if content is not None:
                    raise _malformed(call)
                content = view[at : at + size]
            at += size
        else:  # PushObjectRequest has no fields of other kinds
            raise _malformed(call)
        if tag >> 3 != _CONTENT:
            rest += view[start:at]
    return content if content is not None else memoryview(b""), rest


def _varint(call: Call, view: memoryview, at: int) -> tuple[int, int]:
    """A base-128 number of at most 10 bytes, and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(view):
            break
        byte = view[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value, at
    raise _malformed(call)
