"""Ways of running a compiled model, as those of `modes.py`."""

from __future__ import annotations

import torch
from modes import Mode, draw, each, full, generate, gradient, made_logits, padded
from transformers import CompileConfig, StaticCache

STATIC = {"cache_implementation": "static"}


def everywhere(**settings) -> CompileConfig:
    """Compiles on the CPU too, and fails where a graph breaks."""
    config = CompileConfig(fullgraph=True, dynamic=None, backend="eager", mode=None, **settings)
    config._compile_all_devices = True
    return config


def compiled_static_cache(model):
    lengths = [6, 3]
    batch, mask = padded([draw(n, seed=n) for n in lengths], "left")
    made = generate(model, batch, attention_mask=mask, **STATIC, compile_config=everywhere())
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    yield from made_logits(model, made, lengths)


def compiled_forward(model):
    batch = draw(2, 8)
    yield from each(model, torch.compile(model, fullgraph=True, backend="eager")(batch).logits, batch)


def compiled_decoding_with_own_static_cache(model):
    """The user's own loop: the prompt as it is, each further token in a compiled graph."""
    lengths = [6, 3]
    batch, mask = padded([draw(n + 4, seed=n) for n in lengths], "left")
    cache = StaticCache(config=model.config, max_cache_len=12)
    prompt = {"attention_mask": mask[:, :6], "position_ids": (mask[:, :6].cumsum(1) - 1).clamp(min=0)}
    logits = [model(batch[:, :6], **prompt, past_key_values=cache).logits[:, -1:]]
    step = torch.compile(model, fullgraph=True, backend="eager")
    for column in range(6, 10):
        positions = mask[:, : column + 1].sum(1, keepdim=True) - 1
        inputs = {"position_ids": positions, "past_key_values": cache}
        whole = torch.nn.functional.pad(mask[:, : column + 1], (0, 11 - column))  # of one size at all steps
        logits.append(step(batch[:, column : column + 1], attention_mask=whole, **inputs).logits)
    for row, found in enumerate(torch.cat(logits, 1)):
        yield found, full(model, batch[row][mask[row] == 1])[-5:]


def compiled_training_step(model):
    batch = draw(2, 8)
    expected = gradient(model, model, batch)
    found = gradient(model, torch.compile(model, fullgraph=True, backend="eager"), batch)
    yield found / expected.std(), expected / expected.std()


COMPILED: dict[str, Mode] = {
    function.__name__.replace("_", " "): function
    for function in (
        compiled_static_cache,
        compiled_forward,
        compiled_decoding_with_own_static_cache,
        compiled_training_step,
    )
}
