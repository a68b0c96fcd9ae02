"""KV shifting attention for Hugging Face models."""

from kvshift.models import convert, from_pretrained
from kvshift.shift import KVShiftConfig, kv_shift

__version__ = "0.1.0"
__all__ = ["KVShiftConfig", "convert", "from_pretrained", "kv_shift"]
