"""What generation needs to know about KV shift: a cache with raw rows, and boundaries beside a 4-D mask."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.generation import GenerationConfig
from transformers.generation.configuration_utils import GenerationMode

from kvshift.errors import UnsupportedModelError
from kvshift.models.cache import layout_of, prepare_cache
from kvshift.models.starts import Boundaries, find_boundaries, is_4d

_EXACT = (
    GenerationMode.GREEDY_SEARCH,
    GenerationMode.SAMPLE,
    GenerationMode.BEAM_SEARCH,
    GenerationMode.BEAM_SAMPLE,
    GenerationMode.ASSISTED_GENERATION,
)


class ShiftedGeneration:
    """Placed in front of a family's causal language model."""

    def _prepare_cache_for_generation(
        self: Any,
        generation_config: GenerationConfig,
        model_kwargs: dict[str, Any],
        generation_mode: GenerationMode,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        if generation_mode not in _EXACT:
            raise UnsupportedModelError(
                f"A KV shift model does not do {generation_mode.value.replace('_', ' ')}: nobody has checked "
                "what it does to the raw rows. Greedy decoding, sampling, beam search, assisted decoding and "
                "prompt lookup work."
            )
        super()._prepare_cache_for_generation(  # type: ignore[misc]
            generation_config, model_kwargs, generation_mode, *args, **kwargs
        )
        if (cache := model_kwargs.get("past_key_values")) is not None:
            prepare_cache(cache, layout_of(self))
            if getattr(generation_config, "is_assistant", False):
                cache.activate_past_recording()  # once more: the layers that had none have it now

    def prepare_inputs_for_generation(
        self: Any,
        input_ids: Tensor,
        *args: Any,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """As in the library. With compilable caches that makes the mask 4-D, so boundaries are found here.

        `inputs_embeds` is named because the library looks for that name.
        """
        inputs: dict[str, Any] = super().prepare_inputs_for_generation(  # type: ignore[misc]
            input_ids, *args, attention_mask=attention_mask, inputs_embeds=inputs_embeds, **kwargs
        )
        cache = inputs.get("past_key_values")
        tokens = inputs["inputs_embeds"] if inputs.get("input_ids") is None else inputs["input_ids"]
        batch, time = tokens.shape[:2]
        # A chunk of a prompt gives no next length; before 5.23 it does not give is_first_iteration either.
        decoding = kwargs.get("next_sequence_length") == 1 and not kwargs.get("is_first_iteration", False)
        if cache is not None and time == 1 and decoding:
            inputs["boundaries"] = Boundaries(None, None)  # a token that was made just now: none is padding
        elif cache is not None and cache.is_compileable:
            inputs["boundaries"] = find_boundaries(
                batch,
                time,
                tokens.device,
                past=0 if attention_mask is None else attention_mask.shape[1] - time,
                attention_mask=attention_mask,
                position_ids=None if is_4d(attention_mask) else inputs.get("position_ids"),
            )
        return inputs

    def generate_batch(self, *args: Any, **kwargs: Any) -> Any:
        raise UnsupportedModelError(
            "A KV shift model does not do continuous batching (`generate_batch`, `transformers serve`): its "
            "steps mix rows of several requests. Use `generate` with a padded batch."
        )

    def init_continuous_batching(self, *args: Any, **kwargs: Any) -> Any:
        return self.generate_batch()

    def continuous_batching_context_manager(self, *args: Any, **kwargs: Any) -> Any:
        return self.generate_batch()
