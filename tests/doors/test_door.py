"""What a site's door lets pass, over a pretended coordinator in this process."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from datetime import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from flwr.app import ConfigRecord, RecordDict
from flwr.proto import fab_pb2, fleet_pb2, message_pb2, run_pb2
from pretend import KEY, NODE, RUN, Coordinator, Reply, Site, bundle, heartbeat, node, numbers, order

from client.desk import Desk
from client.door import STOPPED_HERE, UNAPPROVED
from client.policy import Policy
from pm1_core.errors import PM1Error, PrivacyError, StateError
from strategies import fleet

Story = Callable[[Site], Awaitable[None]]


def _play(site: Site, story: Story) -> None:
    async def play() -> None:
        await site.activate()
        await story(site)

    asyncio.run(play())


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

    _play(site, story)
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

    _play(site, story)


def test_code_that_nobody_approved_is_never_handed_on_and_the_coordinator_does_not_wait(
    tmp_path: Path,
) -> None:
    """Neither its message, nor what the run is, nor its code; and a site answers with code 240."""
    site = Site(tmp_path, Coordinator(code=bundle("thief")))
    site.approve()
    asked = site.coordinator.ask()
    digest = site.coordinator.told.fab_hash

    async def story(site: Site) -> None:
        assert await site.pull() == []
        assert (await site.call("get-run", run_pb2.GetRunRequest(node=node(), run_id=RUN))).status_code == 403
        wanted = fab_pb2.GetFabRequest(node=node(), run_id=RUN, hash_str=digest)
        assert (await site.call("get-fab", wanted)).status_code == 403

    _play(site, story)
    (told,) = site.coordinator.pushed
    assert (told.error.code, told.error.reason) == (UNAPPROVED, "not approved by the site")
    assert told.metadata.reply_to_message_id == asked.metadata.message_id
    assert told.metadata.message_id in site.coordinator.received
    assert "get-fab" not in site.coordinator.calls
    assert "nobody approved the code" in site.events("refused")[0]["reason"]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"run_config": {"study": "/data/other.json", "deep": 1.0}}, "run configuration"),
        ({"run_config": {"study": "/data/study.json", "deep": 1}}, "run configuration"),
        ({"run_config": {"study": "/data/study.json", "deep": 1.0, "tasks": "spy"}}, "run configuration"),
    ],
)
def test_a_run_that_is_configured_otherwise_than_approved_is_refused(
    tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    """Its code is the approved one."""
    site = Site(tmp_path, Coordinator(**changes))
    site.approve()
    site.coordinator.ask()

    async def story(site: Site) -> None:
        assert await site.pull() == []

    _play(site, story)
    assert reason in site.events("refused")[0]["reason"]


def test_code_that_is_not_what_its_hash_says_is_refused_on_every_pass(tmp_path: Path) -> None:
    """The coordinator sends the approved code once, and other code to the SuperNode."""
    site = Site(tmp_path)
    site.approve()
    site.coordinator.ask()
    digest = site.coordinator.told.fab_hash
    wanted = fab_pb2.GetFabRequest(node=node(), run_id=RUN, hash_str=digest)

    async def story(site: Site) -> None:
        assert len(await site.pull()) == 1
        assert (await site.call("get-fab", wanted)).status_code == 200
        site.coordinator.code = bundle("thief")
        assert (await site.call("get-fab", wanted)).status_code == 403
        asked = run_pb2.GetRunRequest(node=node(), run_id=RUN)
        assert (await site.call("get-run", asked)).status_code == 200
        site.coordinator.told.fab_version = "9.9.9"
        assert (await site.call("get-run", asked)).status_code == 403

    _play(site, story)


def test_a_run_of_another_kind_of_app_is_refused(tmp_path: Path) -> None:
    """Flower runs agents for a task type of theirs."""
    site = Site(tmp_path)
    site.approve()
    site.coordinator.told.primary_task_type = "flwr-agentapp"
    site.coordinator.ask()

    async def story(site: Site) -> None:
        assert await site.pull() == []

    _play(site, story)


def test_a_withdrawn_approval_counts_at_once(tmp_path: Path) -> None:
    """For the answer to a message that was let in before, and for tickets."""
    site = Site(tmp_path)
    name = site.approve()
    asked = site.coordinator.ask()

    async def story(site: Site) -> None:
        await site.pull()
        reply = Reply.to(asked, numbers(1.0))
        await site.door.office.ticket(site.ticket(reply))
        site.approvals.withdraw(name)
        assert (await site.push(reply)).status_code == 403
        with pytest.raises(PrivacyError, match="withdrawn"):
            await site.door.office.ticket(site.ticket(reply))
        site.coordinator.ask()
        assert await site.pull() == []

    _play(site, story)
    assert [message.error.code for message in site.coordinator.pushed] == [STOPPED_HERE, UNAPPROVED]


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

    _play(site, story)
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

    _play(site, story)
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

    _play(site, story)
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

    _play(site, story)


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

    _play(site, story)
    assert b"a row of a person" not in site.coordinator.received.values()


def test_what_is_asked_of_the_coordinator_is_about_messages_that_came(tmp_path: Path) -> None:
    """An id can say something: 32 bytes in each call."""
    site = Site(tmp_path)
    site.approve()
    asked = site.coordinator.ask()
    came = asked.metadata.message_id

    async def pull(name: str, run: int = RUN) -> int:
        wanted = message_pb2.PullObjectRequest(node=node(), run_id=run, object_id=name)
        return (await site.call("pull-object", wanted)).status_code

    async def confirm(name: str) -> int:
        said = message_pb2.ConfirmMessageReceivedRequest(node=node(), run_id=RUN, message_object_id=name)
        return (await site.call("confirm-message-received", said)).status_code

    async def story(site: Site) -> None:
        await site.pull()
        assert [await pull(came), await confirm(came)] == [200, 200]
        assert [await pull("ab" * 32), await pull(came, 12), await confirm("ab" * 32)] == [403, 403, 403]
        assert {await pull(name) for name in site.coordinator.objects} == {200}

    _play(site, story)


def test_tasks_that_the_first_object_names_are_answered_to(tmp_path: Path) -> None:
    """Flower keeps them there alone."""
    site = Site(tmp_path)
    site.approve()
    asked = site.coordinator.ask()
    told = message_pb2.Message()
    told.CopyFrom(asked)
    told.metadata.src_task_id = 77
    site.coordinator.messages.clear()
    (children,) = [name for name in site.coordinator.objects if name != asked.metadata.message_id][-1:]
    from client.desk import root_bytes

    root = root_bytes(told, [children])
    name = hashlib.sha256(root).hexdigest()
    asked.metadata.message_id = name
    site.coordinator.objects[name] = root
    tree = message_pb2.ObjectTree(object_id=name, children=[message_pb2.ObjectTree(object_id=children)])
    site.coordinator.messages.append((asked, tree))

    async def story(site: Site) -> None:
        await site.pull()
        wanted = message_pb2.PullObjectRequest(node=node(), run_id=RUN, object_id=name)
        assert (await site.call("pull-object", wanted)).status_code == 200
        reply = Reply.to(asked, numbers(1.0), dst_task_id=77)
        await site.door.office.ticket(site.ticket(reply))
        assert (await site.push(reply)).status_code == 200

    _play(site, story)


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

    _play(site, story)
    assert [message.error.code for message in site.coordinator.pushed] == [210, STOPPED_HERE]


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

    _play(site, story)
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

    _play(site, story)
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

    _play(site, story)


def test_headers_of_flower_pass_and_no_others(tmp_path: Path) -> None:
    """Cookies, forwarding, and what anybody may add stay here."""
    assert set(fleet.headers({"flwr-timestamp": "now", "cookie": "secret", "x-more": "secret"})) == {
        "flwr-timestamp", "content-type", "accept", "accept-encoding",
    }  # fmt: skip
    with pytest.raises(fleet.CallError):
        fleet.headers({"flwr-signature": "x" * 2000})


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

    _play(site, story)


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

    _play(site, story)


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

    _play(site, story)
    assert site.coordinator.pushed == []


def test_an_order_that_the_approved_study_does_not_have_is_not_worked_on(tmp_path: Path) -> None:
    """Another phase, another guarantee, another way to add up, another study under the same run."""
    site = Site(tmp_path)
    site.approve()
    asked = site.coordinator.ask()
    question: dict[str, Any] = {
        "run": RUN,
        "reply_to": asked.metadata.message_id,
        "config": site.proposal.config,
        "study": "retina",
        "order": order(),
        "people": None,
        "tensors": [],
        "sites": None,
    }

    async def story(site: Site) -> None:
        await site.pull()
        await site.door.office.permit(question)
        changes: list[dict[str, Any]] = [
            {"order": order(phase="rows")},
            {"order": order(task="statistics")},
            {"order": order(parameters={"clip": 9})},
            {"order": order(privacy={"unit": "record", "noise_multiplier": 0.01})},
            {"order": order(secure={"bits": 32})},
            {"order": order(rounds=99)},
            {"order": "[]"},
            {"config": "0" * 64},
            {"run": 12},
        ]
        for change in changes:
            with pytest.raises(PM1Error):
                await site.door.office.permit({**question, **change})

    _play(site, story)


@pytest.mark.parametrize(
    ("policy", "change", "key"),
    [
        (Policy(min_people=10), {"people": 9}, "min_people"),
        (Policy(phases=("genotype.*",)), {}, "phases"),
        (Policy(studies=("ukb_*",)), {}, "studies"),
        (Policy(tensors=("head.*",)), {"tensors": ["head.bias", "body.weight"]}, "tensors"),
        (Policy(min_sites=2), {"sites": 0}, "min_sites"),
    ],
)
def test_an_order_against_the_policy_is_refused_with_bound_and_remedy(
    tmp_path: Path, policy: Policy, change: dict[str, Any], key: str
) -> None:
    """Before work begins."""
    site = Site(tmp_path, policy=policy)
    site.approve()
    asked = site.coordinator.ask()
    question = {"run": RUN, "reply_to": asked.metadata.message_id, "config": site.proposal.config}
    question |= {"study": "retina", "order": order(), "people": 50, "tensors": [], "sites": 3, **change}

    async def story(site: Site) -> None:
        await site.pull()
        with pytest.raises(PrivacyError, match=f"policy of this site, {key}: .*the bound is .*; .*"):
            await site.door.office.permit(question)

    _play(site, story)


def test_bytes_of_a_day_are_counted_over_all_answers(tmp_path: Path) -> None:
    """The third of 1000 bytes is too much for 2500 a day."""
    site = Site(tmp_path, policy=Policy(bytes_per_day=2500))
    site.approve()

    async def story(site: Site) -> None:
        for number in range(3):
            asked = site.coordinator.ask()
            await site.pull()
            reply = Reply.to(asked, numbers(float(number)))
            if number == 2:
                with pytest.raises(PrivacyError, match="3000 bytes would have left today, the bound is 2500"):
                    await site.door.office.ticket(site.ticket(reply))
                continue
            await site.door.office.ticket(site.ticket(reply))
            assert (await site.push(reply)).status_code == 200

    _play(site, story)


def test_outside_the_hours_nothing_is_fetched_and_no_release_leaves(tmp_path: Path) -> None:
    """A sentence that says so may leave."""
    site = Site(tmp_path)
    site.approve()
    asked = site.coordinator.ask()

    async def story(site: Site) -> None:
        await site.pull()
        site.policy = _closed()
        site.coordinator.ask()
        calls = len(site.coordinator.calls)
        assert await site.pull() == []
        assert len(site.coordinator.calls) == calls
        with pytest.raises(PrivacyError, match="hours"):
            await site.door.office.ticket(site.ticket(Reply.to(asked, numbers(1.0))))
        refused = Reply.to(asked, None)
        await site.door.office.ticket(site.ticket(refused))
        assert (await site.push(refused)).status_code == 200

    _play(site, story)


def test_a_study_that_promises_less_than_the_policy_asks_is_not_let_in(tmp_path: Path) -> None:
    """It promises nothing, though it was approved."""
    policy = Policy(privacy={"unit": "record", "epsilon": 8.0, "delta": 1e-5})
    site = Site(tmp_path, policy=policy)
    site.approve()
    site.coordinator.ask()

    async def story(site: Site) -> None:
        assert await site.pull() == []

    _play(site, story)
    assert "promises no differential privacy" in site.events("refused")[0]["reason"]


def _closed() -> Policy:
    """Hours that are two minutes long, twelve hours from now."""
    from datetime import datetime, timedelta

    begin = datetime.now() + timedelta(hours=12)
    end = begin + timedelta(minutes=2)
    return Policy(hours=(time(begin.hour, begin.minute), time(end.hour, end.minute)))


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


def test_ids_of_a_ticket_are_those_that_flower_pushes(tmp_path: Path) -> None:
    """Also where two records are equal."""
    content = RecordDict({"one": ConfigRecord({"a": 1}), "two": ConfigRecord({"a": 1})})
    site = Site(tmp_path)
    reply = Reply.to(site.coordinator.ask(), content)
    assert set(site.ticket(reply)["objects"]) == set(reply.objects) - {reply.message.metadata.message_id}
    assert isinstance(site.node, httpx.AsyncClient)
