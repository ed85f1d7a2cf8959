"""Gradients of a loss that is a sum over units, each unit's cut to a length, in one backward pass.

The book-keeping of Bu et al. 2023 ("Differentially private optimization on large foundation models", section
3): the backward pass computes gradients of activations only. For each layer what went in, a, and the gradient
of what came out, g, are kept; the norm of a unit's gradient follows from both, and the clipped sum is one
product of a with g, scaled unit by unit. Ghost clipping (Li et al. 2022) pays a second backward pass for it,
hooks that build every unit's gradient pay its memory.

    layer           gradient of one unit          its square, whichever is cheaper
    Linear          sum_t g_t a_t^T               sum_st (a_s a_t)(g_s g_t)   or the matrix itself
    Conv2d          the same, on unfolded input   the matrix itself
    LayerNorm       sum_t g_t x_t, sum_t g_t      the vectors themselves
    PerRow          sum_t g_t                     the tensor itself

A unit is one row of the batch or several, and these are neighbours. Whatever mixes rows of different units
(batch normalisation, a loss over the batch) has no gradient of one unit and is refused where it can be seen; a
caller's loss cannot be seen, see `Units`.

Bound. The sum over units moves by at most `clip` when a unit is added or removed, and by 2 `clip` when one is
changed: gradients are cut to (1 - 2^-10) of it, which leaves room for rounding in float32. Squares by inner
products lose digits where rows cancel; their error is bounded by that of the rows' lengths, and added.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from pm1_core.errors import ConfigError
from pm1_core.model.rows import PerRow
from pm1_core.training.guide import Trained
from pm1_core.validate import refusal

_ROOM = 1 - 2.0**-10
_EPSILON = float(torch.finfo(torch.float32).eps)
_PASSES = 128
"""Multiplications that take as long as a number takes to and from memory."""
_MOST_BUILT = 1 << 26
"""Numbers of one layer's gradients, unit by unit, that may be in memory."""


