"""Which ways of generating a shifted model takes, and a sentence for each one it does not."""

from __future__ import annotations

from typing import Any

from transformers.generation import GenerationConfig
from transformers.generation.configuration_utils import GenerationMode

from kvshift.errors import UnsupportedModelError
from kvshift.models.cache import WHAT_WORKS, prepare_cache

_EXACT = (
    GenerationMode.GREEDY_SEARCH,
    GenerationMode.SAMPLE,
    GenerationMode.BEAM_SEARCH,
    GenerationMode.BEAM_SAMPLE,
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
                f"A KV shift model does not do {generation_mode.value.replace('_', ' ')} yet. {WHAT_WORKS}"
            )
        if getattr(generation_config, "is_assistant", False):
            raise UnsupportedModelError(
                f"A KV shift model cannot be the assistant of another model yet. {WHAT_WORKS}"
            )
        if generation_config.cache_implementation not in (None, "dynamic"):
            raise UnsupportedModelError(
                "A KV shift model cannot generate with cache_implementation="
                f"{generation_config.cache_implementation!r} yet. {WHAT_WORKS}"
            )
        super()._prepare_cache_for_generation(  # type: ignore[misc]
            generation_config, model_kwargs, generation_mode, *args, **kwargs
        )
        if (cache := model_kwargs.get("past_key_values")) is not None:
            prepare_cache(cache)

    def generate_batch(self, *args: Any, **kwargs: Any) -> Any:
        raise UnsupportedModelError(
            "A KV shift model does not do continuous batching yet: its steps mix rows of several requests. "
            f"Use `generate`. {WHAT_WORKS}"
        )

    def init_continuous_batching(self, *args: Any, **kwargs: Any) -> Any:
        return self.generate_batch()

    def continuous_batching_context_manager(self, *args: Any, **kwargs: Any) -> Any:
        return self.generate_batch()
