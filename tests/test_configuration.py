"""Configuration is composed by every command, and refused with the key and what it accepts."""

from __future__ import annotations

import pytest

from configs import compose
from pm1_core.errors import ConfigError
from server.configure import build_study


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("study=foo", r"key 'study': found 'foo'; accepted: .*ukb_eyepacs"),
        ("peple=3", r"key 'peple': there is no such key; did you mean 'people'\?"),
        ("sites=abc", r"key 'sites': .*'abc'.*; give a whole number"),
        ("compare=perhaps", r"key 'compare': .*'perhaps'.*; give true or false"),
        (
            "model.genotype.latnt=3",
            r"key 'model.genotype.latnt': there is no such key; did you mean 'latent'",
        ),
        ("study.phases.fusion.rounds=x", r"key 'study.phases.fusion.rounds': .*; give a whole number"),
        ("study.phases.fusoin.rounds=3", r"key 'study.phases.fusoin': .* did you mean 'fusion'"),
        ("foo", r"argument 'foo': is no override; write key=value"),
        ("model.fusion.heads=7", r"fusion.heads: found 7 heads for width \d+; use a divisor"),
        ("study.phases.fusion.loop.optimiser.name=lion", r"optimiser.name: found 'lion'; accepted: adam"),
        ("+foo=1", r"key 'foo': there is no such key"),
        ("site.device=cuad", r"device: found 'cuad'; did you mean 'cuda'"),
        ("study.phases.genotype.chromosomes=[15", r"argument 'study.phases.genotype.chromosomes=\[15'"),
        ("model=pape", r"key 'model': found 'pape'; did you mean 'paper'"),
    ],
)
def test_a_wrong_override_is_refused_with_its_key_and_what_is_accepted(override: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        compose.load("simulation", [override])


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("privacy.unit=record", r"key 'privacy.unit': found 'record'; accepted: none"),
        ("strategy.name=median", r"key 'strategy.name': found 'median'; accepted: fedavg"),
    ],
)
def test_what_a_study_cannot_be_built_with_is_refused_before_anything_runs(
    override: str, sentence: str
) -> None:
    with pytest.raises(ConfigError, match=sentence):
        build_study(compose.load("server", [override]))


def test_a_phase_can_be_left_out() -> None:
    study = build_study(compose.load("simulation", ["~study.phases.fundus"]))
    assert "fundus" not in [phase.name for phase in study.phases]
    assert study.phases[-1].parameters["model"]["fundus_width"] == 1


@pytest.mark.parametrize("size", ["tiny", "small", "paper"])
def test_every_size_makes_a_study_of_27_phases(size: str) -> None:
    study = build_study(compose.load("simulation", [f"model={size}"]))
    names = [phase.name for phase in study.phases]
    assert len(names) == 27
    assert names[0] == "statistics"
    assert names[1:23] == [f"genotype.{c}" for c in range(1, 23)]
    assert names[23:] == ["phenotype", "fundus", "tokens", "fusion"]


def test_token_widths_must_be_those_of_the_encoders() -> None:
    with pytest.raises(ConfigError, match=r"model.fusion.genotype_width.*use model.genotype.latent = 16"):
        build_study(compose.load("simulation", ["model.fusion.genotype_width=8"]))


def test_a_study_survives_its_json() -> None:
    study = build_study(compose.load("server", []))
    assert type(study).from_json(study.to_json()).hash == study.hash
