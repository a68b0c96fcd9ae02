from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvshift.durations import format_duration, parse_duration
from kvshift.errors import UsageError


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90),
        ("8m", 480),
        ("2h", 7200),
        ("1h30m", 5400),
        ("1.5h", 5400),
        ("1H 30M", 5400),
        ("1d", 86400),
    ],
)
def test_reads_what_people_write(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "8", "m", "-8m", "8 minutes", "0s", "1e3s", "nan", "inf", "91d", "8m30", "8mm"]
)
def test_refuses_nonsense_and_shows_how_it_is_done(text: str) -> None:
    with pytest.raises(UsageError, match="duration"):
        parse_duration(text)


@given(st.integers(1, 80 * 86400))
def test_what_is_printed_can_be_typed(seconds: int) -> None:
    again = parse_duration(format_duration(seconds))
    assert abs(again - seconds) <= (0 if seconds < 3600 else 30 if seconds < 86400 else 1800)
