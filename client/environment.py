"""What a site's machine is like: room, memory, GPU, clock, names, certificates and the way to the coordinator.

Each finding is one line with what to do about it. "fail" is what keeps the site out of a study, "warn" what may
do so later or cannot be told from here.
"""

from __future__ import annotations

import os
import shutil
import socket
import ssl
import stat
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from client.folder import SECRET, SiteFolder, joined, parsed_address
from client.policy import NAME as POLICY
from client.policy import Policy
from client.services import PROXY, STORE
from pm1_core import certificates
from pm1_core.errors import PM1Error
from pm1_core.validate import refusal

OK, WARN, FAIL = "ok", "warn", "fail"
GIB = 1 << 30
DISK = 2 * GIB, 20 * GIB
"""Free bytes: fails below the first, warns below the second. A full model is 4.1 GiB, and several are kept."""
MEMORY = 3 * GIB, 8 * GIB
"""All bytes: a SuperNode (0.7), the process that receives an object (1.0) and torch (0.9) have to fit."""
SOON = 30  # days
AHEAD, BEHIND = 5.0, 300.0
"""Seconds by which a SuperNode's time stamp may differ from the SuperLink's clock (Flower 1.41)."""
_PRIVATE = ("keys/tls.key", "keys/node.key", "keys/identity.pem", "local/door.key", SECRET)
_SECONDS = 10.0


@dataclass(frozen=True)
class Finding:
    """One line. state: OK, WARN or FAIL; remedy: "" if nothing is to be done"""

    check: str
    state: str
    found: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.state:<5} {self.check:<12} {self.found}" + (f"; {self.remedy}" if self.remedy else "")


@dataclass(frozen=True)
class Answered:
    """What the gateway said. status: of HTTP; began, ended: our clock, seconds; until: of its certificate"""

    status: int
    date: str
    began: float
    ended: float
    until: datetime


def findings(folder: SiteFolder) -> Iterator[Finding]:
    """All of them, each as soon as it is known. Raises StateError if `folder` is no site's."""
    folder.require("site.json")
    yield keys(folder)
    yield policy(folder)
    yield from disk(folder)
    yield memory()
    yield gpu()
    yield store(folder)
    try:
        gateway = folder.facts["gateway"]
        folder.require("ca.crt", "client.crt", "coordinator.pub")
    except PM1Error as error:
        yield Finding("consortium", FAIL, str(error).rstrip("."))
        return
    yield from dates(folder)
    yield from route(folder, gateway, os.environ.get(PROXY) or None)


def keys(folder: SiteFolder) -> Finding:
    """Whether all private keys and secrets are there, and closed to others."""
    for name in _PRIVATE:
        file = folder.file(name)
        if not file.exists():
            return Finding("keys", FAIL, f"{name} is missing", "put your backup back, or make a new folder")
        if (mode := stat.S_IMODE(file.stat().st_mode)) & 0o077:
            return Finding("keys", FAIL, f"{name} can be read by others ({mode:04o})", f"chmod 600 {file}")
    return Finding("keys", OK, f"{len(_PRIVATE)} private keys and secrets, closed to others")


def policy(folder: SiteFolder) -> Finding:
    """Whether the door could read the policy."""
    try:
        Policy.load(folder.file(POLICY))
    except PM1Error as error:
        return Finding("policy", FAIL, str(error).rstrip("."))
    return Finding("policy", OK, f"{POLICY} can be read")


def disk(folder: SiteFolder) -> Iterator[Finding]:
    """Room and rights where the site writes, once for each file system."""
    seen = set()
    for name in ("state", "audit", "run"):
        path = folder.file(name)
        if not path.is_dir():
            yield Finding("disk", FAIL, f"the folder {path} is missing", f"mkdir -m 700 {path}")
        elif not os.access(path, os.W_OK | os.X_OK):
            remedy = f"give it to the user of the services (here {os.geteuid()})"
            yield Finding("disk", FAIL, f"{path} cannot be written to", remedy)
        elif (device := path.stat().st_dev) not in seen:
            seen.add(device)
            free = shutil.disk_usage(path).free
            remedy = "free some: a study keeps its model, two updates and what training remembers"
            yield _graded("disk", free, DISK, f"{free / GIB:.1f} GiB free at {path}", remedy)


