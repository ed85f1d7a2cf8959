"""Mixed precision of every part: nearly float32's numbers, overflows skipped and counted, nothing under privacy."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from whole import PARTS, Part

from pm1_core.data.store import Store
from pm1_core.errors import ConfigError
from pm1_core.privacy.terms import RecordTerms, to_order


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", PARTS)
def test_half_precision_gives_nearly_the_losses_of_float32(
    name: str, precision: str, whole: dict[str, Part], north: Store, tmp_path: Path
) -> None:
    exact = whole[name].train(north, tmp_path / "exact")
    half = whole[name].with_loop(precision=precision).train(north, tmp_path / "half")
    # InfoNCE divides by a small temperature: the first loss scale is too large for its gradient.
    assert half.metrics["skipped_steps"] <= (2 if (name, precision) == ("fusion", "float16") else 0)
    assert half.metrics["steps"] + half.metrics["skipped_steps"] == exact.metrics["steps"]
    assert half.metrics["loss"] == pytest.approx(exact.metrics["loss"], rel=0.03)
    assert half.metrics["loss"] != exact.metrics["loss"]
    assert all(array.dtype == np.float32 for array in half.tensors.values())


def test_float16_halves_its_loss_scale_at_an_overflow_and_remembers_it(
    whole: dict[str, Part], north: Store, tmp_path: Path
) -> None:
    part = whole["phenotype"].with_loop(precision="float16", epochs=1)
    # The loss of one entry is some 1e6, and 65,536 times its gradient is more than float16 holds.
    great = {name: array * (1e3 if "bias" in name else 1) for name, array in part.tensors.items()}
    first = replace(part, tensors=great).train(north, tmp_path)
    assert first.metrics["skipped_steps"] == 1
    assert first.metrics["loss_scale"] == 2.0**15
    again = replace(part, tensors=great, order=replace(part.order, round=2)).train(north, tmp_path)
    assert again.metrics["loss_scale"] <= 2.0**15


def test_a_bound_on_a_persons_gradient_is_kept_in_float32_only(
    whole: dict[str, Part], north: Store, tmp_path: Path
) -> None:
    part = whole["phenotype"].with_loop(precision="bfloat16")
    private = replace(part, order=replace(part.order, privacy=to_order(RecordTerms(1.0))))
    with pytest.raises(ConfigError, match=r"loop.precision: found 'bfloat16' under record-level privacy"):
        private.train(north, tmp_path)


def test_an_unknown_precision_is_refused_by_name(whole: dict[str, Part]) -> None:
    with pytest.raises(ConfigError, match=r"precision.*found 'float8'; .*float16"):
        whole["fusion"].with_loop(precision="float8")
