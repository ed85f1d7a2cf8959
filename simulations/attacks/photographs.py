"""A photograph from the update that was trained on it, by optimisation.

A picture is sought whose gradient has the direction of the one that came (Geiping et al. 2020, "Inverting
gradients", eq. 4: cosine distance and total variation). The attacker knows the order, whose seed gives the hidden
patches and every other draw of plain training.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from pm1_core.data.store import Store
from pm1_core.fields import EYES
from pm1_core.model.fundus_base import build_fundus_encoder
from pm1_core.model.fundus_encoder import IMAGENET_MEAN, IMAGENET_STD, FundusEncoder, FundusEncoderConfig
from pm1_core.model.fundus_lora import attach_lora, load_lora, lora_parameters, set_draws
from pm1_core.training.adapters import adapters_of
from pm1_core.training.order import Order, generator
from pm1_core.training.tasks import build_task
from pm1_core.update import Tensors
from simulations.attacks.membership import Candidates, record_privacy
from simulations.attacks.outcome import Cell, Setting
from simulations.progress import Step
from simulations.report_style import figure, svg

RATE, SUMMED = 0.1, 3
"""Learning rate of the step that is looked at; sites whose updates are added up."""
STEPS, _STEP_SIZE, _VARIATION = 600, 0.03, 1e-4


Gradient = list[torch.Tensor]
Losses = Callable[[torch.Tensor], torch.Tensor]


def inverted(
    loss: Losses,
    parameters: Sequence[torch.nn.Parameter],
    wanted: Gradient,
    start: torch.Tensor,
    steps: int = STEPS,
    step: Step = lambda what, done, whole: None,
) -> torch.Tensor:
    """A picture, float [n, 3, S, S] normalised, whose gradient has the direction of `wanted`.

    loss: of pictures, as the site computed it, draws and all; start: what the attacker takes them for at first
    """
    picture = start.clone().requires_grad_()
    optimiser = torch.optim.Adam([picture], _STEP_SIZE)
    slower = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    length = torch.stack([w.square().sum() for w in wanted]).sum().sqrt().clamp_min(1e-30)
    with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no second derivative
        for done in range(steps):
            step("photograph", done, steps)
            optimiser.zero_grad()
            gradients = torch.autograd.grad(
                loss(picture), list(parameters), create_graph=True, allow_unused=True
            )
            pairs = [(g, w) for g, w in zip(gradients, wanted, strict=True) if g is not None]
            product = torch.stack([(g * w).sum() for g, w in pairs]).sum()
            own = torch.stack([g.square().sum() for g, _ in pairs]).sum().sqrt().clamp_min(1e-30)
            rough = picture.diff(dim=-1).abs().mean() + picture.diff(dim=-2).abs().mean()
            (1 - product / (own * length) + _VARIATION * rough).backward()  # type: ignore[no-untyped-call]
            assert picture.grad is not None
            optimiser.step()
            slower.step()
            with torch.no_grad():
                picture.clamp_(-2.2, 2.7)  # what normalised pixels can be
    return picture.detach()


def picture_figures(found: np.ndarray, true: np.ndarray, mean: np.ndarray) -> dict[str, float]:
    """Peak signal-to-noise ratio in dB of pixels in 0..1, and correlation once the mean picture is taken away."""
    error = float(np.mean((found - true) ** 2))
    left, wanted = (found - mean).ravel(), (true - mean).ravel()
    varies = left.std() > 1e-6 and wanted.std() > 1e-6
    correlation = float(np.corrcoef(left, wanted)[0, 1]) if varies else 0.0
    return {"psnr": float(-10 * np.log10(max(error, 1e-12))), "correlation": correlation}


@dataclass(frozen=True)
class Eyes:
    """A person's photographs, uint8 [n, S, S, 3], and the order under which the site trains on them."""

    pixels: np.ndarray
    order: Order

    def loss(self, encoder: FundusEncoder) -> Losses:
        """The task's loss of pictures, with the order's draws: shuffle, hidden patches, dropout."""

        def of(images: torch.Tensor) -> torch.Tensor:
            draws = generator(self.order.seed, self.order.phase, "epoch", 0)
            torch.randperm(1, generator=draws)
            set_draws(encoder, draws)
            return encoder.reconstruction_errors(images, encoder.draw_hidden(len(images), draws)).mean()

        return of