def memory(root: Path = Path("/")) -> Finding:
    """What this machine, or the container that this runs in, has. root: of the file system, for tests"""
    limits = []
    try:
        for line in (root / "proc/meminfo").read_text().splitlines():
            if line.startswith("MemTotal:"):
                limits.append(int(line.split()[1]) * 1024)
    except (OSError, ValueError, IndexError):
        pass
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        try:
            limits.append(int((root / "sys/fs/cgroup" / name).read_text()))
        except (OSError, ValueError):  # "max", or no container
            continue
    if not limits:
        return Finding("memory", WARN, "cannot be told on this system", "see that it has 8 GiB or more")
    whole = min(limits)
    remedy = "give the machine or container more; a large model needs more yet"
    return _graded("memory", whole, MEMORY, f"{whole / GIB:.1f} GiB", remedy)


def gpu() -> Finding:
    """What torch can train on."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        import torch

        if torch.cuda.is_available():
            found = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
            text = ", ".join(f"{one.name} ({one.total_memory / GIB:.0f} GiB)" for one in found)
            return Finding("gpu", OK, text)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if not (Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi")):
        found_none = f"none; training runs on {cores} cores, and a study that asks for cuda cannot run here"
        return Finding("gpu", OK, found_none)
    reason = f": {str(said[0].message).splitlines()[0][:120]}" if said else ""
    remedy = "install the torch that fits the driver; in a container, hand the GPU in"
    return Finding(
        "gpu", WARN, f"NVIDIA's driver is here, torch {torch.__version__} finds none{reason}", remedy
    )


def store(folder: SiteFolder) -> Finding:
    """Whether there are prepared data. What is in them, `pm1-site check MANIFEST` and `prepare` say."""
    from pm1_core.data.store import Store

    path = Path(os.environ.get(STORE) or folder.file("store"))
    if not (path / "store.json").exists():
        return Finding("store", WARN, f"nothing is prepared in {path}", f"pm1-site prepare ... store={path}")
    try:
        held = Store.open(path)
    except PM1Error as error:
        return Finding("store", FAIL, str(error).rstrip("."))
    return Finding("store", OK, f"{path}: {len(held.subjects)} people")


def dates(folder: SiteFolder, now: datetime | None = None) -> Iterator[Finding]:
    """Certificates in the folder: whose, and for how long."""
    now = now or datetime.now(UTC)
    try:
        own, authority, door, local = (
            certificates.read_certificate(folder.file(name))
            for name in ("client.crt", "ca.crt", "local/door.crt", "local/ca.crt")
        )
        certificates.require_issued("client.crt", own, authority, now)
        certificates.require_issued("local/door.crt", door, local, now)
        key = certificates.read_key(folder.file("keys/tls.key")).public_key()
    except PM1Error as error:
        yield Finding("certificate", FAIL, str(error).rstrip("."))
        return
    if own.public_key() != key:
        remedy = "pm1-site join with the kit of this site's own request"
        yield Finding("certificate", FAIL, "client.crt is for another key than keys/tls.key", remedy)
        return
    until = min(own.not_valid_after_utc, authority.not_valid_after_utc, door.not_valid_after_utc)
    days = (until - now).days
    remedy = "" if days >= SOON else "pm1-site init --renew, and send the request to the coordinator"
    text = f"good until {until:%Y-%m-%d}, {days} days"
    yield Finding("certificate", OK if days >= SOON else WARN, text, remedy)


def route(folder: SiteFolder, gateway: str, proxy: str | None) -> Iterator[Finding]:
    """The way to the gateway, step by step: name, TCP, TLS with both certificates, HTTP, and its clock."""
    host: str | None
    host, port = parsed_address("gateway", gateway)
    if proxy:
        try:
            parts = urlsplit(proxy)
            host, port = parts.hostname if parts.scheme == "http" else None, parts.port or 80
        except ValueError:
            host = None
        if not host:
            yield Finding("way out", FAIL, f"{PROXY} is {proxy!r}"[:90], "write http://HOST:PORT")
            yield _untold()
            return
        yield Finding("way out", OK, f"by the proxy {joined(host, port)} ({PROXY}), which looks {gateway} up")
    try:
        ip_address(host)
        yield Finding("dns", OK, f"{host} is an address, nothing to look up")
    except ValueError:
        try:
            found = sorted(
                {str(one[4][0]) for one in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)}
            )
            yield Finding("dns", OK, f"{host} is {', '.join(found)}")
        except (OSError, UnicodeError) as error:
            remedy = "ask who runs your name server, or write the address into /etc/hosts"
            yield Finding("dns", FAIL, f"{host!r} has no address here ({error})", remedy)
            yield _untold()
            return
    began = time.monotonic()
    try:
        with socket.create_connection((host, port), timeout=_SECONDS):
            took = (time.monotonic() - began) * 1000
    except OSError as error:
        remedy = f"let TCP out to {joined(host, port)}; if that is done, ask the coordinator whether it runs"
        yield Finding("tcp", FAIL, f"{joined(host, port)} cannot be reached ({error})", remedy)
        yield _untold()
        return
    yield Finding("tcp", OK, f"{joined(host, port)} in {took:.0f} ms")
    try:
        said = _asked(folder, gateway, proxy)
    except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
        yield _refused(error)
        yield _untold()
        return
    yield Finding("tls", OK, "TLS 1.3, the gateway's certificate is of the consortium")
    yield _admitted(said)
    yield clock(said)


def clock(said: Answered) -> Finding:
    """Our clock beside the gateway's, which tells whole seconds only."""
    try:
        told = parsedate_to_datetime(said.date).timestamp()
    except ValueError:
        return _untold("the gateway told no date")
    ahead = (said.began + said.ended) / 2 - told - 0.5
    about = 0.5 + (said.ended - said.began) / 2
    word = "ahead of" if ahead > 0 else "behind"
    text = f"{abs(ahead):.1f} s {word} the gateway's, give or take {about:.1f}"
    remedy = "set it by NTP; which of the two clocks is wrong cannot be told from here"
    if ahead - about > AHEAD or ahead + about < -BEHIND:
        return Finding("clock", FAIL, text + f" (at most {AHEAD:.0f} ahead, {BEHIND:.0f} behind)", remedy)
    return Finding("clock", WARN, text, remedy) if abs(ahead) - about > 2 else Finding("clock", OK, text)


