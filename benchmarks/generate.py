"""How fast a converted model generates beside the model it was: `python benchmarks/generate.py --size 1.5b`.

Both models have the same random weights (identity start, so they generate the same tokens); their
measurements alternate. On a GPU the static cache is compiled, as `generate` does by itself.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from pathlib import Path

import torch
import transformers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

import kvshift

SIZES = {
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4},
    "120m": {
        "hidden_size": 768,
        "intermediate_size": 2048,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
    },
    "1.5b": {
        "hidden_size": 2048,
        "intermediate_size": 5504,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
    },
}
CACHES = ("dynamic", "static")


def build(size: str, device: torch.device, dtype: torch.dtype) -> dict[str, PreTrainedModel]:
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=36_000, max_position_embeddings=2048, **SIZES[size])
    config.bos_token_id = config.eos_token_id = None
    with torch.device(device):
        vanilla = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    return {"vanilla": vanilla, "kvshift": kvshift.convert(copy.deepcopy(vanilla), init="identity")}


@torch.no_grad()
def generate(
    model: PreTrainedModel, prompt: torch.Tensor, new: int, cache: str
) -> tuple[float, torch.Tensor]:
    if prompt.is_cuda:
        torch.cuda.synchronize()
    began = time.perf_counter()
    tokens = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        do_sample=False,
        max_new_tokens=new,
        min_new_tokens=new,
        cache_implementation=cache,
        pad_token_id=0,
    )
    if prompt.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - began, tokens


def measure(
    models: dict[str, PreTrainedModel], batch: int, prompt: int, new: int, cache: str, repeats: int
) -> dict:
    device = models["vanilla"].device
    ids = torch.randint(1, 30_000, (batch, prompt), device=device)
    made = {}
    for name, model in models.items():  # compiles, and checks that the comparison is one
        for _ in range(2):
            _, made[name] = generate(model, ids, new, cache)
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(repeats):
        for name, model in models.items():
            seconds[name].append(generate(model, ids, new, cache)[0])
    rates = {name: batch * new / statistics.median(times) for name, times in seconds.items()}
    ratios = sorted(v / k for v, k in zip(seconds["vanilla"], seconds["kvshift"], strict=True))
    return {
        "cache": cache,
        "batch": batch,
        "prompt": prompt,
        "new": new,
        "tokens_per_second": rates,
        "ratio": statistics.median(ratios),
        "ratio_low": ratios[0],
        "ratio_high": ratios[-1],
        "same_tokens": bool(torch.equal(made["vanilla"], made["kvshift"])),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--new", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--caches", nargs="+", choices=CACHES, default=list(CACHES))
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    transformers.logging.set_verbosity_error()
    device = torch.device(chosen.device)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    models = build(chosen.size, device, dtype)
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    found = {"size": chosen.size, "device": name, "dtype": str(dtype), "torch": torch.__version__, "rows": []}
    print(f"{chosen.size} on {name}, {dtype}; tokens a second, and kvshift ÷ vanilla [lowest, highest pair]")
    for cache in chosen.caches:
        for batch in chosen.batches:
            row = measure(models, batch, chosen.prompt, chosen.new, cache, chosen.repeats)
            found["rows"].append(row)
            rates = row["tokens_per_second"]
            spread = f"[{row['ratio_low']:.3f}, {row['ratio_high']:.3f}]"
            print(
                f"{cache:8} batch {batch:3}  vanilla {rates['vanilla']:9,.0f}  "
                f"kvshift {rates['kvshift']:9,.0f}  {row['ratio']:.3f} {spread}"
                f"{'' if row['same_tokens'] else '  DIFFERENT TOKENS'}",
                flush=True,
            )
    if chosen.out:
        chosen.out.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
