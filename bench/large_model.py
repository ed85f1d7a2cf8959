"""One round of a model of the fusion's full size over a real SuperLink and three SuperNodes: memory and time.

python -m bench.large_model [paper|small]     needs some 60 GB of disk and half an hour at the paper's size
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

from deployment import Deployment

from bench.report import keep, scratch_folder, show
from bench.tables import prepared
from configs import compose
from pm1_core.checkpoint import CheckpointFolder
from pm1_core.signing import Signer, public_file
from server.configure import fusion_model
from server.study import Phase, Study

SITES = 3
HOURS = 3 * 3600.0
_BLOCK = 2**22


def round_over_processes(scratch: Path, size: str = "paper") -> dict[str, Any]:
    """Seconds, peak memory by process and in all, and the ratio to copying the same bytes over loopback."""
    stores = prepared(scratch / "tables", sites=SITES, rows=60)
    config = compose.load("server", [f"model={size}"])
    study = Study(
        "large",
        1,
        (Phase("shift", "shift", 1, min_sites=SITES, parameters={"model": fusion_model(config)}),),
        timeout=HOURS,
        gather=600.0,
    )
    run, key = scratch / "run", scratch / "keys" / "coordinator.pem"
    Signer.create(key)
    (scratch / "study.json").write_text(study.to_json())
    sites = {
        name: {
            "store": str(store),
            "folder": str(scratch / "sites" / name),
            "trust": str(public_file(key)),
            "tasks": "shift",
        }
        for name, store in stores.items()
    }
    options = {
        "study": scratch / "study.json",
        "definition": scratch / "tables" / "study.yaml",
        "run": run,
        "key": key,
    }
    began = time.perf_counter()
    with Deployment(scratch / "deployment", sites, database=False) as deployment:
        number = deployment.submit({**{name: str(path) for name, path in options.items()}, "tasks": "shift"})
        status = deployment.wait(number, HOURS)
        said = "" if status == "finished:completed" else deployment.said(number)
        peaks, together = deployment.memory.peaks, deployment.memory.together
    if said:
        raise SystemExit(f"the run ended as {status}\n{said[-3000:]}")
    seconds = time.perf_counter() - began
    checkpoints = CheckpointFolder(run / "checkpoints")
    latest = checkpoints.latest()
    assert latest is not None
    model = sum(checkpoints.objects.size(digest) for digest in latest.parts["fusion"])
    # Down before the round, up after it, down once more at the end.
    copied = _copy_over_loopback(model * SITES * 3)
    return {
        "size": size,
        "model_bytes": model,
        "sites": SITES,
        "seconds": {"whole run": seconds, "round": latest.measured["seconds"], "loopback copy": copied},
        "peak_bytes": {" ".join(name): peak for name, peak in sorted(peaks.items())} | {"together": together},
        "ratios": {
            "run to loopback copy of what travelled": seconds / copied,
            "coordinator's peak to model": max(p for n, p in peaks.items() if n[1] == "flwr-serverapp")
            / model,
        },
    }


def _copy_over_loopback(size: int) -> float:
    """Seconds to send `size` bytes through a TCP connection of this machine."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def send() -> None:
            block = memoryview(os.urandom(_BLOCK))
            with socket.create_connection(listener.getsockname()) as stream:
                for _ in range(size // _BLOCK):
                    stream.sendall(block)

        sender = threading.Thread(target=send)
        began = time.perf_counter()
        sender.start()
        connection, _ = listener.accept()
        buffer = bytearray(_BLOCK)
        with connection:
            while connection.recv_into(buffer):
                pass
        sender.join()
        return time.perf_counter() - began


if __name__ == "__main__":
    with scratch_folder() as place:
        found = round_over_processes(place, *sys.argv[1:2])
    keep("large_model", found)
    show(found)
