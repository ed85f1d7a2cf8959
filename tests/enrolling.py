"""The commands by which a site gets in."""

from __future__ import annotations

from pathlib import Path

from client.cli import main as site_command
from pm1_core.enrolment import Kit, Request
from server.cli import main as server_command


def started(folder: Path) -> tuple[Path, Path]:
    """Folders of a consortium and of a site that wrote its request."""
    consortium, site = folder / "consortium", folder / "site"
    arguments = ["--folder", str(consortium), "--name", "Eyes and genes", "--address", "127.0.0.1:8443"]
    assert server_command(["init", *arguments]) == 0
    assert site_command(["init", "--folder", str(site), "--site", "leeds"]) == 0
    return consortium, site


def enrol(consortium: Path, request: Path, *more: str, heard: str | None = None) -> int:
    text = request.read_text()
    heard = heard or Request.from_json(text, request).fingerprint
    return server_command(["enrol", "--folder", str(consortium), str(request), "--fingerprint", heard, *more])


def join(site: Path, kit: Path, *more: str, heard: str | None = None) -> int:
    heard = heard or Kit.from_json(kit.read_text(), kit).fingerprint
    return site_command(["join", "--folder", str(site), str(kit), "--fingerprint", heard, *more])
