"""Caches of every kind: what can be taken back, what is refused, and raw rows that follow their sequences."""

from __future__ import annotations

import contextlib
import copy

import pytest
import torch
from modes import MODES, beam_search, draw, each, error, full, generate, in_pieces, made_logits, padded
from tiny_models import PAD, make_shifted, make_vanilla
from transformers import DynamicCache, EncoderDecoderCache, StaticCache
from transformers.cache_utils import Cache, DynamicLayer, QuantizedLayer

import kvshift
from kvshift.errors import UnsupportedModelError
from kvshift.models.history import KEPT
from kvshift.models.rows import GrowingRows, with_raw_rows

SHIFT = kvshift.KVShiftConfig(init="paper", window=3)


class ExactlyQuantized(QuantizedLayer):
    """Quantization without loss: what is left to go wrong is the raw rows."""

    def __init__(self) -> None:
        super().__init__(residual_length=3)

    def _quantize(self, tensor, axis):
        return tensor

    def _dequantize(self, q_tensor):
        return q_tensor


class Unwaited:
    """Stands in for a device's stream."""

    def wait_stream(self, other) -> None: ...
    def __enter__(self) -> None: ...
    def __exit__(self, *error) -> None: ...


def differs(pairs, tolerance: float = 1e-4) -> float:
    return max(float((found - expected).abs().max()) for found, expected in pairs) / tolerance


def filled(model, batch: torch.Tensor, cuts: int | list[int] = 1):
    cache = DynamicCache(config=model.config)
    in_pieces(model, cache, batch, cuts)
    return cache


@torch.no_grad()
def test_the_last_tokens_can_always_be_taken_back(family) -> None:
    """Without recording, on one token at a time or on a long prompt; the sliding window itself cannot."""
    model = make_shifted(family, SHIFT, sliding_window=None, max_position_embeddings=256)
    batch, other = draw(2, 180), draw(2, 3, seed=8)
    for cuts, removed in ((1, 1), (1, KEPT), ([170, 10], KEPT), (180, KEPT - 1), ([60, 100, 20], 21)):
        cache = filled(model, batch, cuts)
        kept = sum(event.columns for event in cache.layers[0].history.events)
        assert KEPT <= kept <= 2 * KEPT
        cache.crop(-removed)
        whole = torch.cat((batch[:, :-removed], other), 1)
        assert differs(each(model, in_pieces(model, cache, other, 1), whole)) < 1


@torch.no_grad()
def test_going_back_through_changes_of_the_batch_and_through_padding() -> None:
    model = make_shifted("llama", SHIFT)
    prompts, after = draw(3, 6), draw(2, 3, seed=8)
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1] * 6, [0, 0, 0, 0, 1, 1]])
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    cache = model(prompts, attention_mask=mask, position_ids=positions, use_cache=True).past_key_values
    cache.batch_select_indices(torch.tensor([2, 0]))
    mask = mask[[2, 0]]
    for column in range(2):
        mask = torch.cat((mask, torch.ones(2, 1, dtype=torch.long)), 1)
        inputs = {"attention_mask": mask, "position_ids": mask.sum(1, keepdim=True) - 1}
        model(after[:, column : column + 1], past_key_values=cache, **inputs)
    cache.reorder_cache(torch.tensor([1, 0]))
    cache.crop(-4)  # both steps and two tokens of the prompts
    rows = [0, 2]
    mask = torch.cat((mask[[1, 0], :4], torch.ones(2, 3, dtype=torch.long)), 1)
    positions = (mask.cumsum(1) - 1).clamp(min=0)[:, 4:]
    logits = model(after, attention_mask=mask, position_ids=positions, past_key_values=cache).logits
    for found, row, new, real in zip(logits, rows, after, mask.bool(), strict=True):
        whole = torch.cat((prompts[row, :4], new))[real]
        assert differs([(found, full(model, whole)[-3:])]) < 1


