"""The first day: a site gets in by its own keys and a telephone call, and by nothing else."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography import x509
from enrolling import enrol, join, started

from client.cli import main as site_command
from pm1_core import certificates
from pm1_core.enrolment import Request
from server.cli import main as server_command
from server.consortium import Consortium

Said = Callable[[], str]


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Said:
    """What was printed since it was last asked."""

    def both() -> str:
        out, err = capsys.readouterr()
        return out + err

    return both


@pytest.fixture(autouse=True)
def _usual_umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


def test_a_site_is_enrolled_and_joins(tmp_path: Path, said: Said) -> None:
    consortium, site = started(tmp_path)
    assert enrol(consortium, site / "leeds.request") == 0
    kit = consortium / "kits/leeds.kit"
    assert join(site, kit) == 0
    assert json.loads((site / "site.json").read_text())["gateway"] == "127.0.0.1:8443"
    own = certificates.read_certificate(site / "client.crt")
    certificates.require_issued("test", own, certificates.read_certificate(site / "ca.crt"))
    assert own.public_key() == certificates.read_key(site / "keys/tls.key").public_key()
    assert (site / "peers/leeds.pub").read_text() == (site / "keys/identity.pem.pub").read_text()
    assert server_command(["sites", "--folder", str(consortium), "--json"]) == 0
    (listed,) = json.loads(next(line for line in said().splitlines() if line.startswith("[")))
    assert (listed["site"], listed["status"], listed["days_left"]) == ("leeds", "enrolled", 396)


def test_private_keys_stay_where_they_were_made(tmp_path: Path) -> None:
    consortium, site = started(tmp_path)
    enrol(consortium, site / "leeds.request")
    join(site, consortium / "kits/leeds.kit")
    at_site, at_coordinator = (
        {file.read_text() for file in folder.rglob("*") if "PRIVATE" in _text(file)}
        for folder in (site, consortium)
    )
    assert len(at_site) == 4  # TLS, SuperNode, identity; the door's towards the SuperNode
    assert len(at_coordinator) == 4  # authority, gateway, coordinator's own, checkpoints
    assert not at_site & at_coordinator
    for folder in (site, consortium):
        for file in folder.rglob("*"):
            if "PRIVATE" in _text(file):
                assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert "PRIVATE" not in (site / "leeds.request").read_text()
    assert "PRIVATE" not in (consortium / "kits/leeds.kit").read_text()


def _text(file: Path) -> str:
    return file.read_text() if file.is_file() else ""


@pytest.mark.parametrize("heard", ["0000 0000 0000 0000", "00", "not a fingerprint at all"])
def test_another_fingerprint_than_the_one_read_out_stops_both(heard: str, tmp_path: Path, said: Said) -> None:
    consortium, site = started(tmp_path)
    assert enrol(consortium, site / "leeds.request", heard=heard) == 2
    assert "fingerprint that was read out is another" in said()
    assert not (consortium / "kits/leeds.kit").exists()
    enrol(consortium, site / "leeds.request")
    assert join(site, consortium / "kits/leeds.kit", heard=heard) == 2
    assert not (site / "ca.crt").exists()


def test_nobody_is_enrolled_without_a_comparison(tmp_path: Path, said: Said) -> None:
    consortium, site = started(tmp_path)
    assert server_command(["enrol", "--folder", str(consortium), str(site / "leeds.request")]) == 2
    assert "nobody has compared its fingerprint" in said()
    assert Consortium(consortium).sites() == []


@pytest.mark.parametrize("key", ["site", "csr", "node", "identity", "created"])
def test_a_request_that_was_changed_on_its_way_is_refused(key: str, tmp_path: Path) -> None:
    consortium, site = started(tmp_path)
    _, other = started(tmp_path / "other")
    content, others = (json.loads((folder / "leeds.request").read_text()) for folder in (site, other))
    changed = {**content, key: "york" if key == "site" else others[key] + ("\n" if key == "created" else "")}
    file = tmp_path / "changed"
    file.write_text(json.dumps(changed))
    heard = "0" * 64
    assert server_command(["enrol", "--folder", str(consortium), str(file), "--fingerprint", heard]) == 2
    assert Consortium(consortium).sites() == []


def test_a_kit_for_other_keys_another_site_or_another_consortium_is_refused(
    tmp_path: Path, said: Said
) -> None:
    consortium, site = started(tmp_path)
    enrol(consortium, site / "leeds.request")
    join(site, consortium / "kits/leeds.kit")
    other, twin = started(tmp_path / "other")
    enrol(other, twin / "leeds.request")
    said()
    assert join(site, other / "kits/leeds.kit") == 2
    assert "another key than this site's" in said()
    enrol(other, site / "leeds.request", "--replace")
    before = (site / "ca.crt").read_text()
    said()
    assert join(site, other / "kits/leeds.kit") == 2
    assert "another than what was joined with" in said()
    assert (site / "ca.crt").read_text() == before
    assert join(site, other / "kits/leeds.kit", "--replace") == 0
    york = tmp_path / "york"
    site_command(["init", "--folder", str(york), "--site", "york"])
    said()
    assert join(york, other / "kits/leeds.kit") == 2
    assert "it is for 'leeds', not 'york'" in said()


def test_who_is_revoked_is_on_the_list_and_comes_back_with_new_keys_only(tmp_path: Path, said: Said) -> None:
    consortium, site = started(tmp_path)
    enrol(consortium, site / "leeds.request")
    serial = Consortium(consortium).site("leeds").serial
    assert server_command(["revoke", "--folder", str(consortium), "leeds", "--reason", "lost its disk"]) == 0
    assert listed(consortium) == [serial]
    assert not (consortium / "kits/leeds.kit").exists()
    said()
    assert enrol(consortium, site / "leeds.request") == 2
    assert "its keys were revoked" in said()
    fresh = tmp_path / "fresh"
    site_command(["init", "--folder", str(fresh), "--site", "leeds"])
    assert enrol(consortium, fresh / "leeds.request") == 0
    log = [json.loads(line)["what"] for line in (consortium / "log.jsonl").read_text().splitlines()]
    assert log == ["enrolled", "revoked", "enrolled"]


def verified(consortium: Path, certificate: Path) -> str:
    """What openssl says of a certificate, under the authority and the list of revoked ones."""
    command = ["openssl", "verify", "-x509_strict", "-crl_check", "-purpose", "sslclient"]
    command += ["-CAfile", str(consortium / "ca/ca.crt"), "-CRLfile", str(consortium / "ca/ca.crl")]
    done = subprocess.run([*command, str(certificate)], capture_output=True, text=True, check=False)
    return (done.stdout + done.stderr).strip()


def listed(consortium: Path) -> list[int]:
    """Serials of revoked certificates."""
    found = x509.load_pem_x509_crl((consortium / "ca/ca.crl").read_bytes())
    return [entry.serial_number for entry in found]


def test_openssl_takes_what_join_installed_until_it_is_revoked(tmp_path: Path) -> None:
    consortium, site = started(tmp_path)
    enrol(consortium, site / "leeds.request")
    join(site, consortium / "kits/leeds.kit")
    assert (site / "ca.crt").read_text() == (consortium / "ca/ca.crt").read_text()
    assert verified(consortium, site / "client.crt").endswith("OK")
    server_command(["revoke", "--folder", str(consortium), "leeds", "--reason", "test"])
    assert "certificate revoked" in verified(consortium, site / "client.crt")


def test_a_renewal_leaves_the_earlier_certificate_good_and_a_revocation_ends_both(
    tmp_path: Path, said: Said
) -> None:
    consortium, site = started(tmp_path)
    enrol(consortium, site / "leeds.request", "--days", "10")
    join(site, consortium / "kits/leeds.kit")
    first = Consortium(consortium).site("leeds")
    shutil.copy(site / "client.crt", tmp_path / "first.crt")
    said()
    server_command(["sites", "--folder", str(consortium)])
    assert "leeds: 9 days left" in said()
    assert site_command(["init", "--folder", str(site), "--renew"]) == 0
    assert enrol(consortium, site / "leeds.request") == 2
    assert enrol(consortium, site / "leeds.request", "--replace") == 0
    assert f"stays good until {first.until[:10]}" in said()
    assert join(site, consortium / "kits/leeds.kit") == 0
    assert certificates.read_certificate(site / "client.crt").serial_number != first.serial
    assert Consortium(consortium).site("leeds").overlapping == {str(first.serial): first.until}
    said()
    server_command(["sites", "--folder", str(consortium)])
    assert re.search(f"earlier +{first.until[:10]}", said())

    both = (tmp_path / "first.crt", site / "client.crt")
    assert all(verified(consortium, one).endswith("OK") for one in both)
    server_command(["revoke", "--folder", str(consortium), "leeds", "--reason", "test"])
    assert all("certificate revoked" in verified(consortium, one) for one in both)


def test_a_certificate_of_new_keys_ends_the_earlier_ones_at_once(tmp_path: Path) -> None:
    """All of them, though the last was a renewal."""
    consortium, site = started(tmp_path)
    serials = []
    for more in ((), ("--replace",)):
        enrol(consortium, site / "leeds.request", *more)
        serials.append(Consortium(consortium).site("leeds").serial)
    assert listed(consortium) == []
    (site / "keys/node.key").unlink()
    certificates.write_key(site / "keys/node.key", certificates.new_key(), encrypted=False)
    site_command(["init", "--folder", str(site), "--renew"])
    assert enrol(consortium, site / "leeds.request", "--replace") == 0
    assert listed(consortium) == sorted(serials)
    assert Consortium(consortium).site("leeds").overlapping == {}


def test_keys_that_others_can_read_are_not_used(tmp_path: Path, said: Said) -> None:
    consortium, site = started(tmp_path)
    for file in ("ca/ca.key", "keys/checkpoint.pem"):
        (consortium / file).chmod(0o644)
        assert enrol(consortium, site / "leeds.request") == 2
        assert "chmod 600" in said()
        (consortium / file).chmod(0o600)
    assert Consortium(consortium).sites() == []


def test_nothing_is_overwritten(tmp_path: Path, said: Said) -> None:
    consortium, site = started(tmp_path)
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    assert server_command(["init", "--folder", str(consortium), "--name", "x", "--address", "a:1"]) == 2
    assert server_command(["init", "--folder", str(site), "--name", "x", "--address", "a:1"]) == 2
    assert site_command(["init", "--folder", str(site), "--site", "york"]) == 2
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before


@pytest.mark.parametrize("name", ["../leeds", "", ".", "a/b", "Leeds", "coordinator", "a" * 41, "a-", "a\n"])
def test_a_name_that_is_no_plain_name_is_none_of_a_site(name: str, tmp_path: Path) -> None:
    assert site_command(["init", "--folder", str(tmp_path / "site"), "--site", name]) == 2
    assert not (tmp_path / "site").exists()


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"{}", b"[" * 100_000, b"0" * (1 << 21)])
def test_a_file_that_is_no_request_or_kit_is_refused_and_nothing_is_written(
    content: bytes, tmp_path: Path, said: Said
) -> None:
    consortium, site = started(tmp_path)
    file = tmp_path / "sent"
    file.write_bytes(content)
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    assert server_command(["enrol", "--folder", str(consortium), str(file)]) == 2
    assert site_command(["join", "--folder", str(site), str(file)]) == 2
    assert server_command(["enrol", "--folder", str(consortium), str(tmp_path)]) == 2
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before


def test_at_the_terminal_nobody_is_taken_for_somebody(
    tmp_path: Path, said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    consortium, site = started(tmp_path)
    command = ["enrol", "--folder", str(consortium), str(site / "leeds.request")]
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)

    def ends(_: str) -> str:
        raise EOFError

    monkeypatch.setattr("builtins.input", ends)
    assert server_command(command) == 2
    assert "is another" in said()
    right = Request.from_json((site / "leeds.request").read_text(), "request").fingerprint
    monkeypatch.setattr(
        "builtins.input", lambda _: " ".join([right[:4], right[4:8], right[8:12], right[12:16]])
    )
    assert server_command(command) == 0


def test_the_coordinators_own_certificates_are_renewed(tmp_path: Path, said: Said) -> None:
    consortium, site = started(tmp_path)
    held, fingerprint = Consortium(consortium), Consortium(consortium).fingerprint
    key = (consortium / "gateway/server.key").read_bytes()
    renew = ["init", "--folder", str(consortium), "--renew", "--days"]
    assert server_command([*renew, "10"]) == 0
    said()
    assert server_command(["sites", "--folder", str(consortium)]) == 0
    assert "gateway: 9 days left; pm1-server init --renew" in said()
    assert server_command([*renew, "100", "--address", "pm1.example.org:443"]) == 0
    assert (held.days_left, held.fingerprint) == (99, fingerprint)
    assert (consortium / "gateway/server.key").read_bytes() == key
    enrol(consortium, site / "leeds.request")
    assert json.loads((consortium / "kits/leeds.kit").read_text())["gateway"] == "pm1.example.org:443"


def test_a_replacement_that_was_cut_off_is_made_good_by_another_try(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A renewal leaves the first certificate good meanwhile, and new keys do not."""
    consortium, site = started(tmp_path)
    enrol(consortium, site / "leeds.request")
    first = Consortium(consortium).site("leeds")
    fresh = tmp_path / "fresh"
    site_command(["init", "--folder", str(fresh), "--site", "leeds"])
    for request, ended in ((site / "leeds.request", []), (fresh / "leeds.request", [first.serial])):
        with monkeypatch.context() as patch:
            patch.setattr("pm1_core.certificates.Authority.client", lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                enrol(consortium, request, "--replace")
        assert Consortium(consortium).site("leeds") == first
        assert listed(consortium) == ended
    assert enrol(consortium, fresh / "leeds.request", "--replace") == 0
    assert listed(consortium) == [first.serial]


def test_a_damaged_status_is_a_sentence(tmp_path: Path, said: Said) -> None:
    consortium, site = started(tmp_path)
    enrol(consortium, site / "leeds.request")
    for text in ("[]", "{}", "{", '{"site": "leeds"}'):
        (consortium / "sites/leeds/status.json").write_text(text)
        assert server_command(["sites", "--folder", str(consortium)]) == 3
        assert "sites/leeds/status.json" in said()


@pytest.mark.parametrize("text", ["[]", "{}", "{", '{"site": "../x"}'])
def test_a_damaged_site_is_a_sentence(text: str, tmp_path: Path, said: Said) -> None:
    consortium, site = started(tmp_path)
    enrol(consortium, site / "leeds.request")
    (site / "site.json").write_text(text)
    for command in (["init", "--site", "leeds"], ["init", "--renew"], ["check"]):
        assert site_command([*command, "--folder", str(site)]) in (2, 3)
    assert join(site, consortium / "kits/leeds.kit") in (2, 3)
