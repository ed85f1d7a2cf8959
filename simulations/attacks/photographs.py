"""A photograph from the update that was trained on it, by optimisation.

A picture is sought whose gradient has the direction of the one that came (Geiping et al. 2020, "Inverting
gradients", eq. 4: cosine distance and total variation). The attacker knows the order, whose seed gives the hidden
patches and every other draw of plain training.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from skimage.metrics import structural_similarity
from torch.nn.attention import SDPBackend, sdpa_kernel

from pm1_core.data.store import Store
from pm1_core.fields import EYES, Modality
from pm1_core.model.fundus_base import build_fundus_encoder
from pm1_core.model.fundus_encoder import IMAGENET_MEAN, IMAGENET_STD, FundusEncoder, FundusEncoderConfig
from pm1_core.model.fundus_lora import attach_lora, load_lora, lora_parameters, set_draws
from pm1_core.training.adapters import adapters_of
from pm1_core.training.order import Order, generator
from pm1_core.training.tasks import build_task
from pm1_core.update import Tensors
from simulations.attacks.figures import average
from simulations.attacks.membership import Candidates, record_privacy
from simulations.attacks.outcome import Cell, Setting
from simulations.attacks.secure import opened
from simulations.report_style import figure, svg

RATE, SUMMED = 0.1, 3
"""Learning rate of the step that is looked at; sites whose updates are added up."""
PICTURED, OTHERS = 5, 24
"""People whose photographs are sought; people whose mean photograph the attacker has."""
STEPS, _STEP_SIZE, _VARIATION = 600, 0.03, 1e-4


Gradient = list[torch.Tensor]
Losses = Callable[[torch.Tensor], torch.Tensor]


def inverted(
    loss: Losses,
    parameters: Sequence[torch.nn.Parameter],
    wanted: Gradient,
    start: torch.Tensor,
    steps: int = STEPS,
) -> torch.Tensor:
    """A picture, float [n, 3, S, S] normalised, whose gradient has the direction of `wanted`.

    loss: of pictures, as the site computed it, draws and all; start: what the attacker takes them for at first
    """
    picture = start.clone().requires_grad_()
    optimiser = torch.optim.Adam([picture], _STEP_SIZE)
    slower = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    length = torch.stack([w.square().sum() for w in wanted]).sum().sqrt().clamp_min(1e-30)
    with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no second derivative
        for _ in range(steps):
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
    """Peak signal-to-noise ratio in dB, structural similarity, and correlation once the mean picture is taken away.

    found, true, mean: float [S, S, 3], in 0..1
    """
    error = float(np.mean((found - true) ** 2))
    left, wanted = (found - mean).ravel(), (true - mean).ravel()
    varies = left.std() > 1e-6 and wanted.std() > 1e-6
    similarity = structural_similarity(found, true, channel_axis=2, data_range=1.0)  # type: ignore[no-untyped-call]
    return {
        "psnr": float(-10 * np.log10(max(error, 1e-12))),
        "ssim": float(similarity),
        "correlation": float(np.corrcoef(left, wanted)[0, 1]) if varies else 0.0,
    }


def loss_of(encoder: FundusEncoder, order: Order) -> Losses:
    """The task's loss of one person's pictures, with the order's draws: shuffle, hidden patches, dropout."""

    def of(images: torch.Tensor) -> torch.Tensor:
        draws = generator(order.seed, order.phase, "epoch", 0)
        torch.randperm(1, generator=draws)
        set_draws(encoder, draws)
        return encoder.reconstruction_errors(images, encoder.draw_hidden(len(images), draws)).mean()

    return of


