"""Every way of running a model, each as a function that gives logits and what they must equal.

`MODES` maps a name to a function of a model; it yields pairs of `(time, vocabulary)` logits: those of the
mode, and those of full forwards over the same tokens without cache, mask and padding.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import torch
from tiny_models import VOCABULARY, make_vanilla
from transformers import (
    DataCollatorWithFlattening,
    DynamicCache,
    PreTrainedModel,
    StaticCache,
)

Pair = tuple[torch.Tensor, torch.Tensor]
Mode = Callable[[PreTrainedModel], Iterator[Pair]]

NEW = 5
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-9}
FILLER = 5  # an ordinary token, so that padding read by mistake is not zero
MODES: dict[str, Mode] = {}


def mode(function: Mode) -> Mode:
    MODES[function.__name__.replace("_", " ")] = function
    return function


def error(mode: Mode, model: PreTrainedModel) -> float:
    """The largest difference between a mode's logits and those of full forwards, 1 being what is allowed."""
    with torch.no_grad():
        pairs = list(mode(model))
    assert all(found.shape == expected.shape and found.numel() for found, expected in pairs)
    return max(float((found - expected).abs().max()) / TOLERANCE[found.dtype] for found, expected in pairs)


def draw(*shape: int, seed: int = 7) -> torch.Tensor:
    """Tokens, the same on every device."""
    generator = torch.Generator("cpu").manual_seed(seed)
    drawn = torch.randint(1, VOCABULARY, shape, generator=generator, device="cpu")
    return drawn.to(torch.get_default_device())


def full(model: PreTrainedModel, sequence: torch.Tensor) -> torch.Tensor:
    return model(sequence.view(1, -1), use_cache=False).logits[0]


def generate(model: PreTrainedModel, prompt: torch.Tensor | None, **settings):
    """What `generate` returns, with `exact_logits`: its `logits` before the library made them float32."""
    on_gpu = model.device.type == "cuda"  # where the library compiles by itself
    if "compile_config" in settings or (
        on_gpu and model.dtype != torch.float64
    ):  # a hook would be compiled too
        return _generate(model, prompt, **settings)
    steps = []
    handle = model.register_forward_hook(lambda _, inputs, output: steps.append(output.logits[:, -1]))
    made = _generate(model, prompt, **settings)
    handle.remove()
    last = torch.stack(steps[-NEW:], 1)
    if torch.equal(last.float(), made.exact_logits):  # assisted steps make several
        made.exact_logits = last
    return made


def _generate(model: PreTrainedModel, prompt: torch.Tensor | None, **settings):
    made = model.generate(
        prompt,
        max_new_tokens=NEW,
        **{"do_sample": False, "output_logits": True, "return_dict_in_generate": True, **settings},
    )
    made.exact_logits = torch.stack(made.logits, 1)
    return made


def padded(sequences: list[torch.Tensor], side: str) -> tuple[torch.Tensor, torch.Tensor]:
    length = max(map(len, sequences))
    batch = torch.full((len(sequences), length), FILLER)
    mask = torch.zeros(len(sequences), length, dtype=torch.long)
    for row, sequence in enumerate(sequences):
        columns = slice(length - len(sequence), length) if side == "left" else slice(0, len(sequence))
        batch[row, columns] = sequence
        mask[row, columns] = 1
    return batch, mask


def made_logits(model: PreTrainedModel, made, lengths: list[int]) -> Iterator[Pair]:
    """Of prompts of these lengths, padded on the left."""
    logits = made.exact_logits
    for row, (sequence, length) in enumerate(zip(made.sequences, lengths, strict=True)):
        whole = sequence[-length - logits.shape[1] :]
        yield logits[row], full(model, whole)[length - 1 : -1].to(logits.dtype)


def in_pieces(model: PreTrainedModel, cache, batch: torch.Tensor, cuts: list[int]) -> torch.Tensor:
    return torch.cat(
        [model(piece, past_key_values=cache, use_cache=True).logits for piece in batch.split(cuts, 1)], 1
    )


def each(model: PreTrainedModel, logits: torch.Tensor, batch: torch.Tensor) -> Iterator[Pair]:
    """Of the last `logits.shape[1]` tokens of every row."""
    for found, row in zip(logits, batch, strict=True):
        yield found, full(model, row)[-len(found) :]


@mode
def greedy(model):
    yield from made_logits(model, generate(model, draw(2, 6)), [6, 6])


@mode
def one_token_prompt(model):
    yield from made_logits(model, generate(model, draw(2, 1)), [1, 1])