@torch.no_grad()
@pytest.mark.parametrize("numbered", [True, False], ids=["with positions", "without positions"])
@pytest.mark.parametrize("removed", [1, 2, 3, 4])
@pytest.mark.parametrize("side", ["left", "right"])
def test_going_back_into_a_padded_prompt(side, removed, numbered) -> None:
    """Cuts after the first token of a row, in its padding, and where other rows have gone on."""
    model = make_shifted("llama", SHIFT)
    sequences = [draw(n, seed=n) for n in (6, 4, 2)]
    batch, mask = padded(sequences, side)
    positions = {"position_ids": (mask.cumsum(1) - 1).clamp(min=0)} if numbered or side == "right" else {}
    cache = model(batch, attention_mask=mask, **positions, use_cache=True).past_key_values
    cache.crop(-removed)
    kept = mask[:, : 6 - removed]
    after = draw(3, 3, seed=8)
    mask = torch.cat((kept, torch.ones_like(after)), 1)
    if positions:
        positions = {"position_ids": (mask.cumsum(1) - 1).clamp(min=0)[:, -3:]}
    logits = model(after, attention_mask=mask, **positions, past_key_values=cache).logits
    for found, row, real, new in zip(logits, batch, kept.bool(), after, strict=True):
        whole = torch.cat((row[: 6 - removed][real], new))
        assert differs([(found, full(model, whole)[-3:])]) < 1


@torch.no_grad()
def test_cropping_too_far_names_the_ways_out() -> None:
    model = make_shifted("llama", SHIFT, max_position_embeddings=256)
    cache = filled(model, draw(1, 150))
    length = cache.get_seq_length()
    with pytest.raises(UnsupportedModelError, match=r"Cropping 100 .*recording on .*copy the cache"):
        cache.crop(-100)
    assert cache.get_seq_length() == length  # nothing was touched
    cache.crop(-150)
    assert cache.layers[0].raw_rows is None  # everything is always possible
    cache.activate_past_recording()
    batch = draw(1, 150)
    in_pieces(model, cache, batch, 1)
    cache.crop(-100)
    after = draw(1, 2, seed=9)
    logits = in_pieces(model, cache, after, 1)
    assert differs(each(model, logits, torch.cat((batch[:, :50], after), 1))) < 1


@torch.no_grad()
def test_a_compiled_step_goes_on_with_a_cache_and_not_back() -> None:
    torch._dynamo.reset()
    model, batch, after = make_shifted("llama", SHIFT), draw(2, 6), draw(2, 3, seed=8)
    step = torch.compile(model, fullgraph=True, backend="eager")
    with pytest.raises(torch._dynamo.exc.Unsupported):  # a graph cannot give a cache its raw rows
        step(batch, past_key_values=DynamicCache(config=model.config))
    cache = filled(model, batch)
    logits = torch.cat([step(column, past_key_values=cache).logits for column in after.split(1, 1)], 1)
    assert differs(each(model, logits, torch.cat((batch, after), 1))) < 1
    with pytest.raises(UnsupportedModelError, match=r"can go back 0 .*none of a compiled step"):
        cache.crop(-1)


@torch.no_grad()
def test_a_copy_of_a_cache_goes_its_own_way(family) -> None:
    model = make_shifted(family, SHIFT)
    batch, after = draw(2, 6), draw(2, 3, seed=8)
    cache = filled(model, batch)
    other = copy.deepcopy(cache)
    in_pieces(model, cache, after.flip(0), 1)
    logits = in_pieces(model, other, after, 1)
    assert differs(each(model, logits, torch.cat((batch, after), 1))) < 1


@torch.no_grad()
def test_quantized_caches_keep_raw_rows_as_they_are() -> None:
    model = make_shifted("llama", SHIFT)
    batch = draw(2, 10)
    cache = Cache(layers=[ExactlyQuantized() for _ in range(2)])
    assert differs(each(model, in_pieces(model, cache, batch, [4, 1, 1, 1, 3]), batch)) < 1
    for change in (
        lambda: cache.crop(-1),
        lambda: cache.batch_repeat_interleave(2),
        lambda: cache.batch_select_indices(torch.tensor([1, 0])),
        cache.activate_past_recording,
    ):
        with pytest.raises(UnsupportedModelError, match="A quantized cache cannot be"):
            change()
    cache.reset()
    assert differs(each(model, in_pieces(model, cache, batch.flip(0), 1), batch.flip(0))) < 1


