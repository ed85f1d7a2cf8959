"""pm1-site approve, start, health and status, with the door as a process of its own."""

from __future__ import annotations

import hashlib
import json
import ssl
import stat
import subprocess
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from flwr.proto import fleet_pb2, message_pb2
from gateway import await_, door_process, gateway
from places import founded, joined
from ports import free_ports
from pretend import KEY, RUN, RUN_CONFIG, STUDY, Coordinator, Reply, bundle, heartbeat, node, numbers

from client.audit import REFUSED
from client.cli import main
from client.counter import content_ids
from client.folder import SECRET, SiteFolder
from client.page import Reader, html
from client.services import audit, node_config, public_key
from client.tickets import SERVICE, SHOWN, TICKET, Ticket, error_digest
from pm1_core.proposal import Proposal
from server.consortium import Consortium

_MIB = 1 << 20


@pytest.fixture
def consortium(tmp_path: Path) -> Consortium:
    """Whose CA the sites know; its gateway is not up."""
    return founded(tmp_path / "consortium", free_ports(1)[0])


@pytest.fixture
def site(tmp_path: Path, consortium: Consortium) -> SiteFolder:
    """A site that has joined."""
    return joined(consortium, tmp_path / "site", "leeds")


@pytest.fixture
def proposal(tmp_path: Path, consortium: Consortium) -> Path:
    """The coordinator's proposal."""
    digest = hashlib.sha256(bundle()).hexdigest()
    made = Proposal.signed(consortium.signer, STUDY, digest, RUN_CONFIG, ("tabular",), "0" * 64)
    (tmp_path / "proposal.json").write_text(made.to_json())
    return tmp_path / "proposal.json"


