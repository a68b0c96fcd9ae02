"""KV shift in Hugging Face models: conversion, sequence starts, decoding state, checkpoints."""

from kvshift.models.adapter import load_adapter, save_adapter
from kvshift.models.attention import recompute_shift
from kvshift.models.convert import convert, from_pretrained, is_shifted, shift_modules
from kvshift.models.disk import convert_folder
from kvshift.models.families import check_supported, supported_architectures
from kvshift.models.foreign import from_foreign, to_foreign

__all__ = [
    "check_supported",
    "convert",
    "convert_folder",
    "from_foreign",
    "from_pretrained",
    "is_shifted",
    "load_adapter",
    "recompute_shift",
    "save_adapter",
    "shift_modules",
    "supported_architectures",
    "to_foreign",
]
