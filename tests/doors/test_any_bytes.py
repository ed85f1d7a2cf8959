"""Whatever is sent to a door or to its ticket service: a refusal, no traceback, and nothing of it passes on."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from any_call import calls
from flwr.app import Error, Message, RecordDict
from flwr.app.message import make_message
from flwr.app.metadata import Metadata
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mutations import sentence, values
from ports import free_ports
from pretend import RUN, Coordinator, Site, numbers, order

from client.counter import Counter
from client.tickets import METHODS, SERVICE, SHOWN, server
from pm1_core.errors import FederationError, InputError, PM1Error, PrivacyError
from pm1_core.proposal import Proposal


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """One that approved a study, and let a message in."""
    made = Site(tmp_path_factory.mktemp("site"), Coordinator())
    made.approve()
    made.coordinator.ask()

    async def begin() -> None:
        await made.activate()
        assert len(await made.pull()) == 1

    asyncio.run(begin())
    return made


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(calls())
def test_any_bytes_of_a_call_are_a_refusal_or_an_allowed_call(site: Site, sent: tuple[str, bytes]) -> None:
    """Nothing leaves: no answer, no object."""
    name, body = sent

    async def play() -> int:
        return (await site.node.post(f"/v1/fleet/{name}", content=body)).status_code

    assert asyncio.run(play()) in (200, 400, 403)
    assert site.coordinator.pushed == []
    assert site.coordinator.received == {}


@given(values | st.dictionaries(st.sampled_from(["run", "reply_to", "lines", "objects", "error"]), values))
def test_any_json_to_the_ticket_service_is_a_refusal(site: Site, content: Any) -> None:
    """A ticket that names what it should may pass."""
    known = next(iter(site.door.desk.came))
    ticket = {
        "run": RUN,
        "reply_to": known,
        "config": site.proposal.config,
        "objects": ["a" * 64],
        "error": "",
    }
    line = {"what": "train", "study": "retina", "phase": "fusion", "round": 1, "bytes": 1}
    ticket |= {"lines": [{**line, "sha256": [], "figures": 0, "charges": []}]}
    changed = {**ticket, **(content if isinstance(content, dict) else {"lines": content})}
    for asked in (site.door.office.ticket, site.door.office.permit):
        said = sentence(lambda asked=asked: asyncio.run(asked(changed)), PM1Error)
        assert said or changed["run"] == RUN
    site.audit.verify()


@given(st.text(max_size=60) | values.map(json.dumps))
def test_any_text_is_no_proposal(text: str) -> None:
    """A sentence says so."""
    with pytest.raises(InputError):
        Proposal.from_json(text, "proposal")


def test_the_ticket_service_answers_whatever_it_is_sent_over_grpc(tmp_path: Path) -> None:
    """JSON or not; a ClientApp gets the sentence as an error of privacy."""
    asked: list[Mapping[str, Any]] = []
    strangers: list[str] = []

    async def permit(content: Mapping[str, Any]) -> None:
        asked.append(content)

    async def ticket(content: Mapping[str, Any]) -> None:
        raise PrivacyError("not today.")

    async def stranger(reason: str) -> None:
        strangers.append(reason)

    async def play() -> None:
        address = f"127.0.0.1:{free_ports(1)[0]}"
        (secret := tmp_path / "secret").write_text("told to nobody")
        service = server(address, secret.read_text(), permit, ticket, stranger)
        await service.start()
        async with grpc.aio.insecure_channel(address) as channel:
            for method in METHODS:
                call = channel.unary_unary(f"/{SERVICE}/{method}")
                for sent in (b"", b"\xff", b"[]", b"[" * 100_000, b"1" * 5000):
                    answer = json.loads(await call(sent, metadata=((SHOWN, secret.read_text()),)))
                    assert answer["refused"].endswith(".")
        counter = Counter(address, 7, "message", str(secret))
        counter.about("retina", "0" * 64)
        await asyncio.to_thread(counter.permit, order(), 5, ["a"], 2)
        with pytest.raises(PrivacyError, match="not today"):
            await asyncio.to_thread(counter.ticket, _reply(numbers(1.0)))
        with pytest.raises(PrivacyError, match="does not show the site's secret"):
            await asyncio.to_thread(Counter(address, 7, "message").ticket, _reply(None))
        nowhere = Counter(address, 7, "message", str(tmp_path / "nowhere"))
        with pytest.raises(FederationError, match=r"nowhere: No such file"):
            await asyncio.to_thread(nowhere.ticket, _reply(None))
        await service.stop(None)

    asyncio.run(play())
    assert (asked[0]["run"], asked[0]["people"], asked[0]["tensors"]) == (7, 5, ["a"])
    assert len(strangers) == 1


def test_without_its_door_a_site_answers_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ClientApp says so, and the door stops what it says."""
    monkeypatch.setattr("client.counter._SECONDS", 0.2)
    with pytest.raises(FederationError, match="the site's door does not answer"):
        Counter(f"127.0.0.1:{free_ports(1)[0]}", 7, "message").ticket(_reply(None))
    Counter().ticket(_reply(None))  # a site without a door


def _reply(content: RecordDict | None) -> Message:
    given = Metadata(7, "message", 1, 3, "", "", 0.0, 600.0, "train")
    asked = make_message(given, content=RecordDict())
    return Message(Error(210, "a sentence") if content is None else content, reply_to=asked)
