"""One model, read: its taps and its induction scores together."""

from __future__ import annotations

import platform
from importlib import metadata

from transformers import PreTrainedModel

from kvshift.errors import UsageError
from kvshift.inspection.induction import LENGTH, SEQUENCES, induction_scores, longest
from kvshift.inspection.schema import Inspection, ModelFacts
from kvshift.inspection.taps import Start, read_taps
from kvshift.inspection.watch import attention_layers
from kvshift.models import shift_modules
from kvshift.models.families import FAMILIES, unshifted_type

NO_TAPS = "This model has no KV shift, so there are no taps to show; its heads are scored all the same."
SHORTENED = (
    "A copy has {length} random tokens instead of {wanted}: the model's positions, attention window or "
    "vocabulary hold no more."
)


def inspect_model(
    model: PreTrainedModel,
    name: str = "",
    *,
    induction: bool = True,
    sequences: int = SEQUENCES,
    length: int | None = None,
    seed: int = 0,
    started: Start | None = None,
) -> Inspection:
    """Reads a causal language model, shifted or not; the model stays as it is.

    Args:
        model: on any device.
        name: what to call it.
        induction: False leaves the induction scores out.
        sequences, seed: see `induction_scores`.
        length: see `induction_scores`; None: 25, or what the model holds.
        started: the taps at step 0 where a run recorded them; see `read_taps`.

    Raises:
        UsageError, UnsupportedModelError: see `induction_scores`.
    """
    notes = []
    taps = read_taps(model, started)
    if taps is None:
        notes.append(NO_TAPS)
    scores = None
    if induction:
        if length is None and (most := longest(model)) < LENGTH:
            if most < 2:
                raise UsageError(
                    "The model's positions, attention window or vocabulary do not hold two copies of two "
                    "tokens: leave the induction scores out (--no-induction)."
                )
            notes.append(SHORTENED.format(length=most, wanted=LENGTH))
            length = most
        scores = induction_scores(
            model, sequences=sequences, length=LENGTH if length is None else length, seed=seed
        )
    shifts = shift_modules(model)
    query_heads, kv_heads = _heads(model)
    return Inspection(
        model=ModelFacts(
            name=name,
            architecture=type(model).__name__,
            model_type=str(model.config.model_type),
            parameters=model.num_parameters(),
            attention_layers=len(attention_layers(model)),
            query_heads=query_heads,
            kv_heads=kv_heads,
        ),
        shift=shifts[0].config.to_dict() if shifts else None,
        taps=taps,
        induction=scores,
        notes=notes,
        versions={
            "python": platform.python_version(),
            **{package: metadata.version(package) for package in ("torch", "transformers")},
        },
    )


def _heads(model: PreTrainedModel) -> tuple[int, int]:
    """Query heads and KV heads of an attention layer; of an unknown family, as its configuration says."""
    config = model.config.get_text_config()
    query_heads = int(getattr(config, "num_attention_heads", 0))
    family = next((family for family in FAMILIES if family.model_type == unshifted_type(config)), None)
    _, attention = next(iter(attention_layers(model).values()), (None, None))
    if family is None or not isinstance(attention, family.attentions):
        return query_heads, int(getattr(config, "num_key_value_heads", None) or query_heads)
    return query_heads, family.layout.heads(attention, family.head_dim(attention))[1]
