"""Who does not belong tries to get in, and who belongs tries to be another: refused, and written down."""

from __future__ import annotations

import json
import os
import ssl
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from caller import Caller, context
from flwr.proto import control_pb2, fleet_pb2, message_pb2, node_pb2, run_pb2
from places import joined
from running import Coordinator, await_

from pm1_core import certificates
from pm1_core.certificates import SITE, Authority
from strategies import fleet

pytestmark = pytest.mark.slow

_APP = """
import time
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

app = ClientApp()
server = ServerApp()

@server.main()
def main(grid, context):
    ids = []
    while len(ids) < 2:
        ids = list(grid.get_node_ids())
        time.sleep(0.2)
    content = RecordDict({"secret": ConfigRecord({"for": "leeds alone"})})
    list(grid.send_and_receive(
        [Message(content, dst_node_id=node, message_type="query") for node in ids], timeout=600))
"""
_PROJECT = """
[project]
name = "asks"
version = "1.0.0"
license = {text = "Apache-2.0"}
dependencies = ["flwr>=1.41"]
[tool.flwr.app]
publisher = "nobody"
[tool.flwr.app.components]
serverapp = "asks:server"
clientapp = "asks:app"
"""


class Drill:
    """A consortium of two sites, in which a run has asked each of them something."""

    def __init__(self, coordinator: Coordinator, folder: Path) -> None:
        self.coordinator = coordinator
        self.url = f"https://127.0.0.1:{coordinator.gateway}"
        self.authority = coordinator.folder / "ca/ca.crt"
        self.leeds, self.york = (
            Caller(joined(coordinator.consortium, folder / site, site), coordinator.gateway)
            for site in ("leeds", "york")
        )
        for site in (self.leeds, self.york):
            await_("the SuperLink to know the node", site.activate)
        self._ask(folder)
        pulled: list[Any] = []

        def came() -> bool:
            pulled[:] = [self.leeds.pull()]
            return bool(pulled[0].messages_list)

        await_("a message for leeds", came, 120)
        self.message = pulled[0].messages_list[0]
        self.tree = pulled[0].message_object_trees[0]

    def _ask(self, folder: Path) -> None:
        app, home = folder / "app", folder / "operator"
        for one in (app, home):
            one.mkdir()
        (app / "asks.py").write_text(_APP)
        (app / "pyproject.toml").write_text(_PROJECT)
        address = f'[superlink.here]\naddress = "127.0.0.1:{self.coordinator.superlink}"\n'
        (home / "config.toml").write_text(address + f'root-certificates = "{self.authority}"\n')
        done = subprocess.run(
            [str(Path(sys.executable).parent / "flwr"), "run", str(app), "here", "--format", "json"],
            env={**os.environ, "FLWR_HOME": str(home), "FLWR_TELEMETRY_ENABLED": "0"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def refused(self) -> list[str]:
        """Reasons that the guard wrote down, the newest last."""
        return [json.loads(line)["refused"] for line in self.coordinator.lines("guard.jsonl")]

    def logged(self, **facts: Any) -> None:
        """Wait until the gateway has written down a request with these facts."""

        def found() -> bool:
            lines = (json.loads(line) for line in self.coordinator.lines("access.jsonl"))
            return any(line | facts == line for line in lines)

        await_(f"a line with {facts}", found, 10)

    def answer(self, source: int, node: Caller) -> fleet_pb2.PushMessagesRequest:
        """An answer to what leeds was asked, from `source`, sent by `node`."""
        asked = self.message.metadata
        data = message_pb2.Metadata(
            run_id=asked.run_id,
            message_id="a" * 64,
            src_node_id=source,
            dst_node_id=asked.src_node_id,
            reply_to_message_id=asked.message_id,
            message_type=asked.message_type,
            created_at=asked.created_at,
            ttl=asked.ttl,
        )
        return fleet_pb2.PushMessagesRequest(
            node=node.me,
            messages_list=[message_pb2.Message(metadata=data)],
            message_object_trees=[message_pb2.ObjectTree(object_id="a" * 64)],
            clientapp_runtime_list=[0.5],
        )


@pytest.fixture(scope="module")
def drill(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Drill]:
    folder = tmp_path_factory.mktemp("outsiders")
    with Coordinator(folder / "consortium") as coordinator:
        drill = Drill(coordinator, folder)
        yield drill
        drill.leeds.client.close()
        drill.york.client.close()


def tried(drill: Drill, tls: ssl.SSLContext) -> int | None:
    """Status of a request by somebody, None if the connection was refused."""
    try:
        with httpx.Client(verify=tls, trust_env=False) as client:
            return client.post(drill.url + "/v1/fleet/pull-messages", content=b"").status_code
    except (httpx.HTTPError, OSError):
        return None


def certified(folder: Path, authority: Authority, name: str, days: int) -> tuple[Path, Path]:
    """A certificate and its key in files."""
    key = certificates.new_key()
    certificates.write_key(folder / "client.key", key, encrypted=False)
    made = authority.client(key.public_key(), name, SITE, days)
    (folder / "client.crt").write_text(certificates.pem(made))
    return folder / "client.crt", folder / "client.key"


def own(drill: Drill) -> Authority:
    folder = drill.coordinator.folder / "ca"
    return Authority(
        certificates.read_key(folder / "ca.key"), certificates.read_certificate(folder / "ca.crt")
    )


def test_nobody_gets_in_without_a_certificate(drill: Drill) -> None:
    assert tried(drill, context(drill.authority)) in (None, 400)
    drill.logged(verified="NONE", status=400)


def test_a_certificate_of_another_authority_is_none(drill: Drill, tmp_path: Path) -> None:
    pair = certified(tmp_path, Authority.create("test"), "leeds", 30)
    assert tried(drill, context(drill.authority, *pair)) in (None, 400)
    drill.logged(verified="FAILED:unable to verify the first certificate", status=400)


def test_a_certificate_that_has_run_out_is_none(drill: Drill, tmp_path: Path) -> None:
    pair = certified(tmp_path, own(drill), "leeds", 0)
    certificate = certificates.read_certificate(pair[0])
    await_("the end of the certificate", lambda: _over(certificate))
    assert tried(drill, context(drill.authority, *pair)) in (None, 400)
    drill.logged(verified="FAILED:certificate has expired", status=400)


def test_a_site_that_is_revoked_is_out_at_once_on_the_connection_that_it_has(
    drill: Drill, tmp_path: Path
) -> None:
    gone = Caller(joined(drill.coordinator.consortium, tmp_path / "hull", "hull"), drill.coordinator.gateway)
    await_("the SuperLink to know the node", gone.activate)
    drill.coordinator.consortium.revoke("hull", "lost its disk")

    def out() -> bool:
        try:
            answer = gone.post("pull-messages", fleet_pb2.PullMessagesRequest(node=gone.me))
        except httpx.HTTPError:
            return True
        return bool(answer.status_code == 400)

    await_("the end of its connection", out, 10)
    gone.client.close()
    pair = gone.folder.file("client.crt"), gone.folder.file("keys/tls.key")
    assert tried(drill, context(drill.authority, *pair)) in (None, 400)
    drill.logged(verified="FAILED:certificate revoked", status=400)


def test_nothing_older_than_tls_1_3_is_spoken(drill: Drill) -> None:
    folder = drill.leeds.folder
    tls = context(drill.authority, folder.file("client.crt"), folder.file("keys/tls.key"))
    tls.maximum_version = ssl.TLSVersion.TLSv1_2
    assert tried(drill, tls) is None


def test_what_a_site_may_do_it_can(drill: Drill) -> None:
    assert drill.york.client.get("/v1/consortium/crl/ca.crl").text.startswith("-----BEGIN X509 CRL")
    for name in (tree_id for tree_id in fleet.tree_ids(drill.tree)):
        asked = message_pb2.PullObjectRequest(
            node=drill.leeds.me, run_id=drill.message.metadata.run_id, object_id=name
        )
        answer = drill.leeds.post("pull-object", asked)
        assert message_pb2.PullObjectResponse.FromString(answer.content).object_found


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/v1/control/start-run", control_pb2.StartRunRequest()),
        ("/v1/control/register-node", control_pb2.RegisterNodeRequest(public_key=b"x")),
        ("/v1/control/list-nodes", control_pb2.ListNodesRequest()),
        ("/v1/runtime/anything", control_pb2.ListNodesRequest()),
        ("/v1/fleet/register-node", fleet_pb2.RegisterNodeFleetRequest(public_key=b"x")),
        ("/v1/fleet/unregister-node", fleet_pb2.UnregisterNodeFleetRequest(node_id=1)),
    ],
)
def test_no_site_starts_runs_or_registers_nodes(drill: Drill, path: str, message: Any) -> None:
    headers = drill.york.headers()
    answer = drill.york.client.post(path, content=message.SerializeToString(), headers=headers)
    assert answer.status_code == 403
    drill.logged(request=f"POST {path}", status=403, site="york")


