"""What a trained model predicts: tokens that its context would let it copy, and all others.

A token can be copied if the one before it occurred earlier in the same document, and the last time it did
the same token followed: what an induction head finds (paper §3). These are the tokens that the mechanism is
about, so a gain elsewhere has another cause.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

import kvshift.models  # noqa: F401 - so that a saved model with KV shift is known
from kvshift.tasks.text import TextData
from kvshift.training import Recipe
from kvshift.training.data import IGNORED, EvaluationWindows
from kvshift.training.model import evaluating
from kvshift.training.run import FINAL, no_progress_bars

Count = Literal["all", "copied", "other"]


def copied(tokens: Tensor, labels: Tensor, positions: Tensor) -> Tensor:
    """Where copying would be right.

    Args:
        tokens: `(batch, time)` int64, what the model reads.
        labels: `(batch, time)` int64, what follows each, or `IGNORED`.
        positions: `(batch, time)` int64, 0 where a document begins.

    Returns:
        `(batch, time)` bool: the last earlier occurrence of the token in its document was followed by this
        label. Never where the label is ignored.
    """
    time = tokens.shape[1]
    document = (positions == 0).cumsum(1)
    same = (tokens[:, :, None] == tokens[:, None, :]) & (document[:, :, None] == document[:, None, :])
    earlier = torch.ones(time, time, dtype=torch.bool, device=tokens.device).tril(-1)
    place = torch.arange(time, device=tokens.device)
    last = torch.where(same & earlier, place, -1).amax(2)  # (batch, time): where it was, -1 if nowhere
    follows = labels.gather(1, last.clamp_min(0))
    return (last >= 0) & (follows == labels) & (labels != IGNORED)


def count_of_final(recipe: Recipe, folder: Path) -> dict[str, list[int]]:
    """`count_copied` of a finished run's model, in float32."""
    with no_progress_bars():
        model = AutoModelForCausalLM.from_pretrained(folder / FINAL, dtype=torch.float32)
    device = torch.device("cuda" if recipe.device == "cuda" else "cpu")
    windows = EvaluationWindows(TextData.open(recipe.data), recipe, recipe.batch_size).to(device)
    return count_copied(model.to(device), windows)


@torch.no_grad()
def count_copied(model: nn.Module, windows: EvaluationWindows) -> dict[str, list[int]]:
    """Right predictions and all of them, by `Count`; the model stays in the mode it was in."""
    with evaluating(model):
        totals = torch.zeros(3, 2, dtype=torch.int64, device=windows.token_bytes.device)
        for batch in windows.batches:
            logits = model(
                input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False
            ).logits
            labels = batch["labels"]
            right, scored = logits.argmax(-1) == labels, labels != IGNORED
            can_copy = copied(batch["input_ids"], labels, batch["position_ids"])
            for row, kind in enumerate((scored, can_copy, scored & ~can_copy)):
                totals[row] += torch.stack([(right & kind).sum(), kind.sum()])
    of_all, of_copied, of_other = totals.tolist()
    return {"all": of_all, "copied": of_copied, "other": of_other}
