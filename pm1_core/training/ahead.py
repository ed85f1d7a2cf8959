"""What keeps a GPU from waiting: batches that are read beside the step before, and random numbers drawn there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

Asked = TypeVar("Asked")
Found = TypeVar("Found")


def ahead(read: Callable[[Asked], Found], asked: Iterable[Asked]) -> Iterator[Found]:
    """`read` of each of `asked`, in their order: a thread reads one while the one before is used.

    What `read` raises comes where its result would.
    """
    with ThreadPoolExecutor(1, "reading") as reader:
        coming: Future[Found] | None = None
        for item in asked:
            now, coming = coming, reader.submit(read, item)
            if now is not None:
                yield now.result()
        if coming is not None:
            yield coming.result()


def placed(tensor: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """`tensor` of the CPU on `device`; to a GPU it goes by locked memory, for which nobody has to wait."""
    if torch.device(device).type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def drawing_on(device: torch.device, draws: torch.Generator) -> torch.Generator:
    """A generator for what is as large as activations: `draws`, or on a GPU one there that is seeded from it.

    A CPU draws some 1e8 numbers a second, of which a step of the fusion at the paper's size takes 1.3e7. A seed
    means the same on GPUs of one kind.
    """
    if device.type != "cuda":
        return draws
    seed = int(torch.randint(2**63 - 1, (), generator=draws))
    return torch.Generator(device).manual_seed(seed)
