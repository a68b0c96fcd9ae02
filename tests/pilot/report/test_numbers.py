"""Numbers read as people of each language write them."""

from __future__ import annotations

import pytest

from kvshift.pilot.report.catalogue import load
from kvshift.pilot.report.numbers import Numbers
from kvshift.pilot.results import Estimate

ENGLISH, JAPANESE = Numbers(load("en")), Numbers(load("ja"))


@pytest.mark.parametrize(
    ("value", "english", "japanese"),
    [
        (0, "0", "0"),
        (950, "950", "950"),
        (8_200, "8.2k", "8,200"),
        (82_000, "82k", "8.2万"),
        (999_950, "1M", "100万"),
        (1_228_800, "1.23M", "123万"),
        (350_000_000, "350M", "3.5億"),
        (2_900_000_000, "2.9B", "29億"),
        (10_000_000_000, "10B", "100億"),
    ],
)
def test_big(value: float, english: str, japanese: str) -> None:
    assert (ENGLISH.big(value), JAPANESE.big(value)) == (english, japanese)


@pytest.mark.parametrize(
    ("seconds", "english", "japanese"),
    [
        (2.34, "2.3 s", "2.3秒"),
        (59.7, "1 min", "1分"),
        (587.4, "9 min 47 s", "9分47秒"),
        (3600, "1 h", "1時間"),
        (7500, "2 h 05 min", "2時間05分"),
        (49 * 3600, "2 d 1 h", "2日1時間"),
    ],
)
def test_duration(seconds: float, english: str, japanese: str) -> None:
    assert (ENGLISH.duration(seconds), JAPANESE.duration(seconds)) == (english, japanese)


@pytest.mark.parametrize(
    ("amount", "currency", "english", "japanese"),
    [
        (2.5, "USD", "$2.50", "2.50ドル"),
        (1234, "JPY", "¥1,234", "1,234円"),
        (0.0042, "EUR", "€0.0042", "0.0042ユーロ"),
        (-374.2, "USD", "−$374", "−374ドル"),
        (12, "CHF", "12.00 CHF", "12.00 CHF"),
        (0, "USD", "$0.00", "0.00ドル"),
    ],
)
def test_money(amount: float, currency: str, english: str, japanese: str) -> None:
    assert (ENGLISH.money(amount, currency), JAPANESE.money(amount, currency)) == (english, japanese)


@pytest.mark.parametrize(
    ("share", "shown"),
    [
        (0.431, "43%"),
        (0.07, "7%"),
        (0.0312, "3.1%"),
        (0.0995, "10%"),
        (0.000056, "0.0056%"),
        (0, "0%"),
        (-0.2, "−20%"),
    ],
)
def test_percent(share: float, shown: str) -> None:
    assert ENGLISH.percent(share) == shown


def test_a_negative_that_rounds_to_zero_has_no_sign() -> None:
    assert ENGLISH.nats(-0.0001, sign=True) == "0.000"
    assert ENGLISH.nats(0.012, sign=True) == "+0.012"


def test_intervals_closed_open_and_missing() -> None:
    show = ENGLISH.percent
    assert ENGLISH.interval(Estimate(value=0.4, low=0.3, high=0.5), show) == "95% interval 30% to 50%"
    assert ENGLISH.interval(Estimate(value=0.4, low=0.3), show) == "at least 30%"
    assert ENGLISH.interval(Estimate(value=0.0, high=0.1), show) == "at most 10%"
    assert ENGLISH.interval(Estimate(value=0.4), show) == "no interval: too few pairs"
    assert JAPANESE.interval(Estimate(value=0.4, low=0.3, high=0.5), show) == "95%区間 30%〜50%"


def test_words_for_changes() -> None:
    assert ENGLISH.change(0.43) == "43% less"
    assert ENGLISH.change(-0.12) == "12% more"
    assert ENGLISH.change(0.0001) == "about the same"
    assert ENGLISH.faster(0.94) == "6% slower"
    assert JAPANESE.faster(1.06) == "6%速い"


def test_dates() -> None:
    assert ENGLISH.date("2026-11-03T08:05:00+00:00") == "3 November 2026, 08:05 UTC"
    assert JAPANESE.date("2026-11-03T08:05:00+00:00") == "2026年11月3日 08:05（UTC）"
    assert ENGLISH.date("yesterday") == "yesterday"
