"""Converts a random checkpoint of the paper's 1.5B configuration on disk: time and peak memory.

    python benchmarks/convert_on_disk.py FOLDER      (Linux; 16 GB free, a few minutes)

Writes about 3 GB of random bfloat16 weights, shard by shard, into FOLDER, runs `kvshift convert` on them as
a process of its own, prints one JSON object and removes what it wrote.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, LlamaConfig

SHARD = 500_000_000


def main(folder: Path) -> None:
    folder.mkdir(parents=True)
    try:
        shards, size = write_checkpoint(folder / "plain")
        runs = [convert(folder / "plain", folder / f"converted-{run}", size) for run in range(3)]
        print(
            json.dumps(
                {
                    "parameters": size // 2,
                    "bytes": size,
                    "shards": shards,
                    "runs": runs,
                    "imports alone": measured("import kvshift.cli.convert, kvshift.models.disk"),
                },
                indent=1,
            )
        )
    finally:
        shutil.rmtree(folder)


def write_checkpoint(folder: Path) -> tuple[int, int]:
    """Random weights of every name and shape; returns the number of files and the bytes."""
    config = LlamaConfig(
        vocab_size=36_000,
        hidden_size=2048,
        intermediate_size=5504,
        num_hidden_layers=28,
        num_attention_heads=16,
        num_key_value_heads=16,
        max_position_embeddings=2048,
        dtype="bfloat16",
        architectures=["LlamaForCausalLM"],
    )
    with torch.device("meta"):
        shapes = {
            name: tensor.shape
            for name, tensor in AutoModelForCausalLM.from_config(config).state_dict().items()
        }
    needed = 2 * sum(shape.numel() for shape in shapes.values())
    if shutil.disk_usage(folder.parent).free < 5 * needed:
        raise SystemExit(f"{folder.parent} needs {5 * needed / 1e9:.0f} GB free.")
    folder.mkdir()
    config.save_pretrained(folder)
    shards: list[list[str]] = [[]]
    held = 0
    for name, shape in shapes.items():
        if held and held + 2 * shape.numel() > SHARD:
            shards.append([])
            held = 0
        shards[-1].append(name)
        held += 2 * shape.numel()
    weight_map = {}
    for number, names in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file(
            {name: torch.randn(shapes[name], dtype=torch.bfloat16).mul_(0.02) for name in names},
            folder / file,
            metadata={"format": "pt"},
        )
        weight_map.update(dict.fromkeys(names, file))
    index = {"metadata": {"total_size": needed}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return len(shards), needed


def convert(source: Path, target: Path, size: int) -> dict[str, float]:
    """One conversion in a process of its own."""
    arguments = ["convert", str(source), str(target), "--init", "identity"]
    told = measured(f"from kvshift.cli import main; main({arguments})")
    written = sum(path.stat().st_size for path in target.iterdir())
    if written < size:
        raise SystemExit(f"{target} has {written} bytes; expected more than {size}.")
    shutil.rmtree(target)
    return told


def measured(program: str) -> dict[str, float]:
    """Seconds of a Python program from start to end, and its peak resident memory in MiB."""
    peak = "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", f"{program}\n{peak}"], stdout=subprocess.PIPE, text=True, check=True
    )
    seconds = time.monotonic() - started
    return {"seconds": round(seconds, 2), "peak_rss_mib": round(int(done.stdout.split()[-1]) / 1024)}


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    main(Path(sys.argv[1]))
