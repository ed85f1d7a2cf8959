"""Whatever a coordinator signs for approval: an approval that can be held against orders, or a sentence."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mutations import changed, sentence, writes_only
from places import founded, joined
from pretend import ORDER, RUN_CONFIG, STUDY

from client.approvals import Approvals
from client.cli import main
from client.privacy_report import study_cost
from pm1_core.errors import PM1Error
from pm1_core.privacy.ledger import Ledger
from pm1_core.proposal import Proposal, study_hash
from pm1_core.signing import Signer, public_file

_settings = settings(max_examples=100, suppress_health_check=list(HealthCheck))


@pytest.fixture
def signer(tmp_path: Path) -> Signer:
    return Signer.create(tmp_path / "coordinator.pem")


def signed_anew(content: dict[str, Any], signer: Signer) -> str:
    """A proposal of any content, with the hash of its study and the signature that belong to it."""
    inner = {key: value for key, value in content.items() if key != "signature"}
    if isinstance(inner.get("study"), dict):
        inner["config"] = study_hash(inner["study"])
    told = json.dumps(["pm1 proposal", inner], sort_keys=True)
    return json.dumps({**inner, "signature": signer.sign(told.encode())})


def test_a_proposal_of_any_content_under_the_right_signature(signer: Signer, tmp_path: Path) -> None:
    held = Approvals(tmp_path / "site/approvals", public_file(tmp_path / "coordinator.pem"))
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.open("leeds", {"record": (8.0, 1e-5)})
    good = json.loads(Proposal.signed(signer, STUDY, "1" * 64, RUN_CONFIG, ("tabular",), "0" * 64).to_json())
    file, study = tmp_path / "sent.json", tmp_path / "study.json"

    @_settings
    @given(data=st.data())
    def signed(data: st.DataObject) -> None:
        file.write_text(signed_anew(changed(good, data), signer))
        study.write_text("")
        shutil.rmtree(tmp_path / "site", ignore_errors=True)

        def approve() -> None:
            approved = held.checked(file)
            held.approve(approved)
            assert [one.name for one in held] == [approved.name]

        with writes_only(tmp_path / "site", tmp_path):
            sentence(approve, PM1Error)
            for one in held:
                sentence(lambda one=one: one.require_order(ORDER), PM1Error)
                sentence(lambda: held.of_run("1" * 64, RUN_CONFIG, ""), PM1Error)
                assert isinstance(one.study, str)
                assert isinstance(one.guarantee, dict)
        for one in held:
            study.write_text(json.dumps(one.proposal.study))
            sentence(lambda: study_cost(study, ledger), PM1Error)

    signed()


def test_a_study_without_end_is_a_sentence(tmp_path: Path) -> None:
    """What it costs is added up round by round."""
    (tmp_path / "study.json").write_text(
        json.dumps({**STUDY, "phases": [{**STUDY["phases"][0], "rounds": 10**18}]})
    )
    said = sentence(lambda: study_cost(tmp_path / "study.json", Ledger(tmp_path / "ledger.jsonl")), PM1Error)
    assert "rounds: found 1000000000000000000; use a number from 0 to 10000" in said


def test_what_is_shown_for_approval_hides_no_line_and_adds_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    consortium = founded(tmp_path / "consortium", 1)
    site = joined(consortium, tmp_path / "site", "leeds")
    budget = ["--site", "leeds", "--epsilon", "8", "--delta", "1e-5"]
    assert main(["privacy", "open", str(site.path / "state"), *budget]) == 0
    study = {**STUDY, "name": "retina\x1b[2J\nprivacy      epsilon 0.1"}
    proposal = Proposal.signed(consortium.signer, study, "1" * 64, RUN_CONFIG, (), "0" * 64)
    (tmp_path / "sent.json").write_text(proposal.to_json())
    monkeypatch.setattr("builtins.input", lambda _: "n")
    assert main(["approve", str(tmp_path / "sent.json"), "--folder", str(site.path)]) == 0
    shown = capsys.readouterr().out
    assert "study        retina\\x1b[2J\\nprivacy      epsilon 0.1, \n" in shown
    assert shown.count("\nprivacy ") == 1
    assert "\n               phase  " in shown  # the table of what it costs has its lines
