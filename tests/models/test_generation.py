"""Decoding with a cache gives the logits of full forwards without one."""

from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache

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


def test_assisted_by_its_own_first_layers(family, shifted, tokens, full_logits) -> None:
    """The library runs the model with fewer layers for a while, by way of its configuration."""
    model = shifted(family)
    prompt = tokens(1, 6)
    made = generate(model, prompt, assistant_early_exit=1)
    assert torch.equal(made.sequences, generate(model, prompt).sequences)
    expected = full_logits(model, made.sequences[0])[5:-1]
    assert close(torch.stack(made.logits, 1)[0], expected)
    assert model.config.num_hidden_layers > 1
    assert close(model(prompt, use_cache=True).logits, model(prompt, use_cache=False).logits)


@pytest.mark.parametrize("length", [1, 2])
def test_prompts_shorter_than_the_window(family, shifted, tokens, full_logits, length) -> None:
    model = shifted(family, kvshift.KVShiftConfig(init="paper", window=4))
    made = generate(model, tokens(1, length))
    assert close(torch.stack(made.logits, 1)[0], full_logits(model, made.sequences[0])[length - 1 : -1])


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


@torch.no_grad()
def test_the_cache_keeps_two_raw_rows_and_not_the_prompt(family, shifted, tokens) -> None:
    cache = shifted(family)(tokens(2, 30), use_cache=True).past_key_values
    for layer in cache.layers:
        for rows in layer.raw_rows[:2]:
            assert rows.shape == (2, 1, 2, 8)
            assert rows.untyped_storage().nbytes() == rows.numel() * rows.element_size()


def test_static_caches_find_starts_in_the_mask_where_positions_run_through_padding(
    family, shifted, full_logits, tokens
) -> None:
    """`generate` hands the forward a 4-D mask then; rotary embedding does not mind the positions."""
    model = shifted(family, kvshift.KVShiftConfig(init="paper", window=3))
    batch = tokens(2, 6)
    mask = torch.tensor([[0, 0, 0, 1, 1, 1], [1] * 6])
    inputs = {"attention_mask": mask, "position_ids": torch.arange(6).expand(2, -1)}
    made = generate(model, batch, **inputs, cache_implementation="static")
    for row, begin in enumerate((3, 0)):
        expected = full_logits(model, made.sequences[row, begin:])[5 - begin : -1]
        assert close(torch.stack(made.logits, 1)[row], expected)


def test_only_a_decoding_step_is_taken_for_a_token_made_just_now(family, shifted, tokens) -> None:
    """A prompt's chunk of one column may be padding; before 5.23 it comes without `is_first_iteration`."""
    model = shifted(family)

    def boundaries(**said):
        inputs = {"attention_mask": torch.tensor([[0], [1]]), "past_key_values": DynamicCache(), **said}
        return model.prepare_inputs_for_generation(tokens(2, 1), **inputs).get("boundaries")

    assert boundaries(next_sequence_length=1) == (None, None, None)
    assert boundaries() is None  # left for the forward to find
    assert boundaries(next_sequence_length=1, is_first_iteration=True) is None


@pytest.mark.parametrize(
    "call",
    [
        lambda model: model.generate_batch([[1, 2, 3]]),
        lambda model: model.init_continuous_batching(),  # what `transformers serve` begins with
        lambda model: model.continuous_batching_context_manager(),
        lambda model: model.generate(torch.tensor([[1, 2, 3]]), cache_implementation="paged"),
        lambda model: model(torch.tensor([[1, 2, 3]]), cache=object()),  # a step of a manager made by hand
    ],
    ids=["generate_batch", "init", "context manager", "paged", "step"],
)
def test_continuous_batching_is_refused(shifted, call) -> None:
    with pytest.raises(UnsupportedModelError, match=r"continuous batching.*[Uu]se `generate`"):
        call(shifted("llama"))
