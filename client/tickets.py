"""What a ClientApp says to its site's door before an answer leaves, over gRPC on this machine, in JSON.

    /pm1.Door/Permit   may this order be worked on, and may this be released?
    /pm1.Door/Ticket   these are the objects of the answer, and these the lines that outbox.jsonl has of it

Both answer {} or {"refused": sentence}. The door lets a message pass only if a ticket names the objects of its
content, all of them and no others. The ClientApp's side is client.counter.

Each call shows the site's secret, a file that door and SuperNode read: who reaches the port and cannot read it is
refused, whatever it asks.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio

from client.folder import SECRET
from pm1_core.errors import ConfigError, InputError, PM1Error
from pm1_core.validate import refusal, require_keys

SERVICE = "pm1.Door"
PERMIT, TICKET = METHODS = ("Permit", "Ticket")
LARGEST = 16 << 20
SHOWN = "pm1-secret"
"""Key of gRPC's metadata with the secret of the site."""

Asked = Callable[[Mapping[str, Any]], Awaitable[None]]
Refused = Callable[[str], Awaitable[None]]


@dataclass(frozen=True)
class Question:
    """May this be worked on, or released? order: JSON of the round's order; the others as policy.Answer."""

    run: int
    reply_to: str
    config: str
    study: str
    order: str
    people: int | None = None
    tensors: Sequence[str] = ()
    sites: int | None = None

    @staticmethod
    def of(content: Any) -> Question:
        """Read what `asdict` gave. Raises InputError on anything else."""
        given = _typed("question", content, _QUESTION)
        return Question(**{**given, "tensors": _texts("question, tensors", given["tensors"])})


@dataclass(frozen=True)
class Ticket:
    """An answer that may leave.

    run, reply_to: which message it answers; config: hash of the study
    objects: ids of its content, the root first, () for an error; error: digest of an error, "" for content
    lines: what is written down of it, `LINE`
    """

    run: int
    reply_to: str
    config: str = ""
    objects: Sequence[str] = ()
    error: str = ""
    lines: Sequence[Mapping[str, Any]] = field(default_factory=list)

    @property
    def bytes(self) -> int:
        """Of tensors."""
        return sum(line["bytes"] for line in self.lines)

    @staticmethod
    def of(content: Any) -> Ticket:
        """Read what `asdict` gave. Raises InputError on anything else."""
        given = _typed("ticket", content, _TICKET)
        objects = _texts("ticket, objects", given["objects"])
        if bool(objects) == bool(given["error"]):
            raise InputError(refusal("ticket", "it is neither for content nor for an error", "say which"))
        if any(len(name) != 64 for name in objects):
            raise InputError(
                refusal("ticket, objects", "found an id of another length", "use SHA-256 in hex")
            )
        lines = [_line(item) for item in given["lines"]]
        return Ticket(**{**given, "objects": objects, "lines": lines})


_QUESTION: Mapping[str, tuple[type, ...]] = {
    "run": (int,),
    "reply_to": (str,),
    "config": (str,),
    "study": (str,),
    "order": (str,),
    "people": (int, type(None)),
    "tensors": (list,),
    "sites": (int, type(None)),
}
_TICKET: Mapping[str, tuple[type, ...]] = {
    "run": (int,),
    "reply_to": (str,),
    "config": (str,),
    "objects": (list,),
    "error": (str,),
    "lines": (list,),
}
LINE: Mapping[str, tuple[type, ...]] = {
    "what": (str,),
    "study": (str,),
    "phase": (str,),
    "round": (int,),
    "bytes": (int,),
    "sha256": (list,),
    "figures": (int,),
    "charges": (list,),
}
_CHARGE: Mapping[str, tuple[type, ...]] = {"unit": (str,), "epsilon": (float, int), "delta": (float, int)}


def error_digest(code: int, reason: str) -> str:
    """SHA-256 that names an error reply."""
    return hashlib.sha256(json.dumps([code, reason]).encode()).hexdigest()


def server(address: str, secret: str, permit: Asked, ticket: Asked, stranger: Refused) -> grpc.aio.Server:
    """The door's ticket service, not started, on the running event loop.

    permit, ticket: take the JSON object that was sent, and raise PM1Error to refuse
    stranger: takes the sentence with which a call was refused that did not show the secret

    Raises ConfigError if the address cannot be bound.
    """
    handlers = {
        name: grpc.unary_unary_rpc_method_handler(_handler(secret, asked, stranger))
        for name, asked in ((PERMIT, permit), (TICKET, ticket))
    }
    built = grpc.aio.server(options=[("grpc.max_receive_message_length", LARGEST), ("grpc.so_reuseport", 0)])
    built.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(SERVICE, handlers)])
    try:
        bound = built.add_insecure_port(address)
    except RuntimeError:
        bound = 0
    if not bound:
        raise ConfigError(refusal(f"address {address}", "it cannot be listened on", "choose a free port"))
    return built


def _handler(secret: str, asked: Asked, stranger: Refused) -> Callable[[bytes, Any], Awaitable[bytes]]:
    async def handle(request: bytes, context: Any) -> bytes:
        shown = dict(context.invocation_metadata() or ()).get(SHOWN, "")
        if not hmac.compare_digest(str(shown).encode(), secret.encode()):
            remedy = f"start the SuperNode with {SECRET} of this site"
            reason = refusal("ticket service", "the call does not show the site's secret", remedy)
            await stranger(reason)
            return json.dumps({"refused": reason}).encode()
        try:
            content = json.loads(request)
            if not isinstance(content, dict):
                raise InputError(refusal("ticket service", "found no JSON object", "send one"))
            await asked(content)
        except (ValueError, RecursionError):
            return json.dumps({"refused": refusal("ticket service", "found no JSON", "send it")}).encode()
        except PM1Error as error:
            return json.dumps({"refused": str(error)}).encode()
        return b"{}"

    return handle


def _typed(where: str, content: Any, kinds: Mapping[str, tuple[type, ...]]) -> dict[str, Any]:
    given = dict(require_keys(where, content, tuple(kinds)))
    for key, kind in kinds.items():
        if not isinstance(given[key], kind) or isinstance(given[key], bool):
            found = f"found {type(given[key]).__name__}"
            raise InputError(refusal(f"{where}, key {key!r}", found, f"send {kind[0].__name__}"))
    return given


def _texts(where: str, value: Sequence[Any]) -> tuple[str, ...]:
    if not all(isinstance(item, str) for item in value):
        raise InputError(refusal(where, "found something that is no text", "send texts"))
    return tuple(value)


def _line(content: Any) -> dict[str, Any]:
    given = _typed("ticket, line", content, LINE)
    _texts("ticket, sha256", given["sha256"])
    charges = [_typed("ticket, charge", item, _CHARGE) for item in given["charges"]]
    numbers = [
        given["bytes"],
        given["figures"],
        *(item[key] for item in charges for key in ("epsilon", "delta")),
    ]
    if not all(0 <= number < 2**62 for number in numbers):
        raise InputError(refusal("ticket, line", "found a number out of bounds", "send numbers from 0"))
    return {**given, "charges": charges}
