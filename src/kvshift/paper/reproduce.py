"""From names of experiments to verdicts: run what has no record yet, judge, draw."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from kvshift.errors import KVShiftError, OutputError, UsageError
from kvshift.files import write_atomically
from kvshift.inspection.picture import check_drawable
from kvshift.paper.experiment import Experiment, Judgement, Run, Scale, Settings
from kvshift.paper.experiments import EXPERIMENTS
from kvshift.paper.measure import measured
from kvshift.paper.place import Say, Texts
from kvshift.paper.progress import Progress, Task
from kvshift.paper.records import RECORDS_FILE, ResultsFolder, RunRecord
from kvshift.paper.workers import measured_beside

Recorded = Mapping[str, Mapping[str, RunRecord]]
"""Of each experiment, the records by their runs' names."""


@dataclass(frozen=True)
class Outcome:
    """One experiment, done."""

    experiment: Experiment
    scale: Scale
    judgement: Judgement
    records: list[RunRecord]  # in the order of the experiment's runs
    figure: bytes  # PNG

    @property
    def reads_text(self) -> bool:
        """Whether its runs learned from the folder's text."""
        return any(_reads_text(record.settings) for record in self.records)


def chosen(*names: str) -> list[Experiment]:
    """The experiments of these names, each once and as they are listed, or every one for `all`.

    Raises:
        UsageError: there is no such experiment; the message lists them.
    """
    for name in names:
        if name != "all" and name not in EXPERIMENTS:
            raise UsageError(f"No experiment is called {name!r}; expected all, {', '.join(EXPERIMENTS)}.")
    return [each for name, each in EXPERIMENTS.items() if name in names or "all" in names]


def check_hardware(experiments: Sequence[Experiment], scale: Scale) -> None:
    """Refuses a scale that needs a GPU where there is none.

    Raises:
        UsageError: names the experiments that need it.
    """
    needing = [experiment.name for experiment in experiments if experiment.uses_gpu]
    if scale == "gpu" and needing and not torch.cuda.is_available():
        raise UsageError(
            f"--scale gpu: {', '.join(needing)} needs a GPU, and this machine has no CUDA device that torch "
            "can use; take --scale small."
        )


def reproduce(
    experiments: Sequence[Experiment],
    scale: Scale,
    out: Path,
    say: Say,
    sources: Sequence[str] = (),
    *,
    jobs: int = 1,
    show: Say = lambda line: None,
    show_every: float = 60.0,
) -> list[Outcome]:
    """Does every run that `out` has no record of, then judges and draws each experiment from its records.

    Args:
        experiments: in this order.
        scale: which of their runs.
        out: a new folder, or one that holds results at this scale; interrupted ones go on.
        say: takes a line for people about what goes on.
        sources: the text of the experiments with language models; none: Python's standard library.
        jobs: runs beside each other, from 1; see `workers`. With one they run in this process.
        show: takes a line about how far everything is, from another thread, while runs go on.
        show_every: how often, in seconds.

    Raises:
        UsageError: matplotlib or a GPU is missing, or there are no jobs.
        RunsFailedError: a process of a run ended without a word.
        DataError: the text is not there.
        OutputError: `out` cannot be used; see `ResultsFolder`.
    """
    if jobs < 1:
        raise UsageError(f"--jobs is {jobs}; expected 1 or more.")
    folder = ResultsFolder(out, scale)
    recorded = _all_records(folder)
    check_hardware([each for each in experiments if _left_to_do(each, folder, recorded)], scale)
    check_drawable()
    texts = Texts(tuple(sources), say=say)
    if not folder.begun:  # a text that is not there must not become the folder's
        texts.check()
    folder.open(sources)
    with folder.locked():
        known = [folder.read(experiment) for experiment in experiments]  # refused before anything long
        recorded = _all_records(folder)
        left = [run for each in experiments for run in _left_to_do(each, folder, recorded)]
        if any(_reads_text(run.settings) for run in left):
            texts.check()
        missing = [
            Task(experiment, run)
            for experiment, records in zip(experiments, known, strict=True)
            for run in experiment.runs[scale]
            if run.name not in records
        ]
        progress = Progress(missing, folder, say)
        with progress.told(show, show_every):
            _run_missing(missing, folder, texts, progress, jobs, recorded)
        return [finish(experiment, folder) for experiment in experiments]


