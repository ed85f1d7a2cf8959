"""A read-only page of this machine: who may ask for it, and what a browser may do with it.

GET / and /page.css, /status.json, /metrics and nothing else. A request has to name the address that is listened on,
or this machine, as its host: a web page of somebody else's that points its own name here (DNS rebinding) is turned
away. There is no script, nothing is loaded from elsewhere, and nobody may frame, embed or post to it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pm1_core.errors import PM1Error
from pm1_core.exposition import MEDIA_TYPE
from strategies.serving import configuration

_FRESH = 1.0  # seconds for which what was read is shown again
_HEADERS = {
    b"content-security-policy": b"default-src 'none'; style-src 'self'; base-uri 'none'; form-action 'none'; "
    b"frame-ancestors 'none'",
    b"x-content-type-options": b"nosniff",
    b"x-frame-options": b"DENY",
    b"referrer-policy": b"no-referrer",
    b"cache-control": b"no-store",
    b"cross-origin-resource-policy": b"same-origin",
    b"cross-origin-opener-policy": b"same-origin",
}


@dataclass(frozen=True)
class Shown:
    """What is shown. facts: read anew for each request, at most once a second, and made into the other three

    html, metrics, json: what is made of them; style: the style sheet
    """

    facts: Callable[[], Any]
    html: Callable[[Any], str]
    metrics: Callable[[Any], str]
    json: Callable[[Any], Any]
    style: str


def application(shown: Shown, host: str, port: int) -> ASGIApp:
    """The page, to be served on `host` and `port`."""
    fresh = _Fresh(shown.facts)

    def answer(make: Callable[[Any], Response]) -> Callable[[Request], Response]:
        # A plain function: starlette runs it in a thread, where it may wait for a disk.
        def endpoint(request: Request) -> Response:
            try:
                return make(fresh())
            except (PM1Error, OSError) as error:
                return PlainTextResponse(f"{error}\n", status_code=503)

        return endpoint

    routes = [
        Route("/", answer(lambda facts: Response(shown.html(facts), media_type="text/html"))),
        Route("/status.json", answer(lambda facts: JSONResponse(shown.json(facts)))),
        Route("/metrics", answer(lambda facts: Response(shown.metrics(facts), media_type=MEDIA_TYPE))),
        Route("/page.css", lambda request: Response(shown.style, media_type="text/css")),
    ]
    return _Guarded(Starlette(routes=routes), names(host, port))


def names(host: str, port: int) -> frozenset[str]:
    """What a request may call this place.

    >>> sorted(names("10.1.2.3", 9080))
    ['10.1.2.3:9080', '127.0.0.1:9080', '[::1]:9080', 'localhost:9080']
    """
    bare = host.strip("[]").lower()
    own = [f"[{bare}]" if ":" in bare else bare] if bare not in ("0.0.0.0", "::", "") else []
    return frozenset(f"{name}:{port}" for name in ("localhost", "127.0.0.1", "[::1]", *own))


def serve(app: ASGIApp, host: str, port: int) -> None:
    """Serve `app` until this process is asked to end."""
    import uvicorn

    more = {"proxy_headers": False, "limit_concurrency": 64, "timeout_keep_alive": 5}
    uvicorn.Server(configuration(app, host, port, **more)).run()


class _Fresh:
    """Facts of at most a second ago; one reader at a time."""

    def __init__(self, read: Callable[[], Any]) -> None:
        self._read = read
        self._lock = threading.Lock()
        self._until = 0.0
        self._facts: Any = None

    def __call__(self) -> Any:
        with self._lock:
            if time.monotonic() >= self._until:
                self._facts = self._read()
                self._until = time.monotonic() + _FRESH
            return self._facts


class _Guarded:
    """Turns away who names another host, or wants more than to read; adds the headers."""

    def __init__(self, app: ASGIApp, hosts: frozenset[str]) -> None:
        self.app = app
        self.hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return

        async def headed(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], *_HEADERS.items()]}
            await send(message)

        await self._chosen(scope)(scope, receive, headed)

    def _chosen(self, scope: Scope) -> ASGIApp:
        hosts = [value.decode("latin-1").lower() for name, value in scope["headers"] if name == b"host"]
        if len(hosts) != 1 or hosts[0] not in self.hosts:
            known = ", ".join(sorted(self.hosts))
            return PlainTextResponse(f"This is not the host that you asked for: {known}\n", status_code=421)
        if scope["method"] not in ("GET", "HEAD"):
            return PlainTextResponse(
                "This can only be read.\n", status_code=405, headers={"allow": "GET, HEAD"}
            )
        return self.app
