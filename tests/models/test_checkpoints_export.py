"""`torch.export` and ONNX of a converted model: the same logits from the exported program."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, export
from transformers.integrations.executorch import TorchExportableModuleWithStaticCache

SHAPE, OTHER = (2, 9), (3, 14)


class Logits(nn.Module):
    """What is exported: token ids and a padding mask to logits, without a cache."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.model(input_ids, attention_mask=attention_mask, use_cache=False).logits


class Unpadded(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.model(input_ids, use_cache=False).logits


class Packed(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, position_ids: Tensor) -> Tensor:
        return self.model(input_ids, position_ids=position_ids, use_cache=False).logits


def mask(shape: tuple[int, int], padding: int) -> Tensor:
    real = torch.ones(shape, dtype=torch.int64)
    real[0, :padding] = 0
    return real


def dynamic(*names: str) -> dict:
    return {name: {0: Dim("batch"), 1: Dim("time", min=3)} for name in names}


@torch.no_grad()
@pytest.mark.parametrize("free", [False, True], ids=["fixed", "dynamic"])
def test_export(family, shifted, tokens, free) -> None:
    model = shifted(family)
    program = export(
        Unpadded(model), (tokens(*SHAPE),), dynamic_shapes=dynamic("input_ids") if free else None
    )
    batch = tokens(*(OTHER if free else SHAPE), seed=8)
    assert torch.allclose(program.module()(batch), model(batch).logits, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("free", [False, True], ids=["fixed", "dynamic"])
def test_export_with_padding(family, shifted, tokens, free) -> None:
    model = shifted(family)
    shapes = dynamic("input_ids", "attention_mask") if free else None
    program = export(Logits(model), (tokens(*SHAPE), mask(SHAPE, 3)), dynamic_shapes=shapes)
    shape = OTHER if free else SHAPE
    batch, real = tokens(*shape, seed=8), mask(shape, 5)  # other padding than the program was traced with
    found = program.module()(batch, real)[real.bool()]
    assert torch.allclose(found, model(batch, attention_mask=real).logits[real.bool()], atol=1e-5)


@torch.no_grad()
def test_export_with_packed_documents(family, shifted, tokens) -> None:
    def positions(*lengths: int) -> Tensor:
        return torch.cat([torch.arange(length) for length in lengths])[None]

    model, batch = shifted(family), tokens(1, 9)
    program = export(Packed(model), (tokens(1, 9, seed=8), positions(4, 5)))
    found = program.module()(batch, positions(2, 7))[0]  # other documents than it was traced with
    alone = [model(document, use_cache=False).logits[0] for document in batch.split((2, 7), 1)]
    assert torch.allclose(found, torch.cat(alone), atol=1e-4)


@torch.no_grad()
def test_onnx(shifted, tokens, tmp_path) -> None:
    pytest.importorskip("onnxscript", reason="onnxscript is not installed (pip install onnxscript)")
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    model = shifted("llama")
    program = torch.onnx.export(
        Logits(model),
        (tokens(*SHAPE), mask(SHAPE, 3)),
        dynamo=True,
        dynamic_shapes=dynamic("input_ids", "attention_mask"),
        verbose=False,
    )
    program.save(tmp_path / "model.onnx")
    session = runtime.InferenceSession(tmp_path / "model.onnx")
    batch, real = tokens(*OTHER, seed=8), mask(OTHER, 5)
    (found,) = session.run(None, {"input_ids": batch.numpy(), "attention_mask": real.numpy()})
    expected = model(batch, attention_mask=real).logits
    assert torch.allclose(torch.from_numpy(found)[real.bool()], expected[real.bool()], atol=1e-4)


@torch.no_grad()
def test_a_step_with_a_static_cache_fails_to_export_instead_of_being_wrong(shifted, tokens) -> None:
    """The library's recipe makes buffers of keys and values; raw rows would be left out of the program."""
    model = shifted("llama")
    model.generation_config.update(use_cache=True, cache_implementation="static")
    recipe = TorchExportableModuleWithStaticCache(model, batch_size=1, max_cache_len=16, device="cpu")
    step = {"input_ids": tokens(1, 1), "cache_position": torch.tensor([0])}
    with pytest.raises(Exception, match=r"data-dependent|raw rows"):
        export(recipe, (), step, strict=False)
