"""The guard: between the gateway and the SuperLink, it reads every call of a site and lets pass what is its own.

Flower's SuperLink knows a node by a signed time stamp and believes the rest. Here a call has to be

- of the SuperNode whose key was enrolled with the site that the certificate names (X-PM1-Site, set by the gateway),
- for a message that was handed to that node, its objects, its run; or for an answer to it in that node's name; or
  for an object of such an answer, in the session that the answer was announced in,
- new: each has a number used once (X-PM1-Nonce: MILLISECONDS-RANDOM), of the last minutes. What was seen is kept on
  disk, and what is older than all that is kept is refused: a guard that was started again, or whose clock was set,
  takes nothing twice either.

What is refused is answered with 403 or 409 (400 where it is not how Flower writes), and a line in run/guard.jsonl.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import re
import sqlite3
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import httpx
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from pm1_core import atomic, logs
from pm1_core.enrolment import today
from strategies import fleet
from strategies.fleet import NONCE, CallError, Request

SITE = "x-pm1-site"
WINDOW = 300.0
"""Seconds by which the clock in a number may be wrong. Flower takes its own stamps for 305 s, and 5 s ahead."""
_NUMBER = re.compile(r"(\d{13})-([0-9a-f]{16})")
_KEPT = 7 * 86400.0
"""Seconds for which it is remembered what was handed to whom: longer than a round waits."""


class Register:
    """What was handed to which node, and which numbers were used: a file, so that it outlives the process."""

    def __init__(self, file: Path) -> None:
        self._base = sqlite3.connect(file, isolation_level=None, check_same_thread=False)
        self._base.execute("PRAGMA journal_mode=WAL")
        self._base.execute("PRAGMA synchronous=NORMAL")
        self._base.executescript(
            """CREATE TABLE IF NOT EXISTS used (number TEXT PRIMARY KEY, time REAL) WITHOUT ROWID;
            CREATE TABLE IF NOT EXISTS forgotten (before REAL);
            CREATE TABLE IF NOT EXISTS messages
                (node TEXT, id TEXT, run TEXT, source TEXT, kind TEXT, time REAL, PRIMARY KEY (node, id));
            CREATE TABLE IF NOT EXISTS objects
                (node TEXT, id TEXT, way TEXT, time REAL, PRIMARY KEY (node, id, way)) WITHOUT ROWID;
            CREATE TABLE IF NOT EXISTS sessions
                (node TEXT, id TEXT, time REAL, PRIMARY KEY (node, id)) WITHOUT ROWID;"""
        )
        self._swept = 0.0
        (before,) = self._base.execute("SELECT MAX(before) FROM forgotten").fetchone()
        self._forgotten = float(before or 0.0)

    def use(self, number: str, made: float) -> bool:
        """Whether `number`, made at that time by its own account, was not used before; it is from now on.

        False as well for what was made before anything that is still remembered.
        """
        self._sweep()
        if made <= self._forgotten:
            return False
        found = self._base.execute("INSERT OR IGNORE INTO used VALUES (?, ?)", (number, made))
        return found.rowcount == 1

    def handed(self, node: int, message: Any, tree: Any) -> None:
        """Remember a message that was handed to a node, and its objects."""
        data = message.metadata
        self._base.execute(
            "INSERT OR REPLACE INTO messages VALUES (?, ?, ?, ?, ?, ?)",
            (str(node), data.message_id, str(data.run_id), str(data.src_node_id), data.message_type, _now()),
        )
        self._remember(node, fleet.tree_ids(tree), "down")

    def message(self, node: int, message: str) -> tuple[str, str, str] | None:
        """Run, source and type of a message that was handed to a node."""
        query = "SELECT run, source, kind FROM messages WHERE node = ? AND id = ?"
        found: tuple[str, str, str] | None = self._base.execute(query, (str(node), message)).fetchone()
        return found

    def knows_run(self, node: int, run: int) -> bool:
        """Whether a message of `run` was handed to a node."""
        query = "SELECT 1 FROM messages WHERE node = ? AND run = ?"
        return self._base.execute(query, (str(node), str(run))).fetchone() is not None

    def announced(self, node: int, session: str, objects: Iterable[str]) -> None:
        """Remember the session that an answer was announced in, and its objects."""
        self._base.execute("INSERT OR REPLACE INTO sessions VALUES (?, ?, ?)", (str(node), session, _now()))
        self._remember(node, objects, "up")

    def has_object(self, node: int, name: str, way: str) -> bool:
        """Whether an object was handed to a node ("down") or announced by it ("up")."""
        query = "SELECT 1 FROM objects WHERE node = ? AND id = ? AND way = ?"
        return self._base.execute(query, (str(node), name, way)).fetchone() is not None

    def has_session(self, node: int, session: str) -> bool:
        """Whether a session is a node's own."""
        query = "SELECT 1 FROM sessions WHERE node = ? AND id = ?"
        return self._base.execute(query, (str(node), session)).fetchone() is not None

    def _remember(self, node: int, objects: Iterable[str], way: str) -> None:
        rows = [(str(node), name, way, _now()) for name in objects]
        self._base.execute("BEGIN")
        self._base.executemany("INSERT OR REPLACE INTO objects VALUES (?, ?, ?, ?)", rows)
        self._base.execute("COMMIT")

    def _sweep(self) -> None:
        if (now := _now()) - self._swept < WINDOW:
            return
        self._swept = now
        # Never back, though a clock may go back: whoever was forgotten once must not be new again.
        self._forgotten = max(self._forgotten, now - 2 * WINDOW)
        self._base.execute("BEGIN")
        self._base.execute("DELETE FROM forgotten")
        self._base.execute("INSERT INTO forgotten VALUES (?)", (self._forgotten,))
        self._base.execute("DELETE FROM used WHERE time <= ?", (self._forgotten,))
        self._base.execute("COMMIT")
        for table in ("messages", "objects", "sessions"):
            self._base.execute(f"DELETE FROM {table} WHERE time < ?", (now - _KEPT,))


