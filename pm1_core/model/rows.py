"""A parameter that every row of a batch has a copy of: a place where its gradient can be told by row."""

from __future__ import annotations

from torch import Tensor, nn


class PerRow(nn.Module):
    """Hands a parameter to each row. A view, so it costs nothing; it has no parameters of its own.

    A parameter that is added to a stream, or stands in for a token, is no layer. Going through this module, it is
    seen by `pm1_core.training.clipping`, which replaces the copies by leaves of its own.
    """

    def forward(self, parameter: Tensor, rows: int) -> Tensor:
        """`parameter` [...] -> [rows, ...]."""
        return parameter.expand(rows, *parameter.shape)
