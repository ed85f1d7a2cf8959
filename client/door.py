"""The door: all traffic of a site's SuperNode passes here, and nothing that the site has not allowed.

    SuperNode --TLS, this machine's CA--> door --mutual TLS 1.3, the consortium's CA--> the coordinator's gateway

Of Flower's Fleet API (strategies.fleet), in the name of this site's node only:

    pull-messages   a message of a run is handed on if the site approved the run: the door fetches its code and
                    configuration itself. For others it answers the coordinator with an error, and the SuperNode
                    hears that there is none
    get-run, get-fab    of approved runs, compared on every pass with what was approved
    pull-object, confirm-message-received   of messages that were handed on
    push-messages   an answer to such a message, with a ticket (client.tickets) that keeps to the policy
    push-object     of such an answer, with the content that its id says

Anything else is answered with 403, and a line in audit.jsonl. Flower's SuperNode takes 403 as "this run is over":
it drops the message and goes on. An answer that is stopped is replaced by an error, so that nobody waits for it.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

import httpx
from flwr.common.constant import HEARTBEAT_DEFAULT_INTERVAL
from flwr.proto import fleet_pb2, message_pb2
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from client.approvals import NOT_APPROVED, Approvals
from client.audit import LEFT, REFUSED, STOPPED, Audit
from client.desk import Desk
from client.office import Office
from client.policy import Policy
from client.runs import Runs
from client.tickets import Ticket
from client.upstream import Upstream
from pm1_core.errors import PM1Error, PrivacyError, StateError
from pm1_core.validate import refusal
from strategies import fleet
from strategies.fleet import MEDIA_TYPE, CallError, Request

UNAPPROVED = 240
STOPPED_HERE = 241
"""Codes of the errors with which the door answers in the site's place."""

_QUIET = 60.0  # seconds for which a refusal with the same reason is not written down again
_STOPPED = "stopped at the site's door; details stay at the site"
_HASHED_AT_ONCE = 1 << 20


