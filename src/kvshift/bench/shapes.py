"""The shapes that operators are measured at, and the tensors of one call."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

MEAN_DOCUMENT = 400
"""Tokens of a document in a packed batch, on average."""


@dataclass(frozen=True)
class Shape:
    """One batch's shape; see PAPER's Table 1 for where most come from."""

    batch: int
    time: int
    kv_heads: int
    head_dim: int
    query_heads: int
    packed: bool = False
    of: str = ""
    """The model that has it."""

    @property
    def name(self) -> str:
        """`[8, 2048, 16, 128] packed`."""
        size = f"[{self.batch}, {self.time}, {self.kv_heads}, {self.head_dim}]"
        return f"{size} packed" if self.packed else size

    def numbers(self, heads: int) -> int:
        """In a tensor with this many heads."""
        return self.batch * self.time * heads * self.head_dim


FIRST = Shape(8, 2048, 16, 128, 16, of="1.5B")
SMALL = Shape(1, 128, 4, 64, 4, of="a small launch")
SHAPES = (
    FIRST,
    Shape(8, 4096, 4, 128, 20, of="2.9B"),
    Shape(1, 12288, 4, 128, 48, of="19B"),
    Shape(8, 2048, 32, 128, 32, of="6.7B"),
    Shape(8, 2048, 40, 128, 40, of="13B"),
    Shape(16, 4096, 16, 128, 16, of="1.5B, four times the tokens"),
    dataclasses.replace(FIRST, packed=True),
    Shape(8, 4096, 4, 128, 20, packed=True, of="2.9B"),
    SMALL,
)
QUICK = (FIRST, SMALL, dataclasses.replace(FIRST, packed=True))
WITH_NORM = (FIRST, Shape(8, 4096, 4, 128, 20, of="2.9B"))
DECODING = (
    Shape(1, 1, 16, 128, 16, of="1.5B"),
    Shape(32, 1, 16, 128, 16, of="1.5B"),
    Shape(32, 1, 4, 128, 20, of="2.9B"),
)
ON_CPU = (
    Shape(4, 512, 4, 64, 4, of="a pilot's model"),
    Shape(2, 2048, 8, 64, 8, of="a larger one"),
    Shape(4, 512, 4, 64, 4, packed=True, of="a pilot's model"),
)
QUICK_ON_CPU = (ON_CPU[0], ON_CPU[2])


@dataclass(frozen=True)
class Case:
    """The tensors of one call, random: `(batch, time, heads, head_dim)` rows and what goes with them."""

    q: Tensor
    k: Tensor
    v: Tensor
    k_taps: Tensor
    v_taps: Tensor
    """`(kv_heads, 2)` float32."""
    q_norm: Tensor
    k_norm: Tensor
    """`(head_dim,)`, in the rows' dtype as models have them."""
    cos: Tensor
    sin: Tensor
    """`(1, time, head_dim)`, the same angles for all sequences."""
    starts: Tensor | None
    """`(batch, time)` bool; None where the batch is not packed."""
    gradients: tuple[Tensor, Tensor, Tensor]
    """Of what is made of q, k and v."""

    @classmethod
    def random(cls, shape: Shape, dtype: torch.dtype, device: torch.device, seed: int) -> Case:
        """Tensors of a shape; the same for the same seed on the same device."""
        generator = torch.Generator(device).manual_seed(seed)

        def draw(*size: int, like: torch.dtype = dtype) -> Tensor:
            return torch.randn(size, generator=generator, device=device, dtype=like)

        rows = (shape.batch, shape.time)
        heads = {"q": shape.query_heads, "k": shape.kv_heads, "v": shape.kv_heads}
        tensors = {name: draw(*rows, count, shape.head_dim) for name, count in heads.items()}
        gradients = tuple(draw(*rows, count, shape.head_dim) for count in heads.values())
        taps = {name: draw(shape.kv_heads, 2, like=torch.float32) for name in ("k_taps", "v_taps")}
        norms = {name: 1 + 0.1 * draw(shape.head_dim) for name in ("q_norm", "k_norm")}
        turn = torch.outer(
            torch.arange(1, shape.time + 1, device=device),
            100_000 ** (-torch.arange(shape.head_dim // 2, device=device) * 2 / shape.head_dim),
        ).repeat(1, 2)[None]
        starts = None
        if shape.packed:
            starts = torch.rand(rows, generator=generator, device=device) < 1 / MEAN_DOCUMENT
            starts[:, 0] = True
        made = cls(
            **tensors,
            **taps,
            **norms,
            cos=turn.cos().to(dtype),
            sin=turn.sin().to(dtype),
            starts=starts,
            gradients=(gradients[0], gradients[1], gradients[2]),
        )
        return made.with_gradients()

    def with_gradients(self) -> Case:
        """The same, with tensors whose gradient is wanted."""
        for leaf in self.leaves.values():
            leaf.requires_grad_()
        return self

    @property
    def leaves(self) -> dict[str, Tensor]:
        """What has a gradient, by name."""
        return {name: getattr(self, name) for name in ("q", "k", "v", "k_taps", "v_taps", "q_norm", "k_norm")}

    def copied(self, rows: torch.dtype | None = None, **changes: Tensor) -> Case:
        """Copies of all tensors, in another dtype if one is given; taps are at least float32."""

        def copy(name: str, x: Tensor | None) -> Tensor | None:
            if x is None or not x.is_floating_point():
                return x
            to = x.dtype if rows is None else rows
            if name.endswith("taps"):
                to = torch.promote_types(to, torch.float32)
            return x.detach().to(to, copy=True)

        fields = {
            field.name: copy(field.name, changes.get(field.name, getattr(self, field.name)))
            for field in dataclasses.fields(self)
            if field.name != "gradients"
        }
        gradients = tuple(copy("gradient", x) for x in self.gradients)
        return Case(**fields, gradients=gradients).with_gradients()  # type: ignore[arg-type]
