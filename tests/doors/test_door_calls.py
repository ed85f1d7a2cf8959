"""How a call has to be written to pass a site's door."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path
from typing import Any

import pytest
from flwr.proto import fleet_pb2, message_pb2
from pretend import KEY, NODE, RUN, Reply, Site, heartbeat, node, numbers, play

from strategies import fleet


def test_calls_in_another_name_and_calls_that_are_not_for_sites_are_refused(tmp_path: Path) -> None:
    """Nothing of them reaches the coordinator."""
    site = Site(tmp_path)
    other = NODE - 1

    async def story(site: Site) -> None:
        before = len(site.coordinator.calls)
        answers = [
            await site.call("send-node-heartbeat", heartbeat(other)),
            await site.call("pull-messages", fleet_pb2.PullMessagesRequest(node=node(other))),
            await site.call("activate-node", fleet_pb2.ActivateNodeRequest(public_key=b"another")),
            await site.call("register-node", fleet_pb2.RegisterNodeFleetRequest(public_key=KEY)),
            await site.call("unregister-node", fleet_pb2.UnregisterNodeFleetRequest(node_id=NODE)),
            await site.call("anything", heartbeat()),
            await site.node.post("/v1/control/start-run", content=b""),
            await site.node.get("/v1/fleet/get-run"),
            await site.node.post("/v1/fleet/get-run?more=1", content=b""),
        ]
        assert {answer.status_code for answer in answers} == {403}
        assert len(site.coordinator.calls) == before
        assert (await site.call("send-node-heartbeat", heartbeat())).status_code == 200

    play(site, story)
    assert len(site.events("refused")) == 8  # of nine: the same refusal is written down once a minute


def test_what_travels_beside_the_fields_of_a_call_is_refused(tmp_path: Path) -> None:
    """An unknown field, a field twice, a longer number: Flower's servers would read over it."""
    site = Site(tmp_path)
    body = heartbeat().SerializeToString(deterministic=True)

    async def story(site: Site) -> None:
        for more in (b"\xfa\x01\x03row", b"\x0a\x00", b"\x80"):
            answer = await site.node.post("/v1/fleet/send-node-heartbeat", content=body + more)
            assert answer.status_code == 400
        large = await site.node.post("/v1/fleet/send-node-heartbeat", content=b"\x00" * 70_000)
        assert large.status_code == 413

    play(site, story)
    assert site.coordinator.calls == ["activate-node"]


def test_fields_that_could_say_something_have_the_value_that_flower_gives_them(tmp_path: Path) -> None:
    """The interval of heartbeats, ids that are asked for, a session that the coordinator did not name."""
    site = Site(tmp_path)
    site.approve()
    asked = site.coordinator.ask()

    async def story(site: Site) -> None:
        loud = heartbeat()
        loud.heartbeat_interval = 30.123456
        assert (await site.call("send-node-heartbeat", loud)).status_code == 403
        named = fleet_pb2.PullMessagesRequest(node=node(), message_ids=["a row of a person"])
        assert (await site.call("pull-messages", named)).status_code == 403
        await site.pull()
        reply = Reply.to(asked, numbers(1.0))
        await site.door.office.ticket(site.ticket(reply))
        assert (await site.push(reply)).status_code == 200
        name, content = next(iter(reply.objects.items()))
        pushed = message_pb2.PushObjectRequest(
            node=node(), run_id=RUN, object_id=name, object_content=content, session_id="a row of a person"
        )
        assert (await site.call("push-object", pushed)).status_code == 403

    play(site, story)


def test_headers_of_flower_pass_and_no_others(tmp_path: Path) -> None:
    """Cookies, forwarding, and what anybody may add stay here."""
    assert set(fleet.headers({"flwr-timestamp": "now", "cookie": "secret", "x-more": "secret"})) == {
        "flwr-timestamp", "content-type", "accept", "accept-encoding",
    }  # fmt: skip
    with pytest.raises(fleet.CallError):
        fleet.headers({"flwr-signature": "x" * 2000})


def test_a_large_object_is_read_without_a_second_copy() -> None:
    """The content of a call is a view of what was received."""
    content = bytes(8 << 20)
    name = hashlib.sha256(content).hexdigest()
    pushed = message_pb2.PushObjectRequest(node=node(), run_id=RUN, object_id=name, object_content=content)
    call = fleet.CALLS["push-object"]

    async def chunks() -> Any:
        body = pushed.SerializeToString(deterministic=True)
        for start in range(0, len(body), 65536):
            yield body[start : start + 65536]

    body = asyncio.run(fleet.received(call, chunks(), str(pushed.ByteSize())))
    request = fleet.read(call, body)
    assert request.content is not None
    assert request.content.obj is body
    assert (request.caller, request.run, request.objects) == (NODE, RUN, [name])
    assert hashlib.sha256(request.content).hexdigest() == name