class Door:
    """The door of one site.

    upstream: the coordinator's gateway; policy: reads policy.yaml
    public_key: of the SuperNode, as Flower writes it
    """

    def __init__(
        self,
        upstream: Upstream,
        desk: Desk,
        approvals: Approvals,
        audit: Audit,
        policy: Callable[[], Policy],
        public_key: bytes,
    ) -> None:
        self.upstream = upstream
        self.desk = desk
        self.audit = audit
        self.policy = policy
        self.office = Office(desk, approvals, audit, policy)
        self.public_key = public_key
        self.runs = Runs(approvals, policy, upstream.ask)
        self.heartbeat = 0.0
        self._noted: dict[str, float] = {}

    def app(self) -> Starlette:
        """What is served to the SuperNode."""
        return Starlette(
            routes=[
                Route("/health", self._health, methods=["GET"]),
                Route("/{path:path}", self._call, methods=["GET", "POST", "PUT", "PATCH", "DELETE"]),
            ]
        )

    async def stranger(self, reason: str) -> None:
        """Write down that a call to the ticket service was refused."""
        await self._note(REFUSED, reason, call="tickets")

    # Calls of the SuperNode.

    async def _health(self, _: HttpRequest) -> Response:
        quiet = round(time.time() - self.heartbeat) if self.heartbeat else None
        waiting = sum(not came.sent for came in self.desk.came.values())
        return JSONResponse({"heartbeat": quiet, "waiting": waiting, "coordinator": self.upstream.state})

    async def _call(self, http: HttpRequest) -> Response:
        try:
            return await self._passed(http)
        except CallError as error:
            await self._note(REFUSED, str(error), call=http.url.path[:80])
            return _refused(error.status, str(error))
        except PrivacyError as error:
            await self._note(REFUSED, str(error), call=http.url.path[:80])
            return _refused(403, str(error))
        except httpx.TransportError as error:
            self.upstream.state = type(error).__name__
            return _refused(503, "the coordinator cannot be reached")
        except ClientDisconnect:
            return _refused(400, "the call broke off")
        except (PM1Error, OSError) as error:  # a log or a policy that cannot be used: nothing passes
            return _refused(503, str(error))

    async def _passed(self, http: HttpRequest) -> Response:
        if http.method != "POST" or http.url.query:
            raise CallError(403, "call", f"found {http.method}", "POST to Flower's Fleet API")
        call = fleet.call_of(http.url.path)
        body = await fleet.received(call, http.stream(), http.headers.get("content-length"))
        request, passed = fleet.read(call, body), fleet.headers(http.headers)
        if call.name == "activate-node":
            return await self._activate(request, passed)
        self.desk.require_node(request.caller)
        message = request.message
        if call.name == "pull-messages" and not message.message_ids:
            return await self._pull(request, passed)
        if call.name == "push-messages":
            return await self._push(request, passed)
        if call.name == "get-run":
            answer = await self.upstream.ask(call, message, passed)
            self.runs.require_run(message.run_id, answer.run)
            return _answer(answer)
        if call.name == "get-fab":
            self.runs.require_bundle(message.run_id, message.hash_str)
            answer = await self.upstream.ask(call, message, passed)
            await self.runs.require_code(answer.fab, message.hash_str)
            return _answer(answer)
        if call.name == "push-object":
            await self._require_object(request)
        if call.name in ("pull-object", "confirm-message-received"):
            whole = call.name != "pull-object"
            came = self.desk.require_came(request.run, request.objects[0], whole)
            self.office.require_standing(came.study)
        if call.name == "pull-object" and message.object_id in self.desk.came:
            answer = await self.upstream.ask(call, message, passed)
            if answer.object_available:
                self.desk.note_root(message.object_id, answer.object_content)
            return _answer(answer)
        if call.name == "send-node-heartbeat":
            _require_usual(message.heartbeat_interval)
            self.heartbeat = time.time()
        elif call.name not in ("push-object", "pull-object", "confirm-message-received", "deactivate-node"):
            raise PrivacyError(
                refusal(call.name, "it asks for more than a SuperNode does", "use Flower 1.41")
            )
        return await self.upstream.stream(request, passed)

    async def _activate(self, request: Request, passed: Mapping[str, str]) -> Response:
        if request.message.public_key != self.public_key:
            raise PrivacyError(
                refusal("activate-node", "it shows another key", "start it with keys/node.key")
            )
        answer = await self.upstream.ask(request.call, request.message, passed)
        self.desk.is_node(answer.node_id)
        self.heartbeat = time.time()
        return _answer(answer)

    async def _pull(self, request: Request, passed: Mapping[str, str]) -> Response:
        """Messages of runs that are approved; the others are answered here."""
        kept = fleet_pb2.PullMessagesResponse()
        try:
            self.policy().require_hours(datetime.now())
        except PM1Error as error:
            await self._note(REFUSED, str(error), call="pull-messages")
            return _answer(kept)
        answer = await self.upstream.ask(request.call, request.message, passed)
        for message, tree in zip(answer.messages_list, answer.message_object_trees, strict=False):
            run = message.metadata.run_id
            try:
                approved = await self.runs.approved(run, self.desk.node, passed)
                self.desk.let_in(message, tree, approved.name)
            except PrivacyError as error:
                await self._write(REFUSED, run=run, what=message.metadata.message_type, reason=str(error))
                await self.upstream.answer_for(message.metadata, UNAPPROVED, NOT_APPROVED, passed)
            except CallError as error:  # such as of a run that has ended meanwhile
                await self._write(REFUSED, run=run, what=message.metadata.message_type, reason=str(error))
            else:
                kept.messages_list.append(message)
                kept.message_object_trees.append(tree)
        return _answer(kept)

    async def _push(self, request: Request, passed: Mapping[str, str]) -> Response:
        """An answer that has a ticket, written down; another one is stopped, and an error sent in its place."""
        given = request.message
        if len(given.messages_list) != 1 or len(given.message_object_trees) != 1:
            raise PrivacyError(refusal("push-messages", "it has not one message", "send one at a time"))
        message, tree = given.messages_list[0], given.message_object_trees[0]
        run, reply_to = message.metadata.run_id, message.metadata.reply_to_message_id
        came = self.desk.answered(run, reply_to)
        try:
            self.office.require_standing(came.study)
            ticket, again = self.desk.ticket_for(message, tree)
        except PrivacyError as error:
            await self._write(STOPPED, run=run, what=str(came.metadata["message_type"]), reason=str(error))
            if not came.sent:
                asked = message_pb2.Metadata(**{**came.metadata, "message_id": reply_to})
                await self.upstream.answer_for(asked, STOPPED_HERE, _STOPPED, passed)
            raise
        for facts in _facts(ticket, message):
            await self._write(LEFT, run=run, **facts, again=again)
        self.desk.leaves(message, tree)
        del given.clientapp_runtime_list[:]  # how long it took tells of how many people there are
        answer = await self.upstream.ask(request.call, given, passed)
        self.desk.taken(reply_to, answer.session_id)
        return _answer(answer)

    async def _require_object(self, request: Request) -> None:
        """Raise PrivacyError unless an object belongs to an answer that may leave, and is what its id says."""
        message = request.message
        came = self.desk.require_pushed(request.run, message.object_id, message.session_id)
        self.office.require_standing(came.study)
        content = request.content or memoryview(b"")
        if len(content) > _HASHED_AT_ONCE:
            digest = await asyncio.to_thread(lambda: hashlib.sha256(content).hexdigest())
        else:
            digest = hashlib.sha256(content).hexdigest()
        if digest != message.object_id:
            raise PrivacyError(
                refusal("object", "its content is not that of its id", "send what was announced")
            )

    # The log.

    async def _write(self, event: str, **facts: Any) -> None:
        await asyncio.to_thread(self.audit.write, event, facts)

    async def _note(self, event: str, reason: str, **facts: Any) -> None:
        """Write a refusal down, unless the same one was a moment ago."""
        now = time.monotonic()
        if now - self._noted.get(reason, -_QUIET) < _QUIET:
            return
        self._noted = {key: at for key, at in self._noted.items() if now - at < _QUIET} | {reason: now}
        try:
            await self._write(event, reason=reason, **facts)
        except (StateError, OSError):
            return  # the call is refused in any case


