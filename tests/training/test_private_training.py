"""Training under record-level terms: what a step takes, what it does not look at, what nobody can do again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from pm1_core.data.store import Store
from pm1_core.errors import ConfigError
from pm1_core.fields import Modality, Split
from pm1_core.privacy.terms import RecordTerms, to_order
from pm1_core.training.clipping import ClippedGradients
from pm1_core.training.guide import Control, Proximal
from pm1_core.training.loop import Losses, train_epochs
from pm1_core.training.order import Order
from pm1_core.training.private import Units, clipped_sums
from pm1_core.training.tasks.fusion import groups_of
from pm1_core.training.tasks.phenotype import PhenotypeTask

QUIET = RecordTerms(noise_multiplier=1e-6, clip=10.0, sample_rate=1.0, steps=3, people=8)
SGD = {"name": "sgd", "learning_rate": 0.1}


def order(terms: RecordTerms, **loop: Any) -> Order:
    parameters = {"loop": {"optimiser": SGD, "batch_size": 3, "epochs": 3, **loop}}
    return Order("part", "test", 1, 2, 7, parameters, privacy=to_order(terms))


def line(data: torch.Tensor) -> tuple[torch.nn.Module, Units, list[np.ndarray]]:
    """A linear map, units that are rows of `data`, and the batches that were asked for."""
    module, asked = torch.nn.Linear(data.shape[1], 2), list[np.ndarray]()

    def losses(indices: np.ndarray, draws: torch.Generator, step: int) -> torch.Tensor:
        asked.append(indices)
        return module(data[indices]).square().sum(1)

    return module, Units(len(data), losses), asked


def run(
    module: torch.nn.Module, units: Units, given: Order, folder: Path, guide: Any = None
) -> dict[str, float]:
    def never(indices: np.ndarray, draws: torch.Generator, step: int) -> Losses:
        raise AssertionError("the plain loss is not asked")

    options = {} if guide is None else {"guide": guide}
    return train_epochs(
        module, dict(module.named_parameters()), given, folder, units.count, never, units=units, **options
    )


def test_without_noise_and_with_everybody_it_is_clipped_gradient_descent(tmp_path: Path) -> None:
    torch.manual_seed(0)
    data = torch.randn(8, 3)
    module, units, _ = line(data)
    twin = torch.nn.Linear(3, 2)
    twin.load_state_dict(module.state_dict())
    figures = run(module, units, order(QUIET), tmp_path)
    for _ in range(3):
        twin.zero_grad()
        for row in data:
            each = torch.autograd.grad(twin(row[None]).square().sum(), list(twin.parameters()))
            norm = torch.stack([g.square().sum() for g in each]).sum().sqrt()
            scale = min(1.0, 10 * (1 - 2.0**-10) / float(norm))
            for parameter, gradient in zip(twin.parameters(), each, strict=True):
                parameter.grad = scale * gradient + (0 if parameter.grad is None else parameter.grad)
        for parameter in twin.parameters():
            assert parameter.grad is not None
            parameter.data -= 0.1 * parameter.grad / 8
    torch.testing.assert_close(module.weight, twin.weight, atol=1e-4, rtol=1e-4)
    assert figures == {"steps": 3.0}


def test_chunks_in_memory_change_nothing(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, units, asked = line(torch.randn(11, 3))
    trained = dict(module.named_parameters())
    clipped, taken = ClippedGradients(module, trained), np.arange(11)
    sums = [clipped_sums(clipped, trained, units, taken, 0.5, size, torch.Generator()) for size in (11, 3, 1)]
    assert [len(chunk) for chunk in asked] == [11, 3, 3, 3, 2, *[1] * 11]
    for name in trained:
        np.testing.assert_allclose(sums[1][name], sums[0][name], atol=1e-5)
        np.testing.assert_allclose(sums[2][name], sums[0][name], atol=1e-5)


def test_who_is_in_a_step_is_poisson_as_the_accountant_assumes(tmp_path: Path) -> None:
    people, rate, steps = 40, 0.2, 400
    module, units, asked = line(torch.randn(people, 3))
    terms = replace(QUIET, noise_multiplier=1.0, sample_rate=rate, steps=steps, people=people)
    run(
        module,
        units,
        order(terms, batch_size=0, epochs=1, optimiser={"name": "sgd", "learning_rate": 0.0}),
        tmp_path,
    )
    counts = np.bincount(np.concatenate(asked), minlength=people)
    assert stats.chisquare(counts, np.full(people, counts.mean())).pvalue > 1e-6
    # Sizes of the samples: binomial, not fixed, and not a pass over everybody.
    sizes = np.array([len(chunk) for chunk in asked])
    assert abs(sizes.mean() - people * rate) < 5 * np.sqrt(people * rate * (1 - rate) / steps)
    assert 0.6 < sizes.var() / (people * rate * (1 - rate)) < 1.5
    assert all(len(np.unique(chunk)) == len(chunk) for chunk in asked)


def test_nothing_in_a_step_follows_from_the_orders_seed(tmp_path: Path) -> None:
    """The coordinator knows the seed: noise, sample and masks that followed from it would be no secret."""
    data, seen = torch.randn(30, 3), list[tuple]()
    found = []
    for attempt in range(2):
        torch.manual_seed(0)
        module, units, asked = line(data)
        drawn: list[float] = []

        def losses(
            indices: np.ndarray,
            draws: torch.Generator,
            step: int,
            inner: Callable[..., torch.Tensor] = units.losses,
            drawn: list[float] = drawn,
        ) -> torch.Tensor:
            drawn.append(float(torch.rand(1, generator=draws)))
            return inner(indices, draws, step)

        terms = replace(QUIET, noise_multiplier=1.0, sample_rate=0.3)
        run(module, Units(30, losses), order(terms), tmp_path / str(attempt))
        found.append(module.weight.detach().clone())
        seen.append((tuple(map(tuple, asked)), drawn[0]))
    assert (found[0] != found[1]).all()
    assert seen[0][0] != seen[1][0]
    assert seen[0][1] != seen[1][1]


def test_nobodys_data_decide_how_many_steps_are_taken(tmp_path: Path) -> None:
    """The plain loop skips steps that are not finite or too steep; each skip would tell who was in it."""
    plain = torch.randn(8, 3)
    for data in (plain, plain * float("nan"), plain * 1e20, plain[:0]):
        module, units, _ = line(data)
        terms = replace(QUIET, noise_multiplier=1.0, sample_rate=0.5)
        optimiser = {**SGD, "clip_norm": 1e-3, "skip_norm": 1e-9}
        figures = run(module, units, order(terms, optimiser=optimiser, keep_moments=False), tmp_path)
        assert figures == {"steps": 3.0}
        assert bool(torch.isfinite(module.weight).all())


def test_what_strategies_add_works_on_noised_gradients(tmp_path: Path) -> None:
    data = torch.randn(8, 3)
    for make in (
        lambda start: Proximal(0.5, start),
        lambda start: Control({n: np.ones_like(a) for n, a in start.items()}, {}),
    ):
        module, units, _ = line(data)
        start = {name: p.detach().numpy().copy() for name, p in module.named_parameters()}
        guide = make(start)
        run(module, units, order(replace(QUIET, noise_multiplier=0.1)), tmp_path, guide)
        if isinstance(guide, Control):
            assert set(guide.renewed()) == set(start)


def test_a_task_that_names_no_units_cannot_be_trained_privately(tmp_path: Path) -> None:
    module, units, _ = line(torch.randn(4, 3))
    with pytest.raises(ConfigError, match="it does not say whose gradients are to be cut"):
        train_epochs(
            module, dict(module.named_parameters()), order(QUIET), tmp_path, 4,
            lambda indices, draws, step: Losses(units.losses(indices, draws, step).mean()),
        )  # fmt: skip


def test_no_noise_is_refused_where_people_are_read(tmp_path: Path) -> None:
    module, units, _ = line(torch.randn(4, 3))
    with pytest.raises(Exception, match="noise multiplier: found 0"):
        run(module, units, order(replace(QUIET, noise_multiplier=0.0)), tmp_path)


def test_a_persons_loss_under_copy_masking_does_not_change_with_what_others_lack(
    hospitals: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Plainly, donors are the others of the batch; privately, what a donor lacks is drawn from paid-for shares."""
    store = Store.open(hospitals["north"])
    columns = len(store.study.features)
    state = {
        "statistics.phenotype.mean": np.zeros(columns, np.float32),
        "statistics.phenotype.std": np.ones(columns, np.float32),
        "statistics.phenotype.kept": np.ones(columns, np.float32),
        "statistics.phenotype.count": np.full(columns, 10, np.float32),
    }
    parameters = {"model": {"latent": 4, "depth": 1, "copy_mask": 1.0}, "loop": {"optimiser": SGD}}
    given = Order("phenotype", "phenotype", 1, 1, 0, parameters, privacy=to_order(QUIET))
    task = PhenotypeTask(parameters, store.study)
    held: list[Units] = []
    monkeypatch.setattr(
        "pm1_core.training.tasks.phenotype.train_epochs",
        lambda *args: held.append(args[7]) or {},
    )
    people = store.people(Split.TRAIN, Modality.PHENOTYPE)
    both = store.phenotypes(people)

    def first_loss(hide: bool) -> float:
        def phenotypes(_: Any, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            observed = both[1].copy()
            observed[1:] &= not hide
            rows = np.searchsorted(people, chosen)
            return both[0][rows], observed[rows]

        monkeypatch.setattr(Store, "phenotypes", phenotypes)
        task.train(store, given, state, task.initial(state, 0), tmp_path)
        losses = held[-1].losses(np.arange(len(people)), torch.Generator().manual_seed(3), 0)
        return float(losses[0].detach())

    assert first_loss(hide=True) == first_loss(hide=False)


def test_a_persons_group_is_hers_whoever_else_is_there() -> None:
    given, names = order(QUIET), np.array([f"person {n}" for n in range(400)])
    groups = groups_of(names, 40, given)
    np.testing.assert_array_equal(groups_of(names[100:], 40, given), groups[100:])
    np.testing.assert_array_equal(
        groups_of(names, 40, replace(given, round=2)), groups
    )  # for the whole phase
    assert (groups_of(names, 40, replace(given, seed=8)) != groups).any()
    assert stats.chisquare(np.bincount(groups, minlength=40)).pvalue > 1e-6
