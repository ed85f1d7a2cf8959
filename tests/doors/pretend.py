"""A coordinator in this process, which a door takes for the real one, and a SuperNode's side of the calls."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
import warnings
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import httpx
from flwr.app import ConfigRecord, RecordDict
from flwr.cli.build import build_fab_from_files
from flwr.common.serde import user_config_to_proto
from flwr.proto import fab_pb2, fleet_pb2, heartbeat_pb2, message_pb2, node_pb2, run_pb2
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from client.approvals import Approvals
from client.audit import Audit
from client.counter import content_ids
from client.desk import Desk, root_bytes
from client.door import Door
from client.policy import Policy
from client.tickets import error_digest
from client.upstream import Upstream
from pm1_core.proposal import Proposal
from pm1_core.signing import Signer, public_file
from strategies import fleet

NODE, RUN, SERVER = 2**63 + 7, 11, 1
KEY = b"public key"
STUDY: dict[str, Any] = {
    "name": "retina",
    "seed": 1,
    "encoding": "full",
    "secure": {},
    "strategy": {"name": "fedavg"},
    "guarantee": {},
    "phases": [{"name": "fusion", "task": "fusion", "rounds": 2, "parameters": {}, "privacy": {}}],
}
ORDER = {
    "phase": "fusion",
    "task": "fusion",
    "round": 1,
    "rounds": 2,
    "seed": 1,
    "parameters": {},
    "method": {},
    "encoding": "full",
    "privacy": {},
    "secure": {},
}
RUN_CONFIG: dict[str, str | int | float | bool] = {"study": "/data/study.json", "deep": 1.0}
_PROJECT = b"""
[project]
name = "%s"
version = "1.0.0"
license = {text = "Apache-2.0"}
dependencies = ["flwr>=1.41"]
[tool.flwr.app]
publisher = "pm1"
[tool.flwr.app.components]
serverapp = "app:server"
clientapp = "app:app"
"""


@cache
def bundle(name: str = "pm1") -> bytes:
    """A Flower app bundle."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Flower's use of pathspec
        return build_fab_from_files(
            {"pyproject.toml": _PROJECT % name.encode(), "app.py": b"app = server = None\n"}
        )[0]


@dataclass
class Coordinator:
    """Answers calls, and keeps what it got.

    code: of the run; messages: that are waiting for the site; objects: by id
    """

    code: bytes = field(default_factory=bundle)
    run_config: Mapping[str, Any] = field(default_factory=lambda: dict(RUN_CONFIG))
    messages: list[tuple[message_pb2.Message, message_pb2.ObjectTree]] = field(default_factory=list)
    objects: dict[str, bytes] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    pushed: list[message_pb2.Message] = field(default_factory=list)
    received: dict[str, bytes] = field(default_factory=dict)
    told: run_pb2.Run = field(default_factory=run_pb2.Run)
    down: bool = False

    def __post_init__(self) -> None:
        digest = hashlib.sha256(self.code).hexdigest()
        self.told = run_pb2.Run(
            run_id=RUN,
            fab_id="pm1/pm1",
            fab_version="1.0.0",
            fab_hash=digest,
            override_config=user_config_to_proto(dict(self.run_config)),
            primary_task_type="flwr-serverapp",
        )

    def ask(self, kind: str = "train", run: int = RUN) -> message_pb2.Message:
        """A message for the site, ready to be pulled."""
        content = RecordDict({"order": ConfigRecord({"n": len(self.messages)})})
        given = message_pb2.Metadata(
            run_id=run,
            src_node_id=SERVER,
            dst_node_id=NODE,
            ttl=600.0,
            message_type=kind,
            group_id="1",
            created_at=time.time(),
        )
        message = message_pb2.Message(metadata=given)
        root = root_bytes(message, [content.object_id])
        name = hashlib.sha256(root).hexdigest()
        message.metadata.message_id = name
        tree = message_pb2.ObjectTree(object_id=name, children=[get_object_tree(content)])
        self.messages.append((message, tree))
        self.objects |= {name: root, **{k: v.deflate() for k, v in get_all_nested_objects(content).items()}}
        return message

    def app(self) -> Starlette:
        """What a gateway would be."""
        return Starlette(routes=[Route("/v1/fleet/{name}", self._answer, methods=["POST"])])

    async def _answer(self, http: Request) -> Response:
        if self.down:
            raise httpx.ConnectError("down")
        name = http.path_params["name"]
        call = fleet.CALLS[name]
        request = call.request()
        request.ParseFromString(await http.body())
        self.calls.append(name)
        answer: Any = call.response()
        if name == "activate-node":
            answer.node_id = NODE
        elif name == "pull-messages":
            for message, tree in self.messages:
                answer.messages_list.append(message)
                answer.message_object_trees.append(tree)
            self.messages = []
        elif name == "get-run":
            answer.run.CopyFrom(self.told)
        elif name == "get-fab":
            answer.fab.CopyFrom(fab_pb2.Fab(hash_str=request.hash_str, content=self.code))
        elif name == "push-messages":
            self.pushed.append(request.messages_list[0])
            answer.session_id = "session"
            answer.objects_to_push.extend(
                n for tree in request.message_object_trees for n in fleet.tree_ids(tree)
            )
            assert not request.clientapp_runtime_list
        elif name == "push-object":
            self.received[request.object_id] = request.object_content
            answer.stored = True
        elif name == "pull-object":
            answer.object_found = answer.object_available = request.object_id in self.objects
            answer.object_content = self.objects.get(request.object_id, b"")
        return Response(answer.SerializeToString(), media_type=fleet.MEDIA_TYPE)


