"""What may leave a site at all: policy.yaml, which the site's IT writes and nobody else can change.

The door holds every order against it before work begins, and every answer before it leaves (client.tickets). A
refusal names the value, the bound and what to do; the coordinator gets that sentence and no more.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, time
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from pm1_core.data.documents import is_there, read_yaml
from pm1_core.errors import ConfigError, PrivacyError
from pm1_core.privacy.mechanisms import UNITS
from pm1_core.validate import refusal, require_choice, require_keys, require_range

NAME = "policy.yaml"

DEFAULT = """\
# What may leave this site. The door reads this file anew for every answer; what is not bounded here is not bounded.
# An approved study (pm1-site approve) is needed as well: this file only takes away.

min_people: 10                  # no answer about fewer people of this site than this
# studies: ["ukb_*"]            # names of studies, with * and ?
# phases: ["statistics", "genotype.*", "phenotype", "fundus", "tokens", "fusion"]
# tensors: ["*"]                # names of the tensors of an update
# bytes_per_day: 5000000000     # of tensors, in one day of UTC
# hours: ["20:00", "06:00"]     # local time; outside them no order is fetched and no answer about people leaves
# min_sites: 2                  # other sites in the same secure sum; an answer in the clear has none
# privacy: {unit: record, epsilon: 8, delta: 1.0e-5}    # a study has to promise this or more
"""


@dataclass(frozen=True)
class Answer:
    """What is to be worked on, or about to leave. None and () are what is not known yet.

    study, phase: names; bytes: of tensors
    people: of this site, whom it is about; None also where the number itself is protected by noise
    tensors: names of the arrays of an update
    sites: how many others it is added up with; 0 for an answer in the clear
    """

    study: str
    phase: str
    bytes: int = 0
    people: int | None = None
    tensors: Sequence[str] = ()
    sites: int | None = None


@dataclass(frozen=True)
class Policy:
    """The bounds of policy.yaml; what is None or empty does not bound.

    hours: from, to, in local time; from may be after to, then it is the night
    privacy: {"unit", "epsilon", "delta"}
    """

    studies: tuple[str, ...] = ()
    phases: tuple[str, ...] = ()
    tensors: tuple[str, ...] = ()
    min_people: int = 0
    bytes_per_day: int | None = None
    hours: tuple[time, time] | None = None
    min_sites: int = 0
    privacy: Mapping[str, Any] = field(default_factory=dict)

    @staticmethod
    def load(path: Path) -> Policy:
        """Read policy.yaml. Raises ConfigError naming the key that is wrong; a site without the file is closed."""
        if not is_there(path):
            raise ConfigError(refusal(path, "found no policy", "write one: pm1-site init does"))
        return Policy.of(path, read_yaml(path, ConfigError))

    @staticmethod
    def of(where: object, content: Any) -> Policy:
        """A policy of what YAML gave. Raises ConfigError naming the key that is wrong."""
        names = tuple(Policy.__dataclass_fields__)
        given = dict(require_keys(where, content if content is not None else {}, (), names, ConfigError))
        for key in ("studies", "phases", "tensors"):
            if key in given:
                given[key] = _names(f"{where}, key {key!r}", given[key])
        for key in ("min_people", "bytes_per_day", "min_sites"):
            if key in given:
                given[key] = _count(f"{where}, key {key!r}", given[key])
        if "hours" in given:
            given["hours"] = _hours(f"{where}, key 'hours'", given["hours"])
        if "privacy" in given:
            given["privacy"] = _privacy(f"{where}, key 'privacy'", given["privacy"])
        return Policy(**given)

    def require(self, answer: Answer) -> None:
        """Raise PrivacyError unless an answer keeps to names, people and sites."""
        _require_named("study", answer.study, self.studies)
        _require_named("phase", answer.phase, self.phases)
        for tensor in answer.tensors:
            _require_named("tensor", tensor, self.tensors)
        if answer.people is not None and answer.people < self.min_people:
            found = f"it is about {_few(answer.people, self.min_people)} here"
            raise _refused("min_people", found, self.min_people, "this site takes no part in it")
        if answer.sites is not None and answer.sites < self.min_sites:
            found = f"it is added up with {answer.sites} other sites"
            remedy = "wait for more sites, and use aggregation=secure"
            raise _refused("min_sites", found, self.min_sites, remedy)

    def require_bytes(self, more: int, today: int) -> None:
        """Raise PrivacyError if `more` bytes cannot leave after `today` have left since midnight UTC."""
        if self.bytes_per_day is not None and today + more > self.bytes_per_day:
            found = f"{today + more} bytes would have left today"
            raise _refused("bytes_per_day", found, self.bytes_per_day, "ask again tomorrow")

    def open_at(self, now: datetime) -> bool:
        """Whether `now`, in local time, is within the hours."""
        if self.hours is None:
            return True
        begin, end = self.hours
        at = now.time()
        return begin <= at < end if begin < end else at >= begin or at < end

    def require_hours(self, now: datetime) -> None:
        """Raise PrivacyError outside the hours."""
        if not self.open_at(now):
            assert self.hours is not None
            bound = " to ".join(f"{item:%H:%M}" for item in self.hours)
            raise _refused("hours", f"it is {now:%H:%M} here", bound, "ask again then")

    def require_privacy(self, guarantee: Mapping[str, Any]) -> None:
        """Raise PrivacyError unless a study's guarantee {"unit", "epsilon", "delta"} is as strong as the bound."""
        if not self.privacy:
            return
        bound = ", ".join(f"{key} {value}" for key, value in self.privacy.items())
        remedy = "resolve the study with such a budget, or change policy.yaml"
        if not guarantee:
            raise _refused("privacy", "the study promises no differential privacy", bound, remedy)
        if guarantee.get("unit") != self.privacy["unit"]:
            raise _refused("privacy", f"it hides the unit {guarantee.get('unit')!r}", bound, remedy)
        for key in ("epsilon", "delta"):
            value = guarantee.get(key)
            if not isinstance(value, (int, float)) or not value <= self.privacy[key]:
                raise _refused("privacy", f"its {key} is {value}", bound, remedy)


