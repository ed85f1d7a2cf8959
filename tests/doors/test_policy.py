"""policy.yaml: what it takes, and that every refusal says value, bound and remedy."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mutations import damaged, sentence, values

from client.policy import DEFAULT, Answer, Policy
from pm1_core.errors import ConfigError, PrivacyError


def test_the_default_bounds_people_and_says_how_to_bound_the_rest(tmp_path: Path) -> None:
    """Each line that is commented out can be taken as it stands."""
    (tmp_path / "policy.yaml").write_text(DEFAULT)
    assert Policy.load(tmp_path / "policy.yaml") == Policy(min_people=10)
    lines = [line.removeprefix("# ") for line in DEFAULT.splitlines()[3:]]
    whole = Policy.of("policy.yaml", yaml.safe_load("\n".join(lines)))
    assert all(getattr(whole, name) for name in Policy.__dataclass_fields__)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("min_people", "ten"),
        ("min_people", True),
        ("min_people", -1),
        ("bytes_per_day", 1.5),
        ("hours", ["20:00"]),
        ("hours", ["20:00", "25:00"]),
        ("hours", ["20:00", "20:00"]),
        ("phases", "fusion"),
        ("phases", []),
        ("privacy", {"unit": "record", "epsilon": 8}),
        ("privacy", {"unit": "people", "epsilon": 8, "delta": 1e-5}),
        ("privacy", {"unit": "record", "epsilon": "8", "delta": 1e-5}),
        ("min_pepole", 10),
    ],
)
def test_a_wrong_key_is_refused_by_its_name(key: str, value: object) -> None:
    """A site with a policy that cannot be read lets nothing out."""
    with pytest.raises(ConfigError, match=f"policy.yaml, .*{key}"):
        Policy.of("policy.yaml", {key: value})


def test_a_site_without_a_policy_is_closed(tmp_path: Path) -> None:
    """Nor is one open whose file is no YAML."""
    with pytest.raises(ConfigError, match="found no policy"):
        Policy.load(tmp_path / "policy.yaml")
    (tmp_path / "policy.yaml").write_bytes(b"\xff: [")
    with pytest.raises(ConfigError):
        Policy.load(tmp_path / "policy.yaml")


def test_a_number_of_people_below_the_bound_is_not_told() -> None:
    """The coordinator reads the refusal."""
    with pytest.raises(PrivacyError, match="fewer people than 10") as refused:
        Policy(min_people=10).require(Answer("retina", "fusion", people=7))
    assert "7" not in str(refused.value)
    Policy(min_people=10).require(Answer("retina", "fusion", people=10))
    Policy(min_people=10).require(Answer("retina", "fusion", people=None))


def test_hours_may_go_over_midnight() -> None:
    """The end is not within."""
    night = Policy.of("policy.yaml", {"hours": ["20:00", "06:00"]})
    day = Policy.of("policy.yaml", {"hours": ["08:00", "18:00"]})
    found = [
        [policy.open_at(datetime(2026, 3, 1, hour)) for hour in (0, 5, 6, 8, 17, 18, 20)]
        for policy in (night, day)
    ]
    assert found == [
        [True, True, False, False, False, False, True],
        [False, False, False, True, True, False, False],
    ]


def test_a_guarantee_has_to_be_as_strong_as_the_bound() -> None:
    """Another unit is another promise."""
    policy = Policy(privacy={"unit": "record", "epsilon": 8.0, "delta": 1e-5})
    good = {"unit": "record", "epsilon": 4.0, "delta": 1e-6, "accountant": "pld"}
    policy.require_privacy(good)
    bad: list[dict[str, Any]] = [
        {},
        {**good, "unit": "site"},
        {**good, "epsilon": 8.1},
        {**good, "delta": 1e-4},
        {**good, "epsilon": float("nan")},
        {**good, "epsilon": "4"},
    ]
    for guarantee in bad:
        with pytest.raises(PrivacyError, match=r"policy of this site, privacy: .*the bound is unit record"):
            policy.require_privacy(guarantee)


@given(st.dictionaries(st.sampled_from([*Policy.__dataclass_fields__, "other"]), values, max_size=3) | values)
def test_any_yaml_is_a_policy_or_a_sentence(content: Any) -> None:
    """No traceback, and no policy of what is neither a mapping nor empty."""

    def take() -> None:
        policy = Policy.of("policy.yaml", content)
        policy.require_bytes(1, 1)
        policy.open_at(datetime(2026, 3, 1))
        policy.require_privacy({})
        policy.require(Answer("retina", "fusion", 1, 1, ("a",), 1))

    said = sentence(take, ConfigError, PrivacyError)
    assert said or content is None or isinstance(content, dict)


@given(st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_are_a_policy_or_a_sentence(tmp_path: Path, data: st.DataObject) -> None:
    """With the tags that YAML has for other types."""
    file = tmp_path / "policy.yaml"
    file.write_bytes(
        damaged(DEFAULT.replace("# ", "").encode(), data, [b"!!int ", b"!!timestamp ", b"&a [*a]"])
    )
    sentence(lambda: Policy.load(file), ConfigError)
