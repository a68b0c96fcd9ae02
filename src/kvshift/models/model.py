"""What KV shift adds to a family's models: the taps, their start, the batch's boundaries, safe saving."""

from __future__ import annotations

import copy
import re
from typing import Any, ClassVar

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.cache_utils import Cache
from transformers.utils.output_capturing import _CAN_RECORD_REGISTRY

from kvshift.errors import UnsupportedModelError
from kvshift.models.cache import Layout, has_room, layout_of, new_cache, prepare_cache, set_boundaries
from kvshift.models.families import Family
from kvshift.models.fingerprint import fingerprint
from kvshift.models.packing import divided, dividing_positions, marked, mixing
from kvshift.models.starts import Boundaries, document_starts, find_boundaries, is_4d
from kvshift.shift import KVShift, KVShiftConfig

TAPS = "kv_shift"


class ShiftedModel:
    """Placed in front of a family's model class: a `KVShift` in every attention layer."""

    config_class: ClassVar[type]
    family: ClassVar[Family]
    part_classes: ClassVar[dict[type, type]]
    """What is changed inside of the model, each class with its shifted one."""

    def __init__(self: Any, config: PretrainedConfig, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)  # type: ignore[call-arg]
        # The unshifted model stands now, its weights drawn as without KV shift; the taps are drawn after.
        add_taps(self, type(self), KVShiftConfig.from_dict(config.kv_shift))
        self.init_weights()

    @classmethod
    def is_custom_code(cls) -> bool:
        """False, as for the library's own models: for others it leaves computed buffers without values when
        a checkpoint is loaded, and does not translate the names in older checkpoints."""
        return False

    def _init_weights(self: Any, module: nn.Module) -> None:
        if not isinstance(module, KVShift):
            super()._init_weights(module)  # type: ignore[misc]
            return
        started = copy.deepcopy(module)
        started.reset_parameters()
        for name, parameter in module.named_parameters(recurse=False):
            init.copy_(parameter, getattr(started, name))  # leaves a tap that a checkpoint brought as it is

    def save_pretrained(self: Any, *args: Any, **kwargs: Any) -> Any:
        """As in the library; refuses a configuration that would load as another model.

        Raises:
            UnsupportedModelError: `self.config` was replaced by one without, or with another, KV shift.
        """
        shifts = [module for module in self.modules() if isinstance(module, KVShift)]
        if not isinstance(self.config, self.config_class) or any(
            self.config.kv_shift != module.config.to_dict() for module in shifts
        ):
            raise UnsupportedModelError(
                f"This model's taps do not fit its configuration ({type(self.config).__name__}), and the "
                "saved folder would load as another model. Put back the configuration it was converted with."
            )
        return super().save_pretrained(*args, **kwargs)  # type: ignore[misc]

    @classmethod
    def from_pretrained(
        cls,
        *args: Any,
        output_loading_info: bool = False,
        ignore_mismatched_sizes: bool = False,
        **kwargs: Any,
    ) -> Any:
        """As in the library, from safetensors; refuses taps that do not fit the checkpoint's configuration.

        Raises:
            UnsupportedModelError: the checkpoint holds taps or layers its configuration does not have, or
                lacks some, has weights of other shapes, or a damaged file.
        """
        kwargs.setdefault("use_safetensors", True)
        try:
            model, info = super().from_pretrained(  # type: ignore[misc]
                *args, output_loading_info=True, ignore_mismatched_sizes=True, **kwargs
            )
        except SafetensorError as error:
            where = args[0] if args else kwargs.get("pretrained_model_name_or_path")
            raise UnsupportedModelError(
                f"A safetensors file of {str(where)!r} is damaged ({error}). Download or save it again."
            ) from error
        mismatched = sorted(entry[0] for entry in info["mismatched_keys"])
        if wrong := sorted(key for key in (*info["unexpected_keys"], *mismatched) if f".{TAPS}." in key):
            raise UnsupportedModelError(
                f"The taps in this checkpoint do not fit its configuration: {wrong[0]} is not what "
                f"{model.config.kv_shift} needs. Load it with the configuration it was saved with."
            )
        if mismatched and not ignore_mismatched_sizes:
            raise UnsupportedModelError(
                f"The weights in this checkpoint do not fit its configuration: {mismatched[0]} has another "
                "shape. Load it with the configuration it was saved with."
            )
        if found := _other_layers(model, info):
            raise UnsupportedModelError(
                f"This checkpoint {found}. Load it with the configuration it was saved with, or download "
                "both again."
            )
        return (model, info) if output_loading_info else model