@torch.no_grad()
def test_beams_in_a_quantized_cache() -> None:
    model = make_shifted("llama", SHIFT)
    cache = Cache(layers=[ExactlyQuantized() for _ in range(2)])
    pairs = beam_search(model, past_key_values=cache)
    if hasattr(QuantizedLayer, "_apply_pending_reorder"):
        assert differs(pairs) < 1
    else:  # the library itself then reorders the few rows that are not quantized yet, alone
        with pytest.raises(UnsupportedModelError, match="cannot be reordered"):
            list(pairs)


@torch.no_grad()
def test_offloaded_caches_keep_raw_rows_on_the_device(family, monkeypatch) -> None:
    """The streams are stand-ins; the layers are moved as the library moves them."""
    monkeypatch.setattr(torch.cuda, "default_stream", lambda device=None: Unwaited())
    monkeypatch.setattr(torch, "Stream", Unwaited)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    model = make_shifted(family, SHIFT)
    for implementation in ("offloaded", "offloaded_static"):
        if implementation == "offloaded_static" and family == "mistral":
            continue  # the library leaves sliding layers where they are, and then finds nothing to offload
        made = generate(model, draw(2, 6), cache_implementation=implementation)
        assert made.past_key_values.offloading
        assert differs(made_logits(model, made, [6, 6])) < 1
    batch = draw(2, 9)
    cache = DynamicCache(config=model.config, offloading=True)
    assert differs(each(model, in_pieces(model, cache, batch, [3, 1, 5]), batch)) < 1


def test_what_is_brought_back_has_first_arrived(monkeypatch) -> None:
    """transformers before 5.20 does not wait, and offloaded caches are wrong now and then."""
    events = []

    class Prefetching(Unwaited):
        def wait_stream(self, other) -> None:
            events.append(("waits for", other))

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: Prefetching())
    monkeypatch.setattr(torch.cuda, "default_stream", lambda device=None: "the default stream")
    monkeypatch.setattr(DynamicLayer, "prefetch", lambda layer: events.append("prefetches"))
    layer = filled(make_shifted("llama", SHIFT), draw(1, 2)).layers[0]
    layer.prefetch()
    assert events == [("waits for", "the default stream"), "prefetches"]


@torch.no_grad()
def test_static_rows_stay_at_their_addresses(family) -> None:
    model = make_shifted(family, SHIFT)
    cache = StaticCache(config=model.config, max_cache_len=12)
    model(draw(2, 4), past_key_values=cache)
    places = [rows.data_ptr() for layer in cache.layers for rows in layer.raw_rows[:2]]
    model(draw(2, 1), past_key_values=cache)
    cache.reorder_cache(torch.tensor([1, 0]))
    cache.reset()
    model(draw(2, 3), past_key_values=cache)
    assert [rows.data_ptr() for layer in cache.layers for rows in layer.raw_rows[:2]] == places
    with pytest.raises(UnsupportedModelError, match="static cache cannot be cropped"):
        cache.crop(-1)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_caches_of_other_models_are_refused(family, kind) -> None:
    model, plain = make_shifted(family, SHIFT), make_vanilla(family)

    def cache():
        if kind == "dynamic":
            return DynamicCache(config=model.config)
        return StaticCache(config=model.config, max_cache_len=12)

    def refused(cache, sentence: str) -> None:
        with pytest.raises(UnsupportedModelError, match=sentence):
            model(draw(2, 1), past_key_values=cache)

    refused(plain(draw(2, 3), past_key_values=cache()).past_key_values, "unshifted model filled it")
    shared = model(draw(2, 3), past_key_values=cache()).past_key_values
    plain(draw(2, 1), past_key_values=shared)
    refused(shared, "unshifted model continued it")
    wider = make_shifted(family, kvshift.KVShiftConfig(init="paper", window=4))
    refused(wider(draw(2, 3), past_key_values=cache()).past_key_values, "filled by another model")
    keys = make_shifted(family, kvshift.KVShiftConfig(init="paper", window=3, shift_values=False))
    refused(keys(draw(2, 3), past_key_values=cache()).past_key_values, "filled by another model")
    refused(
        model(draw(3, 3), past_key_values=cache()).past_key_values, "holds 3 sequences and the batch has 2"
    )


