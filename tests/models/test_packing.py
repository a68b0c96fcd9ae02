"""Packed documents in every form, against each document alone; positions that say where they begin."""

from __future__ import annotations

import pytest
import torch

from kvshift.errors import UnsupportedModelError
from kvshift.models.packing import divided, dividing_positions
from kvshift.models.starts import find_boundaries


def random_rows(seed: int):
    """Positions of packed documents, their numbers, and a mask with padding between some of them."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for _ in range(4):
        positions, numbers, real = [], [], []
        while len(positions) < 23:
            length = int(torch.randint(1, 8, (1,), generator=generator))
            padding = bool(torch.rand(1, generator=generator) < 0.3)
            number = numbers[-1] + 1 if numbers else 0
            positions += [0] * length if padding else list(range(length))
            numbers += [number] * length
            real += [0 if padding else 1] * length
        rows.append((positions[:23], numbers[:23], real[:23]))
    return (torch.tensor(column) for column in zip(*rows, strict=True))


def together(positions: torch.Tensor) -> torch.Tensor:
    """`(batch, time, time)`: which tokens the library takes for one sequence, by its rule."""
    number = torch.nn.functional.pad((positions.diff(dim=1) != 1).cumsum(1), (1, 0))
    return number[:, :, None] == number[:, None, :]


@pytest.mark.parametrize("seed", range(8))
def test_positions_keep_apart_what_is_apart(seed: int) -> None:
    positions, numbers, real = random_rows(seed)
    one = numbers[:, :, None] == numbers[:, None, :]
    token = real == 1
    for given in (positions, None, torch.arange(23)[None]):
        boundaries = find_boundaries(
            4, 23, torch.device("cpu"), attention_mask=real, position_ids=positions, seq_idx=numbers
        )
        found = dividing_positions(boundaries, given)
        # What a token sees of what comes before it; padding may see what it will.
        assert torch.equal(together(found).tril()[token], one.tril()[token])
    kept = dividing_positions(boundaries, positions)
    assert torch.equal(kept[token], positions[token])


def test_a_document_does_not_go_on_from_the_padding_before_it(family, shifted, tokens) -> None:
    """Positions that begin at 1, after padding at 0."""
    model, batch = shifted(family), tokens(1, 9)
    positions = torch.tensor([[0, 0, 1, 2, 3, 4, 1, 2, 3]])
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1, 1, 1]])
    with torch.no_grad():
        found = model(batch, attention_mask=mask, position_ids=positions).logits
        for part in (slice(2, 6), slice(6, 9)):
            assert (found[:, part] - model(batch[:, part], use_cache=False).logits).abs().max() < 1e-4


def test_divided_looks_at_tokens_alone() -> None:
    starts = torch.tensor([[False, False, True, False, False]])
    assert divided(starts, None)
    assert divided(starts, torch.tensor([[False, True, True, True, True]]))
    assert not divided(starts, torch.tensor([[False, False, True, True, True]]))
    assert not divided(starts, torch.tensor([[True, True, False, False, False]]))
    assert not divided(torch.tensor([[True, False, False]]), None)
    assert not divided(None, None)


def test_divided_cannot_be_asked_while_a_graph_is_recorded(monkeypatch) -> None:
    monkeypatch.setattr("kvshift.models.packing._is_recorded", lambda x: True)
    assert divided(torch.tensor([[True, False, True]]), None) is None
    assert divided(None, None) is False


FORMS = {
    "seq_idx": {"seq_idx": torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1, 1]], dtype=torch.int32)},
    "cu_seq_lens": {"cu_seq_lens_q": torch.tensor([0, 4, 9], dtype=torch.int32)},
    "a mask of ones": {
        "position_ids": torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4]]),
        "attention_mask": torch.ones(1, 9, dtype=torch.long),
    },
    "seq_idx and positions that go on": {
        "seq_idx": torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1, 1]], dtype=torch.int32),
        "position_ids": torch.arange(9)[None],
    },
}


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("form", FORMS)
@torch.no_grad()
def test_documents_are_as_alone(family, shifted, tokens, form, compiled) -> None:
    model, batch = shifted(family), tokens(1, 9)
    alone = torch.cat([model(part, use_cache=False).logits for part in (batch[:, :4], batch[:, 4:])], 1)
    torch._dynamo.reset()
    run = torch.compile(model, fullgraph=True, backend="eager") if compiled else model
    found = run(batch, **FORMS[form])
    assert (found.logits - alone).abs().max() < 1e-4
    assert found.past_key_values is None  # documents of one row cannot be continued


@pytest.mark.parametrize("form", [*FORMS, "positions"])
@torch.no_grad()
def test_documents_are_as_alone_where_nobody_can_ask(family, shifted, tokens, form, monkeypatch) -> None:
    """While a CUDA graph is recorded. What could be wrong silently is refused."""
    model, batch = shifted(family), tokens(1, 9)
    alone = torch.cat([model(part, use_cache=False).logits for part in (batch[:, :4], batch[:, 4:])], 1)
    monkeypatch.setattr("kvshift.models.packing._is_recorded", lambda x: True)
    given = {**FORMS, "positions": {"position_ids": torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4]])}}[form]
    found = model(batch, **given)
    assert (found.logits - alone).abs().max() < 1e-4
    assert found.past_key_values is None
    with pytest.raises(UnsupportedModelError, match="or may where a CUDA graph is recorded"):
        model(batch, position_ids=torch.arange(9)[None], use_cache=True)
    monkeypatch.setattr(model.config, "_attn_implementation", "flash_attention_2")
    with pytest.raises(UnsupportedModelError, match="in one row only"):
        model(batch.expand(2, -1), position_ids=torch.arange(9)[None])


@pytest.mark.parametrize("form", FORMS)
def test_packed_documents_are_not_cached(family, shifted, tokens, form) -> None:
    with pytest.raises(UnsupportedModelError, match=r"packed documents cannot be cached.*use_cache=False"):
        shifted(family)(tokens(1, 9), **FORMS[form], use_cache=True)


def test_padding_is_cached_as_ever(family, shifted, tokens) -> None:
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1, 1, 1]])
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    assert (
        shifted(family)(tokens(1, 9), attention_mask=mask, position_ids=positions).past_key_values is not None
    )


def test_a_mask_that_numbers_documents_is_refused(family, shifted, tokens) -> None:
    numbers = torch.tensor([[1, 1, 1, 1, 2, 2, 2, 2, 2]])
    with pytest.raises(UnsupportedModelError, match=r"holds 2; expected 0 for padding and 1 .* as seq_idx"):
        shifted(family)(tokens(1, 9), attention_mask=numbers)


def test_flash_attention_packs_one_row(family, shifted, tokens, monkeypatch) -> None:
    """Its kernels are not here; what decides is the name."""
    model = shifted(family)
    monkeypatch.setattr(model.base_model, "_is_flash", lambda: True)
    positions = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4]])
    with pytest.raises(UnsupportedModelError, match=r"in one row only; this batch has 2\. Flatten it"):
        model(tokens(2, 9), position_ids=positions)
    model(tokens(1, 9), position_ids=positions)
    assert model.base_model.__class__._is_flash(model.base_model) is False
    model.config._attn_implementation_internal = "flash_attention_2"
    assert model.base_model.__class__._is_flash(model.base_model) is True
    model.config._attn_implementation_internal = "sdpa"
