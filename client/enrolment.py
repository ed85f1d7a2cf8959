"""Who a site is, whom it enrolled with, and whether it answers in the clear."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from client.site import Site
from pm1_core import atomic
from pm1_core.errors import PrivacyError
from pm1_core.privacy.secure_plan import Secured
from pm1_core.signing import Signer, Trust
from pm1_core.validate import refusal

if TYPE_CHECKING:
    from pm1_core.training.order import Order


def require_aggregation(site: Site, order: Order) -> None:
    """Raise PrivacyError unless this site may answer `order` in the way in which it wants answers added up.

    A study whose answers are added up stays so: no later order gets one in the clear.
    """
    where, marker = f"phase {order.phase!r}", site.folder / "secure"
    if order.secure:
        Secured.of(order.secure)
        known, own = known_peers(site.paths.peers), public_hex(identity(site.paths.identity))
        if known.get(site.store.site) != own:
            found = f"{site.store.site}.pub among the peers is not the identity's public key"
            raise PrivacyError(refusal(where, found, "put there what lies beside the identity"))
        if order.encoding != "full":
            found = f"encoding {order.encoding!r} under secure aggregation"
            raise PrivacyError(refusal(where, found, "use encoding=full: words of the sum are its encoding"))
        if not marker.exists():
            atomic.write_text(marker, "")
        return
    if marker.exists():
        found = "it asks for an answer in the clear, and this study began with secure aggregation"
        raise PrivacyError(refusal(where, found, "ask the coordinator why"))
    if site.paths.peers and not site.paths.unsecured:
        found = "it asks for an answer in the clear, and this site has peers"
        remedy = 'study with aggregation=secure, or allow it here: --node-config "unsecured=true"'
        raise PrivacyError(refusal(where, found, remedy))


def identity(file: str) -> Signer:
    """The site's long-term key. Raises PrivacyError if the site has none."""
    if not file:
        remedy = (
            'make one with pm1-site key, and start with identity="/etc/pm1/site.pem" peers="/etc/pm1/peers"'
        )
        raise PrivacyError(refusal("secure sum", "this site has no identity key", remedy))
    return Signer.load(Path(file))


def public_hex(signer: Signer) -> str:
    """A public key as secure sums write it: 32 bytes in hex."""
    return signer.key.public_key().public_bytes_raw().hex()


def known_peers(folder: str) -> dict[str, str]:
    """The sites that this one enrolled with, itself among them: name -> public key, of the files NAME.pub.

    Raises PrivacyError if there is no such folder, InputError if a file is no public key.
    """
    files = sorted(Path(folder).glob("*.pub")) if folder else []
    if not files:
        remedy = "put the public key of every site there as SITE.pub, compared by telephone"
        raise PrivacyError(refusal(f"peers {folder or 'folder'}", "found no public keys", remedy))
    return {
        file.name.removesuffix(".pub"): Trust.load(file).keys[0].public_bytes_raw().hex() for file in files
    }
