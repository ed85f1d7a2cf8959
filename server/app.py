"""The Flower ServerApp of a coordinator: a study, over whatever sites are connected.

In a deployment the run configuration names files of the coordinator's machine: `study` (the resolved study, as
`pm1-server study resolve` writes it) and `definition` (the study definition that all sites share), `run`, the
folder of the run, and `key`, the private key that checkpoints are signed with (`pm1-server key`); `tasks` lists
tasks of installed packages that the study may name. Simulations build an app from objects with `make_app`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from pm1_core.data.definition import load_definition
from pm1_core.errors import ConfigError
from pm1_core.signing import Signer
from pm1_core.training.tasks import allowed_tasks
from pm1_core.validate import refusal
from server.coordinator import Coordinator
from server.study import Study


def make_app(coordinate: Callable[[Grid, Context], Coordinator]) -> ServerApp:
    """A ServerApp that runs the coordinator which `coordinate` builds."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        coordinate(grid, context).run()

    return app


def from_run_config(grid: Grid, context: Context) -> Coordinator:
    """The coordinator that `flwr run --run-config` describes."""
    for key in ("study", "definition", "run", "key"):
        if not context.run_config.get(key):
            remedy = "give study=, definition=, run= and key= as paths"
            raise ConfigError(refusal("--run-config", f"key {key!r} is missing", remedy))
    file = Path(str(context.run_config["study"])).resolve()
    if not file.is_file():
        raise ConfigError(
            refusal(
                f"--run-config, study={file}", "found no such file", "write it with pm1-server study resolve"
            )
        )
    study = Study.from_json(file.read_text())
    summary = load_definition(Path(str(context.run_config["definition"]))).summary
    return Coordinator(
        study,
        summary,
        Path(str(context.run_config["run"])),
        grid,
        Signer.load(Path(str(context.run_config["key"]))),
        allowed_tasks(str(context.run_config.get("tasks", ""))),
    )


app = make_app(from_run_config)
