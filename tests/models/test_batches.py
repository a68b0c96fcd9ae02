"""Packed and padded batches give every sequence the logits it has alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from modes import padded

import kvshift
from kvshift.errors import UnsupportedModelError

TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-9}
SHIFTS = {
    "paper": kvshift.KVShiftConfig(init="paper"),
    "window 4": kvshift.KVShiftConfig(init="paper", window=4),
    "queries, per channel": kvshift.KVShiftConfig(
        init="paper", window=3, shift_queries=True, per_channel=True
    ),
    "gate": kvshift.KVShiftConfig(init="paper", constraint="gate"),
    "values only": kvshift.KVShiftConfig(init="paper", shift_keys=False),
}


def positions(*lengths: int) -> torch.Tensor:
    return torch.cat([torch.arange(length) for length in lengths])[None]


@pytest.fixture
def shifted_keys(shifts) -> Callable[..., torch.Tensor]:
    """The first layer's keys after the shift."""

    @torch.no_grad()
    def run(model, batch: torch.Tensor, **inputs) -> torch.Tensor:
        shifts.clear()
        model(batch, use_cache=False, **inputs)
        return shifts[0].out

    return run


def close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return torch.allclose(found, expected, rtol=0, atol=TOLERANCE[expected.dtype])


@pytest.mark.parametrize("shift", SHIFTS.values(), ids=SHIFTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@torch.no_grad()
def test_packed_documents_equal_the_documents_alone(
    family, shifted, tokens, full_logits, shift, dtype
) -> None:
    model = shifted(family, shift, dtype=dtype)
    lengths = (1, 7, 1, 1, 6, 2)
    documents = [tokens(n, seed=n + i) for i, n in enumerate(lengths)]
    packed = model(torch.cat(documents)[None], position_ids=positions(*lengths)).logits[0]
    alone = torch.cat([full_logits(model, document) for document in documents])
    assert packed.dtype == dtype
    assert close(packed, alone)


@torch.no_grad()
def test_the_shift_is_what_is_being_compared(family, shifted, vanilla, tokens, full_logits) -> None:
    """The tolerance means something: taking the taps away moves the logits by far more than it."""
    sequence = tokens(8)
    difference = (full_logits(shifted(family), sequence) - full_logits(vanilla(family), sequence)).abs().max()
    assert difference > 0.1


@torch.no_grad()
def test_several_packed_rows_share_one_row_of_position_ids(family, shifted, tokens, full_logits) -> None:
    model = shifted(family)
    batch = tokens(3, 9)
    packed = model(batch, position_ids=positions(5, 4)).logits
    for row, logits in zip(batch, packed, strict=True):
        assert close(logits, torch.cat([full_logits(model, row[:5]), full_logits(model, row[5:])]))


@torch.no_grad()
def test_packed_positions_in_evaluation_return_no_cache(family, shifted, tokens) -> None:
    model = shifted(family)
    assert model(tokens(1, 6), position_ids=positions(4, 2)).past_key_values is None
    assert model(tokens(1, 6), position_ids=positions(6)).past_key_values is not None


def test_packed_positions_with_a_cache_are_refused(family, shifted, tokens) -> None:
    with pytest.raises(UnsupportedModelError, match=r"packed documents cannot be cached.*use_cache=False"):
        shifted(family)(tokens(1, 6), position_ids=positions(4, 2), use_cache=True)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("use_cache", [False, None])
@torch.no_grad()
def test_padded_batch_with_only_an_attention_mask(
    family, shifted, tokens, full_logits, side, use_cache
) -> None:
    """The family's own positions then run on from the padding; rotary embedding does not mind, nor may we."""
    model = shifted(family, kvshift.KVShiftConfig(init="paper", window=3))
    lengths = (9, 5, 1, 2)
    batch, mask = padded([tokens(n, seed=n) for n in lengths], side)
    logits = model(batch, attention_mask=mask, use_cache=use_cache).logits
    for row, kept, found in zip(batch, mask.bool(), logits, strict=True):
        assert close(found[kept], full_logits(model, row[kept]))


@torch.no_grad()
def test_positions_that_gpt2_counts_from_the_padding_are_the_librarys(
    vanilla, shifted, tokens, full_logits
) -> None:
    """Its places are learned, so they matter: without position_ids a padded row has other logits than alone,
    unshifted too. The shift adds nothing: in the same places, alone, the row has the same logits."""
    lengths = (9, 5, 1, 2)
    batch, mask = padded([tokens(n, seed=n) for n in lengths], "left")
    for model in (vanilla("gpt2"), shifted("gpt2")):
        logits = model(batch, attention_mask=mask).logits
        for row, n, found in zip(batch, lengths, logits, strict=True):
            there = model(row[None, -n:], position_ids=torch.arange(9 - n, 9)[None], use_cache=False)
            assert close(found[-n:], there.logits[0])
        assert not close(logits[1, 4:], full_logits(model, batch[1, 4:]))
        places = (mask.cumsum(1) - 1).clamp(min=0)
        logits = model(batch, attention_mask=mask, position_ids=places).logits
        assert close(logits[1, 4:], full_logits(model, batch[1, 4:]))


@torch.no_grad()
def test_a_batch_of_one_can_be_padded(family, shifted, tokens, full_logits) -> None:
    model = shifted(family)
    sequence = tokens(6)
    batch = torch.cat([torch.full((3,), 5), sequence])[None]
    mask = torch.tensor([[0] * 3 + [1] * 6])
    assert close(model(batch, attention_mask=mask).logits[0, 3:], full_logits(model, sequence))


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@torch.no_grad()
def test_both_attention_implementations_agree(family, shifted, tokens, full_logits, implementation) -> None:
    model = shifted(family)
    expected = full_logits(model, tokens(9))
    model.set_attn_implementation(implementation)
    assert close(full_logits(model, tokens(9)), expected)


@torch.no_grad()
def test_seq_idx_and_cu_seq_lens_mark_starts(family, shifted, tokens, shifted_keys) -> None:
    """With attention limited to a token itself, what is left of the past comes through the shift alone."""
    model = shifted(family)
    batch, lengths = tokens(1, 9), (4, 1, 4)
    expected = shifted_keys(model, batch, position_ids=positions(*lengths))
    numbers = torch.repeat_interleave(torch.arange(3), torch.tensor(lengths))[None]
    assert torch.equal(shifted_keys(model, batch, seq_idx=numbers.int()), expected)
    offsets = torch.tensor([0, 4, 5, 9, 9], dtype=torch.int32)  # repeated at the end, as fixed-size lists are
    assert torch.equal(shifted_keys(model, batch, cu_seq_lens_q=offsets), expected)
    assert not torch.equal(shifted_keys(model, batch), expected)


@torch.no_grad()
def test_cu_seq_lens_run_through_a_batch_of_several_rows(family, shifted, tokens, shifted_keys) -> None:
    """As many documents as rows, none beginning where a row does but the first."""
    model = shifted(family)
    batch = tokens(2, 6)
    offsets = torch.tensor([0, 8, 12], dtype=torch.int32)
    expected = shifted_keys(model, batch, position_ids=torch.cat([positions(6), positions(2, 4)]))
    assert torch.equal(shifted_keys(model, batch, cu_seq_lens_q=offsets), expected)


@pytest.mark.parametrize("case", ["packed", "left", "right"])
@torch.no_grad()
def test_nothing_foreign_reaches_a_token_through_the_shift(family, shifted, tokens, case, shifts) -> None:
    """Not even NaN in a row of padding, or of another document, times a tap of zero."""
    model = shifted(family, kvshift.KVShiftConfig(init="paper", window=3, shift_queries=True))
    embeddings = model.get_input_embeddings()(tokens(1, 9)).clone()
    foreign = slice(5, 9) if case == "right" else slice(0, 5)
    own = slice(0, 5) if case == "right" else slice(5, 9)
    mask = torch.ones(1, 9, dtype=torch.long)
    mask[:, foreign] = 0
    batch = {"position_ids": positions(5, 4)} if case == "packed" else {"attention_mask": mask}
    for value in (1.0, float("nan")):
        embeddings[:, foreign] = value
        model(inputs_embeds=embeddings, use_cache=False, **batch)
    first_layer = slice(0, 3)  # queries, keys and values
    clean, poisoned = shifts[: len(shifts) // 2][first_layer], shifts[len(shifts) // 2 :][first_layer]
    for before, after in zip(clean, poisoned, strict=True):
        assert torch.isnan(after.out[:, foreign]).all()
        assert torch.equal(after.out[:, own], before.out[:, own])


@pytest.mark.parametrize(
    ("mask", "sentence"),
    [
        (torch.ones(1, 1, 6, 6, dtype=torch.bool), "attention mask is 4-D"),
        ({"full_attention": None}, "attention mask is a dict"),
        (torch.ones(1, 5), "shape .1, 5.; expected .1, 6."),
        (torch.tensor([[1, 1, 0, 1, 1, 1]]), "padding between two tokens of one sequence"),
    ],
)
def test_masks_that_do_not_tell_starts_are_refused(family, shifted, tokens, mask, sentence) -> None:
    with pytest.raises(UnsupportedModelError, match=sentence):
        shifted(family)(tokens(1, 6), attention_mask=mask)


def test_positions_that_go_on_after_padding_do_not_excuse_it(family, shifted, tokens) -> None:
    mask = torch.tensor([[1, 1, 0, 1, 1, 1]])
    with pytest.raises(UnsupportedModelError, match="padding between two tokens of one sequence"):
        shifted(family)(tokens(1, 6), attention_mask=mask, position_ids=torch.tensor([[0, 1, 1, 2, 3, 4]]))


def test_4d_masks_of_candidate_trees_are_refused(family, shifted, tokens) -> None:
    """Two candidates for the fourth token, each with one that follows it: columns 3, 4 and 5, 6."""
    seen = torch.ones(7, 7, dtype=torch.bool).tril()
    seen[5:, 3:5] = False
    positions = torch.tensor([[0, 1, 2, 3, 4, 3, 4]])
    with pytest.raises(UnsupportedModelError, match="do not describe the same sequences"):
        shifted(family)(tokens(1, 7), attention_mask=seen[None, None], position_ids=positions)


def test_4d_masks_are_not_cached(family, shifted, tokens) -> None:
    model, batch = shifted(family), tokens(1, 5)
    inputs = {"attention_mask": torch.ones(1, 1, 5, 5, dtype=torch.bool).tril(), "position_ids": positions(5)}
    assert model(batch, **inputs).past_key_values is None
    with pytest.raises(UnsupportedModelError, match=r"which tokens are padding.*use_cache=False"):
        model(batch, **inputs, use_cache=True)


@torch.no_grad()
def test_padding_between_packed_documents_is_no_hole(family, shifted, tokens, shifted_keys) -> None:
    """Each document's shift is its own; what attention makes of such a mask is the library's affair."""
    model = shifted(family)
    batch = tokens(1, 8)
    mask = torch.tensor([[1, 1, 1, 0, 0, 1, 1, 1]])
    keys = shifted_keys(
        model, batch, attention_mask=mask, position_ids=torch.tensor([[0, 1, 2, 0, 0, 0, 1, 2]])
    )
    assert close(keys[:, 5:], shifted_keys(model, batch[:, 5:]))