def test_the_coordinators_own_certificate_opens_the_control_api_and_no_site_s_part(drill: Drill) -> None:
    folder = drill.coordinator.folder / "coordinator"
    tls = context(drill.authority, folder / "client.crt", folder / "client.key")
    with httpx.Client(verify=tls, trust_env=False) as client:
        headers = {"content-type": fleet.MEDIA_TYPE}
        body = control_pb2.ListNodesRequest().SerializeToString()
        answer = client.post(drill.url + "/v1/control/list-nodes", content=body, headers=headers)
        assert len(control_pb2.ListNodesResponse.FromString(answer.content).nodes_info) >= 2
        assert client.post(drill.url + "/v1/fleet/pull-messages", content=body).status_code == 403


def test_no_site_reads_what_was_sent_to_another(drill: Drill) -> None:
    run, leeds = drill.message.metadata.run_id, node_pb2.Node(node_id=drill.leeds.node)
    for name in fleet.tree_ids(drill.tree):
        for node in (drill.york.me, leeds):
            asked = message_pb2.PullObjectRequest(node=node, run_id=run, object_id=name)
            answer = drill.york.post("pull-object", asked)
            assert answer.status_code in (401, 403)
    assert "it is of no message for this node" in drill.refused()[-1] + drill.refused()[-2]
    assert drill.york.post("pull-messages", fleet_pb2.PullMessagesRequest(node=leeds)).status_code == 401
    confirmed = message_pb2.ConfirmMessageReceivedRequest(
        node=drill.york.me, run_id=run, message_object_id=drill.message.metadata.message_id
    )
    assert drill.york.post("confirm-message-received", confirmed).status_code == 403
    for run_id in (run + 1, 0):
        asked_run = run_pb2.GetRunRequest(node=drill.york.me, run_id=run_id)
        assert drill.york.post("get-run", asked_run).status_code == 403


