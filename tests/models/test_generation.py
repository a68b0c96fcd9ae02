"""Decoding with a cache gives the logits of full forwards without one."""

from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache, StaticCache

import kvshift
from kvshift.errors import UnsupportedModelError

NEW = 7
SHIFTS = {
    "paper": kvshift.KVShiftConfig(init="paper"),
    "window 4, queries": kvshift.KVShiftConfig(init="paper", window=4, shift_queries=True),
    "keys only": kvshift.KVShiftConfig(init="paper", shift_values=False),
}


def close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return torch.allclose(found, expected, rtol=0, atol=1e-4 if expected.dtype == torch.float32 else 1e-9)


def generate(model, prompt: torch.Tensor, **settings):
    return model.generate(
        prompt,
        max_new_tokens=NEW,
        **{"do_sample": False, "output_logits": True, "return_dict_in_generate": True, **settings},
    )


@pytest.mark.parametrize("shift", SHIFTS.values(), ids=SHIFTS)
def test_greedy_generation(family, shifted, tokens, full_logits, shift) -> None:
    model = shifted(family, shift)
    prompt = tokens(2, 6)
    made = generate(model, prompt)
    for row, sequence in enumerate(made.sequences):
        expected = full_logits(model, sequence)[5:-1]
        assert close(torch.stack(made.logits, 1)[row], expected)
        assert torch.equal(sequence[6:], expected.argmax(-1))


@pytest.mark.parametrize("length", [1, 2])
def test_prompts_shorter_than_the_window(family, shifted, tokens, full_logits, length) -> None:
    model = shifted(family, kvshift.KVShiftConfig(init="paper", window=4))
    made = generate(model, tokens(1, length))
    assert close(torch.stack(made.logits, 1)[0], full_logits(model, made.sequences[0])[length - 1 : -1])


def test_left_padded_generation(family, shifted, tokens, full_logits) -> None:
    model = shifted(family, kvshift.KVShiftConfig(init="paper", window=3))
    lengths = (6, 3, 1)
    batch, mask = left_padded([tokens(n, seed=n) for n in lengths])
    made = generate(model, batch, attention_mask=mask)
    for row, length in enumerate(lengths):
        sequence = made.sequences[row, 6 - length :]
        expected = full_logits(model, sequence)[length - 1 : -1]
        assert close(torch.stack(made.logits, 1)[row], expected)
        assert torch.equal(sequence[length:], expected.argmax(-1))


def test_left_padded_chunked_prefill(family, shifted, tokens, full_logits) -> None:
    """The first chunk of the short row is padding alone: its state must still mean "beginning"."""
    model = shifted(family, kvshift.KVShiftConfig(init="paper", window=3))
    lengths = (8, 3, 5)
    batch, mask = left_padded([tokens(n, seed=n) for n in lengths])
    made = generate(model, batch, attention_mask=mask, prefill_chunk_size=3)
    for row, length in enumerate(lengths):
        expected = full_logits(model, made.sequences[row, 8 - length :])[length - 1 : -1]
        assert close(torch.stack(made.logits, 1)[row], expected)


def test_sampling_several_sequences(family, shifted, tokens, full_logits) -> None:
    model = shifted(family)
    torch.manual_seed(3)
    made = generate(model, tokens(2, 5), do_sample=True, num_return_sequences=3)
    assert len(made.sequences.unique(dim=0)) > 2
    for row, sequence in enumerate(made.sequences):
        assert close(torch.stack(made.logits, 1)[row], full_logits(model, sequence)[4:-1])


@pytest.mark.parametrize("sampled", [False, True])
def test_beam_search_moves_state_with_its_beams(family, shifted, tokens, sampled) -> None:
    model = shifted(family)
    settings = {"num_beams": 4, "num_return_sequences": 3, "do_sample": sampled, "output_scores": True}
    found = []
    for use_cache in (True, False):
        torch.manual_seed(5)
        found.append(generate(model, tokens(2, 5), use_cache=use_cache, **settings))
    assert torch.equal(found[0].sequences, found[1].sequences)
    assert torch.allclose(found[0].sequences_scores, found[1].sequences_scores, atol=1e-4)


@pytest.mark.parametrize("made_for_model", [True, False], ids=["with config", "bare"])
@pytest.mark.parametrize("cuts", [(1,) * 10, (4, 6), (1, 3, 1, 5), (9, 1)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@torch.no_grad()
def test_any_chunks_through_a_callers_own_cache(
    family, shifted, tokens, full_logits, cuts, made_for_model, dtype
) -> None:
    """First single-token call, several tokens on a warm cache, chunked prefill."""
    model = shifted(family, kvshift.KVShiftConfig(init="paper", window=3), dtype=dtype)
    cache = DynamicCache(config=model.config) if made_for_model else DynamicCache()
    sequence = tokens(10)
    pieces = [
        model(piece[None], past_key_values=cache, use_cache=True).logits[0] for piece in sequence.split(cuts)
    ]
    assert close(torch.cat(pieces), full_logits(model, sequence))


@pytest.mark.parametrize("family", ["llama", "qwen3"])  # a sliding-window cache counts padding as tokens
@torch.no_grad()
def test_right_padded_prompts_then_decoding(family, shifted, tokens, full_logits) -> None:
    """The state is the last real row, not the padding after it, and padding steps leave it alone."""
    model = shifted(family, kvshift.KVShiftConfig(init="paper", window=3))
    first, second = tokens(7, seed=1), tokens(4, seed=2)
    batch = torch.stack((first[:5], torch.cat((second[:2], torch.tensor([5, 5, 5])))))
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]])
    cache = model(batch, attention_mask=mask, use_cache=True).past_key_values

    # One step in which only the first row is real, then two tokens for both.
    mask = torch.cat((mask, torch.tensor([[1], [0]])), 1)
    model(torch.stack((first[5:6], torch.tensor([5]))), attention_mask=mask, past_key_values=cache,
          position_ids=torch.tensor([[5], [2]]))  # fmt: skip
    mask = torch.cat((mask, torch.tensor([[1, 0], [1, 1]])), 1)
    last = model(
        torch.stack((torch.cat((first[6:], torch.tensor([5]))), second[2:])),
        attention_mask=mask,
        past_key_values=cache,
        position_ids=torch.tensor([[6, 7], [2, 3]]),
    ).logits
    assert close(last[0, :1], full_logits(model, first)[6:])
    assert close(last[1], full_logits(model, second)[2:])