@dataclass
class Site:
    """A door in front of a pretended coordinator, and what a SuperNode and a ClientApp do."""

    folder: Path
    coordinator: Coordinator = field(default_factory=Coordinator)
    policy: Policy = field(default_factory=Policy)

    def __post_init__(self) -> None:
        signer = Signer.at(self.folder / "checkpoint.pem")
        trust = public_file(self.folder / "checkpoint.pem")
        self.proposal = Proposal.signed(
            signer,
            STUDY,
            hashlib.sha256(bundle()).hexdigest(),
            RUN_CONFIG,
            (),
            hashlib.sha256(b"").hexdigest(),
        )
        (self.folder / "proposal.json").write_text(self.proposal.to_json())
        self.approvals = Approvals(self.folder / "approvals", trust)
        self.audit = Audit(self.folder / "audit.jsonl")
        transport = httpx.ASGITransport(self.coordinator.app())
        client = httpx.AsyncClient(transport=transport, base_url="https://gateway")
        desk = Desk.at(self.folder / "desk.json")
        self.door = Door(Upstream(client), desk, self.approvals, self.audit, lambda: self.policy, KEY)
        self.node = httpx.AsyncClient(transport=httpx.ASGITransport(self.door.app()), base_url="https://door")

    def approve(self) -> str:
        """As pm1-site approve does; returns the name of the approval."""
        checked = self.approvals.checked(self.folder / "proposal.json")
        self.approvals.approve(checked)
        return checked.name

    async def activate(self) -> None:
        """Start the SuperNode."""
        answer = await self.call(
            "activate-node", fleet_pb2.ActivateNodeRequest(public_key=KEY, heartbeat_interval=30)
        )
        assert answer.status_code == 200, answer.text

    async def call(self, name: str, message: Any) -> httpx.Response:
        """A call as Flower makes it."""
        body = message.SerializeToString(deterministic=True)
        return await self.node.post(
            f"/v1/fleet/{name}", content=body, headers={"content-type": fleet.MEDIA_TYPE}
        )

    async def pull(self) -> list[message_pb2.Message]:
        """Messages that the door hands on."""
        answer = await self.call("pull-messages", fleet_pb2.PullMessagesRequest(node=node()))
        assert answer.status_code == 200, answer.text
        found = fleet_pb2.PullMessagesResponse.FromString(answer.content)
        return list(found.messages_list)

    async def push(self, reply: Reply, **changes: Any) -> httpx.Response:
        """Push a reply, then its objects; the first answer that is not 200, or the last."""
        answer = await self.call("push-messages", reply.request(**changes))
        for name, content in reply.objects.items():
            if answer.status_code == 200:
                pushed = message_pb2.PushObjectRequest(
                    node=node(), run_id=RUN, object_id=name, object_content=content, session_id="session"
                )
                answer = await self.call("push-object", pushed)
        return answer

    def ticket(self, reply: Reply, **changes: Any) -> dict[str, Any]:
        """What a ClientApp says of a reply before it leaves."""
        line = {"what": "train", "study": "retina", "phase": "fusion", "round": 1, "bytes": 1000}
        line |= {"sha256": ["ab"], "figures": 2, "charges": []}
        given = reply.message.metadata
        return {
            "run": given.run_id,
            "reply_to": given.reply_to_message_id,
            "config": self.proposal.config,
            "objects": content_ids(reply.content) if reply.content else [],
            "error": ""
            if reply.content
            else error_digest(reply.message.error.code, reply.message.error.reason),
            "lines": [line] if reply.content else [],
            **changes,
        }

    def events(self, event: str) -> list[dict[str, Any]]:
        """Lines of the log."""
        return [line for line in self.audit.lines() if line["event"] == event]


