"""The paper's training steps on a GPU: people a second, share of the card's matrix rate, losses of each precision.

python -m bench.gpu       some ten minutes; needs 60 GiB of GPU memory and 16 GiB beside it
"""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from bench.pgen import write_manifest, write_pgen
from bench.report import RESULTS, keep, scratch_folder, show
from bench.unpacking import SNPS
from configs import compose
from pm1_core import atomic
from pm1_core.data.manifest import load_manifest
from pm1_core.data.preparation import prepare
from pm1_core.data.store import Store
from pm1_core.data.summary import nobody
from pm1_core.fields import TOKENS, TOKENS_OF, Modality, Split
from pm1_core.model.fusion import FusionTransformer
from pm1_core.model.fusion_objectives import info_nce
from pm1_core.model.genotype_vae import GenotypeVAE
from pm1_core.model.objectives import dosage_weights
from pm1_core.training.loop import LoopConfig, Losses, LossOf, Read, train_epochs
from pm1_core.training.order import Order, generator
from pm1_core.training.parts import named_part
from pm1_core.training.precision import PRECISIONS, computing
from pm1_core.training.tasks.fusion import FusionTask
from pm1_core.training.tasks.genotype import GenotypeTask
from pm1_core.training.token_set import TokenSet
from server.configure import build_study

PUBLISHED = {"fusion": 417_015 / 3600, "genotype.1": 96.0}
"""People a second of the paper, on one A100."""
PEOPLE = {"fusion": 2048, "genotype.1": 2048}
EPOCHS = {"fusion": 25, "genotype.1": 4}
"""Of the fusion the paper's whole schedule."""
MATRIX, CAUSES = 8192, 64
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Work:
    """A part before its first step: how its task reads a batch and what it minimises; people fill whole batches."""

    order: Order
    module: torch.nn.Module
    read: Read
    loss_of: LossOf
    people: int

    @property
    def loop(self) -> LoopConfig:
        """How its order trains."""
        return LoopConfig.of(self.order.parameters)


def order_of(phase: str, epochs: int, device: str, overrides: Sequence[str] = ()) -> Order:
    """The paper's order for one round of so many epochs of a phase."""
    study = build_study(compose.load("simulation", ["study=paper", *overrides]))
    order = study.order(next(each for each in study.phases if each.name == phase), 1)
    loop = {**order.parameters["loop"], "epochs": epochs, "keep_moments": False, "device": device}
    return replace(order, rounds=1, parameters={**order.parameters, "loop": loop})


def fusion(order: Order, people: int) -> Callable[[], Work]:
    """The fusion transformer on people who have all tokens, which some causes drive; every work starts alike."""
    task, rng = FusionTask(order.parameters, nobody()), np.random.default_rng(0)
    start, causes = FusionTransformer(task.config), rng.standard_normal((people, CAUSES), np.float32)
    tokens = {}
    for modality, span in TOKENS_OF.items():
        shape = (span.stop - span.start, task.config.token_width(modality))
        weights = rng.standard_normal((CAUSES, shape[0] * shape[1]), np.float32) / CAUSES**0.5
        tokens[modality] = (causes @ weights).reshape(people, *shape)
    held = TokenSet(np.arange(people), tokens, np.ones((people, len(TOKENS)), bool))

    def work() -> Work:
        module = copy.deepcopy(start).to(task.device)
        return Work(order, module, *task.steps(module, held), people)

    return work


def genotype(order: Order, people: int, snps: int, scratch: Path) -> Callable[[], Work]:
    """The genotype VAE of a chromosome of so many SNPs, from a prepared store."""
    write_pgen(scratch / "cohort", people, {1: snps})
    prepare(load_manifest(write_manifest(scratch, "cohort")), scratch / "store")
    store = Store.open(scratch / "store")
    task, everybody = (
        GenotypeTask(order.parameters, store.study),
        store.people(Split.TRAIN, Modality.GENOTYPE),
    )
    batch = LoopConfig.of(order.parameters).batch_size
    whole, dosages = len(everybody) // batch * batch, store.dosages(1, everybody)
    counts = torch.from_numpy(np.stack([(dosages == dosage).sum(0) for dosage in range(3)], 1))
    weights = dosage_weights(counts, task.config.weight_cap, task.config.weights).to(task.device)
    torch.manual_seed(0)
    start = GenotypeVAE(task.config, snps)

    def work() -> Work:
        module = copy.deepcopy(start).to(task.device)
        return Work(order, module, *task.steps(module, store, weights), whole)

    return work


def flops_of(work: Work) -> int:
    """Floating-point operations of the matrix products and convolutions of one step, forwards and backwards."""
    batch, draws = work.read(np.arange(work.loop.batch_size)), generator(0, "flops")
    with (
        FlopCounterMode(display=False) as counter,
        computing(work.loop.precision, next(work.module.parameters()).device.type),
    ):
        total = work.loss_of(batch, draws, 0).total
        torch.autograd.backward(total)
    work.module.zero_grad(set_to_none=True)
    return int(counter.get_total_flops())


