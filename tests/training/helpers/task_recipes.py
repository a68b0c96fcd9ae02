"""Runs on synthetic tasks that take a fraction of a second."""

from __future__ import annotations

from kvshift.training.task_recipe import TaskRecipe

SHIFT = {"init": "paper", "lr_multiplier": 10.0}
LLAMA = {
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}
DROPOUT = {"attn_pdrop": 0.2, "embd_pdrop": 0.2, "resid_pdrop": 0.2}
DROPLESS = {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}
GPT2 = {"model_type": "gpt2", "n_embd": 32, "n_layer": 1, "n_head": 2, **DROPLESS}


def make_recipe(**changes) -> TaskRecipe:
    fields = {
        "task": "induction",
        "task_settings": {"vocab_size": 32, "candidates": 16, "length": 24},
        "model": LLAMA,
        "shift": SHIFT,
        "steps": 7,
        "batch_size": 4,
        "learning_rate": 1e-2,
        "evaluate_every": 3,
        "evaluation_rows": 8,
    }
    return TaskRecipe(**{**fields, **changes})
