"""Certificates of a consortium as openssl sees them, and keys that others cannot read."""

from __future__ import annotations

import base64
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pm1_core import certificates
from pm1_core.certificates import COORDINATOR, SITE, Authority, new_key
from pm1_core.errors import InputError


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority.create("eyes and genes")


def openssl(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = ["openssl", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)


def written(folder: Path, authority: Authority, name: str, *revoked: int) -> Path:
    """A site's certificate in a file, beside the authority's and a list."""
    made = authority.client(new_key().public_key(), name, SITE, 30)
    (folder / "ca.crt").write_text(certificates.pem(authority.certificate))
    (folder / "ca.crl").write_text(certificates.pem(authority.revoked([*revoked], 1)))
    (folder / f"{name}.crt").write_text(certificates.pem(made))
    return folder / f"{name}.crt"


def verified(file: Path) -> str:
    ca, crl = file.with_name("ca.crt"), file.with_name("ca.crl")
    found = openssl(
        "verify", "-x509_strict", "-crl_check", "-purpose", "sslclient", "-CAfile", ca, "-CRLfile", crl, file
    )
    return found.stdout + found.stderr


def test_openssl_accepts_a_site_until_it_is_revoked(authority: Authority, tmp_path: Path) -> None:
    file = written(tmp_path, authority, "leeds")
    assert verified(file).strip().endswith("OK")
    made = certificates.read_certificate(file)
    assert certificates.named(made) == ("leeds", SITE)
    (tmp_path / "ca.crl").write_text(certificates.pem(authority.revoked([made.serial_number], 2)))
    assert "certificate revoked" in verified(file)


def test_a_client_is_no_server_and_a_server_no_client(authority: Authority, tmp_path: Path) -> None:
    written(tmp_path, authority, "leeds")
    server = authority.server(new_key().public_key(), ["coordinator.example.org", "127.0.0.1"], 30)
    (tmp_path / "server.crt").write_text(certificates.pem(server))
    assert "unsuitable certificate purpose" in verified(tmp_path / "server.crt")
    text = openssl("x509", "-in", tmp_path / "server.crt", "-noout", "-ext", "subjectAltName").stdout
    assert "DNS:coordinator.example.org" in text
    assert "IP Address:127.0.0.1" in text


def test_what_another_authority_signed_or_has_run_out_is_refused(authority: Authority) -> None:
    key = new_key().public_key()
    other = Authority.create("eyes and genes").client(key, "coordinator", COORDINATOR, 30)
    with pytest.raises(InputError, match="another authority signed it"):
        certificates.require_issued("kit", other, authority.certificate)
    own = authority.client(key, "leeds", SITE, 30)
    certificates.require_issued("kit", own, authority.certificate)
    with pytest.raises(InputError, match="good from"):
        certificates.require_issued("kit", own, authority.certificate, datetime.now(UTC) + timedelta(days=31))


def test_keys_are_closed_to_others_and_encrypted_where_there_is_a_passphrase(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, key = tmp_path / "ca.key", new_key()
    monkeypatch.setenv("PM1_KEY_PASSPHRASE", "open sesame")
    certificates.write_key(file, key, encrypted=True)
    assert "ENCRYPTED" in file.read_text()
    assert certificates.read_key(file).private_numbers() == key.private_numbers()
    with pytest.raises(InputError, match="found a key"):
        certificates.write_key(file, key, encrypted=True)
    monkeypatch.delenv("PM1_KEY_PASSPHRASE")
    with pytest.raises(InputError, match="PM1_KEY_PASSPHRASE"):
        certificates.read_key(file)
    file.chmod(0o640)
    with pytest.raises(InputError, match="chmod 600"):
        certificates.read_key(file)


@pytest.mark.parametrize("text", ["", "x", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
def test_what_is_no_certificate_is_refused_with_a_sentence(text: str) -> None:
    for read in (certificates.certificate, certificates.request_of, certificates.public_key):
        with pytest.raises(InputError):
            read("kit", text)


def _length(content: bytes) -> bytes:
    size = len(content)
    if size < 128:
        return bytes([size])
    digits = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes([0x80 | len(digits)]) + digits


def _parts(der: bytes) -> list[bytes]:
    """The elements of a DER sequence."""

    def head(at: int) -> tuple[int, int]:
        first = der[at + 1]
        if first < 128:
            return 2, first
        return 2 + first % 128, int.from_bytes(der[at + 2 : at + 2 + first % 128], "big")

    at, found = head(0)[0], []
    while at < len(der):
        front, size = head(at)
        found.append(der[at : at + front + size])
        at += front + size
    return found


@given(changes=st.lists(st.tuples(st.integers(2, 10_000), st.integers(0, 255)), min_size=1, max_size=3))
@example(changes=[(11, 128)])  # a negative serial number
@settings(max_examples=300, deadline=None)
def test_bytes_that_are_changed_and_signed_anew_are_no_traceback(
    authority: Authority, changes: list[tuple[int, int]]
) -> None:
    """Whoever holds the key can sign whatever it likes."""
    made = authority.client(authority.key.public_key(), "leeds", SITE, 30)
    asked = certificates.signing_request(authority.key, "leeds")
    for thing, label, read in (
        (made, "CERTIFICATE", certificates.certificate),
        (asked, "CERTIFICATE REQUEST", certificates.request_of),
    ):
        body, kind, _ = _parts(thing.public_bytes(serialization.Encoding.DER))
        changed = bytearray(body)
        for at, value in changes:
            changed[at % len(body)] = value
        signed = b"\0" + authority.key.sign(bytes(changed), ec.ECDSA(hashes.SHA384()))
        content = bytes(changed) + kind + b"\x03" + _length(signed) + signed
        der = base64.encodebytes(b"0" + _length(content) + content).decode()
        try:
            found = read("mail", f"-----BEGIN {label}-----\n{der}-----END {label}-----\n")
            certificates.named(found)
            if isinstance(found, x509.Certificate):
                certificates.require_issued("mail", found, authority.certificate)
        except InputError:
            continue
