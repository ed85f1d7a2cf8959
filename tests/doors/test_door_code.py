"""Which code and which runs a site's door lets in."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
from flwr.proto import fab_pb2, message_pb2, run_pb2
from pretend import RUN, Coordinator, Reply, Site, bundle, node, numbers, play

from client.door import STOPPED_HERE, UNAPPROVED
from pm1_core.errors import PrivacyError


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

    play(site, story)
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

    play(site, story)
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

    play(site, story)


def test_a_run_of_another_kind_of_app_is_refused(tmp_path: Path) -> None:
    """Flower runs agents for a task type of theirs."""
    site = Site(tmp_path)
    site.approve()
    site.coordinator.told.primary_task_type = "flwr-agentapp"
    site.coordinator.ask()

    async def story(site: Site) -> None:
        assert await site.pull() == []

    play(site, story)


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

    play(site, story)
    assert [message.error.code for message in site.coordinator.pushed] == [STOPPED_HERE, UNAPPROVED]


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

    play(site, story)


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

    play(site, story)
