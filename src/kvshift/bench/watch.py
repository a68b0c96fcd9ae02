"""What a bench tells while it runs, and when it has to stop."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from kvshift.bench.attempts import Failure


class Watch:
    """The clock, the progress on the terminal, and what went wrong.

    Args:
        console: where progress goes; None: nowhere.
        budget: seconds after which nothing more is begun; None: no limit.
    """

    def __init__(self, console: Console | None = None, budget: float | None = None) -> None:
        self.console = console
        self.budget = budget
        self.traces: list[str] = []
        self._began = time.monotonic()
        self._share = 1.0
        self._progress: Progress | None = None
        self._task = TaskID(0)
        self._section, self._done, self._of = "", 0, 0

    @property
    def elapsed(self) -> float:
        """Seconds since the bench began."""
        return time.monotonic() - self._began

    @property
    def over(self) -> bool:
        """Whether this section's part of the budget is used up."""
        return self.budget is not None and self.elapsed > self.budget * self._share

    def may_use(self, share: float) -> None:
        """From now on the time is over when so much of the budget is used."""
        self._share = share

    @contextmanager
    def section(self, name: str, parts: int) -> Iterator[None]:
        """A section of `parts` parts."""
        self._section, self._done, self._of = name, 0, parts
        if self.console is None or not self.console.is_terminal:
            yield
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self.console, transient=True, speed_estimate_period=3600) as progress:
            self._progress, self._task = progress, progress.add_task(name, total=parts)
            try:
                yield
            finally:
                self._progress = None

    def now(self, what: str) -> None:
        """Says what is being done."""
        if self._progress is not None:
            self._progress.update(self._task, description=f"{self._section}: {what}")
        elif self.console is not None:
            place = f"{self._section} {min(self._done + 1, self._of)} of {self._of}: " if self._of else ""
            self.console.print(f"[{self.elapsed:4.0f} s] {place}{what}", markup=False, soft_wrap=True)

    def done(self, parts: int = 1) -> None:
        """So many parts of the section are done."""
        self._done += parts
        if self._progress is not None:
            self._progress.advance(self._task, parts)

    def failed(self, what: str, failure: Failure) -> None:
        """Keeps a failure's traceback and says it at once."""
        if not failure.trace:
            return
        self.traces.append(f"{what}\n{failure.trace}")
        if self.console is not None:
            self.console.print(f"{what}: {failure.reason}", style="yellow", markup=False, soft_wrap=True)


LEFT_OUT = Failure("left out", "the time was over")
