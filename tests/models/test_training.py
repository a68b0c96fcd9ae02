"""Training steps: gradients, checkpointing, autocast, compilation."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import kvshift
from kvshift.models import shift_modules

SHIFT = kvshift.KVShiftConfig(init="paper", window=3)


def packed(tokens) -> dict[str, torch.Tensor]:
    batch = tokens(2, 12)
    positions = torch.cat((torch.arange(7), torch.arange(5)))[None].expand(2, -1)
    return {"input_ids": batch, "position_ids": positions, "labels": batch}


def gradients(model, inputs) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model(**inputs).loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def test_every_tap_of_every_layer_learns(family, shifted, tokens) -> None:
    model = shifted(family, SHIFT).train()
    found = gradients(model, packed(tokens))
    taps = {name: gradient for name, gradient in found.items() if "kv_shift" in name}
    assert len(taps) == 4
    assert all((gradient != 0).all() for gradient in taps.values())


def test_a_model_may_be_compiled_before_it_ever_ran() -> None:
    """In a process of its own: what a first call finds out, a compiler would have to trace."""
    script = Path(__file__).parent / "helpers" / "compile_first.py"
    path = str(Path(kvshift.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, str(script), "qwen3", "gemma3", "llama"],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_gives_equal_gradients(family, shifted, tokens, reentrant) -> None:
    model = shifted(family, SHIFT).train()
    inputs = packed(tokens)
    expected = gradients(model, inputs)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    assert model.is_gradient_checkpointing
    found = gradients(model, inputs)
    assert all(torch.equal(found[name], gradient) for name, gradient in expected.items())


def test_gradient_checkpointing_of_padded_batches(family, shifted, tokens) -> None:
    model = shifted(family, SHIFT).train()
    batch = tokens(2, 6)
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1] * 6])
    inputs = {"input_ids": batch, "attention_mask": mask, "labels": batch.masked_fill(mask == 0, -100)}
    expected = gradients(model, inputs)
    model.gradient_checkpointing_enable()
    found = gradients(model, inputs)
    assert all(torch.equal(found[name], gradient) for name, gradient in expected.items())


def test_packed_gradients_are_the_documents_gradients(family, shifted, tokens) -> None:
    model = shifted(family, SHIFT, dtype=torch.float64).train()
    batch = tokens(1, 9)
    positions = torch.cat((torch.arange(5), torch.arange(4)))[None]
    labels = batch.clone()
    labels[:, 5] = -100  # predicted by the token before it, another document's last
    found = gradients(model, {"input_ids": batch, "position_ids": positions, "labels": labels})
    alone = [gradients(model, {"input_ids": part, "labels": part}) for part in (batch[:, :5], batch[:, 5:])]
    for name, gradient in found.items():
        # The loss is a mean over 4 + 3 predictions.
        assert torch.allclose(gradient, (4 * alone[0][name] + 3 * alone[1][name]) / 7, atol=1e-6)


def compiled_step(model, batches: list[dict[str, torch.Tensor]]) -> None:
    """One graph without a break for the first batch, used again for the others."""
    expected = [gradients(model, batch) for batch in batches]
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for number, (batch, gradient) in enumerate(zip(batches, expected, strict=True)):
        model.zero_grad()
        with torch._dynamo.config.patch(error_on_recompile=number > 0):
            compiled(**batch).loss.backward()
        for name, parameter in model.named_parameters():
            assert torch.allclose(parameter.grad, gradient[name], rtol=1e-4, atol=1e-5)


def test_a_packed_training_step_compiles_as_one_graph_for_any_packing(family, shifted, tokens) -> None:
    first = packed(tokens)
    positions = torch.cat((torch.arange(3), torch.arange(9)))[None].expand(2, -1)
    compiled_step(
        shifted(family, SHIFT, num_hidden_layers=1).train(), [first, {**first, "position_ids": positions}]
    )


def test_a_padded_training_step_compiles_as_one_graph(shifted, tokens) -> None:
    batch = tokens(2, 12)
    masks = (torch.tensor([[0] * n + [1] * (12 - n), [1] * 12]) for n in (3, 5))
    compiled_step(
        shifted("llama", SHIFT, num_hidden_layers=1).train(),
        [{"input_ids": batch, "attention_mask": mask, "labels": batch} for mask in masks],
    )


def test_autocast_shifts_bfloat16_rows_with_float32_taps(family, shifted, tokens, shifts) -> None:
    model = shifted(family, SHIFT).train()
    module = shift_modules(model)[0]
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(**packed(tokens)).loss
    loss.backward()
    (k, _, k_hat), (v, _, v_hat) = shifts[:2]
    assert {rows.dtype for rows in (k, v, k_hat, v_hat)} == {torch.bfloat16}
    assert module.k_weight.dtype == module.k_weight.grad.dtype == torch.float32
    # Rounded once, from a sum formed with the taps as they are: not with taps rounded to bfloat16.
    starts = packed(tokens)["position_ids"] == 0
    exact, _, _ = kvshift.kv_shift(k.float(), v.float(), module.k_weight, module.v_weight, starts=starts)
    assert torch.equal(k_hat, exact.bfloat16())


def test_a_copy_is_a_shifted_model_of_its_own(family, shifted, tokens) -> None:
    model = shifted(family, SHIFT)
    other = copy.deepcopy(model)
    with torch.no_grad():
        shift_modules(other)[0].k_weight.zero_()
        assert not torch.equal(model(tokens(1, 5)).logits, other(tokens(1, 5)).logits)
