"""A consortium and a site that has joined it, as commands leave them."""

from __future__ import annotations

from pathlib import Path

from client.enrol import initialise, install
from client.folder import SiteFolder
from pm1_core.enrolment import Kit, Request
from server.consortium import Consortium


def founded(folder: Path, port: int) -> Consortium:
    """One whose gateway is on a port of this machine."""
    return Consortium.create(folder, "test", f"127.0.0.1:{port}")


def joined(consortium: Consortium, path: Path, site: str, store: Path | None = None) -> SiteFolder:
    """A site that was enrolled and has joined. store: where the prepared data are"""
    folder = SiteFolder(path)
    request = initialise(folder, site)
    kit = consortium.enrol(Request.from_json(request.read_text(), request))
    install(folder, Kit.from_json(kit.read_text(), kit))
    if store:
        (path / "store").rmdir()  # which init makes
        (path / "store").symlink_to(store)
    return SiteFolder(path)
