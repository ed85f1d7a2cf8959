"""An exported checkpoint as a model version of an MLflow registry, on request only.

MLflow is an optional extra (`pip install 'pm1[mlflow]'`) and is imported here alone. It is told not to report to
its makers that it is used.
"""

from __future__ import annotations

import math
import os
import re
from pathlib import Path

from pm1_core.checkpoint import Checkpoint
from pm1_core.errors import InputError
from pm1_core.validate import refusal
from server.releases import Release

_SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # 7, its own default, waits four minutes for a server that is not there
}


def register(folder: Path, uri: str, name: str, checkpoint: Checkpoint, release: Release | None) -> str:
    """Log the export at `folder` to the MLflow server or store `uri` and register it as a version of `name`.

    uri: as MLflow takes it: "http://...", "sqlite:///mlflow.db"
    Returns the version. Raises InputError if MLflow is not installed, or refuses.
    """
    for variable, value in _SETTINGS.items():
        os.environ.setdefault(variable, value)
    try:
        import mlflow
        from mlflow.exceptions import MlflowException
    except ImportError:
        raise InputError(
            refusal("--mlflow", "MLflow is not installed", "install it: pip install 'pm1[mlflow]'")
        ) from None
    try:
        client = mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri)
        experiment = client.get_experiment_by_name(checkpoint.study)
        place = experiment.experiment_id if experiment else client.create_experiment(checkpoint.study)
        run = client.create_run(place, run_name=f"{checkpoint.study}-{checkpoint.sequence}").info.run_id
        tags = _tags(checkpoint, release)
        for key, value in tags.items():
            client.set_tag(run, key, value)
        for key, number in _figures(checkpoint).items():
            client.log_metric(run, key, number)
        client.log_artifacts(run, str(folder), "model")
        client.set_terminated(run)
        if not client.search_registered_models(f"name = '{name}'"):
            client.create_registered_model(name)
        source = f"{client.get_run(run).info.artifact_uri}/model"
        version = client.create_model_version(name, source, run, tags=tags)
    except (MlflowException, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            refusal(f"--mlflow {uri}", reason, "mend the address; the export is there")
        ) from None
    return str(version.version)


def _tags(checkpoint: Checkpoint, release: Release | None) -> dict[str, str]:
    tags = {
        "pm1.checkpoint": checkpoint.hash,
        "pm1.sequence": str(checkpoint.sequence),
        "pm1.config": checkpoint.config,
        "pm1.privacy": checkpoint.privacy,
        "pm1.signer": checkpoint.signer,
        "pm1.stage": "released" if release else "candidate",
    }
    return {**tags, "pm1.release": release.hash, "pm1.by": release.by} if release else tags


def _figures(checkpoint: Checkpoint) -> dict[str, float]:
    """Pooled figures and areas under names that MLflow takes."""
    found = dict(checkpoint.metrics.get("all", {}))
    found |= {f"auc/{name}": area["auc"] for name, area in checkpoint.areas.items()}
    return {re.sub(r"[^\w\-./ ]", "_", name): value for name, value in found.items() if math.isfinite(value)}
