"""The mistakes a user can mend, each with the exit code the command line ends with.

A message names the value, what was expected and what to do. Anything that is not a `KVShiftError` is a
defect of ours and keeps its traceback.
"""

from __future__ import annotations


class KVShiftError(Exception):
    """Base of every error whose message is meant for the user."""

    exit_code = 1


class UsageError(KVShiftError, ValueError):
    """A value the user gave is impossible: negative, absurd, contradictory or unknown."""

    exit_code = 2


class DataError(KVShiftError):
    """The text cannot be used: missing, empty, broken, or too little of it."""

    exit_code = 3


class UnsupportedModelError(KVShiftError):
    """The model's architecture, or this way of running it, is not supported yet."""

    exit_code = 4


class OutputError(KVShiftError):
    """The output folder cannot be used: not writable, full, or it belongs to another pilot."""

    exit_code = 5


class BudgetError(KVShiftError):
    """The budget is smaller than the least plan that means anything."""

    exit_code = 6


class RunsFailedError(KVShiftError):
    """Too few runs ended well to compare the arms."""

    exit_code = 7