def trained(work: Work) -> tuple[list[float], float]:
    """The loss of every step as the training loop takes it, and people a second after the first epoch."""
    losses: list[torch.Tensor] = []
    began: list[float] = []

    def loss_of(batch: Any, draws: torch.Generator, step: int) -> Losses:
        # The loop waited for the gradient of the step before: from start to start is one whole step.
        began.append(time.perf_counter())
        found = work.loss_of(batch, draws, step)
        losses.append(found.total.detach())
        return found

    with tempfile.TemporaryDirectory() as folder:
        parameters = named_part(work.module, f"{work.order.phase}.")
        train_epochs(work.module, parameters, work.order, Path(folder), work.people, loss_of, read=work.read)
    # The first epoch warms up: kernels are chosen, memory is asked for.
    steps = began[work.people // work.loop.batch_size :]
    rate = work.loop.batch_size * (len(steps) - 1) / (steps[-1] - steps[0])
    return [float(loss) for loss in losses], rate


def part(make: Callable[[], Work], published: float, size: int) -> dict[str, Any]:
    """By precision: people a second, what of it the card's matrices could do, and losses beside float32's."""
    found: dict[str, Any] = {}
    curves: dict[str, np.ndarray] = {}
    batch = 0
    for precision in PRECISIONS:
        work = _computing_in(precision, make())
        device, batch = next(work.module.parameters()).device, work.loop.batch_size
        flops = flops_of(work)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        losses, rate = trained(work)
        peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else 0
        curves[precision] = np.array(losses)
        matrix = matrix_rate(_DTYPES[precision], device, size)
        apart = np.abs(curves[precision] / curves["float32"] - 1)
        found[precision] = {
            "people a second": rate,
            "to the paper": rate / published,
            "teraflops a step": flops / 1e12,
            "matrix teraflops a second": matrix / 1e12,
            "share of the matrix rate": flops * rate / batch / matrix,
            "peak_bytes": peak,
            "first loss": losses[0],
            "last loss": losses[-1],
            "apart from float32": {
                "at most": float(apart.max()),
                "at the end": float(apart[-len(apart) // 10 :].mean()),
            },
            "losses": [round(float(loss), 5) for loss in losses],
        }
    return {"batch": batch, "steps": len(curves["float32"]), "precisions": found}


def _computing_in(precision: str, work: Work) -> Work:
    loop = {**work.order.parameters["loop"], "precision": precision}
    return replace(work, order=replace(work.order, parameters={**work.order.parameters, "loop": loop}))


def matrix_rate(dtype: torch.dtype, device: torch.device, size: int = MATRIX, repeats: int = 20) -> float:
    """Floating-point operations a second of torch's product of square matrices, the best of five."""
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best = float("inf")
    for _ in range(5):
        _wait(device)
        began = time.perf_counter()
        for _ in range(repeats):
            left @ right
        _wait(device)
        best = min(best, time.perf_counter() - began)
    return 2 * size**3 * repeats / best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def contrast_errors(people: int = 128, width: int = 2048, temperature: float = 0.03) -> dict[str, Any]:
    """How far InfoNCE's loss and gradient are from float64's, by the precision that it is computed in.

    Representations as a network gives them while it learns: four fifths of the square is common to all, two thirds
    of the rest to a person's. On the CPU, anywhere.
    """
    draws = generator(0, "contrast")
    pooled = sum(
        share**0.5 * torch.randn(*shape, width, generator=draws, dtype=torch.float64)
        for share, shape in ((0.80, (1, 1)), (0.13, (people, 1)), (0.07, (people, 3)))
    )
    has = torch.ones(people, 3, dtype=torch.bool)

    def computed(dtype: torch.dtype) -> tuple[float, torch.Tensor]:
        # Rounded once for all precisions: what is left is what the arithmetic of the loss does.
        leaf = pooled.bfloat16().to(dtype).requires_grad_()
        loss = info_nce(leaf, has, temperature)[0].double().mean()
        (gradient,) = torch.autograd.grad(loss, leaf)
        return float(loss.detach()), gradient.double()

    loss, gradient = computed(torch.float64)
    found: dict[str, Any] = {"float64's loss": loss}
    for name, dtype in _DTYPES.items():
        other, theirs = computed(dtype)
        found[name] = {
            "loss": abs(other / loss - 1),
            "gradient": float((theirs - gradient).norm() / gradient.norm()),
        }
    return found


def gpu(scratch: Path) -> dict[str, Any]:
    """All of it on the GPU of this machine; without one, what a CPU can tell."""
    found: dict[str, Any] = {"card": None, "contrast": contrast_errors()}
    if not torch.cuda.is_available():
        return found
    parts = {}
    chromosome = order_of(
        "genotype.1", EPOCHS["genotype.1"], "cuda", ["study.phases.genotype.chromosomes=[1]"]
    )
    makes = {
        "fusion": lambda: fusion(order_of("fusion", EPOCHS["fusion"], "cuda"), PEOPLE["fusion"]),
        "genotype.1": lambda: genotype(chromosome, PEOPLE["genotype.1"], SNPS, scratch),
    }
    for name, make in makes.items():
        parts[name] = part(make(), PUBLISHED[name], MATRIX)
        torch.cuda.empty_cache()
    return {**found, "card": torch.cuda.get_device_name(), "parts": parts}


if __name__ == "__main__":
    held = (atomic.read_json(RESULTS) if RESULTS.exists() else {}).get("gpu") or {}
    if held.get("card") and not torch.cuda.is_available():
        print(f"no GPU on this machine; what {held['card']} measured stands")
    else:
        with scratch_folder() as place:
            measured = gpu(place)
        keep("gpu", measured)
        show(measured)