class Guard:
    """The guard of a consortium's folder. client: of the SuperLink; register: what it remembers"""

    def __init__(self, folder: Path, client: httpx.AsyncClient, register: Register) -> None:
        self.folder = folder
        self.client = client
        self.register = register

    def app(self) -> Starlette:
        """What is served to the gateway."""
        return Starlette(
            routes=[
                Route("/health", self._health, methods=["GET"]),
                Route("/{path:path}", self._call, methods=["GET", "POST", "PUT", "PATCH", "DELETE"]),
            ]
        )

    async def _health(self, _: HttpRequest) -> Response:
        return JSONResponse({"guard": "ok"})

    async def _call(self, http: HttpRequest) -> Response:
        site = http.headers.get(SITE, "")
        try:
            return await self._passed(http, site)
        except CallError as error:
            await self._note(site, http.url.path, str(error))
            return JSONResponse({"detail": str(error)}, error.status)
        except httpx.TransportError:
            return JSONResponse({"detail": "the SuperLink cannot be reached"}, 503)
        except ClientDisconnect:
            return JSONResponse({"detail": "the call broke off"}, 400)

    async def _passed(self, http: HttpRequest, site: str) -> Response:
        if http.method != "POST" or http.url.query:
            raise CallError(403, "call", f"found {http.method}", "POST to Flower's Fleet API")
        self._require_key(site, http.headers.get("flwr-public-key", ""))
        call = fleet.call_of(http.url.path)
        self._require_new(site, http.headers.get(NONCE, ""))
        body = await fleet.received(call, http.stream(), http.headers.get("content-length"))
        request, passed = fleet.read(call, body), fleet.headers(http.headers)
        self._require_own(request)
        if call.name in ("pull-messages", "push-messages"):
            answer = await fleet.answered(call, await fleet.forward(self.client, call, body, passed))
            self._remember(request, answer)
            return Response(answer.SerializeToString(), media_type=fleet.MEDIA_TYPE)
        response = await fleet.forward(self.client, call, body, passed)
        kept = {name: response.headers[name] for name in fleet.ANSWER_HEADERS if name in response.headers}
        return StreamingResponse(
            response.aiter_raw(), response.status_code, kept, background=BackgroundTask(response.aclose)
        )

    def _require_key(self, site: str, shown: str) -> None:
        """Raise CallError unless the SuperNode's key is the one that was enrolled with the certificate."""
        file = self.folder / "sites" / site / "node.pub"
        try:
            key = base64.b64decode(shown, validate=True)
        except (ValueError, binascii.Error):
            key = b""
        if not site or "/" in site or not file.is_file() or key != file.read_bytes():
            found = f"the SuperNode's key is not that of site {site!r}"
            raise CallError(403, "call", found, "start it with the key that was enrolled")

    def _require_new(self, site: str, number: str) -> None:
        """Raise CallError if a call was made before, or cannot be told to be new."""
        found = _NUMBER.fullmatch(number)
        if not found:
            raise CallError(403, f"header {NONCE}", "it is missing", "call through the site's door")
        made = int(found[1]) / 1000
        wrong = made - time.time()
        if abs(wrong) > WINDOW:
            where = f"clock is {abs(wrong):.0f} s {'ahead' if wrong > 0 else 'behind'}"
            raise CallError(403, f"header {NONCE}", where, f"set it right to {WINDOW:.0f} s")
        if not self.register.use(f"{site} {number}", made):
            raise CallError(409, f"header {NONCE}", "this call was made before", "make a new one")

    def _require_own(self, request: Request) -> None:
        """Raise CallError unless a call is about what belongs to its node, whose id the SuperLink compares."""
        name, message, node = request.call.name, request.message, request.caller
        register = self.register
        if name in ("activate-node", "deactivate-node", "send-node-heartbeat", "pull-messages"):
            return
        if node is None:
            raise CallError(403, f"call {name!r}", "it names no node", "name the caller")
        if name == "push-messages":
            _require_answer(request, node, register)
        elif name == "push-object":
            own = register.has_session(node, message.session_id)
            if not own or not register.has_object(node, message.object_id, "up"):
                raise CallError(403, "object", "it was not announced by this node", "announce it first")
        elif name == "pull-object":
            if not register.has_object(node, message.object_id, "down"):
                raise CallError(403, "object", "it is of no message for this node", "ask for its own")
        elif name == "confirm-message-received":
            if register.message(node, message.message_object_id) is None:
                raise CallError(403, "message", "it was not for this node", "confirm its own")
        elif not register.knows_run(node, message.run_id):
            raise CallError(403, "run", "no message of it was for this node", "ask for its own")

    def _remember(self, request: Request, answer: Any) -> None:
        node = int(request.caller or 0)
        if request.call.name == "pull-messages":
            for message, tree in zip(answer.messages_list, answer.message_object_trees, strict=False):
                self.register.handed(node, message, tree)
        else:
            self.register.announced(node, answer.session_id, request.objects)

    async def _note(self, site: str, path: str, reason: str) -> None:
        line = {"time": today(), "site": site, "call": path[:80], "refused": reason}
        log = self.folder / "run" / "guard.jsonl"
        logs.turned(log)
        await asyncio.to_thread(atomic.append_lines, log, [json.dumps(line, sort_keys=True)])


def _require_answer(request: Request, node: int, register: Register) -> None:
    """Raise CallError unless what is pushed is one answer, in the node's name, to a message that was for it."""
    messages = request.message.messages_list
    if len(messages) != 1 or len(request.message.message_object_trees) != 1:
        raise CallError(403, "answer", f"found {len(messages)} messages", "send one at a time")
    data = messages[0].metadata
    if data.src_node_id != node:
        raise CallError(403, "answer", "it is in another node's name", "answer in your own")
    asked = register.message(node, data.reply_to_message_id)
    if asked is None:
        raise CallError(403, "answer", "it is to no message for this node", "answer what was asked")
    if asked != (str(data.run_id), str(data.dst_node_id), data.message_type):
        raise CallError(403, "answer", "it has another run, address or type", "answer what was asked")


def _now() -> float:
    return time.time()
