"""A site's first day: keys that never leave, a request to the coordinator, and the kit that comes back."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from client.folder import SECRET, SiteFolder
from client.policy import DEFAULT
from client.policy import NAME as POLICY
from pm1_core import atomic, certificates
from pm1_core.certificates import Authority
from pm1_core.enrolment import Kit, Request, require_name, today
from pm1_core.errors import InputError, StateError
from pm1_core.signing import Signer, public_file
from pm1_core.validate import refusal

LOCAL_DAYS = 3650
_OWN = ("keys/tls.key", "keys/node.key", "keys/identity.pem")
_FOLDERS = ("keys", "local", "peers", "approvals", "audit", "state", "store", "run")
"""All from the first day: containers mount them one by one, each into those services that need it."""
_HOSTS = ("localhost", "127.0.0.1", "door")
"""Under which a SuperNode of this machine, or of its containers, reaches the door."""


def initialise(folder: SiteFolder, site: str) -> Path:
    """Make a site's folder with keys, policy and a request, whose path is returned.

    Raises InputError if it is one already, or the name cannot be that of a site.
    """
    require_name("site", site)
    if (folder.path / "site.json").exists():
        found = f"it is that of {_site(folder)!r}"
        raise InputError(refusal(folder.path, found, "use it, or renew its certificate with --renew"))
    with _locked(folder):
        for name in _FOLDERS:
            (folder.path / name).mkdir(mode=0o700, parents=True, exist_ok=True)
        # A crash leaves some of these; the next try keeps them.
        for name in ("tls.key", "node.key"):
            if not folder.file(f"keys/{name}").exists():
                certificates.write_key(folder.file(f"keys/{name}"), certificates.new_key(), encrypted=False)
        Signer.at(folder.file("keys/identity.pem"))
        _local(folder)
        if not folder.file(POLICY).exists():
            atomic.write_text(folder.file(POLICY), DEFAULT)
        request = _request(folder, site)
        atomic.write_json(folder.path / "site.json", {"site": site})
    return request


def renewed(folder: SiteFolder) -> Path:
    """Write the request again, of the keys that there are: for a certificate that runs out."""
    folder.require("site.json", *_OWN)
    with _locked(folder):
        return _request(folder, _site(folder))


def read_request(folder: SiteFolder) -> Request:
    """The request as it lies in the folder."""
    site = _site(folder)
    return Request.from_json((folder.path / f"{site}.request").read_text(), f"{site}.request")


def require_for(folder: SiteFolder, kit: Kit, replace: bool) -> None:
    """Raise InputError unless `kit` is for this site's own keys, and of the consortium that it is in.

    replace: leave that for another one
    """
    folder.require("site.json", *_OWN)
    site = _site(folder)
    if kit.site != site:
        raise InputError(refusal("kit", f"it is for {kit.site!r}, not {site!r}", "ask for this site's own"))
    own = certificates.read_key(folder.file("keys/tls.key")).public_key()
    certificate = certificates.certificate("kit", kit.certificate)
    key = certificate.public_key()
    if not isinstance(key, certificates.PublicKey) or key.public_numbers() != own.public_numbers():
        remedy = "send the request of this folder, and use the kit that answers it"
        raise InputError(refusal("kit", "its certificate is for another key than this site's", remedy))
    identity = public_file(folder.file("keys/identity.pem")).read_text()
    if kit.peers[site].strip() != identity.strip():
        raise InputError(
            refusal("kit", "it lists another identity key for this site", "do not use it; call them")
        )
    before = {"ca.crt": kit.authority, "coordinator.pub": kit.coordinator}
    for name, text in before.items():
        file = folder.path / name
        if file.exists() and file.read_text() != text and not replace:
            found, remedy = f"{name} is another than what was joined with", "use --replace if that is meant"
            raise InputError(refusal("kit", found, remedy))


def strangers(folder: SiteFolder, kit: Kit) -> dict[str, str]:
    """Peers of the kit whose key is new here, or another than before: site -> PEM."""

    def known(site: str) -> str:
        file = folder.path / "peers" / f"{site}.pub"
        return file.read_text() if file.exists() else ""

    return {site: key for site, key in sorted(kit.peers.items()) if known(site) != key}


def install(folder: SiteFolder, kit: Kit) -> None:
    """Put a kit, which was checked and compared, in its place; site.json comes last, and says that it is whole."""
    with _locked(folder):
        _local(folder)
        with atomic.whole_folder(folder.path / "peers") as peers:
            for site, key in kit.peers.items():
                atomic.write_text(peers / f"{site}.pub", key)
        atomic.write_text(folder.path / "ca.crt", kit.authority)
        atomic.write_text(folder.path / "client.crt", kit.certificate)
        atomic.write_text(folder.path / "coordinator.pub", kit.coordinator)
        facts = {"site": kit.site, "gateway": kit.gateway, "consortium": kit.consortium, "joined": today()}
        atomic.write_json(folder.path / "site.json", facts)


def _site(folder: SiteFolder) -> str:
    """Whose folder it is, also before it has joined. Raises StateError if site.json does not say."""
    file = folder.path / "site.json"
    content = atomic.read_json(file)
    if not isinstance(content, dict) or "site" not in content:
        raise StateError(refusal(file, "it names no site", "put your backup back"))
    return require_name(file, content["site"])


def _request(folder: SiteFolder, site: str) -> Path:
    tls, node = (certificates.read_key(folder.file(f"keys/{name}.key")) for name in ("tls", "node"))
    signer = Signer.load(folder.file("keys/identity.pem"))
    identity = public_file(folder.file("keys/identity.pem")).read_text()
    made = Request(
        site,
        certificates.pem(certificates.signing_request(tls, site)),
        certificates.public_pem(node.public_key()),
        identity,
        today(),
    )
    file = folder.path / f"{site}.request"
    atomic.write_text(file, made.signed(signer).to_json())
    return file


def _local(folder: SiteFolder) -> None:
    """A CA of this machine, which signs the door's certificate and is then forgotten: the key is not kept.

    And the secret that the SuperNode's ClientApp shows to the door.
    """
    if not folder.file(SECRET).exists():
        atomic.write_text(folder.file(SECRET), secrets.token_hex(32))  # mode 0600
    files = [folder.file(f"local/{name}") for name in ("ca.crt", "door.crt", "door.key")]
    if all(file.exists() for file in files):
        return
    for file in files:
        file.unlink(missing_ok=True)
    authority, key = Authority.create("this machine"), certificates.new_key()
    certificates.write_key(files[2], key, encrypted=False)
    atomic.write_text(
        files[1], certificates.pem(authority.server(key.public_key(), list(_HOSTS), LOCAL_DAYS))
    )
    atomic.write_text(files[0], certificates.pem(authority.certificate))


@contextmanager
def _locked(folder: SiteFolder) -> Iterator[None]:
    try:
        with atomic.locked(folder.path / "lock", "wait until the other command has ended"):
            yield
    except FileExistsError:
        raise StateError(refusal(folder.path, "it is no folder", "choose another")) from None
