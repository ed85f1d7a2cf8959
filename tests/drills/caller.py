"""Somebody with a certificate and a SuperNode's key, who calls the gateway as he likes."""

from __future__ import annotations

import secrets
import ssl
import time
from base64 import b64encode
from pathlib import Path
from typing import Any

import httpx
from flwr.proto import fleet_pb2, node_pb2
from flwr.supercore.date import now
from flwr.supercore.primitives.asymmetric import sign_message

from client.folder import SiteFolder
from pm1_core import certificates
from strategies import fleet
from strategies.fleet import CALLS


def context(authority: Path, certificate: Path | None = None, key: Path | None = None) -> ssl.SSLContext:
    """TLS towards the gateway, with a certificate or without."""
    made = ssl.create_default_context(cafile=authority)
    if certificate and key:
        made.load_cert_chain(certificate, key)
    return made


class Caller:
    """A site that speaks for itself, without SuperNode and door."""

    def __init__(self, folder: SiteFolder, gateway: int) -> None:
        self.folder = folder
        self.key = certificates.read_key(folder.file("keys/node.key"))
        self.public_key = certificates.public_pem(self.key.public_key()).encode()
        self.node = 0
        tls = context(folder.file("ca.crt"), folder.file("client.crt"), folder.file("keys/tls.key"))
        self.client = httpx.Client(
            verify=tls, base_url=f"https://127.0.0.1:{gateway}", trust_env=False, timeout=30
        )

    def headers(self, **changes: str) -> dict[str, str]:
        """As a SuperNode and the door write them, with `changes`, names with _ for -."""
        stamp = now().isoformat()
        signature = sign_message(self.key, stamp.encode("ascii"))
        return {
            "flwr-public-key": b64encode(self.public_key).decode(),
            "flwr-signature": b64encode(signature).decode(),
            "flwr-timestamp": stamp,
            "flwr-package-name": "flwr",
            "flwr-package-version": "1.41.0",
            "flwr-component-name": "SuperNode",
            "content-type": fleet.MEDIA_TYPE,
            fleet.NONCE: f"{time.time_ns() // 1_000_000}-{secrets.token_hex(8)}",
            **{name.replace("_", "-"): value for name, value in changes.items()},
        }

    def post(self, name: str, message: Any, headers: dict[str, str] | None = None) -> httpx.Response:
        """A call of the Fleet API."""
        body = message.SerializeToString(deterministic=True)
        return self.client.post(fleet.PREFIX + name, content=body, headers=headers or self.headers())

    def activate(self) -> bool:
        """Whether the SuperLink knows this node (by now)."""
        asked = fleet_pb2.ActivateNodeRequest(public_key=self.public_key, heartbeat_interval=30)
        answer = self.post("activate-node", asked)
        if answer.status_code == 200:
            self.node = CALLS["activate-node"].response.FromString(answer.content).node_id  # type: ignore[attr-defined]
        return bool(answer.status_code == 200)

    def pull(self) -> fleet_pb2.PullMessagesResponse:
        """Messages for this node."""
        answer = self.post("pull-messages", fleet_pb2.PullMessagesRequest(node=self.me))
        assert answer.status_code == 200, answer.text
        return fleet_pb2.PullMessagesResponse.FromString(answer.content)

    @property
    def me(self) -> node_pb2.Node:
        """This node, as requests name it."""
        return node_pb2.Node(node_id=self.node)
