"""A model's configuration with its KV shift."""

from __future__ import annotations

from typing import Any

from kvshift.shift import KVShiftConfig


class ShiftedConfig:
    """Placed in front of a family's configuration class: one more field, `kv_shift`.

    `kv_shift` is what `KVShiftConfig.to_dict` gives. A `KVShiftConfig` is taken too; None means the default.
    """

    kv_shift: dict | None

    def __post_init__(self: Any, **kwargs: Any) -> None:
        given = self.kv_shift
        if not isinstance(given, KVShiftConfig):
            given = KVShiftConfig.from_dict(given or {})
        self.kv_shift = given.to_dict()
        super().__post_init__(**kwargs)  # type: ignore[misc]

    def to_diff_dict(self: Any) -> dict[str, Any]:
        """What `config.json` holds. The shift is always written: a later version's default may differ."""
        return {**super().to_diff_dict(), "kv_shift": self.kv_shift}  # type: ignore[misc]