@torch.no_grad()
def test_unfit_caches_are_refused(family) -> None:
    model = make_shifted(family, SHIFT)
    pair = EncoderDecoderCache(DynamicCache(), DynamicCache())
    with pytest.raises(UnsupportedModelError, match="EncoderDecoderCache"):
        model(draw(1, 3), past_key_values=pair)
    shallow = DynamicCache(config=make_vanilla(family, num_hidden_layers=1, layer_types=None).config)
    with pytest.raises(UnsupportedModelError, match="has 1 layers; the model needs 2"):
        model(draw(1, 3), past_key_values=shallow)


def test_sparse_layers_have_no_place_for_raw_rows() -> None:
    from transformers.cache_utils import DynamicIndexedLayer, DynamicLayer

    with pytest.raises(UnsupportedModelError, match="DynamicIndexedLayer"):
        with_raw_rows(DynamicIndexedLayer)
    assert with_raw_rows(DynamicLayer).__name__ == "ShiftedDynamicLayer"


@torch.no_grad()
def test_a_failed_step_leaves_no_usable_cache() -> None:
    model = make_shifted("llama", SHIFT)
    cache = filled(model, draw(1, 4))
    handle = model.model.layers[1].self_attn.o_proj.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model(draw(1, 1), past_key_values=cache)
    handle.remove()
    with pytest.raises(UnsupportedModelError, match="stopped halfway"):
        model(draw(1, 1), past_key_values=cache)


@torch.no_grad()
@pytest.mark.parametrize("name", ["mistral", "falcon_h1"])
def test_right_padding_that_the_library_takes_for_tokens_is_refused(name) -> None:
    model = make_shifted(name, SHIFT)
    with pytest.raises(UnsupportedModelError, match=r"padded on the right.*Pad on the left"):
        error(MODES["right padded then decoding"], model)


@torch.no_grad()
def test_a_crop_beside_a_recurrence_is_refused() -> None:
    cache = make_shifted("qwen3_next", SHIFT)(draw(1, 4), use_cache=True).past_key_values
    cache.activate_past_recording()
    with pytest.raises(UnsupportedModelError, match="state of a recurrence"):
        cache.crop(-1)


@torch.no_grad()
def test_a_shifted_assistant_helps_an_unshifted_model() -> None:
    model = make_vanilla("llama")
    made = generate(model, draw(1, 6), assistant_model=make_shifted("llama", SHIFT, seed=0))
    assert differs(made_logits(model, made, [6])) < 1


def test_an_assistant_takes_back_more_than_is_always_kept(monkeypatch) -> None:
    monkeypatch.setattr("kvshift.models.history.KEPT", 6)
    assistant = make_shifted("llama", SHIFT, seed=1)
    assistant.generation_config.num_assistant_tokens = 20
    assistant.generation_config.num_assistant_tokens_schedule = "constant"
    assistant.generation_config.assistant_confidence_threshold = 0.0
    model = make_vanilla("llama")
    # The library would mask a padding token that was made, in the assistant's next prompt.
    settings = {"max_new_tokens": 24, "do_sample": False, "suppress_tokens": [PAD]}
    made = model.generate(draw(1, 4), assistant_model=assistant, **settings)
    assert torch.equal(made, model.generate(draw(1, 4), **settings))


def test_a_sliding_layer_that_records_gives_no_more_rows_than_its_mask_has() -> None:
    """As transformers 5.17 does: everything recorded."""

    class Everything(DynamicLayer):
        is_sliding, sliding_window = True, 3

        def update(self, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return torch.arange(9.0).view(1, 1, 9, 1), -torch.arange(9.0).view(1, 1, 9, 1)

    class Layer(GrowingRows, Everything):
        pass

    layer, new = Layer(), torch.zeros(1, 1, 2, 1)
    assert layer.update(new, new)[0].shape[2] == 9
    layer.record_past = True
    keys, values = layer.update(new, new)
    assert keys.flatten().tolist() == [5, 6, 7, 8]  # a window of three for each of two queries
    assert values.flatten().tolist() == [-5, -6, -7, -8]
