"""What the pilot shows on the terminal: the plan, the progress of its runs, the end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from kvshift.durations import format_duration
from kvshift.pilot.execute import Finished, Progress, Running, Watcher
from kvshift.pilot.report.notes import in_english
from kvshift.pilot.settings import Arm, Plan
from kvshift.shift import TAP_LEARNING_RATE

_RUNS_TO_JUDGE = 4
_NARROW = 72  # columns
_LATE = 0.1  # of the planned time: what is worth saying
_STATUS_STYLE = {"finished": "green", "diverged": "yellow", "failed": "red"}


def show_plan(plan: Plan, console: Console) -> None:
    """The plan, before anything long."""
    baseline, candidate = plan.arms
    mains = [run for run in plan.runs if run.role == "main"]
    checks = len(plan.runs) - len(mains)
    recipe = mains[0].recipe
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="dim")
    facts.add_column(overflow="fold")
    facts.add_row("Baseline", _describe(baseline))
    facts.add_row("Candidate", _describe(candidate))
    facts.add_row(
        "Training",
        f"{plan.tokens:,} tokens a run, {recipe.steps:,} steps of {recipe.step_tokens:,} "
        f"({recipe.batch_size} windows of {recipe.sequence_length:,})",
    )
    facts.add_row("Seeds", ", ".join(map(str, plan.seeds)))
    facts.add_row("Device", plan.device + (f", {plan.devices} side by side" if plan.devices > 1 else ""))
    runs = f"{len(mains)} runs: {len(plan.arms)} arms × {_counted(len(plan.sizes), 'size')} × "
    runs += _counted(len(plan.seeds), "seed")
    if checks:
        one = checks == 1
        runs += f", and {_counted(checks, 'shorter run')} of the candidate that {'tests' if one else 'test'} "
        runs += "what the curves say about data saved"
    total = f"About {format_duration(plan.expected_seconds)} for all runs; the budget is "
    total += f"{format_duration(plan.settings.budget_seconds)}, preparation and report included."
    sizes = _sizes(plan, narrow=console.width < _NARROW)
    console.print(Panel(Group(facts, "", sizes, "", runs, total), title="The plan", title_align="left"))
    for line in outlook(plan):
        console.print(Text("  " + line, style="dim"))
    for warning in plan.warnings:
        console.print(Text("! " + in_english(warning), style="yellow"))


def _sizes(plan: Plan, *, narrow: bool) -> Table:
    """A row a size; where there is little room, only its parameters and the time of a run."""
    baseline, candidate = plan.arms
    table = Table(box=None, pad_edge=False, padding=(0, 2), header_style="bold")
    table.add_column("Size")
    headings = ["Parameters", "A run"]
    if not narrow:
        speeds = [f"{baseline.name} tokens/s", f"{candidate.name} tokens/s"]
        headings = ["Parameters", "Layers", "Width", *speeds, "A run"]
    for heading in headings:
        table.add_column(heading, justify="right")
    for size in plan.sizes:
        runs = [run for run in plan.runs if run.role == "main" and run.size == size.name]
        cells = [count(size.parameters), format_duration(max(run.expected_seconds for run in runs))]
        if not narrow:
            speeds = [f"{size.tokens_per_second[arm.name]:,.0f}" for arm in plan.arms]
            cells[1:1] = [str(size.layers), str(size.hidden), *speeds]
        table.add_row(size.name, *cells)
    return table


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def outlook(plan: Plan) -> list[str]:
    """What a pilot of this plan can tell, and what it cannot."""
    seeds, sizes = len(plan.seeds), len(plan.sizes)
    pairs = seeds * sizes
    lines = [
        f"It can tell whether {plan.arms[1].name} reaches a lower loss than {plan.arms[0].name} on this "
        f"text, from {pairs} {'pair' if pairs == 1 else 'pairs'} of runs that differ in nothing else."
    ]
    if sizes >= 3:
        largest = count(plan.sizes[-1].parameters)
        lines.append(
            f"It shows how the gain moves with size up to {largest} parameters,"
            f" and nothing beyond ten times that."
        )
    lines.append(
        "It cannot tell what a model trained far longer would gain; a gain can shrink as training goes on."
    )
    return lines


def count(number: float) -> str:
    """A large number for people: 850, 98.3K, 25.2M, 1.5B."""
    for unit in ("", "K", "M"):
        if number < 1000:
            return f"{number:.3g}{unit}"
        number /= 1000
    return f"{number:.3g}B"


def _describe(arm: Arm) -> str:
    if arm.shift is None:
        return f"{arm.name}: the model as it is" + (", on other seeds" if arm.seed_offset else "")
    shift = arm.shift
    parts = [
        part
        for part, on in (("keys", "shift_keys"), ("values", "shift_values"), ("queries", "shift_queries"))
        if shift[on]
    ]
    text = f"{arm.name}: KV shifting of {' and '.join(parts)}, {shift['window']} taps a "
    text += "channel" if shift["per_channel"] else "head"
    text += "" if shift["constraint"] == "free" else f", {shift['constraint']}"
    multiple = shift["lr_multiplier"]
    rate = f"{TAP_LEARNING_RATE:g}" if multiple is None else f"×{multiple:g}"
    return f"{text}, {shift['init']} start, their learning rate {rate}"


@contextmanager
def watching(console: Console) -> Iterator[Watcher]:
    """Shows the runs: a live picture on a terminal, a line for each finished run elsewhere."""
    if console.is_terminal and not console.is_dumb_terminal:
        with Live(console=console, refresh_per_second=4, transient=True) as live:
            yield _live(live, console)
    else:
        yield _lines(console)


def _live(live: Live, console: Console) -> Watcher:
    warn_late = _once_if_late(console)

    def watch(progress: Progress, finished: Finished | None) -> None:
        if finished is not None:
            console.print(_finished_line(progress, finished))
            warn_late(progress)
        live.update(_picture(progress))

    return watch


def _lines(console: Console) -> Watcher:
    started = False
    warn_late = _once_if_late(console)

    def watch(progress: Progress, finished: Finished | None) -> None:
        nonlocal started
        if finished is not None:
            console.print(_finished_line(progress, finished), soft_wrap=True)
            warn_late(progress)
        elif not started:
            started = True
            if progress.done_before:
                console.print(f"{progress.done_before} of {len(progress.plan.runs)} runs were done before.")

    return watch


def _once_if_late(console: Console) -> Callable[[Progress], None]:
    """Says, the first time that enough runs show it, that the pilot will take longer than planned."""
    told = False

    def warn(progress: Progress) -> None:
        nonlocal told
        late = progress.seconds_late(time.monotonic())
        if told or len(progress.finished) < _RUNS_TO_JUDGE or late < _LATE * progress.plan.expected_seconds:
            return
        told = True
        console.print(
            f"! The machine is slower than when it was measured: about {format_duration(late)} more than "
            "planned. Ctrl-C keeps what is done; the same line goes on with it.",
            style="yellow",
            soft_wrap=True,
        )

    return warn


def _picture(progress: Progress) -> RenderableType:
    now = time.monotonic()
    total = len(progress.plan.runs)
    shares = sum(_share(running) for running in progress.running)
    overall = Table.grid(padding=(0, 2))
    overall.add_row(
        Text("Pilot", style="bold"),
        ProgressBar(total=total, completed=progress.runs_done + shares, width=40),
        f"{progress.runs_done}/{total} runs",
        f"{format_duration(progress.seconds_left(now))} left",
    )
    for running in progress.running:
        overall.add_row(
            running.run.name,
            ProgressBar(total=1.0, completed=_share(running), width=40),
            *_live_numbers(running),
        )
    return overall


def _share(running: Running) -> float:
    steps = running.progress.get("steps") or 0
    return running.progress.get("step", 0) / steps if steps else 0.0


def _live_numbers(running: Running) -> tuple[str, str]:
    at = running.progress
    if not at:
        return "starting", ""
    loss = f"loss {at['loss']:.3f}" if at.get("loss") is not None else ""
    speed = f"{at['tokens'] / at['seconds']:,.0f} tokens/s" if at.get("seconds") else ""
    return f"step {at['step']:,}/{at['steps']:,}", "  ".join(part for part in (loss, speed) if part)


def _finished_line(progress: Progress, finished: Finished) -> Text:
    index = progress.done_before + progress.finished.index(finished) + 1
    width = len(str(len(progress.plan.runs)))
    line = Text(f"[{index:>{width}}/{len(progress.plan.runs)}] ", style="dim")
    line.append(f"{finished.run.name}  ", style="default")
    line.append(finished.status, style=_STATUS_STYLE.get(finished.status, "default"))
    if finished.loss is not None:
        line.append(f"  validation loss {finished.loss:.4f}", style="default")
    line.append(f"  {format_duration(finished.seconds)}")
    if finished.error:
        line.append(f"  {finished.error}", style="default")
    return line


@contextmanager
def preparing(console: Console) -> Iterator[Callable[[str, float | None], None]]:
    """Shows what the preparation of the text is doing."""
    if console.is_terminal and not console.is_dumb_terminal:
        with console.status("Preparing the text") as status:
            yield lambda what, share: status.update(what if share is None else f"{what} {share:.0%}")
        return
    seen: set[str] = set()

    def say(what: str, share: float | None) -> None:
        if what not in seen:
            seen.add(what)
            console.print(what, soft_wrap=True)

    yield say
