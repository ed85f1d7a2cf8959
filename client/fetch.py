"""What the coordinator released, fetched through the gateway's read-only path and checked here.

A manifest has to be signed by the coordinator whose key this site has, and an object to be what its hash says. What
is already on the disk is not fetched again, so that an interrupted fetch goes on.

    OUT/checkpoint.json         the signed manifest
    OUT/objects/SHA256.safetensors      its tensors
"""

from __future__ import annotations

import hashlib
import re
import ssl
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import httpx

from client.folder import SiteFolder
from pm1_core import atomic
from pm1_core.checkpoint import Checkpoint
from pm1_core.errors import CheckpointError, FederationError, InputError
from pm1_core.signing import Trust
from pm1_core.validate import refusal

PATH = "/v1/consortium/checkpoints"
_SHA256 = re.compile(r"[0-9a-f]{64}")
_TEXT = 64 << 20
_CHUNK = 1 << 20
Progress = Callable[[int, int], None]


class Library:
    """What there is to be fetched. client: of the gateway, with this site's certificate"""

    def __init__(self, client: httpx.Client, trust: Trust) -> None:
        self.client = client
        self.trust = trust

    @staticmethod
    def of(folder: SiteFolder, proxy: str | None = None) -> Library:
        """As the site of `folder`."""
        folder.require("ca.crt", "client.crt", "keys/tls.key", "coordinator.pub")
        context = ssl.create_default_context(cafile=folder.file("ca.crt"))
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.load_cert_chain(folder.file("client.crt"), folder.file("keys/tls.key"))
        client = httpx.Client(
            base_url=f"https://{folder.facts['gateway']}", verify=context, trust_env=False, proxy=proxy
        )
        return Library(client, Trust.load(folder.file("coordinator.pub")))

    def listed(self) -> list[dict[str, Any]]:
        """Released checkpoints, the newest last: hash, study, release, privacy, bytes. Raises FederationError."""
        answer = self._get(f"{PATH}/index.json")
        if answer is None:
            return []
        try:
            found = httpx.Response(200, content=answer).json()["checkpoints"]
            return [{**one, "hash": str(one["hash"]), "bytes": int(one.get("bytes") or 0)} for one in found]
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
            raise FederationError(
                refusal("index of checkpoints", "it is damaged", "ask the coordinator")
            ) from None

    def fetch(self, name: str, out: Path, progress: Progress = lambda done, whole: None) -> Checkpoint:
        """Fetch the checkpoint whose hash begins with `name`, "" for the newest, into `out`.

        progress: bytes fetched, and in all
        Raises InputError if there is none or several, CheckpointError if it is not what the coordinator signed.
        """
        found = [one for one in self.listed() if one["hash"].startswith(name)]
        found = found[-1:] if not name else found
        if len(found) != 1 or not _SHA256.fullmatch(found[0]["hash"]):
            known = ", ".join(one["hash"][:16] for one in self.listed()) or "nothing"
            raise InputError(
                refusal(f"checkpoint {name!r}", f"{len(found)} have this name", f"released: {known}")
            )
        wanted = found[0]["hash"]
        text = (self._get(f"{PATH}/{wanted[:16]}/checkpoint.json") or b"").decode("utf-8", "replace")
        checkpoint = Checkpoint.from_json(text, f"checkpoint {wanted[:16]}")
        self.trust.require(f"checkpoint {wanted[:16]}", checkpoint.signed_bytes, checkpoint.signature)
        if checkpoint.hash != wanted:
            raise CheckpointError(refusal("checkpoint", "it is another one", "ask the coordinator"))
        objects = out / "objects"
        objects.mkdir(parents=True, exist_ok=True)
        done, whole = 0, found[0]["bytes"]

        def tell(before: int, size: int) -> None:
            progress(before + size, whole)

        for digest in sorted({digest for held in checkpoint.parts.values() for digest in held}):
            if not _SHA256.fullmatch(digest):
                raise CheckpointError(refusal("checkpoint", "an object has no hash", "ask the coordinator"))
            file = objects / f"{digest}.safetensors"
            if not file.exists():
                self._fetch(digest, file, partial(tell, done))
            done += file.stat().st_size
            progress(done, whole)
        atomic.write_text(out / "checkpoint.json", text)
        return checkpoint

    def _fetch(self, digest: str, file: Path, progress: Callable[[int], None]) -> None:
        """Fetch an object. Raises CheckpointError, and leaves nothing, if it is not what its hash says."""
        sha256, size, beside = hashlib.sha256(), 0, file.with_name(f".{file.name}.partial")
        try:
            with (
                beside.open("wb") as stream,
                self.client.stream("GET", f"{PATH}/objects/{file.name}") as answer,
            ):
                if answer.status_code != 200:
                    found = f"found HTTP status {answer.status_code}"
                    raise FederationError(refusal(f"object {digest[:12]}", found, "try again"))
                for chunk in answer.iter_raw(_CHUNK):
                    sha256.update(chunk)
                    stream.write(chunk)
                    progress(size := size + len(chunk))
                stream.flush()
                atomic.sync(stream.fileno())
            if sha256.hexdigest() != digest:
                found = "its content has another hash"
                raise CheckpointError(refusal(f"object {digest[:12]}", found, "ask the coordinator"))
            beside.replace(file)
        except httpx.TransportError as error:
            raise FederationError(
                refusal("gateway", f"the line broke ({error})", "run it again, it goes on")
            ) from None
        finally:
            beside.unlink(missing_ok=True)

    def _get(self, path: str) -> bytes | None:
        """A small file, None if it is not there. Raises FederationError."""
        try:
            with self.client.stream("GET", path) as answer:
                if answer.status_code == 404:
                    return None
                if answer.status_code != 200:
                    raise FederationError(
                        refusal("gateway", f"found HTTP status {answer.status_code}", "see pm1-site check")
                    )
                body = b""
                for chunk in answer.iter_raw(_CHUNK):
                    body += chunk
                    if len(body) > _TEXT:
                        raise FederationError(refusal(path, "it is too large", "ask the coordinator"))
                return body
        except httpx.TransportError as error:
            raise FederationError(
                refusal("gateway", f"cannot be reached ({error})", "see pm1-site check")
            ) from None