def test_a_study_is_shown_approved_listed_and_withdrawn(
    site: SiteFolder, proposal: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked, no is no; each step is in the log."""
    folder = ["--folder", str(site.path)]
    monkeypatch.setattr("builtins.input", lambda _: "n")
    assert main(["approve", str(proposal), *folder]) == 0
    shown = capsys.readouterr().out
    for words in ("retina", "fusion (fusion, 2 rounds)", "tabular", "IN THE CLEAR", "deep=1.0", "no ledger"):
        assert words in shown
    assert "NOT THE VERSION THAT IS INSTALLED HERE" in shown
    assert main(["approve", "--list", *folder]) == 0
    assert "nothing is approved" in capsys.readouterr().out

    assert main(["approve", str(proposal), "--yes", "--json", *folder]) == 0
    outcome = json.loads(capsys.readouterr().out)
    assert outcome["approved"]
    assert not outcome["same_code"]
    assert main(["approve", "--list", "--json", *folder]) == 0
    assert [item["study"] for item in json.loads(capsys.readouterr().out)] == ["retina"]
    assert main(["approve", "--withdraw", outcome["hash"][:6], *folder]) == 0
    assert main(["approve", "--withdraw", outcome["hash"], *folder]) == 2
    assert "found none" in capsys.readouterr().err
    lines = site.file("audit/audit.jsonl").read_text().splitlines()
    assert [json.loads(line)["event"] for line in lines] == ["approved", "withdrawn"]


def test_a_proposal_that_the_coordinator_did_not_sign_is_refused(
    site: SiteFolder, proposal: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nor is a file approved that somebody puts into the folder, or one that is none."""
    content = json.loads(proposal.read_text())
    content["bundle"] = "1" * 64
    forged = tmp_path / "forged.json"
    forged.write_text(json.dumps(content))
    assert main(["approve", str(forged), "--yes", "--folder", str(site.path)]) == 3
    assert "not the coordinator's" in capsys.readouterr().err
    (site.path / "approvals" / "forged.json").write_text(json.dumps(content))
    (site.path / "approvals" / "empty.json").write_text("")
    assert main(["approve", "--list", "--folder", str(site.path)]) == 0
    assert "nothing is approved" in capsys.readouterr().out
    assert main(["approve", str(tmp_path / "none.json"), "--folder", str(site.path)]) == 2


def test_a_site_that_has_not_joined_is_told_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With the code of what a person has to put right."""
    for command in (["start"], ["start", "door"], ["status"]):
        assert main([*command, "--folder", str(tmp_path)]) == 3
        assert "pm1-site init" in capsys.readouterr().err
    assert main(["start", "window", "--folder", str(tmp_path)]) == 2


def test_the_client_app_is_told_of_its_door_and_of_approved_tasks(site: SiteFolder, proposal: Path) -> None:
    """And of its identity and its peers."""
    assert main(["approve", str(proposal), "--yes", "--folder", str(site.path)]) == 0
    config = node_config(site)
    assert 'door="127.0.0.1:9444"' in config
    assert f'door_secret="{site.file(SECRET)}"' in config
    assert 'tasks="tabular"' in config
    assert f'peers="{site.file("peers")}"' in config


def test_the_door_talks_to_the_consortium_alone_and_over_tls_1_3(
    site: SiteFolder, consortium: Consortium, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A gateway of another CA gets not a byte of a call; nor one that speaks TLS 1.2."""
    coordinator, port = Coordinator(), int(site.facts["gateway"].rpartition(":")[2])
    stranger = founded(tmp_path / "stranger", port)
    key = public_key(site.file("keys/node.key"))
    with ExitStack() as door:
        door.enter_context(door_process(site, "door"))
        with gateway(coordinator, stranger, port):
            assert (
                _call(
                    site,
                    "activate-node",
                    fleet_pb2.ActivateNodeRequest(public_key=key, heartbeat_interval=30),
                ).status_code
                == 503
            )
        with gateway(coordinator, consortium, port, newest="1.2"):
            assert (
                _call(
                    site,
                    "activate-node",
                    fleet_pb2.ActivateNodeRequest(public_key=key, heartbeat_interval=30),
                ).status_code
                == 503
            )
        assert coordinator.calls == []
        assert main(["health", "door", "--folder", str(site.path)]) == 1
        assert "coordinator: ConnectError" in capsys.readouterr().err
        with gateway(coordinator, consortium, port):
            assert (
                _call(
                    site,
                    "activate-node",
                    fleet_pb2.ActivateNodeRequest(public_key=KEY, heartbeat_interval=30),
                ).status_code
                == 403
            )
            assert (
                _call(
                    site,
                    "activate-node",
                    fleet_pb2.ActivateNodeRequest(public_key=key, heartbeat_interval=30),
                ).status_code
                == 200
            )
            assert _call(site, "send-node-heartbeat", heartbeat()).status_code == 200
            assert main(["health", "door", "--folder", str(site.path)]) == 0
            assert main(["status", "--json", "--folder", str(site.path)]) == 0
            status = json.loads(capsys.readouterr().out.splitlines()[-1])
            assert status["services"]["door"]["runs"]
            assert main(["health", "supernode", "--folder", str(site.path)]) == 1
            door.close()


def test_a_supernode_in_another_container_works_while_the_door_hears_of_it(
    site: SiteFolder, consortium: Consortium, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nobody listens here at its address; before its first heartbeat, and without a door, it is called down."""
    port, folder = int(site.facts["gateway"].rpartition(":")[2]), ["--folder", str(site.path)]
    activate = fleet_pb2.ActivateNodeRequest(
        public_key=public_key(site.file("keys/node.key")), heartbeat_interval=30
    )
    with gateway(Coordinator(), consortium, port):
        with door_process(site, "door"):
            assert not _shown(folder, capsys)["supernode"]["runs"]
            assert _call(site, "activate-node", activate).status_code == 200
            assert _call(site, "send-node-heartbeat", heartbeat()).status_code == 200
            for found in (_shown(folder, capsys)["supernode"], Reader(site)()["services"]["supernode"]):
                assert found["runs"]
                assert "address" not in found
            assert main(["status", *folder]) == 0
            assert "runs elsewhere, heard by the door" in capsys.readouterr().out
            assert "elsewhere: heard by the door" in html(Reader(site)())
        assert not _shown(folder, capsys)["supernode"]["runs"]


def test_a_ticket_without_the_sites_secret_is_refused_and_written_down(
    site: SiteFolder, consortium: Consortium, proposal: Path
) -> None:
    """Though who calls knows the message; with the secret the same ticket is taken."""
    coordinator, port = Coordinator(), int(site.facts["gateway"].rpartition(":")[2])
    assert stat.S_IMODE(site.file(SECRET).stat().st_mode) == 0o600
    assert main(["approve", str(proposal), "--yes", "--folder", str(site.path)]) == 0
    activate = fleet_pb2.ActivateNodeRequest(
        public_key=public_key(site.file("keys/node.key")), heartbeat_interval=30
    )
    with gateway(coordinator, consortium, port), door_process(site, "door"):
        assert _call(site, "activate-node", activate).status_code == 200
        asked = coordinator.ask().metadata.message_id
        _call(site, "pull-messages", fleet_pb2.PullMessagesRequest(node=node()))
        ticket = Ticket(RUN, asked, error=error_digest(210, "a sentence"))
        for secret in (None, "", "0" * 64):
            assert "does not show the site's secret" in _handed_in(ticket, secret)["refused"]
        assert _handed_in(ticket, site.file(SECRET).read_text()) == {}
    (line,) = [line for line in audit(site).lines() if line.get("call") == "tickets"]
    assert line["event"] == REFUSED
    assert "does not show the site's secret" in line["reason"]


def test_all_services_end_with_their_supervisor(site: SiteFolder) -> None:
    """And the SuperNode of a site without its coordinator is started again and again."""
    with door_process(site) as process:
        pids = site.file("run/door.pid"), site.file("run/supernode.pid")
        await_("both services", lambda: all(pid.exists() for pid in pids))
        assert (
            subprocess.run(["ps", "-p", str(process.pid)], capture_output=True, check=False).returncode == 0
        )
    assert not any(pid.exists() for pid in pids)


@pytest.mark.slow
def test_an_object_of_256_mib_passes_and_is_held_once(
    site: SiteFolder, consortium: Consortium, proposal: Path
) -> None:
    """The door's memory grows by less than one and a half of it."""
    coordinator, port = Coordinator(), int(site.facts["gateway"].rpartition(":")[2])
    assert main(["approve", str(proposal), "--yes", "--folder", str(site.path)]) == 0
    blob = bytes(256 * _MIB)
    with gateway(coordinator, consortium, port), door_process(site, "door") as process:
        _call(
            site,
            "activate-node",
            fleet_pb2.ActivateNodeRequest(
                public_key=public_key(site.file("keys/node.key")), heartbeat_interval=30
            ),
        )
        asked = coordinator.ask()
        _call(site, "pull-messages", fleet_pb2.PullMessagesRequest(node=node()))
        reply = Reply.to(asked, numbers(1.0))
        name = hashlib.sha256(blob).hexdigest()
        reply.tree.children[0].children.append(message_pb2.ObjectTree(object_id=name))
        config = Proposal.from_json(proposal.read_text(), "proposal").config
        ids = [*content_ids(reply.content), name] if reply.content else []
        ticket = Ticket(RUN, asked.metadata.message_id, config, ids)
        assert _handed_in(ticket, site.file(SECRET).read_text()) == {}
        assert _call(site, "push-messages", reply.request()).status_code == 200
        before = _peak(process.pid)
        pushed = message_pb2.PushObjectRequest(
            node=node(), run_id=RUN, object_id=name, object_content=blob, session_id="session"
        )
        assert _call(site, "push-object", pushed).status_code == 200
        assert len(coordinator.received[name]) == len(blob)
        assert _peak(process.pid) - before < 1.5 * len(blob)


def _shown(folder: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert main(["status", "--json", *folder]) == 0
    services: dict[str, Any] = json.loads(capsys.readouterr().out)["services"]
    return services


def _handed_in(ticket: Ticket, secret: str | None) -> dict[str, Any]:
    """What the ticket service says to a ticket."""
    import os

    metadata = () if secret is None else ((SHOWN, secret),)
    with grpc.insecure_channel(os.environ["PM1_TICKETS"]) as channel:
        call = channel.unary_unary(f"/{SERVICE}/{TICKET}")
        answer: dict[str, Any] = json.loads(call(json.dumps(asdict(ticket)).encode(), metadata=metadata))
    return answer


def _call(site: SiteFolder, name: str, message: object) -> httpx.Response:
    import os

    context = ssl.create_default_context(cafile=site.file("local/ca.crt"))
    with httpx.Client(verify=context, trust_env=False, timeout=60) as client:
        body = message.SerializeToString(deterministic=True)  # type: ignore[attr-defined]
        return client.post(f"https://{os.environ['PM1_DOOR']}/v1/fleet/{name}", content=body)


def _peak(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024
