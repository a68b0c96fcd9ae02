"""The model's loss on the validation windows, in nats a token and in bits a byte."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from kvshift.training.data import IGNORED, Batch, EvaluationWindows
from kvshift.training.model import evaluating


class Evaluation(NamedTuple):
    """`nats_per_token` over all scored tokens. `bits_per_byte` over those that stand for bytes: it does not
    depend on the tokenizer, so models with different vocabularies can be compared by it."""

    nats_per_token: float
    bits_per_byte: float


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Of each token in nats, float32 `(batch · time,)`; 0 where the label is `IGNORED`."""
    flat = logits.flatten(0, 1).float()
    return F.cross_entropy(flat, labels.flatten(), ignore_index=IGNORED, reduction="none")


def token_losses(
    model: Callable[..., Any], batch: Batch, loss: Callable[[Tensor, Tensor], Tensor] = cross_entropy
) -> Tensor:
    """`loss`, which may be a compiled `cross_entropy`, of what the model predicts for the batch."""
    positions = batch.get("position_ids")
    logits = model(input_ids=batch["input_ids"], position_ids=positions, use_cache=False).logits
    return loss(logits, batch["labels"])


@torch.no_grad()
def evaluate(
    model: torch.nn.Module,
    windows: EvaluationWindows,
    between: Callable[[], None] = lambda: None,
    loss: Callable[[Tensor, Tensor], Tensor] = cross_entropy,
) -> Evaluation:
    """Evaluates and leaves the model in the mode it was in; `between` is called after each batch."""
    with evaluating(model):
        totals = torch.zeros(4, dtype=torch.float64, device=windows.token_bytes.device)
        for batch in windows.batches:
            losses = token_losses(model, batch, loss).double()
            labels = batch["labels"].flatten()
            sizes = torch.where(labels == IGNORED, 0, windows.token_bytes[labels.clamp_min(0)])
            # `where` and not a product: a loss that is not finite must not reach the other sum.
            nats_of_bytes = torch.where(sizes > 0, losses, 0.0).sum()
            totals += torch.stack([losses.sum(), (labels != IGNORED).sum(), nats_of_bytes, sizes.sum()])
            between()
    nats, tokens, nats_of_bytes, size = totals.tolist()
    return Evaluation(nats / max(tokens, 1), nats_of_bytes / math.log(2) / max(size, 1))
