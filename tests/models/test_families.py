"""Every supported family and variant, on tiny models: the width that the other tests' three families lack."""

from __future__ import annotations

import pickle
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from tiny_models import TINY, make_shifted, make_vanilla
from transformers import AutoModelForCausalLM

import kvshift
from kvshift.errors import UnsupportedModelError
from kvshift.models import derived, shift_modules
from kvshift.models.families import FAMILIES, family_of

IDENTITY = kvshift.KVShiftConfig(init="identity")
PAPER = kvshift.KVShiftConfig(init="paper", window=3)


def logits(model, tokens, **kwargs) -> torch.Tensor:
    with torch.no_grad():
        return model(tokens, use_cache=False, **kwargs).logits


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest error, in units of the logits' spread."""
    return float((found - expected).abs().max() / expected.std())


def same_tensors(one, other) -> bool:
    """Whether parameters and buffers, also those that checkpoints do not hold, are equal to the bit."""
    mine, theirs = ({**dict(m.named_parameters()), **dict(m.named_buffers())} for m in (one, other))
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_every_family_has_a_tiny_model() -> None:
    assert {model_type for model_type, _ in TINY.values()} == {family.model_type for family in FAMILIES}


def test_identity_start_changes_no_bit(architecture, tokens) -> None:
    ids = tokens(2, 11)
    plain = logits(make_vanilla(architecture), ids)
    assert torch.equal(logits(make_shifted(architecture, IDENTITY), ids), plain)
    assert error(logits(make_shifted(architecture, PAPER), ids), plain) > 0.1


