"""A model's configuration with its KV shift, and how its file keeps other classes from reading it."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kvshift.shift import KVShiftConfig

_SEALED = re.compile(r"(\d+) of a model with KV shift\b.*")
_SEAL = "{} of a model with KV shift: import kvshift, then load it as AutoModelForCausalLM or {}"


class ShiftedConfig:
    """Placed in front of a family's configuration class: one more field, `kv_shift`.

    `kv_shift` is what `KVShiftConfig.to_dict` gives. A `KVShiftConfig` is taken too; None means the default.

    In `config.json` the hidden size is a sentence that begins with the number. Without it
    `LlamaForCausalLM.from_pretrained(folder)` would drop the taps with a warning and give a model that
    computes something else; with it, the Llama configuration refuses the file and shows the sentence.
    """

    kv_shift: dict | None
    make_models: Callable[[], Any]
    """Makes the family's models and makes them known. Who has a configuration may ask for its model."""

    def __post_init__(self: Any, **kwargs: Any) -> None:
        type(self).make_models()
        given = self.kv_shift
        if not isinstance(given, KVShiftConfig):
            given = KVShiftConfig.from_dict(given or {})
        self.kv_shift = given.to_dict()
        kwargs.pop("model_type", None)  # an unshifted configuration's, and the class has its own
        super().__post_init__(**kwargs)  # type: ignore[misc]

    def __setstate__(self: Any, state: dict[str, Any]) -> None:
        type(self).make_models()  # in the process that unpickles it
        self.__dict__.update(state)

    def to_diff_dict(self: Any) -> dict[str, Any]:
        """What `config.json` holds. The shift is always written: a later version's default may differ."""
        return {**super().to_diff_dict(), "kv_shift": self.kv_shift}  # type: ignore[misc]

    def to_json_file(self: Any, json_file_path: str | os.PathLike, use_diff: bool = True) -> None:
        """As in the library, with the hidden size sealed."""
        values = json.loads(self.to_json_string(use_diff=use_diff))
        name = type(self).__name__.replace("Config", "ForCausalLM")
        values[self._sealed_field()] = _SEAL.format(self.hidden_size, name)
        Path(json_file_path).write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As in the library; reads both a sealed file's values and plain ones."""
        sealed = _SEALED.fullmatch(str(config_dict.get(cls._sealed_field())))
        if sealed is not None:
            config_dict = {**config_dict, cls._sealed_field(): int(sealed[1])}
        return super().from_dict(config_dict, **kwargs)  # type: ignore[misc]

    @classmethod
    def _sealed_field(cls) -> str:
        """What the family calls the hidden size. Tokenizers load without it, and no model does."""
        return cls.attribute_map.get("hidden_size", "hidden_size")  # type: ignore[attr-defined]
