"""The package's operators, `torch.ops.kvshift.*`: opaque to the compiler, so nothing breaks its graphs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from kvshift.errors import UnsupportedModelError
from kvshift.kernels.dispatch import INTERPRETED

_LIBRARY = torch.library.Library("kvshift", "DEF")
_DEVICES = ("CUDA", "CPU") if INTERPRETED else ("CUDA",)


def operator(
    schema: str,
    *,
    launch: Callable[..., Any],
    fake: Callable[..., Any],
    backward_of: str | None = None,
    any_strides: bool = False,
) -> None:
    """Registers an operator that Triton runs.

    Args:
        schema: its name, arguments and results.
        launch: computes it; its first argument is a tensor.
        fake: makes results of the same shape, strides and dtype.
        backward_of: the operator whose gradient this is; a gradient of it is refused.
        any_strides: `launch` takes whatever strides the compiler chose. Where it has to give those of eager
            mode, it computes what several calls share, cosines say, anew for each of them.
    """
    name = schema.split("(")[0]
    strides = torch.Tag.flexible_layout if any_strides else torch.Tag.needs_exact_strides
    _LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag, strides))
    for device in _DEVICES:
        _LIBRARY.impl(name, _on_its_device(launch), device)
    torch.library.register_fake(f"kvshift::{name}", fake, lib=_LIBRARY)
    if backward_of is not None:

        def refuse(context: Any, *gradients: Any) -> Any:
            raise UnsupportedModelError(
                f"A second derivative of {backward_of} is not implemented in its kernels. "
                "Set KVSHIFT_BACKEND=definition for it."
            )

        torch.library.register_autograd(f"kvshift::{name}", refuse, lib=_LIBRARY)


def _on_its_device(launch: Callable[..., Any]) -> Callable[..., Any]:
    """Triton launches on the current GPU, which is another than the tensors' where one model has several."""

    def run(x: Tensor, *rest: Any) -> Any:
        with torch.cuda.device_of(x):
            return launch(x, *rest)

    return run


def differentiable(name: str, backward: Callable[..., Any], keep: Callable[..., Any]) -> Callable[..., Any]:
    """Gives an operator its gradient; `keep` says what of its inputs and results the gradient needs.

    Returns:
        The operator for eager mode, with the same gradient in less of the host's time: for the registered
        one PyTorch asks the schema for each argument's default in every call, 0.1 ms for fourteen of them.
    """
    torch.library.register_autograd(f"kvshift::{name}", backward, setup_context=keep, lib=_LIBRARY)
    operator = getattr(torch.ops.kvshift, name)

    class Directly(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *inputs: Any) -> Any:
            output = operator(*inputs)
            keep(ctx, inputs, output)
            return output

        @staticmethod
        def backward(ctx: Any, *gradients: Any) -> Any:
            return backward(ctx, *gradients)

    def call(*inputs: Any) -> Any:
        if torch.is_grad_enabled() and not torch.compiler.is_compiling() and not torch.jit.is_tracing():
            return Directly.apply(*inputs)
        return operator(*inputs)

    return call