def test_cached_decoding_in_chunks_equals_the_full_forward(architecture, tokens) -> None:
    model, ids = make_shifted(architecture, PAPER), tokens(2, 14)
    expected = logits(model, ids)
    several = family_of(make_vanilla(architecture).config).chunks
    for chunks in ([5] + [1] * 9, [1] * 14, *([[3, 4, 7]] if several else [])):
        cache, found = None, []
        for chunk in ids.split(chunks, dim=1):
            with torch.no_grad():
                output = model(chunk, past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            found.append(output.logits)
        assert error(torch.cat(found, dim=1), expected) < 1e-4


def test_several_tokens_after_cached_ones_are_refused_where_the_library_forgets_them(tokens) -> None:
    model, ids = make_shifted("jamba", PAPER), tokens(1, 9)
    cache = model(ids[:, :4], use_cache=True).past_key_values
    with pytest.raises(UnsupportedModelError, match="lose what is cached when several tokens follow"):
        model(ids[:, 4:], past_key_values=cache)


def test_generation_from_a_left_padded_batch_equals_each_row_alone(architecture, tokens) -> None:
    model, ids = make_shifted(architecture, PAPER), tokens(2, 9)
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    options = {
        "max_new_tokens": 6,
        "do_sample": False,
        "output_logits": True,
        "return_dict_in_generate": True,
    }
    together = model.generate(ids.where(mask.bool(), 0), attention_mask=mask, **options)
    for row, start in enumerate((4, 0)):
        alone = model.generate(ids[row : row + 1, start:], **options)
        assert torch.equal(together.sequences[row, 9:], alone.sequences[0, 9 - start :])
        for ours, theirs in zip(together.logits, alone.logits, strict=True):
            assert error(ours[row], theirs[0]) < 1e-4


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_rows_equal_unpadded_ones(architecture, tokens, side) -> None:
    model, ids = make_shifted(architecture, PAPER), tokens(1, 9)
    padding = torch.zeros(1, 4, dtype=torch.long)
    parts, real = ([padding, ids], slice(4, 13)) if side == "left" else ([ids, padding], slice(0, 9))
    mask = torch.zeros(1, 13, dtype=torch.long)
    mask[:, real] = 1
    positions = (mask.cumsum(1) - 1).clamp(min=0)  # learned positions are not relative
    found = logits(model, torch.cat(parts, 1), attention_mask=mask, position_ids=positions)[:, real]
    assert error(found, logits(model, ids)) < 1e-4


def test_packed_documents_equal_separate_ones_or_are_refused(architecture, tokens) -> None:
    model, ids = make_shifted(architecture, PAPER), tokens(1, 11)
    positions = torch.cat((torch.arange(6), torch.arange(5)))[None]
    if not family_of(make_vanilla(architecture).config).packs:
        with pytest.raises(
            UnsupportedModelError, match="read across packed documents, with or without KV shift"
        ):
            logits(model, ids, position_ids=positions)
        return
    separate = torch.cat((logits(model, ids[:, :6]), logits(model, ids[:, 6:])), dim=1)
    assert error(logits(model, ids, position_ids=positions), separate) < 1e-4


def test_saved_models_come_back_whole(architecture, tokens, tmp_path) -> None:
    model, ids = make_shifted(architecture, PAPER), tokens(1, 7)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(loaded) is type(model)
    assert same_tensors(loaded, model)
    assert error(logits(loaded.eval(), ids), logits(model, ids)) < 1e-4  # where memory lies moves last bits


def test_a_base_checkpoint_loads_with_taps_at_their_start(architecture, tokens, tmp_path) -> None:
    """In the layout the library publishes, which for mixtures of experts is not that of its modules."""
    base, ids = make_vanilla(architecture), tokens(1, 7)
    base.save_pretrained(tmp_path)
    shifted = make_shifted(architecture, IDENTITY)
    loaded = type(shifted).from_pretrained(tmp_path, config=shifted.config)
    assert same_tensors(loaded, shifted)
    assert error(logits(loaded.eval(), ids), logits(base, ids)) < 1e-4


def test_gradient_checkpointing_gives_the_same_gradients(architecture, tokens) -> None:
    gradients = []
    for recompute in (False, True):
        model = make_shifted(architecture, PAPER).train()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        if recompute:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        ids, other = tokens(2, 9), tokens(2, 6, seed=3)
        loss = model(ids, labels=ids, use_cache=False).loss
        second = model(other, labels=other, use_cache=False).loss  # before the first one's backward
        (loss + second).backward()
        gradients.append(torch.cat([module.k_weight.grad.flatten() for module in shift_modules(model)]))
    assert gradients[0].abs().max() > 0
    assert torch.allclose(*gradients, rtol=1e-4, atol=1e-7)


def test_queries_are_shifted_where_the_family_can(architecture, tokens) -> None:
    config = kvshift.KVShiftConfig(init="paper", shift_queries=True)
    if family_of(make_vanilla(architecture).config).layout.gated:
        model = make_vanilla(architecture)
        with pytest.raises(UnsupportedModelError, match="projects queries and a gate together"):
            kvshift.convert(model, config)
        assert not any(hasattr(module, "kv_shift") for module in model.modules())
        return
    model, ids = make_shifted(architecture, config), tokens(1, 8)
    before = logits(model, ids)
    for module in shift_modules(model):
        torch.nn.init.zeros_(module.q_weight[:, 1])
    assert error(logits(model, ids), before) > 1e-2


@pytest.mark.parametrize("name", ["llama", "falcon-new", "phi3"])  # each layout
def test_a_forward_compiles_under_a_default_device(name, tokens) -> None:
    """Which puts a mode around every function of torch, and not everything can be traced through one."""
    torch._dynamo.reset()
    model, ids = make_shifted(name, PAPER), tokens(2, 8)
    torch.set_default_device("cpu")
    try:
        with torch.no_grad():
            found = torch.compile(model, fullgraph=True, backend="eager")(ids, use_cache=False).logits
    finally:
        torch.set_default_device(None)
    assert error(found, logits(model, ids)) < 1e-4


def test_configurations_are_those_of_the_models() -> None:
    """They are found without the models' code."""
    for family in FAMILIES:
        assert family.config is family.causal_lm.config_class


LOADED = "[name for name in sys.modules if name.startswith('transformers.models.') and '.modeling_' in name]"


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_familys_code_is_imported_for_its_models_only(tmp_path) -> None:
    """One family's may bring along libraries that take the GPU at once."""
    make_shifted("llama", IDENTITY).save_pretrained(tmp_path)
    said = run_python(
        f"import sys, kvshift; before = {LOADED}\n"
        "from transformers import AutoModelForCausalLM\n"
        f"model = AutoModelForCausalLM.from_pretrained({str(tmp_path)!r})\n"
        f"print(type(model).__name__, before, {LOADED})"
    )
    name, both = said.split(" ", 1)
    assert name == "KVShiftLlamaForCausalLM"
    families = {family.module for family in FAMILIES}
    loaded = [module for module in families if f".modeling_{module}'" in both]
    assert loaded == ["llama"]
    assert both.count(".modeling_llama'") == 1  # not before


def test_classes_are_found_by_name_in_a_fresh_process() -> None:
    """As another process finds what was pickled for it."""
    said = run_python(
        "import pickle\n"
        "found = [pickle.loads(b'ckvshift.models.derived\\n' + name + b'\\n.') for name in\n"
        "    (b'KVShiftQwen3MoeForCausalLM', b'KVShiftQwen3Config', b'KVShiftGPT2Attention')]\n"
        "print(*(each.__name__ for each in found))\n"
        "from kvshift.models import derived\n"
        "print(hasattr(derived, 'KVShiftLlamaNothing'), hasattr(derived, 'nothing'))"
    )
    assert said.split() == [
        "KVShiftQwen3MoeForCausalLM",
        "KVShiftQwen3Config",
        "KVShiftGPT2Attention",
        "False",
        "False",
    ]


def test_a_configuration_from_another_process_knows_its_models(tmp_path) -> None:
    path = tmp_path / "config"
    path.write_bytes(pickle.dumps(make_shifted("llama", IDENTITY).config))
    said = run_python(
        "import pickle, kvshift\n"
        "from transformers import AutoModelForCausalLM\n"
        f"config = pickle.load(open({str(path)!r}, 'rb'))\n"
        "print(type(AutoModelForCausalLM.from_config(config)).__name__)"
    )
    assert said == "KVShiftLlamaForCausalLM\n"


def test_threads_get_the_same_classes(monkeypatch) -> None:
    def derive(family):
        time.sleep(0.05)
        return object()

    monkeypatch.setattr(derived, "_SHIFTED", {})
    monkeypatch.setattr(derived, "_derive_models", derive)
    monkeypatch.setattr(derived, "_register_models", lambda classes: None)
    with ThreadPoolExecutor(4) as threads:
        assert len(set(threads.map(derived.shifted_classes, FAMILIES[:1] * 4))) == 1
