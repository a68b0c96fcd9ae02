"""Compiles tiny models with KV shift, whose classes nobody has called: `compile_first.py NAME …`."""

from __future__ import annotations

import sys

import torch
from modes import draw
from tiny_models import make_shifted

import kvshift

for name in sys.argv[1:]:
    model = make_shifted(name, kvshift.KVShiftConfig(init="paper"))
    torch.compile(model, fullgraph=True, backend="eager")(draw(1, 5), use_cache=False)
