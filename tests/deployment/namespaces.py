"""Containers without an engine: processes in namespaces of their own, as another user and without capabilities.

A Switch stands for the machine's bridges, one for each network of the compose file; it is a network namespace of
its own, so that nothing of it touches this machine's network. A Container is a service's own command line in new
network, mount, process, IPC and host name namespaces. Its root holds the system's programs, the image's folder and
the service's mounts, and is read-only where the file says so. All end with their first process, and that one with
the process that runs the tests.

IMAGE is the one place in which paths of the image are mapped to those of this machine.
"""

from __future__ import annotations

import ipaddress
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from composed import ROOT, Mount, Service

IMAGE = {
    "/opt/pm1": ROOT,
    # The checkout's virtual environment names itself and its Python by the paths that they have here.
    str(ROOT): ROOT,
    sys.base_prefix: Path(sys.base_prefix),
    "/usr": Path("/usr"),
    "/etc": Path("/etc"),
    "/sys": Path("/sys"),
}
"""Path in a container -> what lies there, read-only."""

_LINKS = ("bin", "lib", "lib64", "sbin")
_DEVICES = ("null", "zero", "full", "random", "urandom")
_TOOLS = ("ip", "unshare", "nsenter", "setpriv", "mount", "chroot")
# Stands for the engine's own first process (`init: true`): passes the signal on, collects what is left behind.
_INIT = """\
trap 'kill -TERM "$child" 2>/dev/null' TERM INT
"$@" & child=$!
wait "$child"; code=$?
while kill -0 "$child" 2>/dev/null; do wait "$child"; code=$?; done
exit "$code"
"""


def missing() -> str:
    """Why this machine cannot make such containers; "" if it can."""
    if os.geteuid():
        return "namespaces, mounts and bridges need root"
    for tool in _TOOLS:
        if not shutil.which(tool):
            return f"{tool} is not installed (util-linux, iproute2)"
    trial = "mount -t tmpfs none /mnt && ip link add br0 type bridge && ip link add port0 type veth peer name port1"
    command = ["unshare", "--net", "--mount", "--pid", "--ipc", "--uts", "--fork", "sh", "-c", trial]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return f"no right to make namespaces: {done.stderr.strip()}" if done.returncode else ""


class Switch:
    """The bridges of a machine. networks: network -> subnet, "" for any"""

    def __init__(self, networks: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "unshare", "--net", "sleep", "infinity"]
        )
        self.pid = self._process.pid
        _await("a network namespace", lambda: _namespace(self.pid) != _namespace(os.getpid()))
        self.networks = {
            name: ipaddress.ip_network(subnet or f"10.232.{number}.0/24")
            for number, (name, subnet) in enumerate(sorted(networks.items()))
        }
        self._free = {name: network.hosts() for name, network in self.networks.items()}
        self._bridges = {name: f"br{number}" for number, name in enumerate(sorted(networks))}
        self._links = 0
        self._ip("link", "set", "lo", "up")
        for name, bridge in self._bridges.items():
            self._ip("link", "add", bridge, "type", "bridge")
            self._ip("address", "add", f"{self.gateway(name)}/24", "dev", bridge)
            self._ip("link", "set", bridge, "up")

    def gateway(self, network: str) -> str:
        """The machine's own address in a network: the first."""
        return str(self.networks[network][1])

    def address(self, network: str) -> str:
        """An address that nobody has."""
        found = str(next(self._free[network]))
        return self.address(network) if found == self.gateway(network) else found

    def join(self, pid: int, network: str, address: str, routed: bool) -> str:
        """Give the process's network namespace a cable into `network`, and the name of its plug here.

        routed: with the machine as its way out
        """
        self._links += 1
        here, there = f"port{self._links}", f"eth-{self._bridges[network]}"
        self._ip("link", "add", here, "type", "veth", "peer", "name", there, "netns", str(pid))
        self._ip("link", "set", here, "master", self._bridges[network], "up")
        _ip(pid, "address", "add", f"{address}/24", "dev", there)
        _ip(pid, "link", "set", there, "up")
        if routed:
            _ip(pid, "route", "add", "default", "via", self.gateway(network))
        return here

    def plug(self, cable: str, state: str) -> None:
        """Set a cable "up" or "down"."""
        self._ip("link", "set", cable, state)

    def close(self) -> None:
        """End it; the kernel takes bridges and cables along."""
        self._process.kill()
        self._process.wait()

    def _ip(self, *words: str) -> None:
        _ip(self.pid, *words)


