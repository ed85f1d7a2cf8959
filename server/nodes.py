"""Which SuperNodes the SuperLink lets in: those of the sites that are enrolled, by their public keys."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import httpx
from flwr.proto.control_pb2 import ListNodesRequest, RegisterNodeRequest, UnregisterNodeRequest
from flwr.supercore.control.control_http_client import ControlHttpClient

from server.consortium import Consortium, identities

_EVERY = 0.5
_AGAIN = 60.0  # in case a SuperLink lost its database


def keep_registered(consortium: Consortium, superlink: str, ended: threading.Event) -> None:
    """Register and unregister nodes, as sites are enrolled and revoked, until `ended`.

    superlink: HOST:PORT, with a certificate of the consortium
    """
    seen: list[tuple[str, int]] | None = None
    due = 0.0
    while not ended.wait(_EVERY):
        sites = _state(consortium)
        if sites == seen and time.monotonic() < due:
            continue
        try:
            with ControlHttpClient.from_server_address(superlink, False, _root(consortium), []) as control:
                reconcile(consortium, control)
        except httpx.HTTPError:
            continue  # it is not there yet, or no longer
        seen, due = sites, time.monotonic() + _AGAIN


def reconcile(consortium: Consortium, control: ControlHttpClient) -> None:
    """Make the SuperLink's list of nodes that of the consortium. Raises httpx.HTTPError."""
    wanted = {key.encode(): site for site, key in identities(consortium)}
    there = {
        bytes(node.public_key): node.node_id
        for node in control.ListNodes(ListNodesRequest()).nodes_info
        if node.status != "unregistered"
    }
    for key, site in wanted.items():
        if key not in there:
            control.RegisterNode(RegisterNodeRequest(public_key=key, name=site))
    for key, node in there.items():
        if key not in wanted:
            control.UnregisterNode(UnregisterNodeRequest(node_id=node))


def _state(consortium: Consortium) -> list[tuple[str, int]]:
    """What changes when a site is enrolled or revoked."""
    files = sorted(consortium.folder.glob("sites/*/status.json"))
    return [(str(file), file.stat().st_mtime_ns) for file in files]


def _root(consortium: Consortium) -> str:
    return str(Path(consortium.folder / "ca/ca.crt").resolve())