def _facts(ticket: Ticket, message: message_pb2.Message) -> list[dict[str, Any]]:
    """What is written down of an answer that leaves: a line for each of the outbox, or one for an error."""
    if ticket.error:
        return [{"what": "error", "reason": message.error.reason, "bytes": 0}]
    found = []
    for line in ticket.lines:
        facts = {key: value for key, value in line.items() if key != "charges"}
        if charges := line["charges"]:  # of one unit: a ledger is charged once for an answer
            facts |= {"unit": charges[0]["unit"], "delta": charges[0]["delta"]}
            facts["epsilon"] = sum(item["epsilon"] for item in charges if item["unit"] == facts["unit"])
        found.append(facts)
    return found or [{"what": "nothing of people", "bytes": 0}]


def _require_usual(interval: float) -> None:
    """A number that Flower does not change says nothing."""
    if interval != HEARTBEAT_DEFAULT_INTERVAL:
        found = f"an interval of {interval} s"
        raise PrivacyError(refusal("heartbeat", found, f"use {HEARTBEAT_DEFAULT_INTERVAL} s"))


def _answer(message: Any) -> Response:
    return Response(message.SerializeToString(), media_type=MEDIA_TYPE)


def _refused(status: int, sentence: str) -> Response:
    return JSONResponse({"detail": sentence}, status)