def finish(experiment: Experiment, folder: ResultsFolder) -> Outcome:
    """Judges and draws an experiment whose runs are all done, and writes both into its folder.

    Raises:
        OutputError: what the records measured is not what the experiment measures, or they cannot be read.
    """
    found = folder.read(experiment)
    records = [found[run.name] for run in experiment.runs[folder.scale]]
    measurements = [record.measurement() for record in records]
    try:
        judgement = experiment.judge(measurements)
        figure = experiment.draw(measurements, "png")
    except KVShiftError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        # Settings and runs are as they must be, so what was measured is not; a defect of ours would show in
        # the cause.
        raise OutputError(
            f"{folder.of(experiment) / RECORDS_FILE} does not hold what {experiment.name} measures "
            f"({type(error).__name__}: {error}). {folder.begin_again(experiment)}"
        ) from error
    if folder.scale == "tiny":
        judgement = _undecided(judgement)
    write_atomically(folder.of(experiment) / f"{experiment.name}.png", figure)
    folder.write_verdict(experiment, judgement, records)
    return Outcome(experiment, folder.scale, judgement, records, figure)


def every_outcome(folder: ResultsFolder, known: Sequence[Outcome]) -> list[Outcome]:
    """`known`, and every other experiment whose runs at the folder's scale are all recorded in it."""
    by_name = {outcome.experiment.name: outcome for outcome in known}
    for name, experiment in EXPERIMENTS.items():
        if name not in by_name and len(folder.read(experiment)) == len(experiment.runs[folder.scale]):
            by_name[name] = finish(experiment, folder)
    return [by_name[name] for name in EXPERIMENTS if name in by_name]


def _reads_text(settings: Settings) -> bool:
    return "text" in settings


def _run_missing(
    missing: Sequence[Task],
    folder: ResultsFolder,
    texts: Texts,
    progress: Progress,
    jobs: int,
    recorded: Recorded,
) -> None:
    """Records each; a run that several experiments share is done once."""
    to_do: list[Task] = []
    later: list[Task] = []
    for task in missing:
        if any(_are_one(task, other) for other in to_do):
            later.append(task)
        elif (record := _of_another(task, recorded)) is not None:
            progress.shared(task, record)
        else:
            to_do.append(task)
    with contextlib.closing(_each_measured(to_do, folder, texts, jobs)) as found:  # ends what runs, at once
        for task, record in found:
            progress.measured(task, record)
    recorded = _all_records(folder) if later else {}
    for task in later:
        shared = _of_another(task, recorded)
        assert shared is not None  # it was among those done
        progress.shared(task, shared)


def _each_measured(
    tasks: Sequence[Task], folder: ResultsFolder, texts: Texts, jobs: int
) -> Generator[tuple[Task, RunRecord]]:
    if jobs > 1 and len(tasks) > 1:
        yield from measured_beside(tasks, folder, texts, min(jobs, len(tasks)))
    else:
        yield from ((task, measured(*task, folder, texts)) for task in tasks)


def _are_one(task: Task, other: Task) -> bool:
    """Whether two experiments share a run: arms of comparisons."""
    return task.experiment.measure is other.experiment.measure and task.run.settings == other.run.settings


def _all_records(folder: ResultsFolder) -> Recorded:
    if not folder.begun:
        return {}
    return {name: folder.read_or_nothing(experiment) for name, experiment in EXPERIMENTS.items()}


def _left_to_do(experiment: Experiment, folder: ResultsFolder, recorded: Recorded) -> list[Run]:
    """Runs that are recorded neither by it nor by an experiment that shares them."""
    own = folder.read_or_nothing(experiment) if folder.begun else {}
    return [
        run
        for run in experiment.runs[folder.scale]
        if run.name not in own and _of_another(Task(experiment, run), recorded) is None
    ]


def _of_another(task: Task, recorded: Recorded) -> RunRecord | None:
    """The record of the same run, if another experiment has done it."""
    experiment, run = task
    for name, records in recorded.items():
        if name != experiment.name and EXPERIMENTS[name].measure is experiment.measure:
            for record in records.values():
                if record.settings == run.settings:
                    own = {"experiment": experiment.name, "version": experiment.version, "run": run.name}
                    return record.model_copy(update=own)
    return None


def _undecided(judgement: Judgement) -> Judgement:
    """Of the scale that only shows that everything works."""
    return Judgement(
        verdict="undecided",
        ours=judgement.ours,
        finding=f"Scale tiny decides nothing; by the rule it would be: {judgement.verdict}. "
        + judgement.finding,
    )