def test_no_site_answers_in_the_name_of_another(drill: Drill) -> None:
    for source, reason in (
        (drill.leeds.node, "it is in another node's name"),
        (drill.york.node, "it is to no message for this node"),
    ):
        answer = drill.york.post("push-messages", drill.answer(source, drill.york))
        assert answer.status_code == 403
        assert reason in drill.refused()[-1]
    pushed = message_pb2.PushObjectRequest(
        node=drill.york.me,
        run_id=drill.message.metadata.run_id,
        object_id="b" * 64,
        object_content=b"spam",
        session_id="1",
    )
    assert drill.york.post("push-object", pushed).status_code == 403


def test_a_stolen_signature_is_of_no_use_with_another_certificate(drill: Drill) -> None:
    stolen = drill.leeds.headers()
    asked = fleet_pb2.PullMessagesRequest(node=drill.leeds.me)
    assert drill.york.post("pull-messages", asked, stolen).status_code == 403
    assert "the SuperNode's key is not that of site 'york'" in drill.refused()[-1]


def test_a_call_that_was_made_is_not_made_again(drill: Drill) -> None:
    headers = drill.leeds.headers()
    asked = fleet_pb2.PullMessagesRequest(node=drill.leeds.me)
    assert drill.leeds.post("pull-messages", asked, headers).status_code == 200
    assert drill.leeds.post("pull-messages", asked, headers).status_code == 409
    assert "this call was made before" in drill.refused()[-1]
    for number, reason in (("", "it is missing"), ("1000000000000-0123456789abcdef", "clock is")):
        headers = drill.leeds.headers(x_pm1_nonce=number)
        assert drill.leeds.post("pull-messages", asked, headers).status_code == 403
        assert reason in drill.refused()[-1]


def test_no_caller_says_himself_who_he_is(drill: Drill) -> None:
    headers = drill.york.headers(x_pm1_site="leeds")
    asked = fleet_pb2.PullMessagesRequest(node=drill.york.me)
    assert drill.york.post("pull-messages", asked, headers).status_code == 200
    stolen = drill.leeds.headers(x_pm1_site="leeds")
    assert drill.york.post("pull-messages", asked, stolen).status_code == 403


def test_what_is_there_to_be_read_is_not_written(drill: Drill) -> None:
    for method in ("PUT", "POST", "DELETE"):
        answer = drill.york.client.request(method, "/v1/consortium/crl/ca.crl", content=b"x")
        assert answer.status_code == 403
    for path in ("/", "/v1/", "/v1/consortium/../../ca/ca.key", "/v1/consortium/..%2f..%2fca/ca.key"):
        assert drill.york.client.get(path).status_code in (400, 404)


def _over(certificate: Any) -> bool:
    return bool(datetime.now(UTC) > certificate.not_valid_after_utc)
