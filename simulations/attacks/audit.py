"""An audit of private training in one run: a lower bound on epsilon, from what an attacker guesses right.

Steinke, Nasr and Jagielski 2023, "Privacy auditing with one (1) training run": of m canaries each is included by a
fair coin of its own; from what is released the auditor guesses r of the coins and abstains from the others. If the
mechanism is (epsilon, delta)-private for one person added or removed, the number W of right guesses is bounded by
a binomial one (theorem 5.2, and its form for computing in appendix D):

    P(W >= v) <= P(B >= v) + 2 m delta max_i P(v > B >= v - i) / i,   B ~ Binomial(r, e^epsilon / (1 + e^epsilon))

The largest epsilon at which that is below 5% is refuted, with 95% confidence: the mechanism is not (epsilon,
delta)-private for a smaller one. Which are guessed is fixed before the release is looked at, from
rehearsals with random numbers of the auditor's own.

Canaries are people as bad as clipping allows: each has a gradient beyond the bound, in a direction that is nobody
else's (the "gradient canaries" of section 6). So the bound is of the private step itself, which all trained parts
of PM1 share, and not of how memorable a person is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import nn

from pm1_core.errors import InputError
from pm1_core.privacy.accounting import tightest
from pm1_core.privacy.calibration import Plan, calibrate
from pm1_core.privacy.mechanisms import Mechanism
from pm1_core.privacy.noise import gaussian, secret_generator
from pm1_core.privacy.terms import RecordTerms, to_order
from pm1_core.training.loop import LoopConfig
from pm1_core.training.optimisers import OptimiserConfig
from pm1_core.training.order import Order
from pm1_core.training.private import Units, train_privately
from pm1_core.validate import refusal
from simulations.attacks.outcome import Cell, Outcome, Setting

CONFIDENCE = 0.95
_MOST = 30.0
_HALVINGS = 30
_NO_NOISE = 1e-6
_FEWEST = 10
_REHEARSALS = 10
_WIDTH = 10
_LOUD = 100.0


def guessing_probability(right: int, guesses: int, canaries: int, epsilon: float, delta: float) -> float:
    """The largest chance of at least `right` right guesses under any (epsilon, delta)-private mechanism.

    Raises InputError unless 0 <= right <= guesses <= canaries.
    """
    if not 0 <= right <= guesses <= canaries:
        found = f"found {right} right of {guesses} guesses on {canaries} canaries"
        raise InputError(refusal("audit", found, "give counts that do not fall in this order"))
    chance = 1 / (1 + np.exp(-epsilon))
    tail = float(stats.binom.sf(right - 1, guesses, chance))
    if delta == 0 or right == 0:
        return min(1.0, tail)
    below = stats.binom.cdf(np.arange(right), guesses, chance)  # P(B <= 0), ..., P(B <= v - 1)
    between = below[-1] - np.concatenate([below[-2::-1], [0.0]])  # P(v > B >= v - i), i = 1..v
    slope = float((between / np.arange(1, right + 1)).max())
    return min(1.0, tail + 2 * canaries * delta * slope)


def lower_bound(
    right: int, guesses: int, canaries: int, delta: float, confidence: float = CONFIDENCE
) -> float:
    """The largest epsilon that these guesses refute at `delta` with `confidence`; 0 if they refute none.

    >>> round(lower_bound(100, 100, 100, 0.0), 2)
    3.49
    >>> lower_bound(52, 100, 100, 1e-5)
    0.0
    """
    refused = 1 - confidence

    def refuted(epsilon: float) -> bool:
        return guessing_probability(right, guesses, canaries, epsilon, delta) <= refused

    if not refuted(0.0):
        return 0.0
    low, high = 0.0, _MOST
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if refuted(middle) else (low, middle)
    return low


@dataclass(frozen=True)
class Guesses:
    """How many of the highest scores are said to be in, and of the lowest to be out."""

    high: int
    low: int

    def right(self, scores: np.ndarray, included: np.ndarray) -> int:
        """How many are right; scores: float [m], included: bool [m]."""
        ranked = included[np.argsort(scores, kind="stable")]
        return int(ranked[len(ranked) - self.high :].sum() + (~ranked[: self.low]).sum())


@dataclass(frozen=True)
class Audit:
    """right of `guesses` guesses on `canaries` coins; epsilon: the lower bound at delta, with confidence 95%."""

    right: int
    guesses: int
    canaries: int
    delta: float
    epsilon: float


def audited(scores: np.ndarray, included: np.ndarray, plans: Sequence[Guesses], delta: float) -> Audit:
    """The best of `plans`, each at its share of the 5% by which the bound may be wrong (Bonferroni).

    scores: float [m], what the attacker sees; included: bool [m], the coins, looked at only to count; plans: fixed
    before either is seen
    """
    confidence, count = 1 - (1 - CONFIDENCE) / len(plans), len(scores)
    found = []
    for plan in plans:
        right, guesses = plan.right(scores, included), plan.high + plan.low
        bound = lower_bound(right, guesses, count, delta, confidence)
        found.append(Audit(right, guesses, count, delta, bound))
    return max(found, key=lambda audit: audit.epsilon)


def rehearsed(canaries: int, terms: RecordTerms, delta: float, seed: int = 0) -> list[Guesses]:
    """Two plans: what does best in rehearsals of the mechanism that `terms` claims, and of one without noise.

    Rehearsals use random numbers of the auditor's own, so that the plans do not depend on the release.
    """
    return [_rehearsed(canaries, terms, noise, delta, seed) for noise in (terms.noise_multiplier, 0.0)]


def _rehearsed(canaries: int, terms: RecordTerms, noise: float, delta: float, seed: int) -> Guesses:
    rng = np.random.default_rng(seed)
    each = np.unique(np.geomspace(_FEWEST, canaries // 2, 16).astype(int)).tolist()
    plans = [Guesses(count, other) for count in each for other in (count, 0)]
    right = np.zeros(len(plans))
    for _ in range(_REHEARSALS):
        included = rng.random(canaries) < 0.5
        steps = rng.binomial(terms.steps, terms.sample_rate, canaries)
        scores = np.where(included, steps, 0) + noise * np.sqrt(terms.steps) * rng.standard_normal(canaries)
        right += [plan.right(scores, included) for plan in plans]
    # Rounded down: a bound that needs luck is no plan.
    bounds = [
        lower_bound(int(hits / _REHEARSALS), plan.high + plan.low, canaries, delta)
        for plan, hits in zip(plans, right, strict=True)
    ]
    return plans[int(np.argmax(bounds))]


def gaussian_sum(included: np.ndarray, noise_multiplier: float) -> np.ndarray:
    """One noised sum of orthogonal unit vectors, one of each canary that is included: float [m]."""
    return gaussian(included.astype(np.float64), 1.0, noise_multiplier, secret_generator())


def private_training(included: np.ndarray, terms: RecordTerms, folder: Path) -> np.ndarray:
    """Scores float [m] of canaries after training as sites do it, `terms.steps` steps under `terms`.

    The part is one linear layer. A canary's input is one-hot and its loss is one output, so that its gradient is
    one weight of its own, far beyond the clipping bound. Plain steps of size 1 make the layer's change the sum of
    all noised gradients. Who is in a step, clipping, noise and division are those of `train_privately`.
    """
    count = len(included)
    rows = -(-count // _WIDTH)
    module = nn.Linear(rows, _WIDTH, bias=False)
    nn.init.zeros_(module.weight)
    inside = np.flatnonzero(included)
    place, output = torch.from_numpy(inside // _WIDTH), torch.from_numpy(inside % _WIDTH)

    def losses(indices: np.ndarray, draws: torch.Generator, step: int) -> torch.Tensor:
        chosen = torch.from_numpy(np.asarray(indices, np.int64))
        values = module(nn.functional.one_hot(place[chosen], rows).float())
        chosen_output: torch.Tensor = values.gather(1, output[chosen, None])[:, 0]
        return -_LOUD * chosen_output

    order = Order("audit", "audit", 1, 1, 0, privacy=to_order(terms))
    optimiser = OptimiserConfig(name="sgd", learning_rate=1.0, momentum=0.0)
    loop = LoopConfig(batch_size=0, keep_moments=False, optimiser=optimiser, device="cpu")
    folder.mkdir(parents=True, exist_ok=True)
    trained = dict(module.named_parameters())
    train_privately(module, trained, order, terms, folder, Units(len(inside), losses), loop)
    return module.weight.detach().double().numpy().T.reshape(-1)[:count]


def coins(count: int, seed: int) -> np.ndarray:
    """Who is included, bool [count]."""
    return np.random.default_rng(seed).random(count) < 0.5


def attack(setting: Setting) -> Outcome:
    """The Gaussian mechanism, the private step, and the private step without its noise."""
    options, delta = setting.options, float(setting.config["privacy"]["delta"])
    count, rate = int(options["canaries"]), float(setting.config["privacy"]["sample_rate"])
    runs, seed = int(options["audit_runs"]), int(setting.config["seed"])
    rows: list[dict[str, Cell]] = []
    with setting.stages.stage("audit: training with canaries") as step:
        epsilons = [float(epsilon) for epsilon in options["epsilons"]]
        for number, epsilon in enumerate(epsilons):
            step(f"epsilon {epsilon:g}", number, len(epsilons))
            for title, claimed, released in _cases(setting, epsilon, delta, rate):
                plans = rehearsed(count, claimed, delta, seed)
                draws = (coins(count, seed + 1 + number * runs + run) for run in range(runs))
                found = [audited(released(included), included, plans, delta) for included in draws]
                rows.append(_row(title, claimed, found))
        step("", len(epsilons), len(epsilons))
    return {
        "title": "Canary audit",
        "attacker": "Put the canaries in himself, knows their gradients, the terms and the model before and "
        "after training, and has to say of each canary whether it was in. Sees the model after all steps, not in "
        "between.",
        "sets": f"{count:,} canaries, each included by a fair coin; delta {delta:g}; the lower bound of one run "
        "holds with 95% confidence. "
        + ("One run." if runs == 1 else f"Medians of {runs} runs, each with coins of its own."),
        "columns": [
            {"key": "target", "label": "Mechanism", "kind": "text"},
            {"key": "claimed", "label": "Claimed epsilon (upper bound)", "kind": "figure"},
            {"key": "bound", "label": "Lower bound found", "kind": "figure"},
            {"key": "least", "label": "Least of the runs", "kind": "figure"},
            {"key": "most", "label": "Most", "kind": "figure"},
            {"key": "right", "label": "Right guesses", "kind": "count"},
            {"key": "guesses", "label": "Guesses", "kind": "count"},
            {"key": "verdict", "label": "", "kind": "text"},
        ],
        "rows": rows,
        "plot": {
            "kind": "bounds",
            "axis": "epsilon",
            "caption": "Dot: every smaller epsilon is refuted. Bar: what is claimed, the accountant's upper bound. "
            "A dot beyond the bar shows that the claim is untrue.",
            "rows": [
                {
                    "label": f"{row['target']}, ε {row['claimed']:.1f}",
                    "value": row["bound"],
                    "claim": row["claimed"],
                }
                for row in rows
            ],
        },
        "findings": _sentences(rows),
        "notes": [
            "A lower bound below the claim is what a sound mechanism gives, and no proof. The theorem itself "
            "loses: canaries in one run can refute about half of a large epsilon, not all of it; and sampling "
            "hides a canary from guesses better than it hides one person in the worst case.",
            "An audit of the step says nothing of what is released beside it, nor how memorable real people are.",
        ],
    }


def _cases(
    setting: Setting, epsilon: float, delta: float, rate: float
) -> list[tuple[str, RecordTerms, Callable[[np.ndarray], np.ndarray]]]:
    """(title, the terms that are claimed, what is released for the coins)."""
    steps = int(setting.options["audit_steps"])
    alone = RecordTerms(calibrate([Plan("sum", 1.0, "gaussian")], epsilon, delta).noise["sum"])
    full, sampled = (record_terms_for(epsilon, delta, q, steps) for q in (1.0, rate))
    silent = replace(full, noise_multiplier=_NO_NOISE)
    train = partial(private_training, folder=setting.folder)
    return [
        (
            "Gaussian mechanism, one sum",
            alone,
            partial(gaussian_sum, noise_multiplier=alone.noise_multiplier),
        ),
        (f"private training, {steps} steps on everybody", full, partial(train, terms=full)),
        (f"private training, {steps} steps on a share of {rate:g}", sampled, partial(train, terms=sampled)),
        ("private training on everybody, its noise secretly left out", full, partial(train, terms=silent)),
    ]


def record_terms_for(epsilon: float, delta: float, rate: float, steps: int) -> RecordTerms:
    """The least noise with which `steps` steps at a sampling rate are (epsilon, delta)-private."""
    noise = calibrate([Plan("audit", 1.0, "sampled", rate, steps)], epsilon, delta).noise["audit"]
    return RecordTerms(noise, sample_rate=rate, steps=steps)


def _row(title: str, claimed: RecordTerms, runs: Sequence[Audit]) -> dict[str, Cell]:
    """The median run (the lower of two), and how far the others lie.

    The claim is the accountant's upper bound for the terms, not the epsilon that was asked for.
    """
    ordered = sorted(runs, key=lambda audit: audit.epsilon)
    found = ordered[(len(ordered) - 1) // 2]
    kind = "sampled" if claimed.sample_rate < 1 or claimed.steps > 1 else "gaussian"
    mechanism = Mechanism(kind, claimed.noise_multiplier, claimed.sample_rate, claimed.steps)
    upper = tightest([mechanism], found.delta).value
    verdict = "exceeds the claim" if found.epsilon > upper else "below the claim"
    return {
        "target": title,
        "claimed": upper,
        "bound": found.epsilon,
        "least": ordered[0].epsilon,
        "most": ordered[-1].epsilon,
        "right": found.right,
        "guesses": found.guesses,
        "verdict": verdict,
    }


def _sentences(rows: list[dict[str, Any]]) -> list[str]:
    """One for each mechanism: what was refuted of each claim."""
    found = []
    for title in dict.fromkeys(row["target"] for row in rows):
        own = [row for row in rows if row["target"] == title]
        bounds = ", ".join(f"{row['bound']:.2f} where {row['claimed']:.2f} is claimed" for row in own)
        beyond = sum(row["bound"] > row["claimed"] for row in own)
        verdict = "every claim is refuted" if beyond == len(own) else "no claim is refuted"
        if 0 < beyond < len(own):
            verdict = f"{beyond} of {len(own)} claims are refuted"
        found.append(f"{title[0].upper()}{title[1:]}: epsilon is at least {bounds}; {verdict}.")
    return found
