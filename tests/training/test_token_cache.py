"""Tokens are written once, read by rows, and never those of another encoder or store."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from whole import Part, tiny

from pm1_core.data.store import Store
from pm1_core.errors import ConfigError
from pm1_core.fields import TOKENS_OF, Modality, Split
from pm1_core.training import token_cache
from pm1_core.training.cached import cached_bytes
from pm1_core.training.machine import Machine
from pm1_core.training.pm1 import PM1, standardise_tokens
from pm1_core.training.token_cache import KINDS, load_tokens, raw_tokens
from pm1_core.training.token_set import TokenSet


@pytest.fixture
def fusion(whole: dict[str, Part]) -> Part:
    return whole["fusion"]


def read(store: Store, part: Part, folder: Path, kind: str = "float32", **changes: Any) -> TokenSet:
    state: Mapping[str, np.ndarray] = {**part.state, **changes}
    return load_tokens(store, state, {**part.order.parameters, "cache": kind}, folder, Split.TRAIN)


def encodings(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many people each use of the encoders was for."""
    found: list[int] = []
    original = PM1.token_chunks

    def counted(self: PM1, store: Store, people: np.ndarray) -> Any:
        found.append(len(people))
        return original(self, store, people)

    monkeypatch.setattr(PM1, "token_chunks", counted)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_batches_are_the_standardised_tokens(
    north: Store, fusion: Part, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pm1_core.training.pm1._AT_ONCE", 7)
    held = read(north, fusion, tmp_path, kind)
    model = PM1(fusion.state, north.study, fusion.order.parameters["encoders"])
    raw, present = model.raw_tokens(north, held.people)
    expected = standardise_tokens(raw, present, fusion.state)
    np.testing.assert_array_equal(held.present, present)
    np.testing.assert_array_equal(model.present_tokens(north, held.people), present)
    chosen = np.random.default_rng(0).permutation(len(held.people))[:11]
    tokens, there = held.batch(chosen)
    assert torch.equal(there, torch.from_numpy(present[chosen]))
    for modality in Modality:
        deviation = fusion.state[f"tokens.{modality}.std"]
        # bfloat16 has 8 bits: a token is right to 1 in 256 before it is standardised.
        rounded = np.abs(raw[modality][chosen]) / 256 / deviation if kind == "bfloat16" else 0.0
        difference = np.abs(tokens[modality].numpy() - expected[modality][chosen])
        assert (difference <= rounded + 1e-5).all(), modality
        np.testing.assert_allclose(held.rows(modality, chosen), tokens[modality].numpy(), atol=1e-5)
        few = held.chosen(chosen[3:5]).rows(modality, slice(0, 9))
        np.testing.assert_allclose(few, tokens[modality][3:5], atol=1e-5)
        absent = ~present[chosen][:, TOKENS_OF[modality]]
        assert not tokens[modality].numpy()[absent].any()


def test_encoders_run_once_until_encoder_store_or_kind_is_another(
    north: Store, fusion: Part, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = encodings(monkeypatch)
    first = read(north, fusion, tmp_path)
    again = read(north, fusion, tmp_path)
    assert len(runs) == 1
    np.testing.assert_array_equal(
        first.rows(Modality.PHENOTYPE, slice(0, 5)), again.rows(Modality.PHENOTYPE, slice(0, 5))
    )
    (name,) = [n for n in fusion.state if n.startswith("phenotype.")][:1]
    other = read(north, fusion, tmp_path, **{name: fusion.state[name] + 0.5})
    assert len(runs) == 2
    assert (other.rows(Modality.PHENOTYPE, slice(0, 5)) != first.rows(Modality.PHENOTYPE, slice(0, 5))).any()
    read(north, fusion, tmp_path)
    read(north, fusion, tmp_path, "bfloat16")
    assert len(runs) == 4
    monkeypatch.setattr(north, "fingerprint", "prepared anew")
    read(north, fusion, tmp_path, "bfloat16")
    assert len(runs) == 5
    assert len(list((tmp_path / "tokens").iterdir())) == 1, "those of another are removed"


def test_statistics_of_tokens_need_no_other_cache(
    north: Store, fusion: Part, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = encodings(monkeypatch)
    raw_tokens(north, fusion.state, fusion.order.parameters, tmp_path, Split.TRAIN)
    read(north, fusion, tmp_path, **{"tokens.phenotype.mean": fusion.state["tokens.phenotype.mean"] + 1})
    assert len(runs) == 1


def test_a_crash_while_writing_leaves_no_cache(
    north: Store, fusion: Part, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> Any:
        raise OSError("disk")

    with monkeypatch.context() as patched:
        patched.setattr(token_cache.RowWriter, "append", broken)
        with pytest.raises(OSError, match="disk"):
            read(north, fusion, tmp_path)
    assert not list(tmp_path.rglob("cache.json"))
    assert len(read(north, fusion, tmp_path).people)


def test_bfloat16_takes_half_the_bytes_and_off_none(north: Store, fusion: Part, tmp_path: Path) -> None:
    sizes = {}
    for kind in KINDS:
        read(north, fusion, tmp_path / kind, kind)
        sizes[kind] = cached_bytes(tmp_path / kind)
    assert sizes["off"] == {}
    floats = sum(
        m.size for m in map(np.load, (tmp_path / "float32").rglob("*s.npy")) if m.dtype == np.float32
    )
    assert 0 < sizes["bfloat16"]["bfloat16"] < sizes["float32"]["float32"] - floats
    files = list((tmp_path / "float32" / "tokens").rglob("*.npy"))
    assert sizes["float32"]["float32"] == sum(file.stat().st_size for file in files)


@pytest.mark.parametrize("kind", ["bfloat16", "off"])
def test_a_round_of_the_fusion_is_nearly_the_same_from_any_cache(
    north: Store, fusion: Part, tmp_path: Path, kind: str
) -> None:
    exact = fusion.train(north, tmp_path / "float32")
    order = Machine.of(cache=kind).own(fusion.order)
    own = replace(fusion, order=order, task=type(fusion.task)(order.parameters, fusion.task.study))
    found = own.train(north, tmp_path / kind)
    assert bool(list((tmp_path / kind).glob("tokens/*"))) == (kind != "off")
    assert found.metrics["loss"] == pytest.approx(exact.metrics["loss"], rel=1e-6 if kind == "off" else 1e-2)


def test_a_site_chooses_for_tasks_that_read_tokens_and_for_no_other() -> None:
    orders = {phase.name: tiny().order(phase, 1) for phase in tiny().phases}
    own = {name: Machine.of(cache="off").own(order) for name, order in orders.items()}
    assert {name for name in own if own[name] != orders[name]} == {"tokens", "fusion"}
    with pytest.raises(ConfigError, match="site's cache: found 'float64'"):
        Machine.of(cache="float64")
