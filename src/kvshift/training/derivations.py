"""Derivations that a model writes by itself: greedy decoding of many prompts at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from kvshift.tasks.gsm import Problem, prompt, solution
from kvshift.tasks.gsm.words import END, PAD
from kvshift.training.model import evaluating


@torch.no_grad()
def write_derivations(model: Any, problems: Sequence[Problem], size: int) -> list[list[int]]:
    """What `model` writes after each problem's prompt, token ids; what follows `<end>` is padding.

    Prompts are padded on the left. A derivation may be a quarter longer than the longest true one of all
    problems; then it is cut off, so that where does not depend on `size`.

    Args:
        model: a causal language model over the problems' vocabulary.
        problems: in any order.
        size: this many at once.
    """
    # Batches of prompts of like length waste little on padding; the answers go back to the given order.
    prompts = [prompt(problem) for problem in problems]
    order = sorted(range(len(problems)), key=lambda number: len(prompts[number]))
    written: list[list[int]] = [[] for _ in problems]
    longest = max((len(solution(problem)[0]) for problem in problems), default=0)
    with evaluating(model):
        for begin in range(0, len(order), size):
            numbers = order[begin : begin + size]
            found = _continue(model, [prompts[number] for number in numbers], longest + longest // 4)
            for number, ids in zip(numbers, found, strict=True):
                written[number] = ids
    return written


def _continue(model: Any, prompts: Sequence[list[int]], tokens: int) -> list[list[int]]:
    width = max(map(len, prompts))
    inputs = torch.tensor([[PAD] * (width - len(ids)) + ids for ids in prompts], device=model.device)
    mask = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in prompts], device=model.device)
    with torch.compiler.set_stance("force_eager"):  # every length would be compiled anew
        output = model.generate(
            input_ids=inputs,
            attention_mask=mask,
            max_new_tokens=tokens,
            do_sample=False,
            eos_token_id=END,
            pad_token_id=PAD,
        )
    found: list[list[int]] = output[:, width:].tolist()
    return found