@dataclass(frozen=True)
class Rows:
    """Which rows of a batch are whose. units: how many there are; shares: rows of each, None if all have as many.

    A layer sees the rows of all units at once, in order; it may see several for one of these (a person's tokens).
    """

    units: int
    shares: tuple[int, ...] | None = None

    def split(self, rows: Tensor) -> Tensor | Sequence[Tensor]:
        """Each unit's rows of [n, ...]; one tensor [units, n / units, ...] if all have as many."""
        whole = self.units if self.shares is None else max(1, sum(self.shares))
        if len(rows) % whole:
            found = f"it sees {len(rows)} rows of {whole}"
            raise ConfigError(
                refusal("layer in a private step", found, "give it all units at once, in order")
            )
        if self.shares is None:
            return rows.reshape(self.units, -1, *rows.shape[1:])
        times = len(rows) // whole
        return torch.split(rows, [share * times for share in self.shares])

    def sum(self, rows: Tensor) -> Tensor:
        """[n, ...] -> [units, ...]."""
        found = self.split(rows)
        return found.sum(1) if isinstance(found, Tensor) else torch.stack([own.sum(0) for own in found])

    def spread(self, scale: Tensor, count: int) -> Tensor:
        """Of each unit [units] to its rows [count]."""
        if self.shares is None:
            return scale.repeat_interleave(count // self.units)
        times = count // max(1, sum(self.shares))
        return scale.repeat_interleave(torch.tensor(self.shares, device=scale.device) * times)

    def products(self, g: Tensor, a: Tensor) -> Tensor:
        """sum_t g_t a_t^T of each unit: [n, out] and [n, in] -> [units, out, in]."""
        outputs, inputs = self.split(g), self.split(a)
        if isinstance(outputs, Tensor) and isinstance(inputs, Tensor):
            return torch.bmm(outputs.mT, inputs)
        found = g.new_empty(self.units, g.shape[1], a.shape[1])
        for own, out, inn in zip(found, outputs, inputs, strict=True):
            torch.mm(out.T, inn, out=own)
        return found

    def squares(self, g: Tensor, a: Tensor) -> Tensor:
        """|sum_t g_t a_t^T|^2 of each unit [units], from above, without building it."""
        outputs, inputs = self.split(g), self.split(a)
        if isinstance(outputs, Tensor) and isinstance(inputs, Tensor):
            return _ghost_squares(outputs, inputs)
        # Matrix by matrix: a batch of one runs on one thread.
        return torch.stack([_ghost_squares(out, inn) for out, inn in zip(outputs, inputs, strict=True)])


@dataclass
class _Use:
    """One use of a parameter: `each` gives the gradient of every unit [k, *shape].

    ghost: (g [n, out], a [n, in]) where the gradient is the sum of g_t a_t^T, and not to be built
    """

    each: Callable[[], Tensor]
    ghost: tuple[Tensor, Tensor] | None = None


class ClippedGradients:
    """Clips the gradients of `trained`, parameters of `module`.

    Raises ConfigError naming a layer that mixes rows, or a parameter that belongs to no layer of the table above.
    """

    def __init__(self, module: nn.Module, trained: Trained) -> None:
        self._names = {id(parameter): name for name, parameter in trained.items()}
        self._trained = trained
        self._uses: dict[str, list[_Use]] = {}
        self._rows = Rows(0)
        self._recording = False
        self._free = set(trained)  # in no layer, so every step has to hand them out by PerRow
        self._handed: set[str] = set()
        for path, layer in module.named_modules():
            if isinstance(layer, _BatchNorm | nn.RNNBase):
                remedy = "use LayerNorm, or train without differential privacy"
                raise ConfigError(refusal(f"layer {path!r}", f"{type(layer).__name__} mixes people", remedy))
            own = [self._names[id(p)] for p in layer.parameters(recurse=False) if id(p) in self._names]
            if isinstance(layer, PerRow):
                layer.register_forward_hook(self._spread)
            elif own and type(layer) in _USES:
                layer.register_forward_hook(self._seen)
                self._free -= set(own)

    def step(self, losses: Callable[[], Tensor], rows: Rows, clip: float) -> None:
        """Set `grad` of every trained parameter to the sum over units of their cut gradients, float32.

        losses: gives each unit's loss, float [units]. A unit whose gradient is not finite counts as zero.
        """
        self._rows, self._uses = rows, {name: [] for name in self._trained}
        self._handed.clear()
        with self._watching():
            found = losses()
            if found.shape != (rows.units,):
                remedy = "give the loss of each unit"
                raise ConfigError(refusal("private loss", f"found shape {tuple(found.shape)}", remedy))
            # A loss that is constant, as that of empty groups, has no gradient of anything.
            for name in sorted(self._free - self._handed) if found.requires_grad else ():
                remedy = "hand it out by pm1_core.model.rows.PerRow, or train without differential privacy"
                raise ConfigError(refusal(f"parameter {name!r}", "its layer cannot be clipped", remedy))
            if found.requires_grad:
                torch.autograd.backward(found.sum())
        self._cut(clip)
        self._uses = {}

    @torch.no_grad()
    def _cut(self, clip: float) -> None:
        device = next(iter(self._trained.values())).device
        rows = self._rows
        squares, built = torch.zeros(rows.units, device=device), {}
        for name, uses in self._uses.items():
            if len(uses) == 1 and uses[0].ghost:
                squares += rows.squares(*uses[0].ghost)
            elif uses:
                # Several uses of one parameter add up before they are measured.
                built[name] = torch.stack([use.each() for use in uses]).sum(0) if uses[1:] else uses[0].each()
                squares += torch.linalg.vector_norm(built[name].flatten(1), dim=1).square()
        norms = squares.sqrt()
        finite = torch.isfinite(norms)
        scale = torch.where(finite, (clip * _ROOM) / norms.clamp_min(clip * _ROOM), 0.0)
        broken = None if bool(finite.all()) else ~finite
        for name, parameter in self._trained.items():
            uses = self._uses[name]
            if name in built:
                parameter.grad = torch.tensordot(scale, _whole(built[name], broken), 1).view_as(parameter)
            elif uses and uses[0].ghost:
                lost = None if broken is None else rows.spread(broken, len(uses[0].ghost[0]))
                g, a = (_whole(tensor, lost) for tensor in uses[0].ghost)
                each = rows.spread(scale, len(g))[:, None]
                # Whichever is narrower is scaled: nothing but memory, and that is what it costs.
                parameter.grad = g.T @ (a * each) if a.shape[1] < g.shape[1] else (g * each).T @ a
            else:
                parameter.grad = torch.zeros_like(parameter)

    def _seen(self, layer: nn.Module, given: tuple[Any, ...], output: Tensor) -> Tensor | None:
        """Forward hook of a layer: keep what went in, and on the way back the gradient of what came out."""
        if not self._recording:
            return None
        entered, rows = given[0].detach(), self._rows
        if not output.requires_grad:
            output.requires_grad_()

        def kept(gradient: Tensor) -> None:
            for own, use in _USES[type(layer)](layer, entered, gradient, rows):
                if id(own) in self._names:
                    self._uses[self._names[id(own)]].append(use)

        output.register_hook(kept)  # type: ignore[no-untyped-call]
        return output

    def _spread(self, layer: nn.Module, given: tuple[Any, ...], output: Tensor) -> Tensor | None:
        """Forward hook of PerRow: a leaf takes the place of the parameter's copies."""
        name = self._names.get(id(given[0]))
        if not self._recording or name is None:
            return None
        leaf, rows = output.detach().requires_grad_(), self._rows
        self._handed.add(name)

        def kept(gradient: Tensor) -> None:
            self._uses[name].append(_Use(lambda: rows.sum(gradient.float())))

        leaf.register_hook(kept)  # type: ignore[no-untyped-call]
        return leaf

    @contextmanager
    def _watching(self) -> Iterator[None]:
        """Hooks keep, and the parameters take no gradient of their own."""
        before = {name: parameter.requires_grad for name, parameter in self._trained.items()}
        self._recording = True
        try:
            for parameter in self._trained.values():
                parameter.requires_grad_(False)
            yield
        finally:
            self._recording = False
            for name, parameter in self._trained.items():
                parameter.requires_grad_(before[name])


def _linear(layer: nn.Linear, a: Tensor, g: Tensor, rows: Rows) -> Iterator[tuple[Tensor, _Use]]:
    a, g = (tensor.float().reshape(-1, tensor.shape[-1]) for tensor in (a, g))
    built = a.shape[1] * g.shape[1]
    # Inner products of R rows cost R^2 (in + out); each unit's matrix has to be written and read twice.
    products = (len(a) / max(1, rows.units)) ** 2 * (a.shape[1] + g.shape[1])
    ghost = products <= _PASSES * built or rows.units * built > _MOST_BUILT
    yield layer.weight, _Use(lambda: rows.products(g, a), (g, a) if ghost else None)
    if layer.bias is not None:
        yield layer.bias, _Use(lambda: rows.sum(g))


def _convolution(layer: nn.Conv2d, a: Tensor, g: Tensor, rows: Rows) -> Iterator[tuple[Tensor, _Use]]:
    if layer.padding_mode != "zeros" or isinstance(layer.padding, str):
        raise ConfigError(refusal("convolution", "found another padding than by zeros", "give its width"))
    a, g = a.float(), g.float()

    def weight() -> Tensor:
        unfolded = functional.unfold(a, layer.kernel_size, layer.dilation, layer.padding, layer.stride)  # type: ignore[arg-type]
        count = len(a) * layer.groups
        inner = unfolded.view(count, -1, unfolded.shape[-1])
        outer = g.reshape(count, -1, inner.shape[-1])
        each = torch.bmm(outer, inner.mT)  # n * groups, out / groups, in / groups * kernel
        return rows.sum(each.view(len(a), *layer.weight.shape))

    yield layer.weight, _Use(weight)
    if layer.bias is not None:
        yield layer.bias, _Use(lambda: rows.sum(g.sum((2, 3))))


def _norm(layer: nn.LayerNorm, a: Tensor, g: Tensor, rows: Rows) -> Iterator[tuple[Tensor, _Use]]:
    shape = layer.normalized_shape
    g = g.float()

    def weight() -> Tensor:
        scaled = functional.layer_norm(a.float(), shape, eps=layer.eps) * g
        return rows.sum(scaled.reshape(-1, *shape))

    if layer.weight is not None:
        yield layer.weight, _Use(weight)
    if layer.bias is not None:
        yield layer.bias, _Use(lambda: rows.sum(g.reshape(-1, *shape)))


_USES: dict[type, Callable[..., Iterator[tuple[Tensor, _Use]]]] = {
    nn.Linear: _linear,
    nn.Conv2d: _convolution,
    nn.LayerNorm: _norm,
}


def _ghost_squares(g: Tensor, a: Tensor) -> Tensor:
    """|sum_t g_t a_t^T|^2 from above: of one unit [R, out] and [R, in], or of each of several [k, R, ...]."""
    inputs, outputs = a @ a.mT, g @ g.mT
    # The lengths of rows bound what rounding can hide where rows cancel.
    lengths = (inputs.diagonal(dim1=-2, dim2=-1) * outputs.diagonal(dim1=-2, dim2=-1)).clamp_min(0).sqrt()
    room = _EPSILON * (a.shape[-1] + g.shape[-1]) * lengths.sum(-1).square()
    return (inputs * outputs).sum((-2, -1)).clamp_min(0) + room


def _whole(tensor: Tensor, broken: Tensor | None) -> Tensor:
    """`tensor` [k, ...] with zeros for broken units: zero times infinity is no zero."""
    if broken is None:
        return tensor
    return torch.where(broken.view(-1, *(1,) * (tensor.ndim - 1)), 0.0, tensor)
