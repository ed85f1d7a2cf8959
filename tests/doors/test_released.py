"""A site fetches what the coordinator released, whole and signed, and nothing else."""

from __future__ import annotations

import hashlib
import shutil
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lineages import Run, command, promote, whole_run
from mutations import mutated

from client.fetch import PATH, Library
from pm1_core.checkpoint import CheckpointFolder
from pm1_core.errors import CheckpointError, FederationError, InputError, PM1Error
from pm1_core.objects import ObjectStore
from pm1_core.signing import Signer, Trust, public_file
from server.consortium import Consortium


class Gateway:
    """The gateway's read-only path over `public`, and a line that breaks when it is told to."""

    def __init__(self, public: Path) -> None:
        self.public = public
        self.asked: list[str] = []
        self.breaks_at = ""
        self.changed: dict[str, bytes] = {}

    def library(self, trust: Trust) -> Library:
        client = httpx.Client(transport=httpx.MockTransport(self._answer), base_url="https://gateway")
        return Library(client, trust)

    def _answer(self, request: httpx.Request) -> httpx.Response:
        name = request.url.path.removeprefix(PATH + "/")
        self.asked.append(name)
        if name == self.breaks_at:
            raise httpx.ReadError("reset by peer")
        file = self.public / "checkpoints" / name
        if not file.is_file():
            return httpx.Response(404)
        return httpx.Response(200, stream=httpx.ByteStream(self.changed.get(name, file.read_bytes())))


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return whole_run(tmp_path / "first")


@pytest.fixture
def gateway(run: Run, tmp_path: Path) -> Gateway:
    """With one release."""
    consortium = Consortium.create(tmp_path / "consortium", "test", "127.0.0.1:1")
    promote(run)
    assert command("publish", run.folder, "--folder", consortium.folder) == 0
    return Gateway(consortium.folder / "public")


def test_a_release_is_fetched_whole_and_a_second_time_only_what_lacks(
    run: Run, gateway: Gateway, tmp_path: Path
) -> None:
    library = gateway.library(run.trust)
    (listed,) = library.listed()
    found = library.fetch("", tmp_path / "out")
    assert found == run.checkpoints.load(5)
    assert found.hash == listed["hash"]
    digests = {digest for held in found.parts.values() for digest in held}
    for digest in digests:
        ObjectStore(tmp_path / "out/objects").check(digest)
    assert listed["bytes"] == sum(file.stat().st_size for file in (tmp_path / "out/objects").iterdir())
    gateway.asked.clear()
    assert library.fetch(found.hash[:8], tmp_path / "out") == found
    assert not [name for name in gateway.asked if name.startswith("objects")]


def test_what_is_not_released_is_not_published(run: Run, tmp_path: Path) -> None:
    consortium = Consortium.create(tmp_path / "consortium", "test", "127.0.0.1:1")
    assert command("publish", run.folder, "--folder", consortium.folder) == 2
    assert command("publish", run.folder, "3", "--folder", consortium.folder) == 2
    assert gateway_of(consortium).library(run.trust).listed() == []


def gateway_of(consortium: Consortium) -> Gateway:
    return Gateway(consortium.folder / "public")


def test_a_manifest_that_another_key_signed_is_refused(run: Run, gateway: Gateway, tmp_path: Path) -> None:
    Signer.create(tmp_path / "other.pem")
    library = gateway.library(Trust.load(public_file(tmp_path / "other.pem")))
    with pytest.raises(CheckpointError, match="signature is not the coordinator's"):
        library.fetch("", tmp_path / "out")
    assert not (tmp_path / "out/checkpoint.json").exists()


def test_an_object_with_other_content_is_refused_and_nothing_of_it_is_left(
    run: Run, gateway: Gateway, tmp_path: Path
) -> None:
    checkpoint = CheckpointFolder(run.folder / "checkpoints").load(5)
    digest = next(iter(checkpoint.parts.values()))[0]
    changed = gateway.public / "checkpoints/objects" / f"{digest}.safetensors"
    content = changed.read_bytes()
    changed.unlink()  # it is the run's own file under another name
    changed.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(CheckpointError, match="its content has another hash"):
        gateway.library(run.trust).fetch("", tmp_path / "out")
    assert not list((tmp_path / "out/objects").glob(f"*{digest}*"))
    assert not (tmp_path / "out/checkpoint.json").exists()


def test_an_interrupted_fetch_goes_on(run: Run, gateway: Gateway, tmp_path: Path) -> None:
    checkpoint = CheckpointFolder(run.folder / "checkpoints").load(5)
    last = sorted(digest for held in checkpoint.parts.values() for digest in held)[-1]
    gateway.breaks_at = f"objects/{last}.safetensors"
    library = gateway.library(run.trust)
    with pytest.raises(FederationError, match="it goes on"):
        library.fetch("", tmp_path / "out")
    gateway.breaks_at = ""
    gateway.asked.clear()
    assert library.fetch("", tmp_path / "out") == checkpoint
    assert [name for name in gateway.asked if name.startswith("objects")] == [f"objects/{last}.safetensors"]


def test_a_name_that_nothing_has_is_refused_with_those_there_are(
    run: Run, gateway: Gateway, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=f"released: {run.checkpoints.load(5).hash[:16]}"):
        gateway.library(run.trust).fetch("ffff", tmp_path / "out")


@given(data=st.data())
@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_the_gateway_answers_is_a_sentence_and_stays_in_its_folder(
    run: Run, gateway: Gateway, tmp_path: Path, data: st.DataObject
) -> None:
    """Index, manifest or an object, changed on the way."""
    public = gateway.public / "checkpoints"
    name = data.draw(st.sampled_from(sorted(str(file.relative_to(public)) for file in _files(public))))
    changed = (
        mutated((public / name).read_bytes(), data) if name.endswith(".json") else data.draw(st.binary())
    )
    gateway.changed = {name: changed}
    before, out = set(_files(tmp_path)), tmp_path / "out"
    with suppress(PM1Error):
        assert gateway.library(run.trust).fetch("", out) == run.checkpoints.load(5)
    for file in set(_files(tmp_path)) - before:
        assert file.parent in (out, out / "objects")
        if file.suffix == ".safetensors":
            assert hashlib.sha256(file.read_bytes()).hexdigest() == file.stem
    shutil.rmtree(out, ignore_errors=True)


def _files(folder: Path) -> list[Path]:
    return [file for file in folder.rglob("*") if file.is_file()]
