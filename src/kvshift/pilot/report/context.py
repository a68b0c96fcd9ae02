"""What every part of the report needs at hand: the results, the language, and how things are called."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from kvshift.pilot.report.catalogue import Catalogue, load
from kvshift.pilot.report.numbers import Numbers
from kvshift.pilot.results import Estimate, Results, SizeResult


@dataclass(frozen=True)
class Context:
    """A pilot's results, about to be told in one language."""

    results: Results
    text: Catalogue
    numbers: Numbers

    @classmethod
    def of(cls, results: Results, language: str | None = None) -> Context:
        """`language` None: the one the pilot was asked for."""
        text = load(language or results.settings.language)
        return cls(results, text, Numbers(text))

    def say(self, key: str, **values: Any) -> str:
        """The text of `key`; `{baseline}` and `{candidate}` are known everywhere."""
        return self.text(key, baseline=self.baseline, candidate=self.candidate, **values)

    @cached_property
    def self_test(self) -> bool:
        """Whether both arms are the same model (an A/A pilot)."""
        first, second = self.results.arms
        return first.shift == second.shift

    @cached_property
    def baseline(self) -> str:
        return self._label(0)

    @cached_property
    def candidate(self) -> str:
        return self._label(1)

    def _label(self, index: int) -> str:
        arm = self.results.arms[index]
        if self.self_test and arm.shift is None:
            return self.text("arm.vanilla_a" if index == 0 else "arm.vanilla_b")
        known = f"arm.{arm.name}"
        return self.text(known) if known in self.text else arm.name

    @cached_property
    def arm_labels(self) -> dict[str, str]:
        """Arm names as the files have them → as the page calls them."""
        first, second = self.results.arms
        return {first.name: self.baseline, second.name: self.candidate}

    @cached_property
    def top(self) -> SizeResult | None:
        """The largest size that has a comparison."""
        return next((size for size in reversed(self.results.by_size) if size.gain is not None), None)

    @cached_property
    def gain(self) -> Estimate | None:
        """The overall gain; None too where it is not a number."""
        gain = self.results.overall_gain
        return gain if gain is not None and math.isfinite(gain.value) else None

    @cached_property
    def fallen(self) -> dict[str, int]:
        """Runs that did not finish, by status."""
        counts: dict[str, int] = {}
        for run in self.results.runs:
            if run.status != "finished":
                counts[run.status] = counts.get(run.status, 0) + 1
        return counts

    @cached_property
    def device(self) -> str:
        """The machine, in the page's language as far as we named it ourselves."""
        threads = re.fullmatch(r"CPU, (\d+) threads?", self.results.device)
        if threads is None:
            return self.results.device
        return self.text("page.one_thread" if threads[1] == "1" else "page.threads", n=threads[1])

    def status(self, status: str) -> str:
        key = f"status.{status}"
        return self.text(key) if key in self.text else status

    def gain_interval(self, estimate: Estimate | None) -> str:
        return self.numbers.interval(estimate, lambda value: self.numbers.nats(value, sign=True))

    def share_interval(self, estimate: Estimate | None) -> str:
        return self.numbers.interval(estimate, self.numbers.percent)

    def speed_interval(self, estimate: Estimate | None) -> str:
        return self.numbers.interval(estimate, self.numbers.faster)

    def probability(self, gain: float) -> str:
        """How much more (or less) probability the correct next token gets, for a gain in nats: e^gain − 1."""
        return self.numbers.percent(abs(math.expm1(min(gain, 50.0))))

    def size(self, name: str) -> str:
        """A size with its parameter count: `d96-L3 (0.8M)`."""
        parameters = next((s.parameters for s in self.results.sizes if s.name == name), None)
        return name if parameters is None else f"{name} ({self.numbers.big(parameters)})"


def decided_side(estimate: Estimate | None) -> int:
    """1: clearly above zero, −1: clearly below, 0: undecided or without an interval."""
    return 0 if estimate is None else estimate.side
