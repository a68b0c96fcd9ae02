"""KV shifting attention inside a Hugging Face attention layer with separate projections."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor
from transformers.cache_utils import Cache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from kvshift.models.cache import read_state, write_state
from kvshift.models.families import Family
from kvshift.models.starts import Boundaries


class ShiftedAttention:
    """Placed in front of a family's attention class: same weights, same call, shifted keys and values.

    The layer also has `kv_shift`, a `kvshift.shift.KVShift` with its taps.
    """

    family: ClassVar[Family]

    def forward(
        self: Any,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        *,
        boundaries: Boundaries,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """`hidden_states` `(batch, time, hidden)` to the output, shaped alike, and the attention weights."""
        batch, time = hidden_states.shape[:2]
        heads = (batch, time, -1, self.head_dim)
        q = self.q_proj(hidden_states).view(heads)
        k = self.k_proj(hidden_states).view(heads)
        v = self.v_proj(hidden_states).view(heads)

        # Right after the projections: before any norm of the keys, before rotary embedding (paper §1).
        q, k, v, state = self.kv_shift(
            q,
            k,
            v,
            starts=boundaries.starts,
            last=boundaries.last,
            state=read_state(past_key_values, self.layer_idx),
        )

        if self.family.query_key_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        q, k = self.family.rotary(q, k, *position_embeddings)
        if past_key_values is not None:
            k, v = past_key_values.update(k, v, self.layer_idx)
            write_state(past_key_values, self.layer_idx, state)

        attend = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, self.family.eager_attention
        )
        output, weights = attend(
            self,
            q,
            k,
            v,
            attention_mask,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            sliding_window=self.family.sliding_window(self),
            **kwargs,
        )
        return self.o_proj(output.reshape(batch, time, -1).contiguous()), weights
