"""What a coordinator asks sites to approve: a study, the code that runs it, and how it is started. Signed."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from pm1_core.errors import InputError
from pm1_core.signing import Signer, Trust
from pm1_core.validate import refusal, require_keys, require_range

FORMAT = 1
_WAITING = ("timeout", "gather", "grace")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Proposal:
    """A proposal.

    study: the resolved study as JSON has it; config: its hash, `study_hash`
    bundle: SHA-256 of Flower's app bundle; run_config: what the run is started with, all of it
    tasks: names of tasks of installed packages; definition: hash of the study definition that all sites share
    signature: of the coordinator's checkpoint key, in hex
    """

    study: Mapping[str, Any]
    config: str
    bundle: str
    run_config: Mapping[str, str | int | float | bool]
    tasks: Sequence[str]
    definition: str
    signature: str = ""
    format: int = FORMAT

    @staticmethod
    def signed(
        signer: Signer,
        study: Mapping[str, Any],
        bundle: str,
        run_config: Mapping[str, str | int | float | bool],
        tasks: Sequence[str],
        definition: str,
    ) -> Proposal:
        """A proposal under a signature. Raises InputError as `from_json`."""
        made = Proposal(study, study_hash(study), bundle, dict(run_config), tuple(tasks), definition)
        made = replace(made, signature=signer.sign(made.signed_bytes))
        return Proposal.from_json(made.to_json(), "proposal")

    @property
    def signed_bytes(self) -> bytes:
        """What the signature is over: everything else, with sorted keys."""
        content = {key: value for key, value in asdict(self).items() if key != "signature"}
        return json.dumps(["pm1 proposal", content], sort_keys=True).encode()

    def require(self, trust: Trust) -> None:
        """Raise CheckpointError unless a trusted key signed it."""
        trust.require("proposal", self.signed_bytes, self.signature)

    def to_json(self) -> str:
        """Text with sorted keys."""
        return json.dumps(asdict(self), indent=1, sort_keys=True) + "\n"

    @staticmethod
    def from_json(text: str, where: object) -> Proposal:
        """Read what `to_json` wrote. Raises InputError naming the key that is wrong."""
        try:
            content = json.loads(text)
        except (ValueError, RecursionError):
            raise InputError(refusal(where, "found no JSON", "name the coordinator's proposal")) from None
        given = dict(require_keys(where, content, tuple(Proposal.__dataclass_fields__)))
        require_range(f"{where}, key 'format'", given["format"], FORMAT, FORMAT)
        for key in ("study", "run_config"):
            _require(where, key, isinstance(given[key], dict), "a mapping")
        for key in ("config", "bundle", "definition"):
            _require(
                where, key, isinstance(given[key], str) and _SHA256.fullmatch(given[key]), "a SHA-256 in hex"
            )
        _require(where, "signature", isinstance(given["signature"], str), "a text")
        scalars = all(isinstance(value, (str, int, float, bool)) for value in given["run_config"].values())
        _require(where, "run_config", scalars, "a mapping of texts, numbers and switches")
        tasks = given["tasks"]
        _require(where, "tasks", isinstance(tasks, list) and all(isinstance(t, str) for t in tasks), "names")
        _require(where, "study", _is_study(given["study"]), "a resolved study")
        _require(where, "config", given["config"] == study_hash(given["study"]), "the hash of its study")
        return Proposal(**{**given, "tasks": tuple(tasks)})


def study_hash(study: Mapping[str, Any]) -> str:
    """SHA-256 of a resolved study.

    Where a file lies is no part of it, its content hash is; and how long one waits is none, so that a study that
    ran out of time can go on with more of it.
    """
    content = {key: value for key, value in study.items() if key not in _WAITING}
    return hashlib.sha256(json.dumps(_without_paths(content), sort_keys=True).encode()).hexdigest()


def _without_paths(value: Any) -> Any:
    if isinstance(value, Mapping):
        pinned = "base_sha256" in value
        return {key: _without_paths(item) for key, item in value.items() if not (pinned and key == "base")}
    return [_without_paths(item) for item in value] if isinstance(value, (list, tuple)) else value


def _is_study(content: Mapping[str, Any]) -> bool:
    phases = content.get("phases")
    return (
        isinstance(content.get("name"), str)
        and isinstance(phases, list)
        and all(
            isinstance(phase, dict)
            and isinstance(phase.get("name"), str)
            and isinstance(phase.get("task"), str)
            and isinstance(phase.get("rounds"), int)
            for phase in phases
        )
    )


def _require(where: object, key: str, holds: Any, wanted: str) -> None:
    if not holds:
        raise InputError(refusal(f"{where}, key {key!r}", f"it is not {wanted}", "use the file as it came"))
