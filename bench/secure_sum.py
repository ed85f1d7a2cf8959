"""Secure sums beside Flower 1.41's SecAgg+: a site's time, bytes, and one round of the fusion's full size.

python -m bench.secure_sum [flower|paper]     10 million parameters beside Flower; 1,095,502,848 parameters,
some minutes
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.client.mod.secure_aggregation.secaggplus_mod import (
    SecAggPlusState,
    _collect_masked_vectors,
    _setup,
    _share_keys,
    _unmask,
)
from flwr.common import ndarrays_to_parameters
from flwr.common.secure_aggregation.secaggplus_constants import Key

from bench.report import keep, machine, show
from pm1_core.privacy.fixed_point import FixedPoint
from pm1_core.privacy.secure_sum import STAGES, Collector, Member, Terms, least_survivors
from pm1_core.signing import Signer

PARAMETERS = 10_000_000
TENSORS = 10
PAPER = 1_095_502_848
PAPER_TENSOR = 1 << 24
PAPER_SITES = 20
MEASURED_SITES = 5
CLIP = 1.0
BEST_OF = 3


def beside_flower(sites: tuple[int, ...] = (5, 10)) -> dict[str, Any]:
    """By number of sites: a site's seconds over all stages, bytes of its update, and both over Flower's."""
    generator = np.random.default_rng(0)
    update = [generator.normal(size=PARAMETERS // TENSORS).astype(np.float32) * 0.1 for _ in range(TENSORS)]
    found: dict[str, Any] = {}
    for count in sites:
        theirs = _best(_flower_client, update, count)
        ours = {bits: _best(_our_client, update, count, bits) for bits in (32, 16)}
        found[str(count)] = {
            "seconds": {"flower": theirs[0], **{f"{bits} bits": ours[bits][0] for bits in ours}},
            "bytes": {"flower": theirs[1], **{f"{bits} bits": ours[bits][1] for bits in ours}},
            "seconds to flower": {f"{bits} bits": ours[bits][0] / theirs[0] for bits in ours},
            "flower's bytes to": {f"{bits} bits": theirs[1] / ours[bits][1] for bits in ours},
            "bytes to float32": {f"{bits} bits": ours[bits][1] / (4 * PARAMETERS) for bits in ours},
        }
    return {"parameters": PARAMETERS, "sites": found}


def _best(measure: Callable[..., tuple[float, int]], *given: Any) -> tuple[float, int]:
    return min(measure(*given) for _ in range(BEST_OF))


def _flower_client(update: list[np.ndarray], count: int) -> tuple[float, int]:
    """Seconds and bytes of one client through the four stages of Flower's own client code."""
    threshold = least_survivors(count)
    setup = {
        Key.SAMPLE_NUMBER: count,
        Key.SHARE_NUMBER: count,
        Key.THRESHOLD: threshold,
        Key.CLIPPING_RANGE: CLIP,
        Key.TARGET_RANGE: 1 << 22,
        Key.MOD_RANGE: 1 << 32,
        Key.MAX_WEIGHT: 1000.0,
    }
    states = [SecAggPlusState() for _ in range(count)]
    seconds = 0.0
    keys, boxes = {}, []
    parameters = ndarrays_to_parameters(update)
    for node, state in enumerate(states):
        state.nid = node
        took, said = _timed(_setup, state, dict(setup))
        seconds += took * (node == 0)
        keys[str(node)] = (said[Key.PUBLIC_KEY_1], said[Key.PUBLIC_KEY_2])
    for node, state in enumerate(states):
        took, said = _timed(_share_keys, state, dict(keys))
        seconds += took * (node == 0)
        places = [place for place, other in enumerate(said[Key.DESTINATION_LIST]) if other == 0]
        boxes += [(node, said[Key.CIPHERTEXT_LIST][place]) for place in places]
    given = {Key.CIPHERTEXT_LIST: [box for _, box in boxes], Key.SOURCE_LIST: [node for node, _ in boxes]}
    took, said = _timed(_collect_masked_vectors, states[0], given, 900, parameters)
    seconds += took
    sent = sum(len(array) for array in said[Key.MASKED_PARAMETERS])
    active = {Key.ACTIVE_NODE_ID_LIST: list(range(count - 1)), Key.DEAD_NODE_ID_LIST: [count - 1]}
    took, _ = _timed(_unmask, states[0], active)
    return seconds + took, sent


def _our_client(update: list[np.ndarray], count: int, bits: int) -> tuple[float, int]:
    """Seconds and bytes of one site through all stages, one site lost after it shared, state kept as bytes."""
    round_ = _Round(count, PARAMETERS, bits)
    payload: list[bytes] = []

    def give(member: Member) -> None:
        offset = 0
        for tensor in update:
            words = round_.fixed.encode(tensor, round_.weight)
            member.mask(words, offset)
            offset += words.size
            payload.append(words.tobytes())

    round_.run({"site00": give})
    return round_.seconds["site00"], sum(map(len, payload))


def _timed(call: Callable[..., Any], *given: Any) -> tuple[float, Any]:
    start = time.perf_counter()
    found = call(*given)
    return time.perf_counter() - start, found