def _refused(key: str, found: str, bound: object, remedy: str) -> PrivacyError:
    return PrivacyError(refusal(f"policy of this site, {key}", f"{found}, the bound is {bound}", remedy))


def _few(people: int, bound: int) -> str:
    """Not the number: the coordinator reads this."""
    return "nobody" if people == 0 else f"fewer people than {bound}"


def _require_named(what: str, name: str, patterns: Sequence[str]) -> None:
    key = {"study": "studies"}.get(what, f"{what}s")
    if patterns and name and not any(fnmatchcase(name, pattern) for pattern in patterns):
        remedy = f"leave that {what} out, or ask the site's IT"
        raise _refused(key, f"found {what} {name!r}", ", ".join(patterns), remedy)


def _names(where: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not value or not all(isinstance(item, str) and item for item in value):
        raise ConfigError(refusal(where, f"found {value!r}", 'write a list of names, such as ["fusion"]'))
    return tuple(value)


def _count(where: str, value: Any) -> int:
    if not isinstance(value, int):
        raise ConfigError(refusal(where, f"found {value!r}", "write a whole number"))
    return int(require_range(where, value, 0, 2**62, ConfigError))


def _hours(where: str, value: Any) -> tuple[time, time]:
    clock = re.compile(r"([01]\d|2[0-3]):[0-5]\d")
    whole = isinstance(value, list) and len(value) == 2
    if not whole or not all(isinstance(item, str) and clock.fullmatch(item) for item in value):
        raise ConfigError(refusal(where, f"found {value!r}", 'write two times, such as ["20:00", "06:00"]'))
    begin, end = (time.fromisoformat(item) for item in value)
    if begin == end:
        raise ConfigError(refusal(where, f"found {value!r}", "write two times that differ"))
    return begin, end


def _privacy(where: str, value: Any) -> dict[str, Any]:
    given = require_keys(where, value, ("unit", "epsilon", "delta"), error=ConfigError)
    require_choice(f"{where}, unit", given["unit"], UNITS, ConfigError)
    require_range(f"{where}, epsilon", given["epsilon"], 1e-6, 1e3, ConfigError)
    require_range(f"{where}, delta", given["delta"], 1e-12, 0.5, ConfigError)
    return dict(given)
