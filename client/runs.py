"""Which runs a site approved: what the coordinator says of a run and the code that it sends, compared.

Whatever is compared here was fetched by the door itself, or is compared again when the SuperNode fetches it.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from flwr.common.config import get_fab_config, get_metadata_from_config
from flwr.proto import fab_pb2, node_pb2, run_pb2

from client.approvals import Approvals, Approved
from client.policy import Policy
from pm1_core.errors import PrivacyError
from pm1_core.validate import refusal
from strategies.fleet import CALLS, Call

Ask = Callable[[Call, Any, Mapping[str, str]], Awaitable[Any]]
_KEPT = 1000


@dataclass(frozen=True)
class Known:
    """What a run was when its code was compared. code: fab_id and fab_version in it"""

    bundle: str
    run_config: Mapping[str, Any]
    task_type: str
    code: tuple[str, str]


class Runs:
    """The runs of which messages came. ask: a call to the coordinator"""

    def __init__(self, approvals: Approvals, policy: Callable[[], Policy], ask: Ask) -> None:
        self.approvals = approvals
        self.policy = policy
        self.ask = ask
        self._known: dict[int, Known] = {}

    async def approved(self, run: int, node: int, passed: Mapping[str, str]) -> Approved:
        """The approval of a run, whose code is fetched if it is not known.

        passed: headers of the SuperNode's call; Flower takes its signature for some minutes

        Raises PrivacyError if the site did not approve it, CallError or httpx.TransportError if nobody answers.
        """
        if run not in self._known:
            asked = run_pb2.GetRunRequest(node=node_pb2.Node(node_id=node), run_id=run)
            told = (await self.ask(CALLS["get-run"], asked, passed)).run
            if told.run_id != run:
                raise PrivacyError(
                    refusal("run", "the coordinator tells of another one", "ask the coordinator")
                )
            self._approval(told.fab_hash, config_of(told), told.primary_task_type)
            wanted = fab_pb2.GetFabRequest(node=asked.node, hash_str=told.fab_hash, run_id=run)
            fab = (await self.ask(CALLS["get-fab"], wanted, passed)).fab
            await self.require_code(fab, told.fab_hash)
            code = await asyncio.to_thread(_code, fab.content)
            if len(self._known) >= _KEPT:
                self._known.pop(next(iter(self._known)))
            self._known[run] = Known(told.fab_hash, config_of(told), told.primary_task_type, code)
        known = self._known[run]
        return self._approval(known.bundle, known.run_config, known.task_type)

    def require_run(self, asked: int, told: run_pb2.Run) -> None:
        """Raise PrivacyError unless what the coordinator tells of a run now is what was compared."""
        known = self._known.get(asked)
        found = told.fab_hash, config_of(told), told.primary_task_type, (told.fab_id, told.fab_version)
        if known is None or told.run_id != asked:
            raise PrivacyError(refusal("run", "no message of it was let in", "wait for one"))
        if (known.bundle, known.run_config, known.task_type, known.code) != found:
            raise PrivacyError(refusal("run", "it is told differently now", "ask the coordinator"))
        self._approval(known.bundle, known.run_config, known.task_type)

    def require_bundle(self, run: int, bundle: str) -> None:
        """Raise PrivacyError unless a bundle is the approved code of a run."""
        known = self._known.get(run)
        if known is None or known.bundle != bundle:
            raise PrivacyError(refusal("code", "it is of no run that was let in", "wait for a message"))
        self._approval(known.bundle, known.run_config, known.task_type)

    async def require_code(self, fab: fab_pb2.Fab, bundle: str) -> None:
        """Raise PrivacyError unless the bytes of a bundle have the SHA-256 that they are called by."""
        digest = await asyncio.to_thread(lambda: hashlib.sha256(fab.content).hexdigest())
        if digest != bundle or fab.hash_str != bundle:
            raise PrivacyError(
                refusal("code", f"its SHA-256 is {digest[:16]}, not {bundle[:16]}", "do not run it")
            )

    def _approval(self, bundle: str, run_config: Mapping[str, Any], task_type: str) -> Approved:
        found = self.approvals.of_run(bundle, run_config, task_type)
        self.policy().require_privacy(found.guarantee)
        return found


def config_of(run: run_pb2.Run) -> dict[str, Any]:
    """The run configuration. Raises PrivacyError if a value of it is none."""
    found = {}
    for key, scalar in run.override_config.items():
        kind = scalar.WhichOneof("scalar")
        if kind is None:
            raise PrivacyError(refusal(f"run configuration, key {key!r}", "it has no value", "give one"))
        value = getattr(scalar, kind)
        if not isinstance(value, (str, bool, int, float)):
            raise PrivacyError(refusal(f"run configuration, key {key!r}", "it is bytes", "give a text"))
        found[key] = value
    return found


def _code(content: bytes) -> tuple[str, str]:
    """fab_id and fab_version in an approved bundle. Raises PrivacyError if they cannot be read."""
    try:
        name, version = get_metadata_from_config(get_fab_config(content))
    except Exception as error:  # a zip file and TOML of somebody else's making
        raise PrivacyError(
            refusal("code", f"it is no bundle of Flower's ({type(error).__name__})", "build it anew")
        ) from None
    return str(name), str(version)