@mode
def sampling_several_sequences(model):
    torch.manual_seed(3)
    made = generate(model, draw(2, 5), do_sample=True, num_return_sequences=2)
    yield from made_logits(model, made, [5] * 4)


@mode
def left_padded_generation(model):
    lengths = [6, 3, 1]
    batch, mask = padded([draw(n, seed=n) for n in lengths], "left")
    yield from made_logits(model, generate(model, batch, attention_mask=mask), lengths)


@mode
def beam_search(model, **settings):
    settings = {"num_beams": 3, "num_return_sequences": 2, "output_scores": True, **settings}
    lengths = [5, 3]
    batch, mask = padded([draw(n, seed=n) for n in lengths], "left")
    torch.manual_seed(5)
    made = generate(model, batch, attention_mask=mask, **settings)
    for row, sequence in enumerate(made.sequences):
        length = lengths[row // 2]
        scores = torch.log_softmax(full(model, sequence[-length - NEW :]).float(), -1)[length - 1 : -1]
        found = made.sequences_scores[row] * NEW  # the library divides by the number of new tokens
        yield found.view(1), scores.gather(1, sequence[-NEW:, None]).sum().view(1)


@mode
def beam_sampling(model):
    yield from beam_search(model, do_sample=True)


def _assisted(model: PreTrainedModel, assistant: PreTrainedModel) -> Iterator[Pair]:
    made = generate(model, draw(1, 6), assistant_model=assistant)
    yield from made_logits(model, made, [6])
    assert torch.equal(made.sequences[0, 6:], full(model, made.sequences[0])[5:-1].argmax(-1))


@mode
def assisted_by_a_similar_model(model):
    """Some candidates are accepted, some rejected."""
    assistant = copy.deepcopy(model)
    weight = assistant.get_input_embeddings().weight
    generator = torch.Generator(weight.device).manual_seed(2)
    weight += 0.05 * torch.randn(weight.shape, generator=generator, device=weight.device)
    yield from _assisted(model, assistant)


@mode
def assisted_by_itself(model):
    """Everything is accepted."""
    yield from _assisted(model, model)


@mode
def assisted_by_an_unshifted_model(model):
    """Nearly everything is rejected."""
    yield from _assisted(model, make_vanilla("llama", seed=1))


@mode
def prompt_lookup(model):
    prompt = draw(4).repeat(3)[None]
    yield from made_logits(model, generate(model, prompt, prompt_lookup_num_tokens=3), [12])


@mode
def chunked_prefill(model, **settings):
    lengths = [8, 3, 5]  # the first chunk of the short row is padding alone
    batch, mask = padded([draw(n, seed=n) for n in lengths], "left")
    made = generate(model, batch, attention_mask=mask, prefill_chunk_size=3, **settings)
    yield from made_logits(model, made, lengths)


@mode
def prefill_column_by_column(model):
    """A step of one token is not always one that was made just now: here it may be padding."""
    lengths = [6, 2]
    batch, mask = padded([draw(n, seed=n) for n in lengths], "left")
    yield from made_logits(model, generate(model, batch, attention_mask=mask, prefill_chunk_size=1), lengths)


@mode
def static_cache(model):
    made = generate(model, draw(2, 6), cache_implementation="static")
    yield from made_logits(model, made, [6, 6])


@mode
def static_cache_left_padded(model):
    lengths = [6, 3, 1]
    batch, mask = padded([draw(n, seed=n) for n in lengths], "left")
    made = generate(model, batch, attention_mask=mask, cache_implementation="static")
    yield from made_logits(model, made, lengths)


@mode
def static_cache_chunked_prefill(model):
    yield from chunked_prefill(model, cache_implementation="static")


@mode
def static_cache_beam_search(model):
    yield from beam_search(model, cache_implementation="static")


@mode
def continuing_from_a_cache(model):
    first = generate(model, draw(2, 5))
    prompt = torch.cat((first.sequences, draw(2, 3, seed=9)), 1)
    mask = torch.ones_like(prompt)
    made = generate(model, prompt, attention_mask=mask, past_key_values=first.past_key_values)
    yield from made_logits(model, made, [8 + NEW] * 2)


@mode
def own_dynamic_cache(model):
    batch = draw(2, 10)
    for cuts in ([1] * 10, [4, 6], [1, 3, 1, 5], [9, 1]):
        yield from each(model, in_pieces(model, DynamicCache(config=model.config), batch, cuts), batch)


@mode
def own_bare_dynamic_cache(model):
    batch = draw(2, 10)
    yield from each(model, in_pieces(model, DynamicCache(), batch, [4, 1, 5]), batch)
    made = generate(model, batch[:, :6], past_key_values=DynamicCache())
    yield from made_logits(model, made, [6, 6])


@mode
def own_static_cache(model):
    batch = draw(2, 10)
    for cuts in ([1] * 10, [4, 1, 5]):
        cache = StaticCache(config=model.config, max_cache_len=12)
        yield from each(model, in_pieces(model, cache, batch, cuts), batch)
        cache.reset()
        yield from each(model, in_pieces(model, cache, batch.flip(0), [3, 7]), batch.flip(0))


@mode
def crop_and_continue(model):
    batch, other = draw(2, 10), draw(2, 4, seed=8)
    for length, removed in ((10, 1), (10, 4), (3, 2), (6, 6)):
        cache = DynamicCache(config=model.config)
        cache.activate_past_recording()
        in_pieces(model, cache, batch[:, :length], [length - 2, 1, 1] if length > 3 else [length])
        cache.crop(-removed)
        whole = torch.cat((batch[:, : length - removed], other), 1)
        yield from each(model, in_pieces(model, cache, other, [1, 3]), whole)


@mode
def batch_changes(model):
    prompts, after = draw(3, 5), draw(6, 2, seed=8)

    def continued(cache, rows: list[int]) -> Iterator[Pair]:
        logits = model(after[: len(rows)], past_key_values=cache, use_cache=True).logits
        yield from each(model, logits, torch.cat((prompts[rows], after[: len(rows)]), 1))

    def filled():
        return model(prompts, use_cache=True).past_key_values

    cache = filled()
    cache.reorder_cache(torch.tensor([2, 0, 2]))
    yield from continued(cache, [2, 0, 2])
    cache = filled()
    cache.batch_repeat_interleave(2)
    yield from continued(cache, [0, 0, 1, 1, 2, 2])
    cache = filled()
    cache.batch_select_indices(torch.tensor([2, 1]))
    yield from continued(cache, [2, 1])


@mode
def reset(model):
    cache = model(draw(3, 5), use_cache=True).past_key_values
    cache.reset()
    batch = draw(2, 7, seed=4)
    yield from each(model, in_pieces(model, cache, batch, [5, 2]), batch)


def _padded_forward(model: PreTrainedModel, side: str, **inputs) -> Iterator[Pair]:
    batch, mask = padded([draw(n, seed=n) for n in (9, 5, 1, 2)], side)
    if inputs.pop("positions", False):
        inputs["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
    logits = model(batch, attention_mask=mask, **inputs).logits
    for row, kept, found in zip(batch, mask.bool(), logits, strict=True):
        yield found[kept], full(model, row[kept])


@mode
def left_padded_forward(model):
    yield from _padded_forward(model, "left")
    yield from _padded_forward(model, "left", use_cache=False)


@mode
def left_padded_forward_with_positions(model):
    yield from _padded_forward(model, "left", positions=True)


@mode
def right_padded_forward(model):
    yield from _padded_forward(model, "right")
    yield from _padded_forward(model, "right", positions=True)


@mode
def right_padded_then_decoding(model):
    """The state is the last real row, not the padding after it, and padding steps leave it alone."""
    first, second = draw(7, seed=1), draw(4, seed=2)
    filler = torch.tensor([FILLER] * 3)
    batch = torch.stack((first[:5], torch.cat((second[:2], filler))))
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]])
    positions = torch.tensor([[0, 1, 2, 3, 4], [0, 1, 1, 1, 1]])
    cache = model(batch, attention_mask=mask, position_ids=positions, use_cache=True).past_key_values
    mask = torch.cat((mask, torch.tensor([[1], [0]])), 1)
    step = torch.stack((first[5:6], filler[:1]))
    positions = torch.tensor([[5], [2]])
    model(step, attention_mask=mask, past_key_values=cache, position_ids=positions)
    mask = torch.cat((mask, torch.tensor([[1, 0], [1, 1]])), 1)
    step = torch.stack((torch.cat((first[6:], filler[:1])), second[2:]))
    positions = torch.tensor([[6, 7], [2, 3]])
    logits = model(step, attention_mask=mask, past_key_values=cache, position_ids=positions).logits
    yield logits[0, :1], full(model, first)[6:]
    yield logits[1], full(model, second)[2:]


