"""runs.json of a consortium: every start of a run. The last of a name is what counts."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path

from pm1_core import atomic
from pm1_core.errors import StateError
from pm1_core.validate import refusal


@dataclass(frozen=True)
class Run:
    """A start.

    name: of the run; run: Flower's number; study, config: name and hash of the study; bundle: SHA-256 of the code
    folder: of the run; submitted, stopped: UTC, ISO 8601, "" if nobody stopped it
    """

    name: str
    run: int
    study: str
    config: str
    bundle: str
    folder: str
    submitted: str
    stopped: str = ""


class Runs:
    """The runs of the consortium in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "runs.json"

    def all(self) -> list[Run]:
        """In the order in which they were started. Raises StateError if the file is damaged."""
        if not self.file.exists():
            return []
        try:
            # A number of 64 bits is a text in JSON, where other readers would round it.
            return [Run(**{**one, "run": int(one["run"])}) for one in atomic.read_json(self.file)]
        except (TypeError, KeyError, ValueError) as error:
            raise StateError(
                refusal(self.file, f"cannot be read ({error})", "restore it from a copy")
            ) from None

    def newest(self) -> list[Run]:
        """The last start of each name, the newest first."""
        return list({run.name: run for run in self.all()}.values())[::-1]

    def named(self, name: str) -> Run | None:
        """The last start of a name, or the one that Flower knows by this number."""
        found = [run for run in self.all() if name in (run.name, str(run.run))]
        return found[-1] if found else None

    def add(self, run: Run) -> None:
        """One more start."""
        self._write([*self.all(), run])

    def change(self, run: Run) -> None:
        """Put `run` in the place of the one with its number."""
        self._write([run if run.run == one.run else one for one in self.all()])

    def locked(self) -> AbstractContextManager[None]:
        """Hold the list while something is started or stopped."""
        return atomic.locked(self.file.with_name("runs.lock"), "wait until the other command has ended")

    def _write(self, runs: list[Run]) -> None:
        atomic.write_json(self.file, [{**asdict(run), "run": str(run.run)} for run in runs])
