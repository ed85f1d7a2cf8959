"""A step of private training over a plain one, beside Opacus: time and memory.

python -m bench.private_step [fusion|blocks]     the fusion transformer; blocks that Opacus can clip too
"""

from __future__ import annotations

import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from bench.report import keep, machine, show
from configs import compose
from pm1_core.fields import TOKENS_OF
from pm1_core.model.fusion import FusionConfig, FusionTransformer
from pm1_core.model.fusion_objectives import FusionObjective, fusion_losses, group_losses
from pm1_core.privacy.noise import gaussian_each, secret_generator
from pm1_core.training.clipping import ClippedGradients, Rows

CLIP, NOISE = 1.0, 1.0
REPEATS = 20
GROUP = 8
LARGER = {"width": 512, "layers": 6, "heads": 8, "feedforward": 1024}
FUSION = {"small": ({}, 64), "larger": (LARGER, 64)}
"""Size: changes to the fusion transformer of `model=small`, and people in a step."""
BLOCKS = {"4 layers of 256": (256, 4, 64), "6 layers of 512": (512, 6, 64)}
"""Width, layers and people in a step; 26 tokens each."""
_TOKENS = 26

Step = Callable[[], None]


class Block(nn.Module):
    """Pre-norm attention and feed-forward on [n, t, h], from layers that Opacus knows."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = 8
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.expand, self.contract = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[n, t, h] -> [n, t, h]."""
        n, t, width = x.shape
        heads = self.qkv(self.first(x)).view(n, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(*heads).transpose(1, 2).reshape(n, t, width)
        x = x + self.out(mixed)
        grown: Tensor = self.contract(functional.relu(self.expand(self.second(x))))
        return x + grown


def fusion(size: str) -> dict[str, Step]:
    """Steps on complete people: plain, with groups of eight, and with groups as a hash fills them."""
    changes, people = FUSION[size]
    sizes = compose.load("simulation", ["model=small"])["model"]["fusion"]
    config = FusionConfig(**{**sizes, **changes})
    rng = np.random.default_rng(0)
    fallen = rng.multinomial(people, np.full(people // GROUP, GROUP / people))
    objective, draws = FusionObjective(), torch.Generator().manual_seed(0)

    def of(counts: np.ndarray | None) -> Step:
        model = FusionTransformer(config)
        present = torch.ones(people, 25, dtype=torch.bool)
        tokens = {
            m: torch.randn(people, span.stop - span.start, config.token_width(m))
            for m, span in TOKENS_OF.items()
        }
        if counts is None:
            return _plain(model, lambda: fusion_losses(model, tokens, present, objective, draws).total)
        shares = tuple(int(count) for count in counts)
        losses = partial(group_losses, model, tokens, present, objective, draws, shares)
        return _ours(model, losses, Rows(len(shares), shares))

    even = np.full(people // GROUP, GROUP)
    return {"plain": of(None), "groups of eight": of(even), "groups as they fall": of(fallen)}


def blocks(size: str) -> dict[str, Step]:
    """Steps on the same blocks: plain, ours, Opacus' hooks and its ghost clipping."""
    width, layers, people = BLOCKS[size]
    batch = torch.randn(people, _TOKENS, width, generator=torch.Generator().manual_seed(0))

    def made() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(*(Block(width) for _ in range(layers)))

    def each(model: nn.Module) -> Tensor:
        return (model(batch) - batch).square().mean((1, 2))

    first, second = made(), made()
    return {
        "plain": _plain(first, lambda: each(first).mean()),
        "ours": _ours(second, lambda: each(second), Rows(people)),
        "Opacus, hooks": _opacus(made(), batch, ghost=False),
        "Opacus, ghost": _opacus(made(), batch, ghost=True),
    }


def _plain(model: nn.Module, loss: Callable[[], Tensor]) -> Step:
    optimiser = torch.optim.SGD(model.parameters(), 1e-3)

    def step() -> None:
        optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(loss())
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimiser.step()

    return step


def _ours(model: nn.Module, losses: Callable[[], Tensor], rows: Rows) -> Step:
    """As `train_privately` takes a step, noise from AES included."""
    trained = dict(model.named_parameters())
    optimiser = torch.optim.SGD(trained.values(), 1e-3)
    clipped, secret = ClippedGradients(model, trained), secret_generator()

    def step() -> None:
        clipped.step(losses, rows, CLIP)
        sums = [parameter.grad.numpy() for parameter in trained.values() if parameter.grad is not None]
        noised = gaussian_each(sums, CLIP, NOISE, secret, rows.units, torch.get_num_threads())
        for parameter, values in zip(trained.values(), noised, strict=True):
            parameter.grad = torch.from_numpy(values)
        optimiser.step()

    return step


def _opacus(model: nn.Module, batch: Tensor, ghost: bool) -> Step:
    """With Opacus' ordinary noise: its secure one needs a package that does not exist for this torch."""
    from opacus import GradSampleModule
    from opacus.grad_sample import GradSampleModuleFastGradientClipping
    from opacus.optimizers import DPOptimizer, DPOptimizerFastGradientClipping
    from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping

    options: dict[str, Any] = {
        "noise_multiplier": NOISE,
        "max_grad_norm": CLIP,
        "expected_batch_size": len(batch),
        "loss_reduction": "mean",
    }
    if not ghost:
        wrapped = GradSampleModule(model)
        optimiser = DPOptimizer(torch.optim.SGD(wrapped.parameters(), 1e-3), **options)

        def hooks() -> None:
            optimiser.zero_grad(set_to_none=True)
            (wrapped(batch) - batch).square().mean((1, 2)).mean().backward()
            optimiser.step()

        return hooks
    fast = GradSampleModuleFastGradientClipping(model, max_grad_norm=CLIP, use_ghost_clipping=True)
    faster = DPOptimizerFastGradientClipping(torch.optim.SGD(fast.parameters(), 1e-3), **options)

    class Errors(nn.Module):
        """A person's error, or their mean, as Opacus asks for it."""

        reduction = "mean"

        def forward(self, output: Tensor, target: Tensor) -> Tensor:
            """[n, t, h] twice -> [n], or a scalar."""
            each = (output - target).square().mean((1, 2))
            return each.mean() if self.reduction == "mean" else each

    criterion = DPLossFastGradientClipping(fast, faster, Errors(), "mean")

    def twice() -> None:
        faster.zero_grad(set_to_none=True)
        criterion(fast(batch), batch).backward()
        faster.step()

    return twice


MEASURES = {"fusion": (fusion, FUSION), "blocks": (blocks, BLOCKS)}


def measured(which: str) -> dict[str, Any]:
    """By size: seconds of a step, their ratio to the plain one, and peak memory of a process that takes steps."""
    make, sizes = MEASURES[which]
    found: dict[str, Any] = {}
    for size in sizes:
        steps = make(size)
        best = dict.fromkeys(steps, float("inf"))
        for step in steps.values():
            step()
        for _ in range(REPEATS):
            for name, step in steps.items():  # in turns, so that a busy moment meets all of them
                began = time.perf_counter()
                step()
                best[name] = min(best[name], time.perf_counter() - began)
        found[size] = {
            "seconds": best,
            "ratios": {name: seconds / best["plain"] for name, seconds in best.items()},
            "peak_mib": {name: _peak(which, size, name) for name in steps},
        }
    return {"threads": torch.get_num_threads(), "sizes": found}


def _peak(which: str, size: str, name: str) -> float:
    """MiB that a process of its own takes for steps, over what it takes before the first."""
    command = [sys.executable, "-m", "bench.private_step", which, size, name]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def _peak_here(which: str, size: str, name: str) -> float:
    step = MEASURES[which][0](size)[name]
    # What importing took is given back to the system by now; the kernel forgets its peak.
    Path("/proc/self/clear_refs").write_text("5")
    before = _resident("VmRSS")
    for _ in range(3):
        step()
    return (_resident("VmHWM") - before) / 1024


def _resident(name: str) -> int:
    """KiB of memory now (VmRSS) or at most so far (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name + ":"))


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # of Opacus' hooks
    if len(sys.argv) > 3:
        print(_peak_here(*sys.argv[1:4]))
        sys.exit()
    chosen = sys.argv[1] if len(sys.argv) > 1 else "fusion"
    machine()
    outcome = measured(chosen)
    keep(f"private_step.{chosen}", outcome)
    show(outcome)
