"""Induction scores on repeated random tokens (Olsson et al. 2022, Elhage et al. 2021).

Each sequence is n different random tokens, twice: x_1 … x_n x_1 … x_n, after the model's start token if it
has one. There is nothing to know about it but the repetition.

- **Prefix matching**, 0 to 1: attention from each token of the second copy to the token after its earlier
  occurrence, averaged. A head that attends to every earlier token alike gets about 1/(1.5 n).
- **Copying**, -1 to 1: does a head, where it attends to token x, raise x? For each token of the first copy,
  the value row that attention reads there is taken to the logits by the direct path alone: the head's part
  of the output projection, the norms on the way at a fixed scale, the unembedding. The score is 2 P - 1, P
  being the probability that x is raised above another token of the sequence: 1 if always, 0 by chance.
- **The model's loss** on the second copy minus that on the first, over tokens 2 to n of each: the tokens that
  the repetition decides in the second copy, and their like in the first.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from kvshift.errors import UsageError
from kvshift.inspection.schema import HeadScore, Induction
from kvshift.inspection.watch import Way, find_ways, to_logits, watching

LENGTH = 25  # as in Olsson et al.
SEQUENCES = 32
BATCH_BYTES = 256 * 2**20  # of what grows with the batch: logits, and one layer's attention weights


@torch.no_grad()
def induction_scores(
    model: PreTrainedModel, *, sequences: int = SEQUENCES, length: int = LENGTH, seed: int = 0
) -> Induction:
    """Scores every query head of a causal language model, shifted or not.

    Args:
        model: stays as it is; it runs on its own device.
        sequences: how many to average over.
        length: different tokens in one copy, n; at most what the model's positions and vocabulary hold.
        seed: draws the tokens.

    Raises:
        UsageError: a count that the model cannot hold.
        UnsupportedModelError: the attention weights cannot be read.
    """
    start, tokens = _draw(model, sequences, length, seed)
    first = 0 if start is None else 1  # column of the first copy's first token
    second = first + length
    copies = torch.arange(length, device=tokens.device)
    matching: dict[int, Tensor] = {}
    copying: dict[int, Tensor] = {}
    losses = torch.zeros(2, dtype=torch.float64)
    right = 0

    ways, direct = find_ways(model, tokens[:1]), _Direct(model)
    batch = tokens

    def see(layer: int, weights: Tensor, values: Tensor) -> None:
        after_earlier = weights[:, :, second + copies, first + copies + 1].float()
        _add(matching, layer, after_earlier.mean(-1).sum(0))
        if layer in ways:
            seen = direct.copying(
                ways[layer], values[:, :, first:second], weights.shape[1], batch[:, first:second]
            )
            if seen is not None:
                _add(copying, layer, seen.sum(0))

    with watching(model, see):
        for batch in tokens.split(_batch_size(model, tokens.shape[1])):
            logits = model(batch, use_cache=False).logits
            for row, of_row in zip(batch, logits, strict=True):
                predicted = of_row[:-1].float()
                for copy, begin in enumerate((first, second)):
                    told = slice(begin, begin + length - 1)
                    loss = functional.cross_entropy(predicted[told], row[1:][told], reduction="sum")
                    losses[copy] += loss.double().cpu()
                told = slice(second, second + length - 1)
                right += int((predicted[told].argmax(-1) == row[1:][told]).sum())

    first_loss, second_loss = (losses / (sequences * (length - 1))).tolist()
    return Induction(
        heads=[
            HeadScore(
                layer=layer,
                head=head,
                prefix_matching=float(score) / sequences,
                copying=float(copying[layer][head]) / sequences if layer in copying else None,
            )
            for layer in sorted(matching)
            for head, score in enumerate(matching[layer])
        ],
        prefix_matching_chance=sum(1 / (second + i + 1) for i in range(length)) / length,
        first_copy_loss=first_loss,
        second_copy_loss=second_loss,
        second_minus_first=second_loss - first_loss,
        second_copy_accuracy=right / (sequences * (length - 1)),
        sequences=sequences,
        length=length,
        start_token=start,
        seed=seed,
    )


def longest(model: PreTrainedModel) -> int:
    """The most different tokens that two copies of fit the model's positions, window and vocabulary."""
    config = model.config.get_text_config()
    fits = [len(_ordinary_tokens(model))]
    if isinstance(positions := getattr(config, "max_position_embeddings", None), int):
        fits.append((positions - 1) // 2)
    if isinstance(window := getattr(config, "sliding_window", None), int) and window > 0:
        fits.append(window)  # the token after the earlier occurrence is n - 1 columns back
    if isinstance(chunk := getattr(config, "attention_chunk_size", None), int):
        fits.append((chunk - 1) // 2)
    return min(fits)


class _Direct:
    """The direct path from a head's value rows to the logits of a sequence's tokens."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.unembedding = model.get_output_embeddings()
        self.end = to_logits(model)

    def copying(self, way: Way, values: Tensor, query_heads: int, tokens: Tensor) -> Tensor | None:
        """Each head's copying score in each sequence, `(batch, query_heads)`; None if the path is unknown.

        Args:
            way: of this layer.
            values: `(batch, kv_heads, n, head_dim)`, the rows of the tokens.
            tokens: `(batch, n)`, all different.
        """
        if self.unembedding is None:
            return None
        batch, kv_heads, n, head_dim = values.shape
        raised = self.unembedding.weight[tokens].float()  # (batch, n, hidden)
        scores = []
        for head in range(query_heads):
            outputs = values.new_zeros(batch, n, query_heads, head_dim)
            outputs[:, :, head] = values[:, head * kv_heads // query_heads]
            stream = outputs.flatten(2)
            for part in (way.projection, *way.after, *self.end):
                # Less what zeros become: biases, which say nothing about the token. Of a norm this leaves the
                # direction it gives at a fixed scale, and the scale does not change an order.
                stream = part(stream) - part(torch.zeros_like(stream[:1, :1]))
            logits = stream.float() @ raised.transpose(1, 2).to(stream.device)  # (batch, row read, token)
            own = logits.diagonal(dim1=1, dim2=2)[..., None]
            above = (own > logits).sum(-1) - (own < logits).sum(-1)  # itself counts for nothing
            scores.append(above.double().mean(-1) / (n - 1))
        return torch.stack(scores, dim=1)


def _draw(model: PreTrainedModel, sequences: int, length: int, seed: int) -> tuple[int | None, Tensor]:
    """The start token and `(sequences, time)` tokens, on the device of the model's embedding."""
    if sequences < 1:
        raise UsageError(f"{sequences} sequences: expected 1 or more.")
    most = longest(model)
    if not 2 <= length <= most:
        raise UsageError(
            f"{length} random tokens in a copy: expected 2 to {most:,}, what this model's positions, "
            "attention window and vocabulary hold twice."
        )
    ordinary = _ordinary_tokens(model)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.stack(
        [ordinary[torch.randperm(len(ordinary), generator=generator)[:length]] for _ in range(sequences)]
    )
    start = model.config.get_text_config().bos_token_id
    vocabulary = model.get_input_embeddings().weight.shape[0]
    start = start if isinstance(start, int) and 0 <= start < vocabulary else None
    begin = drawn.new_full((sequences, 0 if start is None else 1), start or 0)
    return start, torch.cat((begin, drawn, drawn), dim=1).to(model.get_input_embeddings().weight.device)


def _ordinary_tokens(model: PreTrainedModel) -> Tensor:
    """Every token's number but those of the start, end and padding tokens."""
    config = model.config.get_text_config()
    special: set[int] = set()
    for source in (config, model.generation_config):
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            given = getattr(source, name, None)
            special.update(given if isinstance(given, list | tuple) else () if given is None else (given,))
    ordinary = torch.ones(config.vocab_size, dtype=torch.bool)
    ordinary[[token for token in special if 0 <= token < config.vocab_size]] = False
    return ordinary.nonzero()[:, 0]


def _batch_size(model: PreTrainedModel, time: int) -> int:
    config = model.config.get_text_config()
    weights = getattr(config, "num_attention_heads", 1) * time * time
    largest = max(config.vocab_size * time, 3 * weights, 4 * config.hidden_size * time)
    return max(1, BATCH_BYTES // (4 * largest))


def _add(sums: dict[int, Tensor], layer: int, more: Tensor) -> None:
    more = more.double().cpu()
    sums[layer] = sums[layer] + more if layer in sums else more