def photograph_rows(
    setting: Setting, store: Store, people: np.ndarray
) -> tuple[list[dict[str, Cell]], dict[str, np.ndarray]]:
    """A row for each thing that a coordinator may see of a person's photographs, and pictures to look at."""
    config = FundusEncoderConfig(**setting.config["model"]["fundus"])
    loop = {
        "optimiser": {"name": "sgd", "learning_rate": RATE},
        "epochs": 1,
        "batch_size": 0,
        "device": "cpu",
    }
    parameters = {"model": setting.config["model"]["fundus"], "loop": loop}
    order = Order("fundus", "fundus", 1, 1, 7, parameters)
    encoder = attach_lora(build_fundus_encoder(config)).train()
    true = [_photographs(store, person, encoder) for person in people]
    mean = _pixels(torch.cat(true[1:])).mean(0)
    guess = torch.cat(true[1:]).mean(0).expand_as(true[0])
    target = _pixels(true[0])
    task = build_task(order, store.study)
    start = _warm(task.initial({}, 7))
    shown = {"true": target[0], "mean of others": mean}
    rows: list[dict[str, Cell]] = [
        {
            "what": "photograph",
            "seen": "nothing: the mean of others",
            **_figures(np.stack([mean]), target, mean),
        }
    ]

    def update(who: Sequence[int], terms: Mapping[str, Any] | None, name: str) -> dict[str, np.ndarray]:
        came = []
        for number, person in enumerate(who):
            given = Order("fundus", "fundus", 1, 1, 7, parameters, privacy=terms or {})
            site = Candidates([store], people[person : person + 1])
            folder = setting.folder / name / str(number)
            folder.mkdir(parents=True, exist_ok=True)
            came.append(task.train(site, given, {}, start, folder).tensors)
        return {n: np.mean([start[n] - one[n] for one in came], axis=0) / RATE for n in start}

    privacy = {**setting.config["privacy"], "sample_rate": 1.0}
    cases: list[tuple[str, Sequence[int], Mapping[str, Any] | None]] = [
        ("adapters of one person, in the clear", [0], None),
        (f"adapters of one person at each of {SUMMED} sites, their sum", range(SUMMED), None),
    ]
    for epsilon in setting.options["epsilons"][-1:]:
        cases.append(
            (f"adapters of one person, epsilon {epsilon:g}", [0], record_privacy(order, 1, epsilon, privacy))
        )
    eyes = Eyes(target, order)
    load_lora(encoder, adapters_of(start))
    own = lora_parameters(encoder)
    for number, (words, who, terms) in enumerate(cases):
        gradient = update(who, terms, f"photograph {number}")
        wanted = [torch.from_numpy(gradient[f"fundus.lora.{name}"].astype(np.float32)) for name in own]
        with setting.stages.stage(words) as step:
            found = inverted(eyes.loss(encoder), list(own.values()), wanted, guess, step=step)
        pixels = _pixels(found)
        rows.append({"what": "photograph", "seen": words, **_figures(pixels, target, mean)})
        shown[words] = pixels[0]
    # If the encoder itself were trained, and not adapters of it: what the same attack then finds.
    for parameter in encoder.parameters():
        parameter.requires_grad_(True)
    whole = [p for name, p in encoder.named_parameters() if "pos_embed" not in name]
    loss = eyes.loss(encoder)
    with sdpa_kernel(SDPBackend.MATH):
        told = [
            torch.zeros_like(p) if g is None else g.detach()
            for g, p in zip(torch.autograd.grad(loss(true[0]), whole, allow_unused=True), whole, strict=True)
        ]
    words = "all parameters of one person, in the clear"
    with setting.stages.stage(words) as step:
        pixels = _pixels(inverted(loss, whole, told, guess, step=step))
    rows.append({"what": "photograph", "seen": words, **_figures(pixels, target, mean)})
    shown[words] = pixels[0]
    return rows, shown


def drawn(shown: Mapping[str, np.ndarray]) -> str:
    """The pictures beside each other."""
    canvas = figure(2.2)
    for axis, (words, pixels) in zip(canvas.subplots(1, len(shown)), shown.items(), strict=True):
        axis.imshow(np.clip(pixels, 0, 1))
        axis.set_title(textwrap.fill(words, 20), fontsize=7)
        axis.axis("off")
    return str(svg(canvas, "Photographs sought from updates"))


def _figures(pixels: np.ndarray, true: np.ndarray, mean: np.ndarray) -> dict[str, float]:
    """Mean of both eyes' figures; one picture may stand for both."""
    each = [picture_figures(pixels[min(k, len(pixels) - 1)], eye, mean) for k, eye in enumerate(true)]
    return {name: float(np.mean([one[name] for one in each])) for name in each[0]}


def _photographs(store: Store, person: int, encoder: FundusEncoder) -> torch.Tensor:
    """A person's photographs as the network sees them, float [n, 3, S, S]."""
    pixels = []
    for eye in EYES:
        photographs, has = store.photographs(np.array([person]), eye)
        pixels.append(photographs[has])
    return encoder.prepare(torch.from_numpy(np.concatenate(pixels)))


def _pixels(images: torch.Tensor) -> np.ndarray:
    """Normalised [n, 3, S, S] to pixels in 0..1, [n, S, S, 3]."""
    mean, std = (torch.tensor(three).view(1, 3, 1, 1) for three in (IMAGENET_MEAN, IMAGENET_STD))
    found: np.ndarray = (images * std + mean).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    return found


def _warm(start: Tensors) -> dict[str, np.ndarray]:
    """Adapters in the middle of a study: with B at zero, as in the first round, A has no gradient at all."""
    rng = np.random.default_rng(0)
    return {
        name: rng.normal(0, 0.05, array.shape).astype(np.float32) if name.endswith("lora_B") else array
        for name, array in start.items()
    }
