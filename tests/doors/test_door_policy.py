"""What a site's door asks of an order: that the approved study has it, and that the policy allows it."""

from __future__ import annotations

from datetime import time
from pathlib import Path
from typing import Any

import pytest
from pretend import RUN, Reply, Site, numbers, order, play

from client.policy import Policy
from pm1_core.errors import PM1Error, PrivacyError


def test_an_order_that_the_approved_study_does_not_have_is_not_worked_on(tmp_path: Path) -> None:
    """Another phase, another guarantee, another way to add up, another study under the same run."""
    site = Site(tmp_path)
    site.approve()
    asked = site.coordinator.ask()
    question: dict[str, Any] = {
        "run": RUN,
        "reply_to": asked.metadata.message_id,
        "config": site.proposal.config,
        "study": "retina",
        "order": order(),
        "people": None,
        "tensors": [],
        "sites": None,
    }

    async def story(site: Site) -> None:
        await site.pull()
        await site.door.office.permit(question)
        changes: list[dict[str, Any]] = [
            {"order": order(phase="rows")},
            {"order": order(task="statistics")},
            {"order": order(parameters={"clip": 9})},
            {"order": order(privacy={"unit": "record", "noise_multiplier": 0.01})},
            {"order": order(secure={"bits": 32})},
            {"order": order(rounds=99)},
            {"order": "[]"},
            {"config": "0" * 64},
            {"run": 12},
        ]
        for change in changes:
            with pytest.raises(PM1Error):
                await site.door.office.permit({**question, **change})

    play(site, story)


@pytest.mark.parametrize(
    ("policy", "change", "key"),
    [
        (Policy(min_people=10), {"people": 9}, "min_people"),
        (Policy(phases=("genotype.*",)), {}, "phases"),
        (Policy(studies=("ukb_*",)), {}, "studies"),
        (Policy(tensors=("head.*",)), {"tensors": ["head.bias", "body.weight"]}, "tensors"),
        (Policy(min_sites=2), {"sites": 0}, "min_sites"),
    ],
)
def test_an_order_against_the_policy_is_refused_with_bound_and_remedy(
    tmp_path: Path, policy: Policy, change: dict[str, Any], key: str
) -> None:
    """Before work begins."""
    site = Site(tmp_path, policy=policy)
    site.approve()
    asked = site.coordinator.ask()
    question = {"run": RUN, "reply_to": asked.metadata.message_id, "config": site.proposal.config}
    question |= {"study": "retina", "order": order(), "people": 50, "tensors": [], "sites": 3, **change}

    async def story(site: Site) -> None:
        await site.pull()
        with pytest.raises(PrivacyError, match=f"policy of this site, {key}: .*the bound is .*; .*"):
            await site.door.office.permit(question)

    play(site, story)


def test_bytes_of_a_day_are_counted_over_all_answers(tmp_path: Path) -> None:
    """The third of 1000 bytes is too much for 2500 a day."""
    site = Site(tmp_path, policy=Policy(bytes_per_day=2500))
    site.approve()

    async def story(site: Site) -> None:
        for number in range(3):
            asked = site.coordinator.ask()
            await site.pull()
            reply = Reply.to(asked, numbers(float(number)))
            if number == 2:
                with pytest.raises(PrivacyError, match="3000 bytes would have left today, the bound is 2500"):
                    await site.door.office.ticket(site.ticket(reply))
                continue
            await site.door.office.ticket(site.ticket(reply))
            assert (await site.push(reply)).status_code == 200

    play(site, story)


def test_outside_the_hours_nothing_is_fetched_and_no_release_leaves(tmp_path: Path) -> None:
    """A sentence that says so may leave."""
    site = Site(tmp_path)
    site.approve()
    asked = site.coordinator.ask()

    async def story(site: Site) -> None:
        await site.pull()
        site.policy = _closed()
        site.coordinator.ask()
        calls = len(site.coordinator.calls)
        assert await site.pull() == []
        assert len(site.coordinator.calls) == calls
        with pytest.raises(PrivacyError, match="hours"):
            await site.door.office.ticket(site.ticket(Reply.to(asked, numbers(1.0))))
        refused = Reply.to(asked, None)
        await site.door.office.ticket(site.ticket(refused))
        assert (await site.push(refused)).status_code == 200

    play(site, story)


def test_a_study_that_promises_less_than_the_policy_asks_is_not_let_in(tmp_path: Path) -> None:
    """It promises nothing, though it was approved."""
    policy = Policy(privacy={"unit": "record", "epsilon": 8.0, "delta": 1e-5})
    site = Site(tmp_path, policy=policy)
    site.approve()
    site.coordinator.ask()

    async def story(site: Site) -> None:
        assert await site.pull() == []

    play(site, story)
    assert "promises no differential privacy" in site.events("refused")[0]["reason"]


def _closed() -> Policy:
    """Hours that are two minutes long, twelve hours from now."""
    from datetime import datetime, timedelta

    begin = datetime.now() + timedelta(hours=12)
    end = begin + timedelta(minutes=2)
    return Policy(hours=(time(begin.hour, begin.minute), time(end.hour, end.minute)))
