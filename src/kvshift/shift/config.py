"""What a shift is made of: which projections, how many taps, how they start and how fast they learn."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, get_args

from kvshift.errors import UsageError

Constraint = Literal["free", "gate", "clamp"]
Init = Literal["paper", "identity", "structured", "alternating", "half_induction", "induction"]
SHIFT_VERSION = 1
TAP_LEARNING_RATE = 0.03
"""What the taps learn at unless told otherwise: Adam's peak rate, whatever the model's own."""


@dataclass(frozen=True, kw_only=True)
class KVShiftConfig:
    """KV shifting attention of one model: the same for every attention layer.

    Raises:
        UsageError: a value is unknown, or two values contradict each other.
    """

    window: int = 2
    """Taps a head: 2 mixes a token with the one before it (the paper's mechanism), 3 and 4 look further
    back (paper §2, its "window 2" and "window 3")."""

    shift_keys: bool = True
    """Shift the keys. False gives the paper's "values only"."""

    shift_values: bool = True
    """Shift the values. False gives the paper's "keys only"."""

    shift_queries: bool = False
    """Shift the queries too, one set of taps a query head (the paper's "QKV")."""

    per_channel: bool = False
    """One set of taps a channel instead of one a head."""

    constraint: Constraint = "free"
    """`free`: the taps are the parameters. `clamp`: clamped to [0, 1] in the forward. `gate`: two taps,
    sigmoid(a) and 1 - sigmoid(a)."""

    init: Init = "structured"
    """How the taps start. `paper`: all but the last drawn from U(0, 1), the last makes the sum 1.
    `identity`: the unshifted model exactly. `structured`: of every four heads one starts as an induction
    head (previous key, current value), one as its mirror (current key, previous value), two unshifted.
    For comparison with it, `alternating`: induction heads and mirrors in turns; `half_induction`: induction
    heads and unshifted ones in turns; `induction`: every head."""

    lr_multiplier: float | None = None
    """The taps' learning rate as a multiple of the model's, 1 in the paper. None gives them a rate of their
    own, `TAP_LEARNING_RATE`: a larger model learns at a lower rate, but its taps have as far to go as a
    small one's (docs/results/defaults.md)."""

    def __post_init__(self) -> None:
        def refuse(field: str, expected: str) -> None:
            raise UsageError(f"KVShiftConfig.{field} is {getattr(self, field)!r}; expected {expected}.")

        if not isinstance(self.window, int) or isinstance(self.window, bool) or not 2 <= self.window <= 4:
            refuse("window", "2, 3 or 4 (taps, the current token's included)")
        for field in ("shift_keys", "shift_values", "shift_queries", "per_channel"):
            if not isinstance(getattr(self, field), bool):
                refuse(field, "true or false")
        if not (self.shift_keys or self.shift_values or self.shift_queries):
            refuse("shift_keys", "at least one of keys, values and queries to be shifted")
        if self.constraint not in get_args(Constraint):
            refuse("constraint", f"one of {', '.join(get_args(Constraint))}")
        if self.init not in get_args(Init):
            refuse("init", f"one of {', '.join(get_args(Init))}")
        if self.lr_multiplier is not None:
            if isinstance(self.lr_multiplier, bool) or not isinstance(self.lr_multiplier, int | float):
                refuse("lr_multiplier", "a number or None")
            if not 0 <= self.lr_multiplier <= 1000:  # NaN fails this too
                refuse("lr_multiplier", "a number from 0 to 1000, or None")
        if self.constraint == "gate" and self.window != 2:
            refuse("window", "2 with constraint='gate': a gate shares one unit between two taps (paper §2)")
        if self.constraint == "gate" and self.init != "paper":
            refuse(
                "init",
                "'paper' with constraint='gate': a sigmoid never reaches the 0 and 1 other starts need",
            )

    def learning_rate(self, of_model: float) -> float:
        """The taps' peak learning rate, for Adam and its like, where the model's is `of_model`."""
        return TAP_LEARNING_RATE if self.lr_multiplier is None else self.lr_multiplier * of_model

    def to_dict(self) -> dict[str, Any]:
        """A plain dictionary for JSON, with the version of this layout under `version`."""
        return {"version": SHIFT_VERSION, **dataclasses.asdict(self)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> KVShiftConfig:
        """The inverse of `to_dict`.

        Raises:
            UsageError: a field this version does not know, or a newer layout.
        """
        values = dict(values)
        version = values.pop("version", SHIFT_VERSION)
        if version != SHIFT_VERSION:
            raise UsageError(
                f"This KV shift configuration has layout {version!r}; this kvshift reads "
                f"{SHIFT_VERSION}. Upgrade kvshift."
            )
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(set(values) - known):
            raise UsageError(
                f"Unknown KV shift setting {unknown[0]!r}; known are {', '.join(sorted(known))}."
            )
        return cls(**values)
