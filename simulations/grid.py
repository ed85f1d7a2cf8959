"""Two engines for the same apps: a grid inside this process, and Flower's simulation on Ray."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from flwr.app import DEFAULT_TTL, Context, Message, Metadata, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

import client.app
import server.app
from client.site import SitePaths
from pm1_core.errors import FederationError
from pm1_core.validate import refusal
from server.coordinator import Coordinator

_RUN, _COORDINATOR = 1, 1


class InProcessGrid(Grid):
    """Calls a ClientApp for each message, in this process, `workers` sites at a time.

    No start-up cost and no copies but those of the records. Node identifiers count from 2, in the order of
    `sites` (the coordinator is 1); each node keeps its Flower context between messages, as a SuperNode would.
    """

    def __init__(self, app: ClientApp, sites: Sequence[SitePaths], workers: int = 1) -> None:
        self._app = app
        self._workers = ThreadPoolExecutor(workers) if workers > 1 else None
        self._contexts = {
            node: Context(
                run_id=_RUN,
                node_id=node,
                run_config={},
                state=RecordDict(),
                node_config={**dataclasses.asdict(paths), "tasks": ",".join(paths.tasks)},
            )
            for node, paths in enumerate(sites, start=2)
        }
        self._numbers = itertools.count(1)
        self._pending: dict[str, Message] = {}
        self._run: Any = None

    def set_run(self, run: Any) -> None:
        """Keep the run's description."""
        self._run = run

    @property
    def run(self) -> Any:
        """The run's description, if one was set."""
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """A message to one node."""
        metadata = Metadata(
            run_id=_RUN,
            message_id=f"message-{next(self._numbers)}",
            src_node_id=_COORDINATOR,
            dst_node_id=dst_node_id,
            reply_to_message_id="",
            group_id=group_id,
            created_at=time.time(),
            ttl=ttl or DEFAULT_TTL,
            message_type=message_type,
        )
        # Flower's own grids build messages so; the overloads for applications leave it out.
        build: Callable[..., Message] = Message
        return build(content, metadata=metadata)

    def get_node_ids(self) -> list[int]:
        """All nodes, connected at any time."""
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Take messages. Each is answered when it is pulled, so that few answers are in memory at a time."""
        pushed = {message.metadata.message_id: message for message in messages}
        self._pending |= pushed
        return list(pushed)

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """The answers, each once. Sites share nothing, so the order in which they work does not matter."""
        asked = [self._pending.pop(one) for one in message_ids if one in self._pending]
        return list(self._workers.map(self._answer, asked) if self._workers else map(self._answer, asked))

    def _answer(self, message: Message) -> Message:
        reply: Message = self._app(message, self._contexts[message.metadata.dst_node_id])
        return reply

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Push and pull; nothing has to be waited for."""
        return self.pull_messages(self.push_messages(messages))


def run_in_process(
    coordinate: Callable[[Grid], Coordinator], sites: Sequence[SitePaths], workers: int = 1
) -> None:
    """Run the ServerApp over an InProcessGrid of the ClientApp."""
    grid = InProcessGrid(client.app.app, sites, workers)
    context = Context(run_id=_RUN, node_id=_COORDINATOR, node_config={}, state=RecordDict(), run_config={})
    server.app.make_app(lambda connected, _: coordinate(connected))(grid, context)


def run_on_ray(coordinate: Callable[[Grid], Coordinator], sites: Sequence[SitePaths], cpus: int = 1) -> None:
    """Run the same two apps in Flower's simulation on Ray, `cpus` cores to a site.

    Raises whatever the coordinator raised: Flower itself only logs it.
    """
    from flwr.simulation import run_simulation

    def locate(context: Context) -> SitePaths:
        return listed[int(context.node_config["partition-id"])]

    listed = list(sites)
    raised: list[BaseException] = []
    finished: list[bool] = []

    def guarded(grid: Grid, _: Context) -> Coordinator:
        return _Guarded(coordinate(grid), raised, finished)  # type: ignore[return-value]

    logging.getLogger("flwr").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # run_simulation is deprecated in favour of a command line
        run_simulation(
            server_app=server.app.make_app(guarded),
            client_app=client.app.make_app(locate),
            num_supernodes=len(listed),
            backend_config={"client_resources": {"num_cpus": cpus, "num_gpus": 0.0}},
        )
    if raised:
        raise raised[0]
    if not finished:
        raise FederationError(
            refusal("Ray simulation", "it ended before the study", "read Flower's log above")
        )


class _Guarded:
    """A coordinator whose outcome outlives Flower's thread."""

    def __init__(self, inner: Coordinator, raised: list[BaseException], finished: list[bool]) -> None:
        self._inner, self._raised, self._finished = inner, raised, finished

    def run(self) -> None:
        try:
            self._inner.run()
            self._finished.append(True)
        except BaseException as error:
            self._raised.append(error)
            raise