def _other_layers(model: Any, info: dict[str, Any]) -> str | None:
    """What of the layers only the checkpoint has, or only the configuration; None: nothing.

    The library would draw what is missing and drop what is left over.
    """
    body = "" if model.base_model is model else f"{model.base_model_prefix}."
    excused = {entry[0] for entry in info["mismatched_keys"]}
    for name in sorted(info["missing_keys"]):
        if name.startswith(body) and f".{TAPS}." not in name and name not in excused:
            return f"lacks {name}, which its configuration needs"
    kinds = {re.sub(r"\d+", "N", name) for name in model.state_dict()}
    for name in sorted(info["unexpected_keys"]):
        if re.sub(r"\d+", "N", name) in kinds:
            return f"holds {name}, a layer that its configuration does not have"
    return None


class ShiftedBase(ShiftedModel):
    """Placed in front of a family's base model: finds each batch's boundaries and prepares its cache."""

    boundaries: Boundaries | None = None
    """Those of the call to come, where the causal language model does not pass keywords on."""

    def forward(
        self: Any,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        boundaries: Boundaries | None = None,
        **kwargs: Any,
    ) -> Any:
        """As the family's model.

        Args:
            boundaries: where the batch's sequences begin and end, if known; `generate` gives them.

        Raises:
            UnsupportedModelError: the mask, the cache or their combination is not supported.
        """
        if "cache" in kwargs:
            raise UnsupportedModelError(
                "A KV shift model does not do continuous batching: its steps mix rows of several requests. "
                "Use `generate` with a padded batch."
            )
        if (tokens := inputs_embeds if input_ids is None else input_ids) is None:
            raise ValueError("A model needs input_ids or inputs_embeds.")
        batch, time = tokens.shape[:2]
        boundaries = self.boundaries if boundaries is None else boundaries
        if past_key_values is not None and time > 1:
            self._check_chunk(past_key_values)
        packed: bool | None = False
        if own := boundaries is None:
            packed = self._is_packed(attention_mask, position_ids, kwargs, past_key_values, (batch, time))
            self._check_packed(packed, kwargs, batch)
            use_cache = self._cache_unless_unsafe(
                packed, is_4d(attention_mask), past_key_values is not None, use_cache
            )
        if past_key_values is not None:
            owner = None if torch.compiler.is_compiling() else fingerprint(self)
            past_key_values = prepare_cache(past_key_values, self._cache_layout(), batch, owner)
        elif self._wants_cache(use_cache):
            past_key_values = new_cache(self.config, self._cache_layout())
            if not torch.compiler.is_compiling():
                past_key_values.kv_shift_owner = fingerprint(self)
        if boundaries is None:
            boundaries = find_boundaries(
                batch,
                time,
                tokens.device,
                past=past_key_values.get_seq_length() if past_key_values is not None else 0,
                room=past_key_values is not None and has_room(past_key_values),
                attention_mask=attention_mask,
                position_ids=position_ids,
                seq_idx=kwargs.get("seq_idx"),
                cu_seq_lens=kwargs.get("cu_seq_lens_q"),
            )
        if past_key_values is not None:
            set_boundaries(past_key_values, boundaries, time)
        elif own and packed is not False and self._must_divide(attention_mask, kwargs, batch):
            position_ids, attention_mask = dividing_positions(boundaries, position_ids), None
        return super().forward(  # type: ignore[misc]
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            boundaries=boundaries,
            **kwargs,
        )

    def _cache_layout(self: Any) -> Layout:
        layers = self.config.num_hidden_layers
        known = vars(self).get("kv_shift_layout")
        if known is None or known[0] != layers:
            known = self.kv_shift_layout = (layers, layout_of(self))
        return known[1]

    def _wants_cache(self: Any, use_cache: bool | None) -> bool:
        recomputes = self.gradient_checkpointing and self.training
        return bool(self.config.use_cache if use_cache is None else use_cache) and not recomputes

    def _check_chunk(self: Any, cache: Cache) -> None:
        """Refuses several tokens after cached ones where the library's own layers then forget those."""
        if not self.family.chunks and cache.get_seq_length() > 0:
            raise UnsupportedModelError(
                f"The library's {self.family.model_type!r} layers lose what is cached when several tokens "
                "follow it, with or without KV shift. Give the whole prompt at once, then single tokens."
            )

    def _is_packed(
        self,
        attention_mask: object,
        position_ids: Tensor | None,
        given: dict[str, Any],
        cache: Cache | None,
        shape: tuple[int, int],
    ) -> bool | None:
        """Whether documents follow one another in a row; None: in a graph that is compiled or recorded, which
        cannot be asked."""
        batch, time = shape
        seq_idx, offsets = given.get("seq_idx"), given.get("cu_seq_lens_q")
        places = [each for each in (position_ids, seq_idx, offsets) if each is not None]
        if time == 1 or not places:
            return False
        if torch.compiler.is_compiling():
            return None
        starts = document_starts(batch, time, places[0].device, position_ids, seq_idx, offsets)
        past = 0 if cache is None else int(cache.get_seq_length())
        real = None
        if isinstance(attention_mask, Tensor) and attention_mask.dim() == 2:
            real = (attention_mask[:, past : past + time] != 0).to(places[0].device)
            if real.shape != shape:  # to be refused by who looks at the mask
                return False
        return divided(starts, real)

    def _check_packed(self: Any, packed: bool | None, given: dict[str, Any], batch: int) -> None:
        """Refuses packed documents where the library's own layers would mix them, shifted or not."""
        if not self.family.packs and (packed is not False or marked(given)):
            raise mixing(self.family)
        may_be = packed or (packed is None and not torch.compiler.is_compiling())
        if may_be and batch > 1 and self._is_flash():
            raise UnsupportedModelError(
                f"The library's flash attention keeps packed documents apart in one row only; this batch has "
                f"{batch}. Flatten it (DataCollatorWithFlattening), or take attn_implementation='sdpa'."
            )

    def _is_flash(self: Any) -> bool:
        return "flash" in (self.config._attn_implementation or "")

    def _must_divide(self: Any, attention_mask: object, given: dict[str, Any], batch: int) -> bool:
        """Whether the library's attention needs other positions, and no mask, to keep documents apart."""
        if is_4d(attention_mask) or (batch > 1 and self._is_flash()):
            return False
        return attention_mask is not None or marked(given)

    def _cache_unless_unsafe(
        self: Any, packed: bool | None, is_4d: bool, cached: bool, use_cache: bool | None
    ) -> bool | None:
        """What `use_cache` must be; batches that cannot be cached exactly are not, unless that was asked for.

        Packed documents need no cache, and the library's attention keeps them apart only without one. A 4-D
        mask does not say what is padding, which must not become state.
        """
        if not cached and not self._wants_cache(use_cache):
            return use_cache
        if not is_4d and packed is False:
            return use_cache
        if use_cache is None and not cached:
            return False
        if is_4d:
            raise UnsupportedModelError(
                "A 4-D attention mask does not say which tokens are padding, and padding must not be cached "
                "as a sequence's last token. Pass the 2-D mask of real tokens, or use_cache=False."
            )
        if packed is None and torch.compiler.is_compiling():
            return use_cache
        raise UnsupportedModelError(
            "These rows hold packed documents (position_ids that restart inside a row, seq_idx or "
            "cu_seq_lens), or may where a CUDA graph is recorded, and packed documents cannot be cached: "
            "attention would read across them. Pass use_cache=False, or an attention_mask if the rows are "
            "padded."
        )


