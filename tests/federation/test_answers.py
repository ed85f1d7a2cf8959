"""What a site answers is checked before it is used: a bad answer is named, and the others go on."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.app import Message, Metadata, MetricRecord, RecordDict

from pm1_core.update import Update
from server.rounds import Answers, refuse_unfit
from strategies import records

SENT = {"w": np.zeros((2, 3), np.float32)}


def reply(content: RecordDict) -> Message:
    metadata = Metadata(1, "m", 2, 1, "r", "g", 0.0, 60.0, "train")
    return Message(content, metadata=metadata)  # type: ignore[call-overload,no-any-return]


def update(tensors: dict[str, np.ndarray]) -> RecordDict:
    return records.pack_reply({"site": "bad"}, Update(tensors, 5.0, {"loss": 1.0}))


def not_finite() -> RecordDict:
    content = update(SENT)
    content["tensors"] = records.pack_tensors({"w": np.full((2, 3), np.nan, np.float32)})
    return content


def without_figures() -> RecordDict:
    content = update(SENT)
    del content["figures"]
    return content


def listed_figure() -> RecordDict:
    content = update(SENT)
    content["figures"] = MetricRecord({"weight": [1.0, 2.0]})
    return content


def negative_weight() -> RecordDict:
    content = update(SENT)
    content["figures"] = MetricRecord({"weight": -1.0})
    return content


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (not_finite(), "NaN or infinity"),
        (update({"w": np.zeros((3, 2), np.float32)}), "shape"),
        (update({}), "missing or not asked for"),
        (update({**SENT, "more": np.zeros(1, np.float32)}), "missing or not asked for"),
        (without_figures(), "no weight"),
        (listed_figure(), "found a list"),
        (negative_weight(), "finite count >= 0"),
    ],
)
def test_an_unfit_update_is_refused_with_its_site_and_the_others_are_kept(
    content: RecordDict, sentence: str
) -> None:
    answers = Answers({"bad": reply(content), "good": reply(update(SENT))}, {"lost": "no answer in 60 s"})
    kept, refused = refuse_unfit(answers, SENT)
    assert list(kept) == ["good"]
    assert sentence in refused["bad"]
    assert refused["lost"] == "no answer in 60 s"
