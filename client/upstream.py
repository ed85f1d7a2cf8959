"""The door's connection to the coordinator's gateway, and answers that the door gives in the site's place."""

from __future__ import annotations

import hashlib
import ssl
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import httpx
from flwr.proto import error_pb2, fleet_pb2, message_pb2, node_pb2
from starlette.background import BackgroundTask
from starlette.responses import Response, StreamingResponse

from client.desk import root_bytes
from pm1_core.errors import StateError
from pm1_core.validate import refusal
from strategies import fleet
from strategies.fleet import CALLS, Call, CallError, Request

_SECONDS = httpx.Timeout(60.0, connect=10.0)


class Upstream:
    """The gateway. client: knows its address, and this site's certificate; state: of the last call, in a word"""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self.client = client
        self.state = ""

    async def ask(self, call: Call, message: Any, passed: Mapping[str, str]) -> Any:
        """The answer to a small call. Raises CallError if it is an error, httpx.TransportError if there is none."""
        body = message.SerializeToString(deterministic=True)
        response = await fleet.forward(self.client, call, body, passed)
        self.state = "answers"
        return await fleet.answered(call, response)

    async def stream(self, request: Request, passed: Mapping[str, str]) -> Response:
        """The answer to a call as it comes, never held here. Raises httpx.TransportError if there is none."""
        response = await fleet.forward(self.client, request.call, request.body, passed)
        self.state = "answers"
        kept = {name: response.headers[name] for name in fleet.ANSWER_HEADERS if name in response.headers}
        body = _bounded(request.call, response)
        return StreamingResponse(body, response.status_code, kept, background=BackgroundTask(response.aclose))

    async def answer_for(
        self, asked: message_pb2.Metadata, code: int, reason: str, passed: Mapping[str, str]
    ) -> None:
        """Answer a message with an error in the site's place. Where that fails, the coordinator waits in vain."""
        now, node, run = time.time(), node_pb2.Node(node_id=asked.dst_node_id), asked.run_id
        given = message_pb2.Metadata(
            run_id=run,
            src_node_id=asked.dst_node_id,
            dst_node_id=asked.src_node_id,
            reply_to_message_id=asked.message_id,
            group_id=asked.group_id,
            message_type=asked.message_type,
            created_at=now,
            ttl=asked.created_at + asked.ttl - now,
        )
        if asked.HasField("src_task_id"):
            given.dst_task_id = asked.src_task_id
        if asked.HasField("dst_task_id"):
            given.src_task_id = asked.dst_task_id
        reply = message_pb2.Message(metadata=given, error=error_pb2.Error(code=code, reason=reason))
        root = root_bytes(reply, ())
        name = hashlib.sha256(root).hexdigest()
        reply.metadata.message_id = name
        tree = message_pb2.ObjectTree(object_id=name)
        push = fleet_pb2.PushMessagesRequest(node=node, messages_list=[reply], message_object_trees=[tree])
        done = message_pb2.ConfirmMessageReceivedRequest(
            node=node, run_id=run, message_object_id=asked.message_id
        )
        try:
            session = (await self.ask(CALLS["push-messages"], push, passed)).session_id
            content = message_pb2.PushObjectRequest(
                node=node, run_id=run, object_id=name, object_content=root, session_id=session
            )
            await self.ask(CALLS["push-object"], content, passed)
            await self.ask(CALLS["confirm-message-received"], done, passed)
        except (CallError, httpx.TransportError):
            return


def client_of(
    base: str, ca: Path, certificate: Path, key: Path, proxy: str | None = None
) -> httpx.AsyncClient:
    """HTTPS to a gateway that the consortium's CA certified, TLS 1.3, with this site's own certificate.

    base: https://HOST:PORT; proxy: http://HOST:PORT of the way out of the hospital, which only sees TLS

    Raises StateError if a file cannot be used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        context.load_verify_locations(ca)
        context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        found = f"{ca.name}, {certificate.name} or {key.name} cannot be used ({error.strerror or error})"
        raise StateError(refusal(ca.parent, found, "run pm1-site join with the kit")) from None
    return httpx.AsyncClient(base_url=base, verify=context, timeout=_SECONDS, trust_env=False, proxy=proxy)


async def _bounded(call: Call, response: httpx.Response) -> AsyncIterator[bytes]:
    """The body of an answer. Ends early, and so breaks the connection, if it is too large."""
    size = 0
    async for chunk in response.aiter_raw():
        size += len(chunk)
        if size > call.answered:
            raise CallError(502, f"answer to {call.name!r}", "it is too large", "ask the coordinator")
        yield chunk
