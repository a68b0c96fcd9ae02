"""What the shift itself looks like after a pilot: the taps it learned, and what it adds to a model."""

from __future__ import annotations

from kvshift.inspection.quadrants import count, quadrant
from kvshift.pilot.ladder_results import tap_parameters
from kvshift.pilot.pairs import Pairs, end
from kvshift.pilot.results import AddedCost, SizeResult, TapHead
from kvshift.shift import KVShiftConfig

LINES_OF_CODE = 2  # `import kvshift` and `kvshift.convert(model)`
STATE_BYTES = 2  # a 16-bit number


def learned_taps(pairs: Pairs) -> list[TapHead]:
    """The last taps of every candidate main run that finished: a row for each run, layer and KV head."""
    rows = []
    for pair in pairs:
        if pair.candidate is None or end(pair.candidate) is None or not pair.candidate.taps:
            continue
        last = pair.candidate.taps[-1]
        for layer in range(len(last.keys or last.values or [])):
            keys = last.keys[layer] if last.keys else None
            values = last.values[layer] if last.values else None
            for head in range(len(keys or values or [])):
                rows.append(
                    TapHead(
                        size=pair.size,
                        seed=pair.seed,
                        layer=layer,
                        head=head,
                        keys=keys[head] if keys else None,
                        values=values[head] if values else None,
                    )
                )
    return rows


def quadrants(heads: list[TapHead]) -> dict[str, int]:
    """Heads in each quadrant of the paper's Table 4; those without one (`quadrant`) are not counted."""
    return count(quadrant(head.keys, head.values) for head in heads)


def added_cost(pairs: Pairs, top: SizeResult) -> AddedCost:
    """What adding the shift costs at the ladder's top; all zero where the candidate has no shift (A/A)."""
    size, settings = pairs.top, pairs.plan.settings
    shift = pairs.plan.arms[1].shift
    config = None if shift is None else KVShiftConfig.from_dict(shift)
    parameters = tap_parameters(pairs, size.name)
    state = 0
    if config is not None:
        kv_width = size.kv_heads * size.head_dim
        query_width = size.model.get("num_attention_heads", size.kv_heads) * size.head_dim
        width = kv_width * (config.shift_keys + config.shift_values) + query_width * config.shift_queries
        state = (config.window - 1) * width * size.layers * STATE_BYTES
    return AddedCost(
        parameters=parameters,
        parameters_share=parameters / size.parameters,
        state_bytes_per_sequence=state,
        throughput_ratio=top.throughput_ratio,
        memory_ratio=top.memory_ratio,
        lines_of_code=0 if config is None else LINES_OF_CODE,
        user_model=None if settings.model is None else size.model.get("model_type"),
        # The ladder's top is the user's model, so it was converted and trained.
        user_model_supported=None if settings.model is None else True,
    )