@dataclass(frozen=True)
class Reply:
    """An answer of the SuperNode. content: None for an error"""

    message: message_pb2.Message
    tree: message_pb2.ObjectTree
    objects: dict[str, bytes]
    content: RecordDict | None

    @staticmethod
    def to(asked: message_pb2.Message, content: RecordDict | None, **changes: Any) -> Reply:
        """As Flower makes one. changes: of the metadata"""
        now, given = time.time(), asked.metadata
        facts: dict[str, Any] = {
            "run_id": given.run_id,
            "src_node_id": given.dst_node_id,
            "dst_node_id": given.src_node_id,
            "reply_to_message_id": given.message_id,
            "group_id": given.group_id,
            "message_type": given.message_type,
            "created_at": now,
            "ttl": given.created_at + given.ttl - now,
        }
        message = message_pb2.Message(metadata=message_pb2.Metadata(**{**facts, **changes}))
        if content is None:
            message.error.code, message.error.reason = 210, "a sentence"
        children = [] if content is None else [get_object_tree(content)]
        root = root_bytes(message, [child.object_id for child in children])
        name = hashlib.sha256(root).hexdigest()
        message.metadata.message_id = name
        nested = {} if content is None else get_all_nested_objects(content)
        objects = {name: root, **{key: value.deflate() for key, value in nested.items()}}
        return Reply(message, message_pb2.ObjectTree(object_id=name, children=children), objects, content)

    def request(self, **changes: Any) -> fleet_pb2.PushMessagesRequest:
        """What is pushed first."""
        given: dict[str, Any] = {
            "node": node(),
            "messages_list": [self.message],
            "message_object_trees": [self.tree],
            "clientapp_runtime_list": [12.5],
        }
        return fleet_pb2.PushMessagesRequest(**{**given, **changes})

    def with_content(self, content: RecordDict) -> Reply:
        """The same answer with other objects below its first."""
        nested = {key: value.deflate() for key, value in get_all_nested_objects(content).items()}
        return replace(self, objects={**self.objects, **nested})


def node(number: int = NODE) -> node_pb2.Node:
    """This site's node, or another."""
    return node_pb2.Node(node_id=number)


def heartbeat(number: int = NODE) -> heartbeat_pb2.SendNodeHeartbeatRequest:
    """A sign of life."""
    return heartbeat_pb2.SendNodeHeartbeatRequest(node=node(number), heartbeat_interval=30)


def numbers(*values: float) -> RecordDict:
    """The content of an answer."""
    return RecordDict({"site": ConfigRecord({"values": list(values)})})


def order(**changes: Any) -> str:
    """JSON of an order."""
    return json.dumps({**ORDER, **changes})


def play(site: Site, story: Callable[[Site], Awaitable[None]]) -> None:
    """What happens at a site once its SuperNode is active."""

    async def whole() -> None:
        await site.activate()
        await story(site)

    asyncio.run(whole())
