"""What the user typed, checked and turned into values. Every error names the option."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from kvshift.durations import parse_duration
from kvshift.errors import UsageError

MOST_SEEDS = 100
_TOKENS = re.compile(r"(\d+(?:\.\d+)?)([kKmMbB]?)")
_SCALE = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9}


def duration(given: str) -> float:
    """Seconds of `--budget`."""
    try:
        return parse_duration(given)
    except UsageError as error:
        raise UsageError(f"--budget {error}") from None


def names(option: str, given: str | None) -> tuple[str, ...] | None:
    """A list with commas."""
    if given is None:
        return None
    found = tuple(part.strip() for part in given.split(","))
    if not all(found):
        raise UsageError(f"{option} {given!r} has an empty entry; write them with commas, without gaps.")
    return found


def arms(given: str) -> tuple[str, str]:
    """Exactly two names, the baseline first."""
    found = names("--arms", given) or ()
    if len(found) != 2:
        raise UsageError(
            f"--arms {given!r} names {len(found)}; expected two, the baseline first: vanilla,kvshift."
        )
    return found[0], found[1]


def seeds(given: str | None) -> tuple[int, ...] | None:
    """`0,1,2` as it is; a single number is how many, from 0 on. `7,` is the one seed 7."""
    if given is None:
        return None
    expected = "expected how many, 3, or a list, 0,1,2"
    parts = [part.strip() for part in given.rstrip(", ").split(",")]
    if not all(re.fullmatch(r"\d{1,10}", part) for part in parts):
        raise UsageError(f"--seeds {given!r}: {expected} (whole numbers, 0 or more).")
    numbers = tuple(int(part) for part in parts)
    if len(numbers) == 1 and "," not in given:
        if not 1 <= numbers[0] <= MOST_SEEDS:
            raise UsageError(f"--seeds {given}: expected 1 to {MOST_SEEDS} seeds, or a list, 0,1,2.")
        return tuple(range(numbers[0]))
    if len(set(numbers)) < len(numbers):
        raise UsageError(f"--seeds {given!r} names a seed twice.")
    if max(numbers) >= 2**30 or len(numbers) > MOST_SEEDS:
        raise UsageError(f"--seeds {given!r}: expected at most {MOST_SEEDS} seeds, each below {2**30:,}.")
    return numbers


def tokens(given: str | None) -> int | None:
    """`500000`, `500k`, `2M`, `1.5b`."""
    if given is None:
        return None
    match = _TOKENS.fullmatch(given.strip().replace("_", ""))
    count = round(float(match[1]) * _SCALE[match[2].lower()]) if match else 0
    if not 1 <= count <= 10**13:
        raise UsageError(f"--tokens {given!r}: expected a number above 0, such as 500k, 2M or 1000000.")
    return count


def whole(option: str, given: int | None, least: int, most: int) -> int | None:
    """A whole number within bounds."""
    if given is not None and not least <= given <= most:
        raise UsageError(f"{option} {given}: expected a whole number from {least:,} to {most:,}.")
    return given


def number(
    option: str, given: float | None, *, most: float, least: float | None = None, above: float | None = None
) -> float | None:
    """A finite number within bounds."""
    if given is None:
        return None
    low_enough = given <= most and (above is None or given > above) and (least is None or given >= least)
    if not math.isfinite(given) or not low_enough:
        low = f"above {above:g}" if above is not None else f"of {least:g} or more"
        high = f" and at most {most:g}" if math.isfinite(most) else ""
        raise UsageError(f"{option} {given:g}: expected a number {low}{high}.")
    return given


def one_of(option: str, given: str | None, known: Sequence[str]) -> str | None:
    """One of a few words."""
    if given is not None and given not in known:
        raise UsageError(f"{option} {given!r}: expected one of {', '.join(known)}.")
    return given


def text(option: str, given: str) -> str:
    """A short printable word."""
    if not given.strip() or len(given) > 12 or not given.isprintable():
        raise UsageError(f"{option} {given!r}: expected a short name such as USD, EUR, JPY or ¥.")
    return given.strip()
