"""From names of experiments to verdicts: run what has no record yet, judge, draw."""

from __future__ import annotations

import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch

from kvshift import __version__
from kvshift.durations import format_duration
from kvshift.errors import UsageError
from kvshift.files import write_atomically
from kvshift.inspection.picture import check_drawable
from kvshift.paper.experiment import Experiment, Judgement, Run, Scale
from kvshift.paper.experiments import EXPERIMENTS
from kvshift.paper.place import Place, Say, Texts
from kvshift.paper.records import ResultsFolder, RunRecord


@dataclass(frozen=True)
class Outcome:
    """One experiment, done."""

    experiment: Experiment
    scale: Scale
    judgement: Judgement
    records: list[RunRecord]  # in the order of the experiment's runs
    figure: bytes  # PNG


def chosen(name: str) -> list[Experiment]:
    """The experiment of that name, or every one for `all`.

    Raises:
        UsageError: there is no such experiment; the message lists them.
    """
    if name == "all":
        return list(EXPERIMENTS.values())
    if name not in EXPERIMENTS:
        raise UsageError(f"No experiment is called {name!r}; expected all, {', '.join(EXPERIMENTS)}.")
    return [EXPERIMENTS[name]]


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
    experiments: Sequence[Experiment], scale: Scale, out: Path, say: Say, sources: Sequence[str] = ()
) -> list[Outcome]:
    """Does every run that `out` has no record of, then judges and draws each experiment from its records.

    Args:
        experiments: in this order.
        scale: which of their runs.
        out: a new folder, or one that holds results at this scale; interrupted ones go on.
        say: takes a line for people about what goes on.
        sources: the text of the experiments with language models; none: Python's standard library.

    Raises:
        UsageError: matplotlib or a GPU is missing.
        DataError: the text is not there.
        OutputError: `out` cannot be used; see `ResultsFolder`.
    """
    check_hardware(experiments, scale)
    check_drawable()
    folder = ResultsFolder(out, scale)
    texts = Texts(tuple(sources), say=say)
    if not folder.begun:  # a text that is not there must not become the folder's
        texts.check()
    folder.open(sources)
    with folder.locked():
        known = [folder.read(experiment) for experiment in experiments]  # refused before anything long
        if any(_needs_text(*each, scale) for each in zip(experiments, known, strict=True)):
            texts.check()
        for experiment, records in zip(experiments, known, strict=True):
            _run_missing(experiment, folder, records, texts, say)
        return [finish(experiment, folder) for experiment in experiments]


def finish(experiment: Experiment, folder: ResultsFolder) -> Outcome:
    """Judges and draws an experiment whose runs are all done, and writes both into its folder."""
    found = folder.read(experiment)
    records = [found[run.name] for run in experiment.runs[folder.scale]]
    measurements = [record.measurement() for record in records]
    judgement = experiment.judge(measurements)
    if folder.scale == "tiny":
        judgement = _undecided(judgement)
    figure = experiment.draw(measurements, "png")
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


def _needs_text(experiment: Experiment, records: dict[str, RunRecord], scale: Scale) -> bool:
    return any("text" in run.settings and run.name not in records for run in experiment.runs[scale])


def _run_missing(
    experiment: Experiment, folder: ResultsFolder, records: dict[str, RunRecord], texts: Texts, say: Say
) -> None:
    missing = [run for run in experiment.runs[folder.scale] if run.name not in records]
    began, measured = time.monotonic(), 0
    for number, run in enumerate(missing, start=1):
        record = _of_another(experiment, run, folder)
        said = "as recorded by another experiment"
        if record is None:
            record = _measured(experiment, run, folder, texts)
            measured += 1
            left = (time.monotonic() - began) / measured * (len(missing) - number)
            said = f"{record.seconds:.1f} s" + (f", about {format_duration(left)} left" if left else "")
        folder.append(experiment, record)
        say(f"{experiment.name}: run {number} of {len(missing)}, {run.name}, {said}")


def _of_another(experiment: Experiment, run: Run, folder: ResultsFolder) -> RunRecord | None:
    """The record of the same run, if another experiment has done it: arms are shared."""
    for other in EXPERIMENTS.values():
        if other.name != experiment.name and other.measure is experiment.measure:
            for record in folder.read_or_nothing(other).values():
                if record.settings == run.settings:
                    own = {"experiment": experiment.name, "version": experiment.version, "run": run.name}
                    return record.model_copy(update=own)
    return None


def _measured(experiment: Experiment, run: Run, folder: ResultsFolder, texts: Texts) -> RunRecord:
    started, clock = datetime.now(UTC), time.monotonic()
    measured = experiment.measure(run.settings, Place(folder.run_folder(experiment, run), texts))
    on_gpu = folder.scale == "gpu" and experiment.uses_gpu
    return RunRecord(
        experiment=experiment.name,
        version=experiment.version,
        run=run.name,
        settings=run.settings,
        measured=measured,
        started=started.isoformat(timespec="seconds"),
        seconds=time.monotonic() - clock,
        device=torch.cuda.get_device_name() if on_gpu else f"CPU, threads: {torch.get_num_threads()}",
        versions={"kvshift": __version__, "torch": torch.__version__, "python": platform.python_version()},
    )


def _undecided(judgement: Judgement) -> Judgement:
    """Of the scale that only shows that everything works."""
    return Judgement(
        verdict="undecided",
        ours=judgement.ours,
        finding=f"Scale tiny decides nothing; by the rule it would be: {judgement.verdict}. "
        + judgement.finding,
    )