def _untold(reason: str = "the gateway was not reached") -> Finding:
    return Finding("clock", WARN, f"cannot be told: {reason}", "compare it with an NTP server")


def _asked(folder: SiteFolder, gateway: str, proxy: str | None) -> Answered:
    """Ask the gateway whether it is well, as this site. Raises httpx.HTTPError or OSError."""
    context = ssl.create_default_context(cafile=folder.file("ca.crt"))
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(folder.file("client.crt"), folder.file("keys/tls.key"))
    with (
        httpx.Client(verify=context, trust_env=False, proxy=proxy, timeout=_SECONDS) as client,
        client.stream("GET", f"https://{gateway}/health") as first,
    ):
        tls = first.extensions["network_stream"].get_extra_info("ssl_object")
        until = ssl.cert_time_to_seconds(tls.getpeercert()["notAfter"])
        first.read()
        began = time.time()  # the second request needs no handshake, so that it times the way only
        answer = client.get(f"https://{gateway}/health")
        date = answer.headers.get("date", "")
        good = datetime.fromtimestamp(until, UTC)
        return Answered(answer.status_code, date, began, time.time(), good)


def _refused(error: Exception) -> Finding:
    """Why there is no TLS connection."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, ssl.SSLError):
        cause = cause.__cause__ or cause.__context__
    if isinstance(cause, ssl.SSLCertVerificationError):
        remedy = (
            "let a firewall that opens TLS leave this address alone; if there is none, call the coordinator"
        )
        return Finding(
            "tls", FAIL, f"whoever answers has no certificate for it ({cause.verify_message})", remedy
        )
    reason = getattr(cause, "reason", None) or str(error) or type(error).__name__
    remedy = "whoever answers speaks no TLS 1.3: ask your network's people, then the coordinator"
    return Finding("tls", FAIL, f"no connection ({reason})", remedy)


def _admitted(said: Answered) -> Finding:
    """Whether the gateway took our certificate: nginx says that by HTTP, after the handshake."""
    if said.status == 400:
        remedy = "ask the coordinator whether it was revoked; then join with a new kit"
        return Finding("gateway", FAIL, "it does not take this site's certificate (HTTP 400)", remedy)
    if said.status != 200:
        remedy = "ask the coordinator: pm1-server health gateway"
        return Finding("gateway", FAIL, f"it is not well (HTTP {said.status})", remedy)
    days = (said.until - datetime.now(UTC)).days
    text = f"takes this site's certificate; its own is good for {days} days"
    remedy = "" if days >= SOON else "tell the coordinator: pm1-server init --renew"
    return Finding("gateway", OK if days >= SOON else WARN, text, remedy)


def _graded(check: str, value: int, bounds: tuple[int, int], text: str, remedy: str) -> Finding:
    state = FAIL if value < bounds[0] else WARN if value < bounds[1] else OK
    return Finding(check, state, text, "" if state == OK else remedy)


def examine(folder: SiteFolder, show: Callable[[Finding], None]) -> tuple[list[Finding], str]:
    """All findings, each shown as it comes, and a refusal if one of them fails, else ""."""
    found = []
    for one in findings(folder):
        show(one)
        found.append(one)
    failed = [one.check for one in found if one.state == FAIL]
    if not failed:
        return found, ""
    return found, refusal(folder.path, f"failed: {', '.join(failed)}", "do what these lines say")