def _documents(*lengths: int) -> list[torch.Tensor]:
    return [draw(n, seed=n + i) for i, n in enumerate(lengths or (1, 7, 1, 1, 6, 2))]


def _alone(model: PreTrainedModel, documents: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat([full(model, document) for document in documents])


@mode
def packed_by_positions(model):
    documents = _documents()
    positions = torch.cat([torch.arange(len(document)) for document in documents])[None]
    yield model(torch.cat(documents)[None], position_ids=positions).logits[0], _alone(model, documents)


@mode
def packed_by_the_flattening_collator(model):
    collate = DataCollatorWithFlattening(return_seq_idx=True, return_flash_attn_kwargs=True)
    documents = _documents()
    batch = collate([{"input_ids": document.tolist()} for document in documents])
    batch.pop("labels")
    yield model(**batch).logits[0], _alone(model, documents)


@mode
def packed_by_seq_idx(model):
    documents = _documents()
    numbers = torch.repeat_interleave(torch.arange(len(documents)), torch.tensor([len(d) for d in documents]))
    yield model(torch.cat(documents)[None], seq_idx=numbers[None].int()).logits[0], _alone(model, documents)


@mode
def packed_by_cu_seq_lens(model):
    documents = _documents()
    lengths = torch.tensor([0, *(len(document) for document in documents)])
    offsets = {f"cu_seq_lens_{side}": lengths.cumsum(0).int() for side in "qk"}
    longest = {f"max_length_{side}": int(lengths.max()) for side in "qk"}
    found = model(torch.cat(documents)[None], **offsets, **longest).logits[0]
    yield found, _alone(model, documents)


@mode
def packed_beside_a_mask(model):
    """Rows of several documents, padded in all places where padding can be."""
    first, second = _documents(4, 5), _documents(3, 2)
    filler = torch.full((2,), FILLER)
    rows = torch.stack([torch.cat((*first, filler)), torch.cat((filler, *second, *_documents(4)))])
    rows[1, 5] = FILLER  # between two documents
    mask = torch.tensor([[1] * 9 + [0] * 2, [0] * 2 + [1] * 3 + [0] + [1] * 5])
    places = [*range(4), *range(5), 5, 6], [0, 1, *range(3), 7, 0, *range(4)]
    logits = model(rows, attention_mask=mask, position_ids=torch.tensor(places)).logits
    yield logits[0, :9], _alone(model, first)
    yield logits[1, 2:5], full(model, second[0])
    yield logits[1, 6:], _alone(model, [rows[1, 6:7], rows[1, 7:]])


@mode
def gradient_checkpointing(model):
    batch = draw(2, 8)
    expected = gradient(model, model, batch)
    model.gradient_checkpointing_enable()
    try:
        found = gradient(model, model, batch)
    finally:
        model.gradient_checkpointing_disable()
    yield found / expected.std(), expected / expected.std()


def gradient(model: PreTrainedModel, run: Callable, batch: torch.Tensor) -> torch.Tensor:
    """Of every parameter, by `run`, which is `model`, perhaps compiled."""
    model.zero_grad()
    model.train()
    torch.manual_seed(0)  # for dropout
    with torch.enable_grad():
        run(batch, labels=batch, use_cache=False).loss.backward()
    gradients = [parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None]
    model.zero_grad()
    model.eval()
    return torch.cat(gradients)[None]


@mode
def own_4d_mask(model):
    documents = _documents(1, 4, 1, 1, 3, 2)  # such a mask has no sliding window
    numbers = torch.repeat_interleave(torch.arange(len(documents)), torch.tensor([len(d) for d in documents]))
    seen = (numbers[:, None] == numbers).tril()
    mask = torch.zeros(1, 1, *seen.shape, dtype=model.dtype).masked_fill(~seen, torch.finfo(model.dtype).min)
    positions = torch.cat([torch.arange(len(document)) for document in documents])[None]
    batch = torch.cat(documents)[None]
    yield model(batch, attention_mask=mask, position_ids=positions).logits[0], _alone(model, documents)


@mode
def inputs_embeds(model):
    batch = draw(2, 8)
    embeddings = model.get_input_embeddings()(batch)
    yield from each(model, model(inputs_embeds=embeddings).logits, batch)
    made = generate(model, None, inputs_embeds=embeddings)
    for row, found in zip(range(2), made.exact_logits, strict=True):
        yield found, full(model, torch.cat((batch[row], made.sequences[row])))[7:-1].to(found.dtype)


@mode
def window_larger_than_the_sequence(model):
    yield from each(model, model(draw(2, 1)).logits, draw(2, 1))
    yield from made_logits(model, generate(model, draw(1, 2)), [2])
