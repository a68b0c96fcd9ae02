"""The weights of public models with the same mechanism, from their layouts to ours and back.

Two layouts are known:

- `baichuan-m1`: taps `self_attn.conv_k` and `conv_v`, `(1, 1, kv_heads, 1, 2)`; one projection,
  `self_attn.W_pack`, whose rows are queries, keys and values in this order.
- `kv-shifting`, the paper's own 2.9B model: taps `self_attn.K` and `V`, `(kv_heads, 2)`; three projections.

In both the last axis is previous, current. Ours are `self_attn.kv_shift.k_weight` and `v_weight`,
`(kv_heads, 2)`, in float32, with the current token first. The mapping is of names and tensors only: whether
the rest of a model is a family known here is another matter.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal, get_args

import torch
from torch import Tensor

from kvshift.errors import UnsupportedModelError, UsageError

Layout = Literal["baichuan-m1", "kv-shifting"]

_TAPS = {"baichuan-m1": ("conv_k", "conv_v"), "kv-shifting": ("K", "V")}
_OURS = ("kv_shift.k_weight", "kv_shift.v_weight")
_PROJECTIONS = ("q_proj", "k_proj", "v_proj")
_LAYER = re.compile(r"(?P<layer>(?:.*\.)?layers\.\d+\.self_attn)\.(?P<name>.+)")


def from_foreign(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A public model's weights under our names, its taps as ours and its fused projection in three.

    Args:
        weights: of one of the two layouts, in any dtype, whatever comes before `layers.N.self_attn` in their
            names. What is neither taps nor `W_pack` keeps its name and its tensor.

    Raises:
        UnsupportedModelError: no taps, taps of both layouts or of some layers only, or wrong shapes.
    """
    layers = _by_layer(weights)
    layout = _layout_of(layers)
    key, value = _TAPS[layout]
    out = {name: tensor for name, tensor in weights.items() if not _LAYER.fullmatch(name)}
    for layer, held in layers.items():
        held = dict(held)
        if missing := [name for name in (key, value) if name not in held]:
            raise UnsupportedModelError(f"{layer} has no {missing[0]}; expected taps in every layer.")
        taps = [_read_taps(f"{layer}.{name}", held.pop(name), layout) for name in (key, value)]
        if taps[0].shape != taps[1].shape:
            raise UnsupportedModelError(
                f"{layer}.{key} has {taps[0].shape[0]} KV heads and {value} {taps[1].shape[0]}; expected "
                "as many."
            )
        if layout == "baichuan-m1":
            _split(layer, held, kv_heads=taps[0].shape[0])
        held.update(zip(_OURS, taps, strict=True))
        out.update({f"{layer}.{name}": tensor for name, tensor in held.items()})
    return out


def to_foreign(
    weights: Mapping[str, Tensor], layout: Layout, *, dtype: torch.dtype | None = None
) -> dict[str, Tensor]:
    """The inverse of `from_foreign`.

    Args:
        weights: a converted model's `state_dict()`, with two free taps a head for keys and values.
        layout: the layout wanted.
        dtype: of the taps; None: float32, as they are here.

    Raises:
        UsageError: an unknown layout.
        UnsupportedModelError: taps that the layout has no place for.
    """
    if layout not in get_args(Layout):
        raise UsageError(f"Unknown layout {layout!r}; known are {', '.join(get_args(Layout))}.")
    layers = _by_layer(weights)
    if not any(_OURS[0] in held for held in layers.values()):
        raise UnsupportedModelError("These weights have no taps (layers.N.self_attn.kv_shift.k_weight).")
    out = {name: tensor for name, tensor in weights.items() if not _LAYER.fullmatch(name)}
    for layer, held in layers.items():
        held = dict(held)
        for ours, theirs in zip(_OURS, _TAPS[layout], strict=True):
            taps = held.pop(ours, None)
            if taps is None or taps.dim() != 2 or taps.shape[1] != 2:
                found = "missing" if taps is None else f"of shape {tuple(taps.shape)}"
                raise UnsupportedModelError(
                    f"{layer}.{ours} is {found}; {layout} has two free taps a KV head, (kv_heads, 2), for "
                    "keys and values."
                )
            taps = taps.flip(-1).to(dtype or taps.dtype)
            held[theirs] = taps[None, None, :, None, :] if layout == "baichuan-m1" else taps
        if extra := [name for name in held if name.startswith("kv_shift.")]:
            raise UnsupportedModelError(f"{layer}.{extra[0]} has no place in {layout}.")
        if layout == "baichuan-m1":
            _fuse(layer, held)
        out.update({f"{layer}.{name}": tensor for name, tensor in held.items()})
    return out


