"""What all layers of a model need alike is made once and kept for the next that asks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

Made = TypeVar("Made")


class Latest(Generic[Made]):
    """Calls `make`, or returns what it made last, if that was of the same.

    Of the same numbers: comparing small tensors takes a few microseconds. Which tensor it is and how often it
    was written to would be compared sooner, but what is written through NumPy, through `.data` or to a tensor
    of inference mode is not counted.
    """

    def __init__(self, make: Callable[..., Made]) -> None:
        """`make(tensors, *sizes)` is given copies, and makes what later backwards may keep."""
        self._make = make
        self._last: tuple[tuple[Tensor | None, ...], tuple[Any, ...], Made] | None = None

    def __call__(self, tensors: tuple[Tensor | None, ...], *sizes: Any) -> Made:
        last = self._last  # looked up once, as another thread may put another there
        if last is not None and last[1] == sizes and all(map(_same, last[0], tensors)):
            return last[2]
        with torch.inference_mode(False), torch.no_grad():
            copies = tuple(None if x is None else x.clone() for x in tensors)
            made = self._make(copies, *sizes)
        self._last = copies, sizes, made
        return made


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    return one.dtype == other.dtype and torch.equal(one, other)
