"""Which answers a site's door lets leave, over a pretended coordinator in this process."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from flwr.app import ConfigRecord, RecordDict
from flwr.proto import message_pb2
from pretend import RUN, Reply, Site, heartbeat, node, numbers, play

from client.desk import Desk
from client.door import STOPPED_HERE
from pm1_core.errors import PrivacyError, StateError


def test_an_answer_with_a_ticket_leaves_as_it_was_made_and_is_written_down(tmp_path: Path) -> None:
    """The same push may come again, as after a broken connection; how long the work took does not leave."""
    site = Site(tmp_path)
    site.approve()
    asked = site.coordinator.ask()

    async def story(site: Site) -> None:
        assert [m.metadata.message_id for m in await site.pull()] == [asked.metadata.message_id]
        reply = Reply.to(asked, numbers(1.0, 2.0))
        await site.door.office.ticket(site.ticket(reply))
        assert (await site.push(reply)).status_code == 200
        assert (await site.push(reply)).status_code == 200
        assert site.coordinator.received == reply.objects

    play(site, story)
    left = site.events("left")
    assert [(line["what"], line["phase"], line["bytes"], line["again"]) for line in left] == [
        ("train", "fusion", 1000, False),
        ("train", "fusion", 1000, True),
    ]


def test_a_release_that_is_asked_for_again_leaves_again(tmp_path: Path) -> None:
    """Another message, another ticket, the same content."""
    site = Site(tmp_path)
    site.approve()

    async def story(site: Site) -> None:
        for _ in range(2):
            asked = site.coordinator.ask()
            await site.pull()
            reply = Reply.to(asked, numbers(1.0))
            await site.door.office.ticket(site.ticket(reply))
            assert (await site.push(reply)).status_code == 200

    play(site, story)


def test_a_push_without_a_ticket_is_stopped_and_an_error_goes_in_its_place(tmp_path: Path) -> None:
    """Nor does a ticket for other content help."""
    site = Site(tmp_path)
    site.approve()
    asked = site.coordinator.ask()

    async def story(site: Site) -> None:
        await site.pull()
        honest, other = Reply.to(asked, numbers(1.0)), Reply.to(asked, numbers(6.0, 6.0))
        await site.door.office.ticket(site.ticket(honest))
        assert (await site.push(other)).status_code == 403

    play(site, story)
    (stopped,) = site.events("stopped")
    assert "has no ticket" in stopped["reason"]
    (told,) = site.coordinator.pushed
    assert told.error.code == STOPPED_HERE
    assert set(site.coordinator.received) == {told.metadata.message_id}


def _other_root(reply: Reply) -> Reply:
    """Metadata that are announced are not those in the object."""
    reply.message.metadata.created_at += 1
    return reply


def _more_content(reply: Reply) -> Reply:
    extra = message_pb2.ObjectTree(object_id="f" * 64)
    reply.tree.children.append(extra)
    return reply


@pytest.mark.parametrize(
    "spoil",
    [
        lambda asked: Reply.to(asked, numbers(1.0), dst_node_id=5),
        lambda asked: Reply.to(asked, numbers(1.0), src_node_id=5),
        lambda asked: Reply.to(asked, numbers(1.0), message_type="query"),
        lambda asked: Reply.to(asked, numbers(1.0), group_id="secrets"),
        lambda asked: Reply.to(asked, numbers(1.0), src_task_id=99),
        lambda asked: Reply.to(asked, numbers(1.0), dst_task_id=99),
        lambda asked: Reply.to(asked, numbers(1.0), created_at=1.0),
        lambda asked: Reply.to(asked, numbers(1.0), ttl=float("nan")),
        lambda asked: Reply.to(asked, numbers(1.0), ttl=5e9),
        lambda asked: _other_root(Reply.to(asked, numbers(1.0))),
        lambda asked: _more_content(Reply.to(asked, numbers(1.0))),
    ],
)
def test_an_answer_that_says_more_than_it_must_is_stopped(
    tmp_path: Path, spoil: Callable[[message_pb2.Message], Reply]
) -> None:
    """Its content has a ticket."""
    site = Site(tmp_path)
    site.approve()
    asked = site.coordinator.ask()

    async def story(site: Site) -> None:
        await site.pull()
        await site.door.office.ticket(site.ticket(Reply.to(asked, numbers(1.0))))
        assert (await site.push(spoil(asked))).status_code == 403

    play(site, story)
    assert [message.error.code for message in site.coordinator.pushed] == [STOPPED_HERE]


def test_an_answer_to_no_message_or_to_another_run_is_stopped(tmp_path: Path) -> None:
    """Nobody is answered in its place: nobody waits."""
    site = Site(tmp_path)
    site.approve()
    asked = site.coordinator.ask()

    async def story(site: Site) -> None:
        reply = Reply.to(asked, numbers(1.0))
        assert (await site.push(reply)).status_code == 403
        with pytest.raises(PrivacyError):
            await site.door.office.ticket(site.ticket(reply))
        await site.pull()
        with pytest.raises(PrivacyError):
            await site.door.office.ticket(site.ticket(Reply.to(asked, numbers(1.0), run_id=12)))

    play(site, story)
    assert site.coordinator.pushed == []


def test_a_second_answer_to_one_message_is_stopped(tmp_path: Path) -> None:
    """Though it had a ticket: one message, one answer."""
    site = Site(tmp_path)
    site.approve()
    asked = site.coordinator.ask()

    async def story(site: Site) -> None:
        await site.pull()
        first, second = Reply.to(asked, numbers(1.0)), Reply.to(asked, numbers(2.0))
        await site.door.office.ticket(site.ticket(first))
        await site.door.office.ticket(site.ticket(second))
        assert (await site.push(first)).status_code == 200
        assert (await site.push(second)).status_code == 403
        with pytest.raises(PrivacyError, match="left already"):
            await site.door.office.ticket(site.ticket(second))

    play(site, story)


def test_objects_pass_only_of_an_announced_answer_and_with_the_content_of_their_id(tmp_path: Path) -> None:
    """The id of another object, or other bytes under an announced id."""
    site = Site(tmp_path)
    site.approve()
    asked = site.coordinator.ask()

    async def push(name: str, content: bytes) -> int:
        pushed = message_pb2.PushObjectRequest(
            node=node(), run_id=RUN, object_id=name, object_content=content, session_id="session"
        )
        return (await site.call("push-object", pushed)).status_code

    async def story(site: Site) -> None:
        await site.pull()
        reply = Reply.to(asked, numbers(1.0))
        name, content = next(iter(reply.objects.items()))
        assert await push(name, content) == 403
        await site.door.office.ticket(site.ticket(reply))
        assert (await site.push(reply)).status_code == 200
        assert await push(name, content + b"more") == 403
        secret = b"a row of a person"
        assert await push(hashlib.sha256(secret).hexdigest(), secret) == 403

    play(site, story)
    assert b"a row of a person" not in site.coordinator.received.values()


def test_an_error_reply_needs_a_ticket_for_its_very_words(tmp_path: Path) -> None:
    """Flower's own errors carry what an exception said: that stays here."""
    site = Site(tmp_path)
    site.approve()
    first, second = site.coordinator.ask(), site.coordinator.ask("query")

    async def story(site: Site) -> None:
        await site.pull()
        reply = Reply.to(first, None)
        await site.door.office.ticket(site.ticket(reply))
        assert (await site.push(reply)).status_code == 200
        assert (await site.push(Reply.to(second, None))).status_code == 403

    play(site, story)
    assert [message.error.code for message in site.coordinator.pushed] == [210, STOPPED_HERE]


