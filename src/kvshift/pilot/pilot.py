"""`kvshift pilot`, whole: prepare the text, plan, train, analyse, report."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any

from rich.console import Console
from rich.text import Text

from kvshift.durations import format_duration
from kvshift.errors import OutputError, RunsFailedError
from kvshift.pilot import display, worker
from kvshift.pilot.execute import execute, records, unfinished
from kvshift.pilot.notes import Note
from kvshift.pilot.plan import DeviceInfo, check_settings, make_plan
from kvshift.pilot.report.notes import in_english
from kvshift.pilot.settings import PilotSettings, Plan, Size
from kvshift.pilot.state import PilotFolder, PilotState, Stopwatch, same_pilot
from kvshift.tasks.text import TextData, TextRequest, prepare
from kvshift.training.recipe import Recipe
from kvshift.training.record import Record


def run_pilot(
    settings: PilotSettings,
    folder: Path,
    *,
    dry_run: bool = False,
    console: Console | None = None,
    spent_seconds: float = 0.0,
) -> Path | None:
    """Runs a pilot in `folder`, or goes on with the one it holds; returns the report's path.

    With `dry_run` the plan is printed, nothing is written (but the cache of prepared texts), and None is
    returned. `spent_seconds` of the budget were gone before the call.

    Raises:
        KVShiftError: see `kvshift.errors`.
        KeyboardInterrupt: Ctrl-C, or a signal to end; every child is gone, and a later call goes on.
    """
    began = time.monotonic() - spent_seconds
    console = console or Console()
    place = PilotFolder(folder)
    place.check()
    check_settings(settings)
    with _ending_signals_interrupt(), contextlib.ExitStack() as held:
        worker.start_server()
        locked = folder.is_dir() and not dry_run
        if locked:
            held.enter_context(place.locked())
        plan = place.load_plan()
        _refuse_other(settings, plan, place)
        data = _prepare(settings, console)
        if plan is not None and plan.data.name != data.folder.name:
            raise OutputError(
                f"{folder} holds a pilot on another text: the files behind {_sources(settings)} have changed "
                "since. Give another --out, or delete that folder."
            )
        saved = plan is not None
        plan = plan or _new_plan(settings, data, began, console)
        plan = _for_here(plan, settings, data.folder)
        display.show_plan(plan, console)
        if dry_run:
            return None
        if not saved:
            place.create()
            if not locked:  # the folder was not there: another pilot may have made it meanwhile
                held.enter_context(place.locked())
                if place.load_plan() is not None:
                    raise OutputError(f"Another pilot has just been started in {folder}; give another --out.")
            place.save_plan(plan)
        state = place.load_state()
        _train(plan, place, state, began, console)
        return _report(plan, place, state, data, console)


def _refuse_other(settings: PilotSettings, plan: Plan | None, place: PilotFolder) -> None:
    if plan is not None and (name := same_pilot(settings, plan.settings)) is not None:
        raise OutputError(
            f"{place.path} holds another pilot: its {name} is {getattr(plan.settings, name)!r}, "
            f"now {getattr(settings, name)!r} is asked for. Give another --out, or delete that folder."
        )


def _sources(settings: PilotSettings) -> str:
    return ", ".join(settings.sources) or "the default text"


def _prepare(settings: PilotSettings, console: Console) -> TextData:
    request = TextRequest(
        sources=settings.sources, text_column=settings.text_column, tokenizer=settings.tokenizer
    )
    with display.preparing(console) as progress:
        data = prepare(request, progress=progress)
    summary = data.summary()
    console.print(
        Text(
            f"Text: {_documents(summary)}, {len(data.train):,} training and "
            f"{len(data.validation):,} validation tokens, vocabulary {data.vocab_size:,}."
        )
    )
    for note in summary.get("notes", []):
        console.print(Text(f"  {in_english(Note.model_validate(note))}", style="dim"))
    return data


def _documents(summary: dict[str, Any]) -> str:
    count = summary["documents"]
    cut = " cut into passages" if summary.get("passages") else ""
    return f"{count:,} document{'' if count == 1 else 's'}{cut}"


def _new_plan(settings: PilotSettings, data: TextData, began: float, console: Console) -> Plan:
    with console.status("Measuring this machine's speed"):
        found = worker.call("kvshift.pilot.jobs:probe", {"device": settings.device})
        return make_plan(
            settings,
            data,
            measure=_measure,
            device_info=DeviceInfo(**found),
            spent_seconds=time.monotonic() - began,
            derive=_derive,
        )


def _measure(recipe: Recipe, seconds: float) -> Any:
    arguments = {"recipe": recipe.model_dump(mode="json"), "seconds": seconds}
    speed = SimpleNamespace(**worker.call("kvshift.pilot.jobs:measure", arguments))
    speed.startup_seconds += worker.seconds_to_start()
    return speed


def _derive(path: Path, vocab_size: int, sequence_length: int) -> list[Size]:
    arguments = {"path": str(path), "vocab_size": vocab_size, "sequence_length": sequence_length}
    return [Size.model_validate(size) for size in worker.call("kvshift.pilot.jobs:derive", arguments)]


def _for_here(plan: Plan, settings: PilotSettings, data: Path) -> Plan:
    """A saved plan with what may change between starts: how it is reported, and where the text lies."""
    runs = tuple(
        run.model_copy(update={"recipe": run.recipe.model_copy(update={"data": data})}) for run in plan.runs
    )
    return plan.model_copy(update={"settings": settings, "data": data, "runs": runs})


def _train(plan: Plan, place: PilotFolder, state: PilotState, began: float, console: Console) -> None:
    if not unfinished(plan, place):
        console.print("Every run is done already.")
        return
    state.starts += 1
    stopwatch = Stopwatch(state, spent=time.monotonic() - began)
    with display.watching(console) as watch:
        execute(plan, place, state, watch=watch, stopwatch=stopwatch)


def _report(plan: Plan, place: PilotFolder, state: PilotState, data: TextData, console: Console) -> Path:
    from kvshift.pilot.analyse import analyse  # SciPy and the plots are needed only now
    from kvshift.pilot.report import print_summary, write_report

    found = records(plan, place, state)
    _refuse_too_few(plan, place, found)
    results = analyse(
        plan,
        found,
        data_summary=data.summary(),
        seconds=state.elapsed_seconds,
        peak_memory_bytes=state.peak_memory_bytes,
        device=plan.device,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    report = write_report(results, place.path, plan.settings.language)
    for name, reason in state.failures.items():
        console.print(Text(f"! {name} failed: {reason}", style="yellow"), soft_wrap=True)
    print_summary(results, console, plan.settings.language)
    took = format_duration(state.elapsed_seconds)
    console.print(Text(f"The report, after {took}: {report.resolve()}"), soft_wrap=True)
    return report


def _refuse_too_few(plan: Plan, place: PilotFolder, found: dict[str, Record]) -> None:
    """A comparison needs one pair in which neither process was lost; a run that diverged is a result."""
    ended = {run.name: found[run.name].status in ("finished", "diverged") for run in plan.runs}
    pairs: dict[tuple[str, int], list[bool]] = {}
    for run in plan.runs:
        if run.role == "main":
            pairs.setdefault((run.size, run.seed), []).append(ended[run.name])
    if any(all(both) for both in pairs.values()):
        return
    name, record = next((name, record) for name, record in found.items() if not ended[name])
    raise RunsFailedError(
        f"No pair of runs ended, so there is nothing to compare. The first failure, {name}: {record.error}. "
        f"Start the same pilot again to retry the failed runs; it is in {place.path}. If they need "
        "more memory than there is, start another with smaller --sizes or a smaller --model."
    )


@contextmanager
def _ending_signals_interrupt() -> Iterator[None]:
    """A request to end, or a terminal that goes away, is treated like Ctrl-C; what is ignored (`nohup`)
    stays ignored."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    heeded = [name for name in worker.REQUESTS_TO_END if signal.getsignal(name) != signal.SIG_IGN]
    previous = {name: signal.signal(name, interrupt) for name in heeded}
    try:
        yield
    finally:
        for name, handler in previous.items():
            signal.signal(name, handler)
