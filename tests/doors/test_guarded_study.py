"""A study through doors, over a real SuperLink and real SuperNodes; and what else comes to a site is never run."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import shutil
import zipfile
from pathlib import Path

import pytest
from deployment import ROOT
from flwr.cli.build import build_fab_from_disk
from guarded import Guarded
from studies import tiny_study

from pm1_core.proposal import Proposal

_THIEF = """
from pathlib import Path
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

app = ClientApp()
server = ServerApp()

@app.query()
def steal(message, context):
    Path("{marker}").write_text("it ran")
    content = Path("/etc/hostname").read_bytes()
    return Message(RecordDict({{"stolen": ConfigRecord({{"bytes": content}})}}), reply_to=message)

@server.main()
def main(grid, context):
    ids = []
    while not ids:
        ids = list(grid.get_node_ids())
    replies = list(grid.send_and_receive(
        [Message(RecordDict(), dst_node_id=node, message_type="query") for node in ids], timeout=60))
    told = [f"{{r.error.code}} {{r.error.reason}}" if r.has_error() else "STOLEN" for r in replies]
    Path("{told}").write_text(";".join(told))
"""
_PROJECT = """
[project]
name = "thief"
version = "1.0.0"
license = {text = "Apache-2.0"}
dependencies = ["flwr>=1.41"]
[tool.flwr.app]
publisher = "nobody"
[tool.flwr.app.components]
serverapp = "thief:server"
clientapp = "thief:app"
"""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")
def test_a_study_passes_with_a_ticket_for_every_answer_and_unapproved_code_is_never_run(
    hospitals: dict[str, Path], tmp_path: Path
) -> None:
    """The thief comes first: the coordinator hears that it is not approved, and the study runs after it."""
    stores = {"north": hospitals["north"]}
    with Guarded(tmp_path / "deployment", stores, {"north": "min_people: 5\n"}) as deployment:
        marker, told = tmp_path / "marker", tmp_path / "told"
        thief = _thief(tmp_path / "thief", marker, told)
        assert deployment.wait(deployment.submit({}, thief), 300) == "finished:completed", deployment.tail()
        assert told.read_text() == "240 not approved by the site"
        assert not marker.exists()
        refused = [line for line in deployment.audit("north") if line["event"] == "refused"]
        assert [line["what"] for line in refused] == ["query"]
        assert "nobody approved the code" in str(refused[0]["reason"])

        options = _study(deployment, hospitals["north"].parent.parent / "study.yaml", tmp_path)
        run = deployment.submit(options, tmp_path / "app")
        assert deployment.wait(run, 600) == "finished:completed", deployment.said(run) + deployment.tail()
        lines = deployment.audit("north")
        left = [line for line in lines if line["event"] == "left"]
        people = [line["what"] for line in left if line["what"] in ("train", "evaluate")]
        assert people == ["train", "train", "evaluate", "train", "evaluate"]
        outbox = deployment.places["north"].file("state/outbox.jsonl").read_text().splitlines()
        assert [line["what"] for line in left] == [json.loads(line)["what"] for line in outbox]
        assert {line["study"] for line in left} == {"ukb_eyepacs"}
        assert [line for line in lines if line["event"] == "stopped"] == []


def _study(deployment: Guarded, definition: Path, folder: Path) -> dict[str, str]:
    """Resolved, proposed and approved; the run configuration."""
    study = tiny_study(gather=300)
    phases = [phase for phase in study.phases if phase.name in ("statistics", "phenotype")]
    study = dataclasses.replace(study, phases=(phases[0], dataclasses.replace(phases[1], rounds=1)))
    (folder / "study.json").write_text(study.to_json())
    options = {
        "study": str(folder / "study.json"),
        "definition": str(definition),
        "run": str(folder / "run"),
        "key": str(deployment.consortium.folder / "keys/checkpoint.pem"),
    }
    with zipfile.ZipFile(
        io.BytesIO(build_fab_from_disk(ROOT))
    ) as bundled:  # a tree that nobody edits meanwhile
        bundled.extractall(folder / "app")
    shutil.rmtree(folder / "app" / ".info")
    bundle = hashlib.sha256(build_fab_from_disk(folder / "app")).hexdigest()
    content = json.loads(study.to_json())
    proposal = Proposal.signed(
        deployment.consortium.signer, content, bundle, options, (), hashlib.sha256(b"").hexdigest()
    )
    (folder / "proposal.json").write_text(proposal.to_json())
    for site in deployment.places:
        deployment.approve(site, folder / "proposal.json")
    return options


def _thief(folder: Path, marker: Path, told: Path) -> Path:
    folder.mkdir()
    (folder / "thief.py").write_text(_THIEF.format(marker=marker, told=told))
    (folder / "pyproject.toml").write_text(_PROJECT)
    return folder
