"""A study is proposed to the sites and started on the SuperLink; what was started is kept in runs.json.

proposals/HASH.json         what sites approve, signed: study, code, configuration
runs/NAME/study.json        the study, where the run reads it; the run's own files lie beside it
runs.json                   every start: name, number of Flower's run, hashes, folder, when, and when it was stopped
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from pm1_core import atomic
from pm1_core.data.definition import load_definition
from pm1_core.errors import ConfigError, InputError, StateError
from pm1_core.proposal import Proposal
from pm1_core.signing import public_file
from pm1_core.training.tasks import TASKS, allowed_tasks
from pm1_core.validate import refusal
from server.consortium import Consortium
from server.control import Control
from server.registry import KEY, STUDY
from server.runs import Run, Runs
from server.services import SUPERLINK, address
from server.study import Study

_SHOWN = 16
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")


@dataclass(frozen=True)
class Submission:
    """A study that is about to run. name: of the run; config: what the ServerApp is started with"""

    consortium: Consortium
    study: Study
    name: str
    bundle: bytes
    config: dict[str, str]
    proposal: Proposal

    @property
    def folder(self) -> Path:
        """Of the run."""
        return folder_of(self.consortium, self.name)

    @property
    def proposal_file(self) -> Path:
        """What the sites' IT approves."""
        return self.consortium.folder / "proposals" / f"{self.study.hash[:_SHOWN]}.json"

    @property
    def proposed(self) -> Proposal | None:
        """What was proposed of this study before, if anything."""
        file = self.proposal_file
        return Proposal.from_json(file.read_text(), file) if file.exists() else None

    def propose(self) -> Path:
        """Write the proposal, and return where."""
        atomic.write_text(self.proposal_file, self.proposal.to_json())
        return self.proposal_file

    def start(self) -> Run:
        """Start the study, or go on with it where its folder stands; what was started.

        Raises InputError if a run of this name is under way, FederationError if the SuperLink does not answer.
        """
        runs, link = Runs(self.consortium.folder), control(self.consortium)
        with runs.locked():
            before = runs.named(self.name)
            if before and link.status(before.run).partition(":")[0] in ("pending", "starting", "running"):
                found = f"it is under way as Flower's run {before.run}"
                remedy = f"watch it, or stop it first: pm1-server study stop {self.name}"
                raise InputError(refusal(f"run {self.name!r}", found, remedy))
            atomic.write_text(self.folder / STUDY, self.study.to_json() + "\n")
            self._link_keys()
            number = link.start(self.bundle, self.config)
            made = Run(
                self.name,
                number,
                self.study.name,
                self.study.hash,
                self.proposal.bundle,
                str(self.folder),
                datetime.now(UTC).isoformat(timespec="seconds"),
            )
            runs.add(made)
        return made

    def _link_keys(self) -> None:
        """Let `pm1-server checkpoints` find the key where runs have it."""
        key = self.folder / KEY
        key.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        whole = self.consortium.folder.resolve() / "keys/checkpoint.pem"
        for link, target in ((key, whole), (public_file(key), public_file(whole))):
            if not link.exists():
                link.symlink_to(target)


def prepared(
    consortium: Consortium, file: Path, definition: Path, name: str, tasks: Sequence[str], app: Path | None
) -> Submission:
    """What would run. Nothing is written.

    file: a resolved study; definition: study.yaml; name: of the run, "" for the study's
    tasks: of installed packages that the study may name; app: root of the app, None for this source tree

    Raises InputError if one of them cannot be used, StateError without a consortium.
    """
    _ = consortium.facts
    study = _study(file)
    name = name or study.name
    if not _NAME.fullmatch(name):
        found = f"found {name!r}"[:90]
        raise ConfigError(refusal("--run", found, "use letters, digits, dots, dashes and underscores"))
    allowed = allowed_tasks(tasks)
    for phase in study.phases:
        if phase.task not in TASKS and phase.task not in allowed:
            found = f"phase {phase.name!r} is of the installed task {phase.task!r}"
            raise ConfigError(refusal("--tasks", found, f"allow it: --tasks {phase.task}"))
    folder = folder_of(consortium, name)
    _require_same(folder, study)
    summary = load_definition(definition).summary
    bundle = built(app)
    config = {
        "study": str(folder / STUDY),
        "definition": str(definition.resolve()),
        "run": str(folder),
        "key": str(consortium.folder.resolve() / "keys/checkpoint.pem"),
        "tasks": ",".join(allowed),
    }
    digest = hashlib.sha256(bundle).hexdigest()
    content = json.loads(study.to_json())
    proposal = Proposal.signed(consortium.signer, content, digest, config, allowed, summary.hash)
    return Submission(consortium, study, name, bundle, config, proposal)


def stop(consortium: Consortium, name: str) -> tuple[Run, bool]:
    """Stop the newest run of a name, or the one with Flower's number; False if it had ended before.

    Raises InputError if there is none, FederationError if the SuperLink does not answer.
    """
    runs = Runs(consortium.folder)
    with runs.locked():
        found = runs.named(name)
        if found is None:
            known = ", ".join(sorted({run.name for run in runs.all()})) or "none"
            raise InputError(refusal(f"run {name!r}", "it was never submitted", f"known: {known}"))
        stopped = control(consortium).stop(found.run)
        if stopped:
            found = replace(found, stopped=datetime.now(UTC).isoformat(timespec="seconds"))
            runs.change(found)
    return found, stopped


def control(consortium: Consortium) -> Control:
    """The consortium's SuperLink."""
    host, port = address(SUPERLINK)
    return Control(f"{host}:{port}", consortium.folder.resolve() / "ca/ca.crt")


def folder_of(consortium: Consortium, name: str) -> Path:
    """Of a run."""
    return consortium.folder.resolve() / "runs" / name


def built(app: Path | None) -> bytes:
    """Flower's bundle of an app, the same bytes for the same files. Raises InputError if it cannot be built.

    app: root of the app; None for the source tree that this is installed from
    """
    from flwr.cli.build import build_fab_from_disk

    root = app or Path(__file__).resolve().parent.parent
    if not (root / "pyproject.toml").is_file():
        remedy = "name the folder of PM1's source tree: --app FOLDER"
        raise InputError(refusal(f"app {root}", "found no pyproject.toml", remedy))
    try:
        return build_fab_from_disk(root)
    except Exception as error:  # Flower's and click's, of whatever it finds there
        raise InputError(refusal(f"app {root}", f"cannot be built ({error})", "name an app's root")) from None


def _study(file: Path) -> Study:
    try:
        return Study.from_json(file.read_text())
    except FileNotFoundError:
        remedy = "write it with pm1-server study resolve --out"
        raise InputError(refusal(file, "found no such file", remedy)) from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        remedy = "write it with pm1-server study resolve --out"
        raise InputError(refusal(file, f"found no resolved study ({error!r})", remedy)) from None


def _require_same(folder: Path, study: Study) -> None:
    """Raise InputError if the folder of the run holds another study."""
    file = folder / STUDY
    if not file.exists():
        return
    try:
        held = Study.from_json(file.read_text()).hash
    except (ValueError, KeyError, TypeError, AttributeError):
        raise StateError(refusal(file, "found no study", "restore it, or use another --run NAME")) from None
    if held != study.hash:
        found = f"it holds the study {held[:12]}, not {study.hash[:12]}"
        raise InputError(refusal(folder, found, "use another --run NAME"))