class Container:
    """A service that runs.

    mounts: the service's, with sources that exist; hosts: text of /etc/hosts; folder: for its root and its log
    """

    def __init__(
        self,
        service: Service,
        folder: Path,
        hosts: str,
        connect: Callable[[int], None],
        environment: Mapping[str, str],
    ) -> None:
        self.service = service
        self.log = folder / f"{service.name}.log"
        self._environment = {**service.environment, **environment}
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{service.name}.hosts").write_text(hosts)
        script = _script(service, folder, self._run(service.command))
        command = ["unshare", "--net", "--mount", "--pid", "--ipc", "--uts", "--fork", "--kill-child"]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *command, "sh", "-euc", script],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        _await(f"a process of {service.name}", lambda: bool(children.exists() and children.read_text()))
        self.pid = int(children.read_text().split()[0])
        _ip(self.pid, "link", "set", "lo", "up")
        connect(self.pid)
        assert self._process.stdin
        self._process.stdin.write(b"\n")  # it waited for its network
        self._process.stdin.close()

    @property
    def code(self) -> int | None:
        """Its exit code, None while it runs."""
        return self._process.poll()

    def wait(self, seconds: float) -> int:
        """The exit code of a service that ends by itself."""
        return self._process.wait(seconds)

    def run(self, command: Sequence[str], seconds: float = 120) -> subprocess.CompletedProcess[str]:
        """What `docker exec` does: a command as the container's user, in all of its namespaces."""
        inside = [
            "nsenter",
            "--target",
            str(self.pid),
            "--all",
            "--root",
            "--wd",
            "sh",
            "-c",
            self._run(command),
        ]
        return subprocess.run(inside, capture_output=True, text=True, check=False, timeout=seconds)

    def healthy(self) -> bool:
        """Whether its health check says so."""
        return self.run(self.service.health).returncode == 0

    def kill(self) -> None:
        """SIGKILL to all of it, as when the machine goes down."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        self._process.wait()

    def stop(self, seconds: float = 20) -> int:
        """What `docker stop` does: SIGTERM, and SIGKILL to what is left after a while; the exit code."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            return self._process.wait(seconds)
        self.kill()
        return self._process.wait()

    def _run(self, command: Sequence[str]) -> str:
        """A line of shell: the command as the service's user, without capabilities and ways to get any."""
        user, _, group = self.service.user.partition(":")
        drop = ["setpriv", "--reuid", user, "--regid", group, "--clear-groups", "--no-new-privs"]
        drop += ["--bounding-set=-all", "--inh-caps=-all", "--ambient-caps=-all"]
        variables = [f"{name}={value}" for name, value in self._environment.items()]
        words = [*drop, "env", "-i", "-C", self.service.folder, *variables, *command]
        return shlex.join(words)


def _script(service: Service, folder: Path, command: str) -> str:
    """What runs first in a container, as root in new namespaces: it builds the root, and becomes the service."""
    root = folder / f"{service.name}.root"
    root.mkdir(exist_ok=True)
    user, _, group = service.user.partition(":")
    known = f"root:x:0:0::/root:/bin/sh\npm1:x:{user}:{group}::/tmp:/usr/sbin/nologin\n"
    (folder / "passwd").write_text(known)
    (folder / "resolv.conf").write_text("")
    files = {"hosts": folder / f"{service.name}.hosts", "passwd": folder / "passwd"}
    files |= {"resolv.conf": folder / "resolv.conf"}
    mounts = [Mount(target, source, "ro") for target, source in IMAGE.items()]
    mounts += [Mount(f"/etc/{name}", source, "ro") for name, source in files.items()]
    mounts += [Mount("/dev/shm", None, "mode=1777"), *service.mounts]
    lines = [
        "read -r _",
        "mount --make-rprivate /",
        f"hostname {shlex.quote(service.name)}",
        f"mount -t tmpfs -o mode=0755 root {root}",
        f"cd {root}",
        f"mkdir -p proc dev tmp .{service.folder}",
        *(f"ln -s usr/{name} {name}" for name in _LINKS),
        *(f"touch dev/{name} && mount --bind /dev/{name} dev/{name}" for name in _DEVICES),
        "mount -t proc proc proc",
    ]
    for mount in sorted(mounts, key=lambda mount: mount.target.count("/")):
        lines += _mounted(mount)
    if service.read_only:
        lines.append(f"mount -o remount,ro {root}")
    lines.append(f"exec chroot . sh -c {shlex.quote(_INIT)} init sh -c {shlex.quote('exec ' + command)}")
    return "\n".join(lines)


def _mounted(mount: Mount) -> list[str]:
    at = shlex.quote(f".{mount.target}")
    if mount.source is None:
        options = f"nosuid,nodev,noexec,{mount.options}".rstrip(",")
        return [f"mkdir -p {at}", f"mount -t tmpfs -o {options} tmpfs {at}"]
    source = shlex.quote(str(mount.source))
    made = f"[ -e {at} ] || mkdir -p {at}"
    if not mount.source.is_dir():
        made = f"[ -e {at} ] || {{ mkdir -p {at}; rmdir {at}; touch {at}; }}"
    bound = [made, f"mount --bind {source} {at}"]
    return [*bound, f"mount -o remount,bind,ro {at}"] if mount.read_only else bound


def _ip(pid: int, *words: str) -> None:
    command = ["nsenter", "--target", str(pid), "--net", "ip", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(words)}: {done.stderr}"


def _namespace(pid: int) -> str:
    with suppress(OSError):
        return str(Path(f"/proc/{pid}/ns/net").readlink())
    return str(Path("/proc/self/ns/net").readlink())


def _await(what: str, condition: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.01)
