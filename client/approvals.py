"""Studies that a site's IT approved: approvals/HASH.json, a coordinator's signed proposal as it was shown.

The door hands a run to the SuperNode only if an approval names its code (the SHA-256 of its bundle), its run
configuration and its tasks; and an order only if the approved study has it. Files are looked at again for every
message, so that a withdrawn approval counts at once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import strategies
from pm1_core import atomic
from pm1_core.errors import InputError, PM1Error, PrivacyError
from pm1_core.proposal import Proposal
from pm1_core.signing import Trust
from pm1_core.validate import refusal

_SHOWN = 16
NOT_APPROVED = "not approved by the site"
_REMEDY = "have it approved by this site's IT: pm1-site approve"


@dataclass(frozen=True)
class Approved:
    """An approved proposal. name: HASH, the first digits of the SHA-256 of the proposal"""

    name: str
    proposal: Proposal

    @property
    def study(self) -> str:
        """Name of the study."""
        return str(self.proposal.study.get("name", ""))

    @property
    def guarantee(self) -> Mapping[str, Any]:
        """{"unit", "epsilon", "delta", ...} of the whole study; {} for none."""
        return dict(self.proposal.study.get("guarantee") or {})

    def require_order(self, content: Mapping[str, Any]) -> None:
        """Raise PrivacyError unless the approved study has this order, whatever its round."""
        where = f"order for phase {content.get('phase')!r}"
        try:
            self._require_order(where, content)
        except (KeyError, TypeError) as error:
            found = f"the approved study lacks {error}"
            raise PrivacyError(refusal(where, found, "propose a study that was resolved")) from None

    def _require_order(self, where: str, content: Mapping[str, Any]) -> None:
        study = self.proposal.study
        phases = [phase for phase in study["phases"] if phase["name"] == content.get("phase")]
        if not phases:
            found = f"the approved study {self.study!r} has no such phase"
            raise PrivacyError(refusal(where, found, "propose the study that is run"))
        phase = phases[0]
        expected = {
            "task": phase["task"],
            "rounds": phase["rounds"],
            "seed": study["seed"],
            "parameters": phase.get("parameters", {}),
            "method": strategies.build(study["strategy"]).method(),
            "encoding": study["encoding"],
            "privacy": phase.get("privacy", {}),
            "secure": study["secure"],
        }
        for key, value in expected.items():
            if _text(content.get(key)) != _text(value):
                found = f"its {key} is not that of the approved study {self.study!r}"
                raise PrivacyError(refusal(where, found, "propose the study that is run"))


class Approvals:
    """The folder of approvals. trust: file of the coordinator's public key"""

    def __init__(self, folder: Path, trust: Path) -> None:
        self.folder = folder
        self.trust = trust
        self._read: dict[Path, tuple[tuple[int, int, int], Approved]] = {}

    def __iter__(self) -> Iterator[Approved]:
        """All approvals, by name. What cannot be read, or was not signed, is none."""
        for file in sorted(self.folder.glob("*.json")):
            try:
                state = file.stat()
                mark = state.st_ino, state.st_mtime_ns, state.st_size
                if self._read.get(file, (None,))[0] != mark:
                    self._read[file] = mark, self.checked(file)
                if self._read[file][1].name == file.stem:
                    yield self._read[file][1]
            except (PM1Error, OSError, UnicodeDecodeError):
                continue

    def checked(self, file: Path) -> Approved:
        """A proposal that the coordinator signed. Raises InputError or CheckpointError if it is none."""
        try:
            proposal = Proposal.from_json(file.read_text(), str(file))
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(refusal(file, f"cannot be read ({error})", "name the proposal's file")) from None
        proposal.require(Trust.load(self.trust))
        digest = hashlib.sha256(proposal.to_json().encode()).hexdigest()
        return Approved(digest[:_SHOWN], proposal)

    def approve(self, approved: Approved) -> Path:
        """Write an approval down, and return where."""
        file = self.folder / f"{approved.name}.json"
        atomic.write_text(file, approved.proposal.to_json())
        return file

    def withdraw(self, name: str) -> list[Approved]:
        """Remove the approvals whose hash, or whose study's, begins with `name`. Raises InputError if none does."""
        gone = [
            one for one in self if name and name in (one.name[: len(name)], one.proposal.config[: len(name)])
        ]
        if not gone:
            known = ", ".join(one.name for one in self) or "none"
            raise InputError(refusal(f"approval {name!r}", "found none", f"name one of: {known}"))
        for one in gone:
            (self.folder / f"{one.name}.json").unlink(missing_ok=True)
        return gone

    def of_run(self, bundle: str, run_config: Mapping[str, Any], task_type: str) -> Approved:
        """The approval of a run.

        bundle: SHA-256 of its code; run_config: what it was started with; task_type: what Flower runs for it

        Raises PrivacyError, for the site's IT, if there is none.
        """
        if task_type not in ("", "flwr-serverapp"):
            raise _unapproved(f"it runs a {task_type!r}", "start the study as an app")
        same = [one for one in self if one.proposal.bundle == bundle]
        if not same:
            raise _unapproved(f"nobody approved the code {bundle[:_SHOWN]}", _REMEDY)
        for one in same:
            if _text(one.proposal.run_config) == _text(run_config):
                _require_tasks(one.proposal, run_config)
                return one
        wanted = same[0].proposal.run_config
        keys = sorted(k for k in {*wanted, *run_config} if _text(wanted.get(k)) != _text(run_config.get(k)))
        raise _unapproved(
            f"its run configuration differs from the approved one in {', '.join(keys)}", _REMEDY
        )


def _require_tasks(proposal: Proposal, run_config: Mapping[str, Any]) -> None:
    wanted = {name for name in str(run_config.get("tasks", "")).split(",") if name}
    if more := sorted(wanted - set(proposal.tasks)):
        raise _unapproved(f"nobody approved the tasks {', '.join(more)}", _REMEDY)


def _unapproved(found: str, remedy: str) -> PrivacyError:
    return PrivacyError(refusal("run", found, remedy))


def _text(value: Any) -> str:
    """JSON in which 1, 1.0 and true differ."""
    return json.dumps(value, sort_keys=True, default=str)
