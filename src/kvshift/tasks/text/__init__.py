"""Text, from files to tokens."""

from kvshift.tasks.text.data import TextData
from kvshift.tasks.text.prepare import default_cache, prepare
from kvshift.tasks.text.request import TextRequest
from kvshift.tasks.text.tokens import TokenStore

__all__ = ["TextData", "TextRequest", "TokenStore", "default_cache", "prepare"]