class _Round:
    """A round of so many sites, of whom the last is lost once it has shared its secrets.

    seconds: by site, of everything it does
    """

    def __init__(self, count: int, words: int, bits: int = 32) -> None:
        self.names = [f"site{i:02d}" for i in range(count)]
        self.signers = {name: Signer(Ed25519PrivateKey.generate()) for name in self.names}
        self.keys = {n: s.key.public_key().public_bytes_raw().hex() for n, s in self.signers.items()}
        self.weight = 900.0
        self.fixed = FixedPoint.fitting(bits, CLIP, [self.weight] * count)
        self.terms = Terms("bench", "fusion", 1, 0, self.keys, words, bits)
        self.collector = Collector(self.terms)
        self.seconds = dict.fromkeys(self.names, 0.0)

    def run(self, give: dict[str, Callable[[Member], None]]) -> None:
        """All stages; give: how a site masks its words, nothing (and a whole receipt) for the others."""
        states: dict[str, bytes] = {}
        for stage in STAGES:
            for name in self.collector.asked:
                if stage == "input" and name == self.names[-1]:
                    continue
                request = self.collector.request(name)
                start = time.perf_counter()
                if stage == "advertise":
                    member = Member.create(Terms.from_bytes(request), name, self.signers[name], self.keys)
                    answer = member.advertise()
                else:
                    member = Member.from_bytes(states[name], self.signers[name])
                    if stage == "input":
                        member.open(request)
                        if name in give:
                            give[name](member)
                        else:
                            member._take("bench", 0, self.terms.words)
                        answer = member.receipt()
                    else:
                        answer = getattr(member, stage)(request)
                states[name] = member.to_bytes()
                self.seconds[name] += time.perf_counter() - start
                self.collector.receive(name, answer)
            self.collector.close()


def paper() -> dict[str, Any]:
    """A whole round of the paper's size with a few sites, its sum checked; one site, and all masks, of 20."""
    measured = _whole_round(MEASURED_SITES)
    base = _base()
    round_ = _Round(PAPER_SITES, PAPER)
    encode = mask = 0.0

    def give(member: Member) -> None:
        nonlocal encode, mask
        for offset, tensor in _tensors(base, 0):
            took, words = _timed(round_.fixed.encode, tensor, round_.weight)
            encode += took
            took, _ = _timed(member.mask, words, offset)
            mask += took

    round_.run({"site00": give})
    words = np.zeros(PAPER_TENSOR, np.uint32)
    took, _ = _timed(round_.collector.unmask, words, 0)
    unmask = took * PAPER / words.size
    add = measured["seconds"]["coordinator adds"] / (MEASURED_SITES - 1) * (PAPER_SITES - 1)
    site = round_.seconds["site00"]
    streams = measured["seconds"]["site masks"] / MEASURED_SITES * PAPER_SITES
    return {
        "parameters": PAPER,
        "bytes a site": 4 * PAPER,
        "measured round": measured,
        "sites": PAPER_SITES,
        "seconds": {"site": site, "site encodes": encode, "site masks": mask, "coordinator unmasks": unmask},
        "extrapolated": {"site masks": streams, "coordinator adds": add, "coordinator": add + unmask},
        "round": site + add + unmask,
    }


def _whole_round(count: int) -> dict[str, Any]:
    """Every site masks all of its words, the coordinator adds them up and opens them; the sum is checked."""
    base = _base()
    round_ = _Round(count, PAPER)
    total = np.zeros(PAPER, np.uint32)
    spent = {"site encodes": 0.0, "site masks": 0.0, "coordinator adds": 0.0}

    def add(name: str, took: float) -> None:
        spent[name] += took

    def give(member: Member) -> None:
        for offset, tensor in _tensors(base, int(member.site[4:])):
            took, words = _timed(round_.fixed.encode, tensor, round_.weight)
            add("site encodes", took)
            add("site masks", _timed(member.mask, words, offset)[0])
            part = total[offset : offset + words.size]
            add("coordinator adds", _timed(np.add, part, words, part)[0])

    round_.run(dict.fromkeys(round_.names[:-1], give))
    unmask = 0.0
    for offset in range(0, PAPER, PAPER_TENSOR):
        unmask += _timed(round_.collector.unmask, total[offset : offset + PAPER_TENSOR], offset)[0]
    for site in range(count - 1):
        for offset, tensor in _tensors(base, site):
            total[offset : offset + tensor.size] -= round_.fixed.encode(tensor, round_.weight)
    if total.any():
        raise AssertionError("the opened sum is not the sum")
    gave = count - 1
    seconds = {
        "site encodes": spent["site encodes"] / gave,
        "site masks": spent["site masks"] / gave,
        "coordinator adds": spent["coordinator adds"],
        "coordinator unmasks": unmask,
    }
    return {"sites": count, "lost": 1, "seconds": seconds}


def _base() -> np.ndarray:
    return np.random.default_rng(0).normal(size=PAPER_TENSOR).astype(np.float32) * np.float32(0.1)


def _tensors(base: np.ndarray, site: int) -> Iterator[tuple[int, np.ndarray]]:
    """Offset and values, tensor by tensor, of a site's update of the paper's size."""
    for place, offset in enumerate(range(0, PAPER, PAPER_TENSOR)):
        size = min(PAPER_TENSOR, PAPER - offset)
        yield offset, (base * np.float32(1 + 0.01 * place + 0.1 * site))[:size]


if __name__ == "__main__":
    which = sys.argv[1] if len(sys.argv) > 1 else "flower"
    machine()
    result = {"flower": beside_flower, "paper": paper}[which]()
    keep(f"secure_sum.{which}", result)
    show(result)
