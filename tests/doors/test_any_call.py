"""Whatever a site sends to the coordinator's guard is a refusal or a call of its own, and no traceback."""

from __future__ import annotations

import asyncio
import base64
import itertools
import time
from pathlib import Path

import httpx
import pytest
from any_call import calls
from flwr.proto import fleet_pb2, message_pb2
from hypothesis import given
from hypothesis import strategies as st
from pretend import NODE, RUN

from server.guard import Guard, Register
from strategies import fleet

_KEY = b"the key of leeds"
_MESSAGE, _OBJECT = "a" * 64, "b" * 64
_COUNTER = itertools.count()


class Guarded:
    """A guard before a SuperLink that answers what it is told to, and handed a message to the node of leeds."""

    def __init__(self, folder: Path) -> None:
        (folder / "sites/leeds").mkdir(parents=True)
        (folder / "run").mkdir()
        (folder / "sites/leeds/node.pub").write_bytes(_KEY)
        self.passed: list[tuple[str, bytes]] = []
        self.answer = b""
        register = Register(folder / "run/guard.db")
        data = message_pb2.Metadata(run_id=RUN, message_id=_MESSAGE, src_node_id=1, dst_node_id=NODE)
        register.handed(NODE, message_pb2.Message(metadata=data), message_pb2.ObjectTree(object_id=_OBJECT))
        link = httpx.AsyncClient(transport=httpx.MockTransport(self._link), base_url="http://superlink")
        self.guard = Guard(folder, link, register)

    def _link(self, request: httpx.Request) -> httpx.Response:
        self.passed.append((request.url.path, request.content))
        return httpx.Response(
            200, stream=httpx.ByteStream(self.answer), headers={"content-type": fleet.MEDIA_TYPE}
        )

    async def sent(self, path: str, body: bytes, **headers: str) -> int:
        """Status of what a site sent; an exception of the guard is raised here."""
        number = f"{time.time_ns() // 1_000_000:013d}-{next(_COUNTER):016x}"
        given = {
            "x-pm1-site": "leeds",
            "flwr-public-key": base64.b64encode(_KEY).decode(),
            fleet.NONCE: number,
        }
        transport = httpx.ASGITransport(self.guard.app(), raise_app_exceptions=True)
        async with httpx.AsyncClient(transport=transport, base_url="http://guard") as client:
            return (await client.post(path, content=body, headers={**given, **headers})).status_code


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Guarded:
    return Guarded(tmp_path_factory.mktemp("guard"))


@given(calls(), st.binary(max_size=60) | st.just(b""))
def test_any_bytes_of_a_call_are_a_refusal_or_a_call_of_the_site(
    guarded: Guarded, sent: tuple[str, bytes], answer: bytes
) -> None:
    """Whatever the SuperLink answers. Nobody is registered, and no answer passes to a message of somebody else."""
    name, body = sent
    guarded.passed.clear()
    guarded.answer = answer
    assert asyncio.run(guarded.sent(f"/v1/fleet/{name}", body)) in (200, 400, 403, 409, 502, 503)
    for path, content in guarded.passed:
        assert path.removeprefix(fleet.PREFIX) in fleet.OPEN
        assert content == body
        if path == fleet.CALLS["push-messages"].path:
            (message,) = fleet_pb2.PushMessagesRequest.FromString(content).messages_list
            assert message.metadata.reply_to_message_id == _MESSAGE


@given(st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=60))
def test_any_header_is_a_refusal(guarded: Guarded, text: str) -> None:
    """Of a site, a key, a number: each alone."""
    guarded.passed.clear()
    for name in ("x-pm1-site", "flwr-public-key", fleet.NONCE):
        assert asyncio.run(guarded.sent("/v1/fleet/pull-messages", b"", **{name: text})) == 403
    assert guarded.passed == []


@given(st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=40))
def test_any_other_path_is_a_refusal(guarded: Guarded, text: str) -> None:
    guarded.passed.clear()
    path = "/" + text.replace("?", "").replace("#", "")
    if path == "/health" or path.removeprefix(fleet.PREFIX) in fleet.OPEN:
        return
    assert asyncio.run(guarded.sent(path, b"")) in (400, 403, 404, 405)
    assert guarded.passed == []
