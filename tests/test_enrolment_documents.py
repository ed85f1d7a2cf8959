"""Requests and kits, as somebody would send them who means no good."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from enrolling import enrol, started
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mutations import changed, mutated, sentence, writes_only

from client.enrol import install
from client.folder import SiteFolder
from pm1_core.enrolment import Kit, Request
from pm1_core.errors import InputError, PM1Error
from pm1_core.signing import Signer


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[type, dict[str, Any]]:
    """A good request and a good kit."""
    consortium, site = started(tmp_path_factory.mktemp("whole"))
    enrol(consortium, site / "leeds.request")
    return {
        Request: json.loads((site / "leeds.request").read_text()),
        Kit: json.loads((consortium / "kits/leeds.kit").read_text()),
    }


@pytest.mark.parametrize("kind", [Request, Kit])
@given(data=st.data())
@settings(max_examples=200, deadline=None)
def test_whatever_is_sent_is_refused_with_a_sentence(
    kind: type[Request] | type[Kit], data: st.DataObject, whole: dict[type, dict[str, Any]]
) -> None:
    good = whole[kind]
    text = mutated(json.dumps(good).encode(), data).decode(errors="replace")
    said = sentence(lambda: kind.from_json(text, "mail"), PM1Error)
    assert said or {**json.loads(text), "signature": ""} == {**good, "signature": ""}  # its hex in capitals
    assert len(said) < 400


@given(data=st.data())
@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_kit_of_any_content_is_installed_in_the_sites_folder_or_not_at_all(
    whole: dict[type, dict[str, Any]], tmp_path: Path, data: st.DataObject
) -> None:
    """Whoever writes a kit names the key that it is signed with."""
    signer, content = Signer.at(tmp_path / "key.pem"), dict(whole[Kit])
    content["coordinator"] = (tmp_path / "key.pem.pub").read_text()
    paths = st.sampled_from(["../../x", str(tmp_path / "x"), {"../../x": content["coordinator"]}])
    content = {key: value for key, value in changed(content, data, paths).items() if key != "signature"}
    signature = signer.sign(json.dumps(["Kit", content], sort_keys=True).encode())
    site = tmp_path / "etc/pm1/site"
    site.mkdir(parents=True, exist_ok=True)
    with writes_only(site, tmp_path):
        text = json.dumps({**content, "signature": signature})
        sentence(lambda: install(SiteFolder(site), Kit.from_json(text, "mail")), PM1Error)
    shutil.rmtree(site)


@pytest.mark.parametrize(
    "name", ["../x", "/tmp/x", "", ".", "..", "a/b", "coordinator", "a\0", "\ud800", "Ü"]
)
def test_names_that_lead_out_of_a_folder_are_refused_though_they_are_signed(
    name: str, whole: dict[type, dict[str, Any]], tmp_path: Path
) -> None:
    signer = Signer.create(tmp_path / "key.pem")
    public = (tmp_path / "key.pem.pub").read_text()
    request = Request(**{**whole[Request], "site": name, "identity": public}).signed(signer)
    with pytest.raises(InputError, match="name"):
        Request.from_json(request.to_json(), "mail")
    kit = Kit(**{**whole[Kit], "coordinator": public})
    for other in ({"site": name}, {"peers": {**kit.peers, name: public}}):
        with pytest.raises(InputError, match="name"):
            Kit.from_json(replace(kit, **other).signed(signer).to_json(), "mail")


@pytest.mark.parametrize("curve", ["SM2", "secp256k1", "secp112r1"])
def test_a_request_over_keys_of_another_kind_is_refused(
    curve: str, whole: dict[type, dict[str, Any]], tmp_path: Path
) -> None:
    def openssl(*arguments: str, given: str = "") -> str:
        done = subprocess.run(
            ["openssl", *arguments], input=given, capture_output=True, text=True, check=True
        )
        return done.stdout

    key = openssl("genpkey", "-algorithm", "EC", "-pkeyopt", f"ec_paramgen_curve:{curve}")
    (tmp_path / "key").write_text(key)
    csr = openssl("req", "-new", "-key", str(tmp_path / "key"), "-subj", "/OU=site/CN=leeds")
    public = openssl("pkey", "-pubout", given=key)
    for other in ({"csr": csr}, {"node": public}, {"identity": public}):
        with pytest.raises(InputError):
            Request.from_json(json.dumps({**whole[Request], **other}), "mail")


def test_more_in_a_file_than_a_certificate_is_refused(
    whole: dict[type, dict[str, Any]], tmp_path: Path
) -> None:
    """What other programs would read along: a second authority, say."""
    signer, kit = Signer.create(tmp_path / "key.pem"), whole[Kit]
    coordinator = (tmp_path / "key.pem.pub").read_text()
    good = Kit(**{**kit, "coordinator": coordinator})
    assert Kit.from_json(good.signed(signer).to_json(), "kit").site == "leeds"
    more = kit["authority"].replace("CERTIFICATE", "TRUSTED CERTIFICATE")
    for other in ({"authority": kit["authority"] + more}, {"certificate": "\n" + kit["certificate"]}):
        with pytest.raises(InputError, match="plain form"):
            Kit.from_json(replace(good, **other).signed(signer).to_json(), "kit")


def test_a_kit_that_somebody_else_signed_is_refused(
    whole: dict[type, dict[str, Any]], tmp_path: Path
) -> None:
    kit = Kit(**whole[Kit]).signed(Signer.create(tmp_path / "key.pem"))
    with pytest.raises(InputError, match="its signature is not good"):
        Kit.from_json(kit.to_json(), "kit")
