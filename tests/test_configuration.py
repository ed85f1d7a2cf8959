"""Configuration is composed by every command, and refused with the key and what it accepts."""

from __future__ import annotations

import pytest

import strategies
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
        (
            "strategy=fedadm",
            r"key 'strategy': found 'fedadm'; did you mean 'fedadam'\? accepted: bulyan, ditto",
        ),
        ("strategy.name=fedadm", r"key 'strategy.name': found 'fedadm'; did you mean 'fedadam'"),
        ("strategy.mu=1", r"key 'strategy.mu': there is no such key; accepted: name"),
    ],
)
def test_a_wrong_override_is_refused_with_its_key_and_what_is_accepted(override: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        compose.load("simulation", [override])


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("privacy.unit=record", "key 'privacy.epsilon': it is not set; give the study's budget"),
        ("privacy.epsilon=3", "key 'privacy.epsilon': privacy.unit is none; choose privacy=record"),
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


@pytest.mark.parametrize("name", strategies.STRATEGIES)
def test_every_strategy_is_a_choice_with_its_options_and_defaults(name: str) -> None:
    config = compose.load("server", [f"strategy={name}"])
    assert config["strategy"] == strategies.build({"name": name}).options()
    assert build_study(config).strategy == config["strategy"]


@pytest.mark.parametrize(
    ("override", "option", "value"),
    [
        ("strategy=fedadam strategy.server_learning_rate=1", "server_learning_rate", 1.0),
        ("strategy=krum strategy.malicious=2", "malicious", 2),
        ("strategy=fedbn strategy.local=[*norm*,head.?]", "local", ["*norm*", "head.?"]),
        ("strategy=scaffold strategy.weighting=uniform", "weighting", "uniform"),
    ],
)
def test_an_option_of_the_chosen_strategy_is_set_by_its_name(
    override: str, option: str, value: object
) -> None:
    study = build_study(compose.load("server", override.split()))
    assert study.strategy[option] == value
    assert type(study).from_json(study.to_json()) == study


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        (
            "strategy=fedadam strategy.mu=1",
            r"key 'strategy.mu': .* accepted: name, server_learning_rate, beta1",
        ),
        ("strategy=fedadam strategy.tau=x", r"key 'strategy.tau': .*'x'.*; give a number"),
        ("strategy=krum strategy.malicious=1.5", r"key 'strategy.malicious': .*; give a whole number"),
        ("strategy=fedbn strategy.local=3", r"key 'strategy.local': .*; give a list of texts"),
        (
            "strategy=fedadam strategy.beta1=1",
            r"'strategy.beta1': found 1.0; use .* at least 0 and below 1\.",
        ),
        ("strategy=trimmed_mean strategy.trim=0.5", r"'strategy.trim': found 0.5; use .* and below 0.5"),
        ("strategy=fedavgm strategy.server_learning_rate=0", r"found 0.0; use a number above 0"),
        ("strategy=scaffold strategy.weighting=equal", r"found 'equal'; accepted: examples, uniform"),
    ],
)
def test_an_option_that_does_not_fit_is_refused_with_what_is_accepted(override: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        compose.load("simulation", override.split())


def test_a_study_of_another_strategy_or_option_is_another_study() -> None:
    overrides = ([], ["strategy=fedadam"], ["strategy=fedadam", "strategy.tau=0.01"])
    hashes = {build_study(compose.load("server", given)).hash for given in overrides}
    assert len(hashes) == 3


def test_training_phases_wait_for_as_many_sites_as_the_strategy_needs() -> None:
    overrides = ["strategy=bulyan", "study.phases.fusion.min_sites=9"]
    study = build_study(compose.load("server", overrides))
    assert {phase.task: phase.min_sites for phase in study.phases} == {
        "statistics": 1, "genotype": 7, "phenotype": 7, "fundus": 7, "tokens": 1, "fusion": 9
    }  # fmt: skip