def test_a_door_that_was_restarted_lets_the_answer_pass(tmp_path: Path) -> None:
    """The site trained meanwhile."""
    site = Site(tmp_path)
    site.approve()
    asked = site.coordinator.ask()

    async def story(site: Site) -> None:
        await site.pull()
        reply = Reply.to(asked, numbers(1.0))
        await site.door.office.ticket(site.ticket(reply))
        site.door.desk = site.door.office.desk = Desk.at(site.door.desk.file)
        assert (await site.push(reply)).status_code == 200

    play(site, story)


@pytest.mark.parametrize(
    "content", ["", "[]", '{"node": 1}', '{"node": "x", "came": {"a": {}}}', '{"came": 3}']
)
def test_a_damaged_desk_is_a_sentence(tmp_path: Path, content: str) -> None:
    """Which says that it may be removed."""
    (tmp_path / "desk.json").write_text(content)
    with pytest.raises(StateError, match="remove it"):
        Desk.at(tmp_path / "desk.json")


def test_a_coordinator_that_is_away_is_no_refusal(tmp_path: Path) -> None:
    """503, after which Flower's SuperNode tries again; 403 would drop the message."""
    site = Site(tmp_path)

    async def story(site: Site) -> None:
        site.coordinator.down = True
        assert (await site.call("send-node-heartbeat", heartbeat())).status_code == 503
        site.coordinator.down = False
        assert (await site.call("send-node-heartbeat", heartbeat())).status_code == 200

    play(site, story)


def test_where_the_log_cannot_be_written_nothing_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk."""
    site = Site(tmp_path)
    site.approve()
    asked = site.coordinator.ask()

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    async def story(site: Site) -> None:
        await site.pull()
        reply = Reply.to(asked, numbers(1.0))
        await site.door.office.ticket(site.ticket(reply))
        monkeypatch.setattr(site.audit, "write", full)
        assert (await site.push(reply)).status_code == 503

    play(site, story)
    assert site.coordinator.pushed == []


def test_ids_of_a_ticket_are_those_that_flower_pushes(tmp_path: Path) -> None:
    """Also where two records are equal."""
    content = RecordDict({"one": ConfigRecord({"a": 1}), "two": ConfigRecord({"a": 1})})
    site = Site(tmp_path)
    reply = Reply.to(site.coordinator.ask(), content)
    assert set(site.ticket(reply)["objects"]) == set(reply.objects) - {reply.message.metadata.message_id}
    assert isinstance(site.node, httpx.AsyncClient)
