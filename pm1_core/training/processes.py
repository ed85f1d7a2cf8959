"""One site's training by several processes that share every batch: data parallelism, appendices F.1 and F.4.

Each process reads the whole batch, draws all its random numbers, and computes the network on its own rows
(`divided`); what the network says of the others' rows comes from them, and each computes the loss of everybody. So
InfoNCE has the whole batch as negatives, copy masking the whole batch as donors, and all processes agree on every
figure and every skipped step without a word. A process's gradient is that of the whole loss by way of its own rows:
the sum over the processes (`add_up`) is what one process would have found, but for the order of sums.

Where nobody started others (`pm1_core.training.launch`), everything here does nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

F = TypeVar("F", bound=Callable[..., Any])


def size() -> int:
    """Processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This one's number, from 0."""
    return dist.get_rank() if size() > 1 else 0


def rows_here(count: int) -> Tensor:
    """Which of a batch's rows this process computes, int64 [ceil(count / size)].

    As many everywhere: the last one is computed again where there are too few, and its copies are not looked at.
    """
    each = -(-count // size())
    return (rank() * each + torch.arange(each)).clamp(max=count - 1)


def divided(network: F) -> F:
    """`network`, a function of rows, computed by all processes together: what it gives is of the whole batch.

    Rows are the first dimension of every tensor that goes in, alone or in mappings and dataclasses, and of every
    tensor that comes out. What else depends on trained parameters must not be computed outside of such a function:
    its gradient would count once for each process.
    """
    if size() == 1:
        return network

    def together(*given: Any, **named: Any) -> Any:
        counts = set[int]()
        _mapped((given, named), lambda tensor: counts.add(len(tensor)))
        (count,) = counts
        here = rows_here(count)
        given, named = _mapped((given, named), lambda tensor: tensor[here.to(tensor.device)])
        return _mapped(network(*given, **named), lambda tensor: _Everybody.apply(tensor, count))

    return together  # type: ignore[return-value]


def add_up(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Make every gradient the sum over the processes."""
    if size() > 1:
        grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
        for work in [dist.all_reduce(grad, async_op=True) for grad in grads]:
            work.wait()


@contextmanager
def in_turn() -> Iterator[None]:
    """The first process alone, then the others: it writes a cache, and they find it."""
    if rank():
        dist.barrier()
    yield
    if size() > 1 and not rank():
        dist.barrier()


class _Everybody(torch.autograd.Function):
    """Rows of this process -> rows of all, [count, ...]; backwards, the gradient of this process's own rows."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, count: int) -> Tensor:
        ctx.count = count
        found = [torch.empty_like(own, memory_format=torch.contiguous_format) for _ in range(size())]
        dist.all_gather(found, own.contiguous())
        return torch.cat(found)[:count]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (grad,) = grads
        each = len(rows_here(ctx.count))
        own = grad.new_zeros(each, *grad.shape[1:])
        mine = grad[rank() * each : (rank() + 1) * each]
        own[: len(mine)] = mine
        return own, None


def _mapped(value: Any, change: Callable[[Tensor], Any]) -> Any:
    """`value` with `change` made to every tensor in it."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Mapping):
        return {key: _mapped(item, change) for key, item in value.items()}
    if isinstance(value, tuple):
        return tuple(_mapped(item, change) for item in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return dataclasses.replace(value, **_mapped(fields, change))
    return value