def add_taps(model: Any, model_class: type, shift: KVShiftConfig) -> None:
    """Gives a model and its parts their shifted classes, and every attention layer its taps.

    The taps have no values yet. `model` is a family's base model or causal language model, with weights or on
    the meta device; `model_class` is the shifted class that it becomes.
    """
    family: Family = model_class.family  # type: ignore[attr-defined]
    family.check_shift(shift)
    parts = model_class.part_classes  # type: ignore[attr-defined]
    for part in model.modules():
        shifted = model_class if part is model else parts.get(type(part))
        if shifted is None:
            continue
        part.__class__ = shifted
        if isinstance(part, PreTrainedModel):
            # The library fills this table when a model is built, under the class it had then.
            dict.__setitem__(_CAN_RECORD_REGISTRY, str(type(part)), part._can_record_outputs)
        if hasattr(shifted, "unshifted"):  # attention
            part.kv_shift = _taps_for(part, family, shift)


def _taps_for(attention: Any, family: Family, shift: KVShiftConfig) -> KVShift:
    head_dim = family.head_dim(attention)
    query_heads, kv_heads = family.layout.heads(attention, head_dim)
    taps = KVShift(shift, kv_heads=kv_heads, query_heads=query_heads, head_dim=head_dim)
    weight = family.layout.key_weight(attention)
    # A tap's own dtype is what the library loads it in: float32, or float64 in a model of float64.
    taps.to(weight.device, torch.promote_types(weight.dtype, torch.float32))
    return taps.train(attention.training)
