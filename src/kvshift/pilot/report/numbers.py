"""Numbers as people read them in each language: shares, times, money, tokens, bytes and intervals."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import datetime

from kvshift.pilot.report.catalogue import Catalogue
from kvshift.pilot.results import Estimate

MINUS = "\u2212"
_SYMBOLS = {"USD": "$", "EUR": "€", "GBP": "£", "JPY": "¥"}
_ENGLISH_STEPS = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))
_JAPANESE_STEPS = ((1e12, "兆"), (1e8, "億"), (1e4, "万"))


class Numbers:
    """Formats numbers for one language."""

    def __init__(self, text: Catalogue) -> None:
        self.text = text
        self.japanese = text.language == "ja"

    def plain(self, value: float, decimals: int = 0, sign: bool = False) -> str:
        """1,234.5 with a true minus sign; `sign` also writes the plus."""
        if not math.isfinite(value):
            return self.text("number.missing")
        shown = f"{abs(value):,.{decimals}f}"
        if float(shown.replace(",", "")) == 0:
            return shown
        return (MINUS if value < 0 else "+" if sign else "") + shown

    def big(self, value: float) -> str:
        """Three significant digits and a unit: 1.23M, 123万."""
        steps = _JAPANESE_STEPS if self.japanese else _ENGLISH_STEPS
        for size, unit in steps:
            # 999,950 would print as 1,000k: what rounds up to a unit belongs to it
            if abs(value) >= size * 0.9995:
                scaled = value / size
                return f"{_trimmed(self.plain(scaled, _decimals(scaled, 3, 2)))}{unit}"
        return self.plain(value)

    def two_digits(self, value: float) -> str:
        """Two significant digits, four decimals at most: 17, 3.4, 0.012."""
        return self.plain(value, _decimals(value, 2, 4))

    def nats(self, value: float, sign: bool = False) -> str:
        """A loss or a gain, three decimals."""
        return self.plain(value, 3, sign)

    def percent(self, share: float, sign: bool = False) -> str:
        """0.431 → 43%, 0.0312 → 3.1%, 0.00042 → 0.042%."""
        return _trimmed(self.plain(100 * share, _percent_decimals(share), sign)) + "%"

    def change(self, saved: float) -> str:
        """A share saved, in words: 43% less, 12% more, about the same."""
        if abs(saved) < 0.0005:
            return self.text("number.same")
        return self.text("number.less" if saved > 0 else "number.more", x=self.percent(abs(saved)))

    def faster(self, ratio: float) -> str:
        """A ratio of speeds, in words: 6% slower."""
        if abs(ratio - 1) < 0.0005:
            return self.text("number.same_speed")
        key = "number.faster" if ratio > 1 else "number.slower"
        return self.text(key, x=self.percent(abs(ratio - 1)))

    def interval(self, estimate: Estimate | None, show: Callable[[float], str]) -> str:
        """The 95% interval in words; says so where there is none or where one end is open."""
        if estimate is None or (estimate.low is None and estimate.high is None):
            return self.text("number.no_interval")
        if estimate.low is None:
            return self.text("number.at_most", x=show(estimate.high or 0.0))
        if estimate.high is None:
            return self.text("number.at_least", x=show(estimate.low))
        return self.text("number.interval", low=show(estimate.low), high=show(estimate.high))

    def duration(self, seconds: float) -> str:
        """1 min 05 s, 2 h 05 min, 3 d 4 h; one decimal below ten seconds."""
        if not math.isfinite(seconds):
            return self.text("number.missing")
        if seconds < 9.95:
            return self.text("number.seconds", s=self.plain(seconds, 1))
        whole = round(seconds)
        if whole < 60:
            return self.text("number.seconds", s=whole)
        if whole < 3600:
            key = "number.minutes" if whole % 60 else "number.whole_minutes"
            return self.text(key, m=whole // 60, s=f"{whole % 60:02d}")
        minutes = round(seconds / 60)
        if minutes < 48 * 60:
            key = "number.hours" if minutes % 60 else "number.whole_hours"
            return self.text(key, h=minutes // 60, m=f"{minutes % 60:02d}")
        hours = round(seconds / 3600)
        return self.text("number.days", d=hours // 24, h=hours % 24)

    def money(self, amount: float, currency: str) -> str:
        """An amount with its currency; small amounts keep two significant digits."""
        small = 0 < abs(amount) < 0.01
        whole = abs(amount) >= 100 or (currency.upper() == "JPY" and abs(amount) >= 10)
        decimals = 0 if whole else 2
        shown = self.plain(abs(amount), 1 - math.floor(math.log10(abs(amount))) if small else decimals)
        minus = MINUS if amount < 0 and float(shown.replace(",", "")) != 0 else ""
        code = currency.upper()
        if self.japanese:
            unit = {"USD": "ドル", "EUR": "ユーロ", "GBP": "ポンド", "JPY": "円"}.get(code)
            return minus + shown + (unit or f" {currency}")
        return minus + (_SYMBOLS[code] + shown if code in _SYMBOLS else f"{shown} {currency}")

    def bytes(self, count: float) -> str:
        """Bytes in decimal units: 3.2 GB."""
        for size, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
            if abs(count) >= size * 0.9995:
                return f"{_trimmed(self.plain(count / size, _decimals(count / size, 2, 1)))} {unit}"
        return f"{self.plain(count)} B"

    def date(self, created: str) -> str:
        """An ISO date as people write it; unreadable dates are shown as they are."""
        try:
            moment = datetime.fromisoformat(created)
        except ValueError:
            return created
        if self.japanese:
            return f"{moment.year}年{moment.month}月{moment.day}日 {moment:%H:%M}（UTC）"
        return f"{moment.day} {moment:%B %Y, %H:%M} UTC"


def _trimmed(shown: str) -> str:
    """7.0 → 7, 1.20 → 1.2"""
    return shown.rstrip("0").rstrip(".") if "." in shown else shown


def _decimals(value: float, digits: int, most: int) -> int:
    """Decimals that show `digits` significant digits, at most `most`."""
    if value == 0 or not math.isfinite(value):
        return 0
    return min(most, max(0, digits - 1 - math.floor(math.log10(abs(value)) + 1e-9)))


def _percent_decimals(share: float) -> int:
    percent = abs(100 * share)
    if percent >= 9.95 or percent == 0:
        return 0
    if percent >= 0.1:
        return 1
    return min(5, 1 - math.floor(math.log10(percent)))
