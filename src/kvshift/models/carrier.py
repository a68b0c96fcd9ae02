"""For families whose layers drop the keywords they are given: a way for boundaries to reach the attention.

The model hands them to its layers; each layer takes them into its call, so that a layer that is run again in
the backward pass (gradient checkpointing) sees those of its own batch; the attention finds them on itself.
"""

from __future__ import annotations

from typing import Any

from kvshift.models.packing import marked, mixing
from kvshift.models.starts import Boundaries


class CarryingBase:
    """Placed between the shifted base model and the family's."""

    def forward(self: Any, *args: Any, boundaries: Boundaries, **kwargs: Any) -> Any:
        layers = [layer for layer in self.modules() if isinstance(layer, CarryingLayer)]
        for layer in layers:
            layer.boundaries = boundaries
        output = super().forward(*args, **kwargs)  # type: ignore[misc]
        for layer in layers:
            layer.boundaries = None
        return output


class CarryingCausalLM:
    """Placed in front of the causal language model, which drops what `generate` says about boundaries."""

    def __call__(self: Any, *args: Any, boundaries: Boundaries | None = None, **kwargs: Any) -> Any:
        if marked(kwargs) and not self.family.packs:
            raise mixing(self.family)  # said here, for the family's model may drop these keywords
        self.base_model.boundaries = boundaries
        try:
            return super().__call__(*args, **kwargs)  # type: ignore[misc]
        finally:
            self.base_model.boundaries = None


class CarryingLayer:
    """Placed in front of the family's decoder layer; `attention` is its shifted attention."""

    boundaries: Boundaries | None = None

    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        return super().__call__(*args, boundaries=self.boundaries, **kwargs)  # type: ignore[misc]

    def forward(self: Any, *args: Any, boundaries: Boundaries, **kwargs: Any) -> Any:
        attention = next(module for module in self.children() if hasattr(module, "kv_shift"))
        attention.boundaries = boundaries
        output = super().forward(*args, **kwargs)  # type: ignore[misc]
        attention.boundaries = None
        return output