def photograph_rows(setting: Setting, store: Store) -> tuple[list[dict[str, Cell]], dict[str, np.ndarray]]:
    """A row for each thing that a coordinator may see of people's photographs, and the first one's to look at."""
    config = FundusEncoderConfig(**setting.config["model"]["fundus"])
    loop = {
        "optimiser": {"name": "sgd", "learning_rate": RATE},
        "epochs": 1,
        "batch_size": 0,
        "device": "cpu",
    }
    parameters = {"model": setting.config["model"]["fundus"], "loop": loop}
    order = Order("fundus", "fundus", 1, 1, 7, parameters)
    task = build_task(order, store.study)
    start = _warm(task.initial({}, 7))
    encoder = attach_lora(build_fundus_encoder(config)).train()
    load_lora(encoder, adapters_of(start))
    own = lora_parameters(encoder)
    # If the encoder itself were trained, and not adapters of it: what the same attack then finds.
    whole = [p for name, p in encoder.named_parameters() if "pos_embed" not in name]
    loss = loss_of(encoder, order)
    people = store.people(None, Modality.FUNDUS)[: PICTURED + OTHERS]
    true = [_photographs(store, person, encoder) for person in people]
    mean = torch.cat(true[PICTURED:]).mean(0)

    def adapters(who: Sequence[int], epsilon: float | None = None) -> list[torch.Tensor]:
        privacy = {**setting.config["privacy"], "sample_rate": 1.0}
        terms = {} if epsilon is None else record_privacy(order, 1, epsilon, privacy)
        given = Order("fundus", "fundus", 1, 1, 7, parameters, privacy=terms)
        updates = []
        for person in who:
            folder = setting.folder / "photographs" / str(person)  # a site keeps its photographs there
            folder.mkdir(parents=True, exist_ok=True)
            came = task.train(
                Candidates([store], people[person : person + 1]), given, {}, start, folder
            ).tensors
            changes = [came[f"fundus.lora.{name}"] - start[f"fundus.lora.{name}"] for name in own]
            updates.append(np.concatenate([change.ravel() for change in changes]).astype(np.float64))
        told = opened(updates, 32, setting.config["aggregation"]["range"]) if len(who) > 1 else updates[0]
        parts = np.split(-told / RATE, np.cumsum([p.numel() for p in own.values()])[:-1])
        return [
            torch.from_numpy(part).float().view_as(p) for part, p in zip(parts, own.values(), strict=True)
        ]

    def everything(person: int) -> list[torch.Tensor]:
        with sdpa_kernel(SDPBackend.MATH):
            told = torch.autograd.grad(loss(true[person]), whole, allow_unused=True)
        return [torch.zeros_like(p) if g is None else g for g, p in zip(told, whole, strict=True)]

    epsilon = setting.options["epsilons"][-1]
    cases: dict[str, tuple[Sequence[torch.nn.Parameter], Callable[[int], Gradient]]] = {
        "adapters of one person, in the clear": (list(own.values()), lambda person: adapters([person])),
        f"adapters, a secure sum of {SUMMED}": (
            list(own.values()),
            lambda person: adapters([(person + k) % PICTURED for k in range(SUMMED)]),
        ),
        f"adapters of one person, epsilon {epsilon:g}": (
            list(own.values()),
            lambda person: adapters([person], epsilon),
        ),
        "all parameters of one person, in the clear": (whole, everything),
    }
    average_eye = _pixels(mean[None])
    nothing = [_figures(average_eye, _pixels(eyes), average_eye[0]) for eyes in true[:PICTURED]]
    rows = [_row("nothing: the mean of others", nothing)]
    shown = {"true": _pixels(true[0])[0], "mean of others": average_eye[0]}
    for words, (sought, told) in cases.items():
        for parameter in encoder.parameters():
            parameter.requires_grad_(any(parameter is one for one in sought))
        figures = []
        with setting.stages.stage(words) as step:
            for person, eyes in enumerate(true[:PICTURED]):
                step("person", person, PICTURED)
                pixels = _pixels(inverted(loss, sought, told(person), mean.expand_as(eyes)))
                figures.append(_figures(pixels, _pixels(eyes), average_eye[0]))
                shown.setdefault(words, pixels[0])
            step("", PICTURED, PICTURED)
        rows.append(_row(words, figures))
    return rows, shown


def _row(words: str, figures: Sequence[Mapping[str, float]]) -> dict[str, Cell]:
    """Means over people."""
    means = {key: average([one[key] for one in figures]) for key in figures[0]}
    return {"what": "photograph", "seen": words, **means}


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