@torch.no_grad()
def test_cache_operations_move_state_and_cache_together(family, shifted, tokens, full_logits) -> None:
    model = shifted(family, kvshift.KVShiftConfig(init="paper", window=3))
    prompts, following = tokens(3, 5), tokens(6, 2, seed=8)

    def continued(cache, rows: list[int]) -> None:
        found = model(following[: len(rows)], past_key_values=cache, use_cache=True).logits
        for row, after, logits in zip(rows, following, found, strict=False):
            assert close(logits, full_logits(model, torch.cat((prompts[row], after)))[5:])

    def prefilled():
        return model(prompts, use_cache=True).past_key_values

    cache = prefilled()
    cache.reorder_cache(torch.tensor([2, 0, 2]))
    continued(cache, [2, 0, 2])
    cache = prefilled()
    cache.batch_repeat_interleave(2)
    continued(cache, [0, 0, 1, 1, 2, 2])
    cache = prefilled()
    cache.batch_select_indices(torch.tensor([2, 1]))
    continued(cache, [2, 1])
    cache = prefilled()
    cache.reset()
    model(prompts[[1, 2]], past_key_values=cache, use_cache=True)
    continued(cache, [1, 2])


@torch.no_grad()
def test_the_cache_keeps_two_raw_rows_and_not_the_prompt(family, shifted, tokens) -> None:
    cache = shifted(family)(tokens(2, 30), use_cache=True).past_key_values
    for layer in cache.layers:
        for rows in layer.raw_rows[:2]:
            assert rows.shape == (2, 1, 2, 8)
            assert rows.untyped_storage().nbytes() == rows.numel() * rows.element_size()


def test_continuing_a_generation_from_its_cache(family, shifted, tokens, full_logits) -> None:
    model = shifted(family)
    first = generate(model, tokens(2, 5))
    prompt = torch.cat((first.sequences, tokens(2, 3, seed=9)), 1)
    made = generate(model, prompt, past_key_values=first.past_key_values)
    for row, sequence in enumerate(made.sequences):
        assert close(torch.stack(made.logits, 1)[row], full_logits(model, sequence)[14:-1])


REFUSED = {
    "static": ({"cache_implementation": "static"}, "cache_implementation='static'"),
    "quantized": ({"cache_implementation": "quantized"}, "cache_implementation='quantized'"),
    "offloaded": ({"cache_implementation": "offloaded"}, "cache_implementation='offloaded'"),
    "prompt lookup": ({"prompt_lookup_num_tokens": 2}, "assisted generation"),
}


@pytest.mark.parametrize(("settings", "sentence"), REFUSED.values(), ids=REFUSED)
def test_other_ways_to_generate_are_refused(family, shifted, tokens, settings, sentence) -> None:
    with pytest.raises(UnsupportedModelError, match=f"{sentence}.*DynamicCache"):
        generate(shifted(family), tokens(1, 5), **settings)


def test_assisting_and_being_assisted_is_refused(family, shifted, vanilla, tokens) -> None:
    with pytest.raises(UnsupportedModelError, match="assisted generation"):
        generate(shifted(family), tokens(1, 5), assistant_model=vanilla(family))
    with pytest.raises(UnsupportedModelError, match="assistant of another model"):
        generate(vanilla(family), tokens(1, 5), assistant_model=shifted(family))


def test_continuous_batching_is_refused(family, shifted, tokens) -> None:
    with pytest.raises(UnsupportedModelError, match="continuous batching"):
        shifted(family).generate_batch([[1, 2, 3]])
    with pytest.raises(UnsupportedModelError, match="continuous batching"):
        shifted(family).init_continuous_batching()


@torch.no_grad()
def test_unfit_caches_are_refused(family, shifted, vanilla, tokens) -> None:
    model = shifted(family)
    with pytest.raises(UnsupportedModelError, match="StaticCache"):
        model(tokens(1, 3), past_key_values=StaticCache(config=model.config, max_cache_len=8))
    with pytest.raises(UnsupportedModelError, match="unshifted model filled it"):
        model(tokens(1, 1), past_key_values=vanilla(family)(tokens(1, 3), use_cache=True).past_key_values)
    cache = model(tokens(1, 3), use_cache=True).past_key_values
    with pytest.raises(UnsupportedModelError, match="cropped"):
        cache.crop(-1)


def left_padded(sequences: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Padded with an ordinary token, so that padding read by mistake is not zero."""
    length = max(map(len, sequences))
    batch = torch.full((len(sequences), length), 5)
    mask = torch.zeros(len(sequences), length, dtype=torch.long)
    for row, sequence in enumerate(sequences):
        batch[row, length - len(sequence) :] = sequence
        mask[row, length - len(sequence) :] = 1
    return batch, mask
