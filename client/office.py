"""The ticket office of a site's door: what may be worked on, and what may leave."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from client.approvals import Approvals, Approved
from client.audit import Audit, today
from client.desk import Desk
from client.policy import Answer, Policy
from client.tickets import Question, Ticket
from pm1_core.errors import InputError, PrivacyError
from pm1_core.validate import refusal


@dataclass
class Office:
    """Answers a ClientApp. desk: of the door; policy: reads policy.yaml"""

    desk: Desk
    approvals: Approvals
    audit: Audit
    policy: Callable[[], Policy]

    async def permit(self, content: Mapping[str, Any]) -> None:
        """Raise PM1Error unless an order may be worked on, or released."""
        asked = Question.of(content)
        approved = self.approved(asked.run, asked.reply_to, asked.config)
        try:
            order = json.loads(asked.order)
        except (ValueError, RecursionError):
            order = None
        if not isinstance(order, dict):
            raise InputError(refusal("question, order", "found no order", "send Order.to_json()"))
        approved.require_order(order)
        phase = str(order["phase"])
        answer = Answer(approved.study, phase, 0, asked.people, asked.tensors, asked.sites)
        self.policy().require(answer)

    async def ticket(self, content: Mapping[str, Any]) -> None:
        """Keep a ticket, or raise PM1Error."""
        ticket = Ticket.of(content)
        approved = self.approved(ticket.run, ticket.reply_to, ticket.config if ticket.objects else None)
        policy = self.policy()
        for line in ticket.lines:
            if line["study"] != approved.study:
                raise PrivacyError(
                    refusal("ticket, study", f"found {line['study']!r}", "name that of the run")
                )
            if line["phase"]:
                policy.require(Answer(approved.study, line["phase"]))
        if any(line["bytes"] or line["figures"] for line in ticket.lines):
            policy.require_hours(datetime.now())
            policy.require_bytes(ticket.bytes, await asyncio.to_thread(self.audit.bytes_on, today()))
        self.desk.add(ticket)

    def approved(self, run: int, reply_to: str, config: str | None) -> Approved:
        """The approval under which a message came. Raises PrivacyError if it is gone, or of another study."""
        name = self.desk.answered(run, reply_to).study
        found = next((one for one in self.approvals if one.name == name), None)
        if found is None:
            raise PrivacyError(refusal("study", "its approval was withdrawn", "ask the site's IT"))
        if config is not None and config != found.proposal.config:
            raise PrivacyError(
                refusal("study", "the answer is for another one", "propose the study that is run")
            )
        return found

    def require_standing(self, study: str) -> None:
        """Raise PrivacyError if the approval of this name was withdrawn."""
        if not any(one.name == study for one in self.approvals):
            raise PrivacyError(refusal("study", "its approval was withdrawn", "ask the site's IT"))
