"""A ClientApp's way to its site's door, while it answers one message."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from flwr.app import Message, RecordDict

from pm1_core.errors import FederationError, PrivacyError
from pm1_core.validate import refusal

_SECONDS = 60.0


class Counter:
    """A ClientApp's way to the door while it answers one message: asks, collects lines, and gets the ticket.

    address: of the door's ticket service, "" for a site without a door: then nobody is asked
    secret: file of what is shown there, see client.tickets
    """

    def __init__(self, address: str = "", run: int = 0, reply_to: str = "", secret: str = "") -> None:
        self.address = address
        self.secret = secret
        self.run = run
        self.reply_to = reply_to
        self.study = ""
        self.config = ""
        self.lines: list[dict[str, Any]] = []
        self._charges: list[dict[str, Any]] = []

    def about(self, study: str, config: str) -> None:
        """Say which study the message belongs to."""
        self.study, self.config = study, config

    def charged(self, unit: str, epsilon: float, delta: float) -> None:
        """The ledger was charged; it is told with the next line."""
        self._charges.append({"unit": unit, "epsilon": epsilon, "delta": delta})

    def note(
        self, what: str, phase: str, number: int, size: int, sha256: Sequence[str], figures: int
    ) -> None:
        """Collect a line of the outbox."""
        line = {"what": what, "study": self.study, "phase": phase, "round": number}
        line |= {"bytes": size, "sha256": list(sha256), "figures": figures, "charges": self._charges}
        self.lines.append(line)
        self._charges = []

    def permit(
        self, order: str, people: int | None = None, tensors: Sequence[str] = (), sites: int | None = None
    ) -> None:
        """Raise PrivacyError if the site does not allow work on an order, or a release of it."""
        if self.address:
            from client.tickets import PERMIT, Question

            names = list(tensors)
            asked = Question(self.run, self.reply_to, self.config, self.study, order, people, names, sites)
            self._ask(PERMIT, asdict(asked))

    def ticket(self, reply: Message) -> None:
        """Get the ticket with which `reply` may leave. Raises PrivacyError if the site does not let it."""
        if not self.address:
            return
        from client.tickets import TICKET, Ticket, error_digest

        error = error_digest(reply.error.code, reply.error.reason or "") if reply.has_error() else ""
        objects = [] if error else content_ids(reply.content)
        lines = [] if error else self.lines
        self._ask(TICKET, asdict(Ticket(self.run, self.reply_to, self.config, objects, error, lines)))

    def _ask(self, method: str, content: Mapping[str, Any]) -> None:
        # Imported here, as above: a site without a door needs none of it.
        import grpc

        from client.tickets import LARGEST, SERVICE, SHOWN

        try:
            shown = Path(self.secret).read_text() if self.secret else ""
        except OSError as error:
            remedy = "look at its mode, or join with the kit again"
            raise FederationError(refusal(self.secret, str(error.strerror or error), remedy)) from None
        options = [("grpc.max_send_message_length", LARGEST), ("grpc.enable_http_proxy", 0)]
        try:
            with grpc.insecure_channel(self.address, options) as channel:
                call = channel.unary_unary(f"/{SERVICE}/{method}")
                asked, metadata = json.dumps(content).encode(), ((SHOWN, shown),)
                answer = json.loads(call(asked, _SECONDS, metadata, wait_for_ready=True))
        except (grpc.RpcError, ValueError):
            found, remedy = "the site's door does not answer", "start it: pm1-site start door"
            raise FederationError(refusal(f"door at {self.address}", found, remedy)) from None
        if refused := answer.get("refused"):
            raise PrivacyError(str(refused))


def content_ids(content: RecordDict) -> list[str]:
    """Flower's ids of the objects of a message's content, the root first, each once."""
    from flwr.supercore.inflatable.inflatable_object import get_object_tree, no_object_id_recompute

    from strategies.fleet import tree_ids

    with no_object_id_recompute():
        return list(dict.fromkeys(tree_ids(get_object_tree(content))))
