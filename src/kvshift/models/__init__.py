"""KV shift in Hugging Face models: conversion, sequence starts, decoding state, checkpoints."""

from kvshift.models.convert import convert, from_pretrained, is_shifted, shift_modules
from kvshift.models.families import check_supported, supported_architectures

__all__ = [
    "check_supported",
    "convert",
    "from_pretrained",
    "is_shifted",
    "shift_modules",
    "supported_architectures",
]