def _by_layer(weights: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Each layer's attention weights, by what follows `self_attn.` in their names."""
    layers: dict[str, dict[str, Tensor]] = {}
    for name, tensor in weights.items():
        if match := _LAYER.fullmatch(name):
            layers.setdefault(match["layer"], {})[match["name"]] = tensor
    return layers


def _layout_of(layers: dict[str, dict[str, Tensor]]) -> Layout:
    names = {name for held in layers.values() for name in held}
    found = [layout for layout in get_args(Layout) if names & set(_TAPS[layout])]
    if len(found) == 1:
        return found[0]
    raise UnsupportedModelError(
        "These weights have taps of both layouts: conv_k and K."
        if found
        else "These weights have no taps: expected layers.N.self_attn.conv_k and conv_v, or K and V."
    )


def _read_taps(name: str, taps: Tensor, layout: Layout) -> Tensor:
    """`(kv_heads, 2)` in float32, the current token first."""
    wide = layout == "baichuan-m1"
    fits = taps.dim() == 5 and taps.shape[:2] == (1, 1) and taps.shape[3] == 1 if wide else taps.dim() == 2
    if not fits or taps.shape[-1] != 2 or not taps.is_floating_point():
        expected = "(1, 1, kv_heads, 1, 2)" if wide else "(kv_heads, 2)"
        raise UnsupportedModelError(
            f"{name} is {taps.dtype} of shape {tuple(taps.shape)}; expected floating point of shape "
            f"{expected}, previous and current token in the last axis."
        )
    return taps.reshape(-1, 2).flip(-1).to(torch.float32)


def _split(layer: str, held: dict[str, Tensor], *, kv_heads: int) -> None:
    """`W_pack` into the three projections. How many of its rows are queries, `o_proj` says."""
    if "W_pack.weight" not in held:
        return
    rows = held["W_pack.weight"].shape[0]
    queries = held["o_proj.weight"].shape[1] if "o_proj.weight" in held else -1
    keys, rest = divmod(rows - queries, 2)
    if queries < 0 or keys <= 0 or rest or keys % kv_heads:
        raise UnsupportedModelError(
            f"{layer}.W_pack.weight has {rows} rows, which do not divide into queries as wide as o_proj's "
            f"input ({queries if queries > 0 else 'missing'}) and keys and values of {kv_heads} heads."
        )
    for part in ("weight", "bias"):
        fused = held.pop(f"W_pack.{part}", None)
        if fused is None:
            continue
        if fused.shape[0] != rows:
            raise UnsupportedModelError(f"{layer}.W_pack.{part} has {fused.shape[0]} rows; expected {rows}.")
        for name, piece in zip(_PROJECTIONS, fused.split((queries, keys, keys)), strict=True):
            held[f"{name}.{part}"] = piece.contiguous()


def _fuse(layer: str, held: dict[str, Tensor]) -> None:
    """The three projections into `W_pack`."""
    for part in ("weight", "bias"):
        pieces = [held.pop(f"{name}.{part}", None) for name in _PROJECTIONS]
        present = [piece for piece in pieces if piece is not None]
        if present and len(present) < len(pieces):
            raise UnsupportedModelError(f"{layer} has a {part} in some of q_proj, k_proj, v_proj only.")
        if present:
            held[f"W_pack.{part}"] = torch.cat(present)
