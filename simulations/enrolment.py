"""What enrolment does in a deployment, for simulated sites: each has an identity key, and knows the others'."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from client.site import SitePaths
from pm1_core import atomic
from pm1_core.signing import Signer, public_file


def enrolled(sites: Mapping[str, SitePaths], keys: Path) -> list[SitePaths]:
    """The sites with an identity key and each other's public keys, made in `keys` where there are none yet.

    keys: private keys lie there as NAME.pem, public ones below it in peers/ as NAME.pub
    """
    peers = keys.resolve() / "peers"
    for name in sites:
        file = keys / f"{name}.pem"
        Signer.at(file)
        atomic.write_bytes(peers / f"{name}.pub", public_file(file).read_bytes())
    return [
        replace(paths, identity=str(keys.resolve() / f"{name}.pem"), peers=str(peers))
        for name, paths in sites.items()
    ]
