"""One run of an experiment, measured and recorded."""

from __future__ import annotations

import platform
import time
from datetime import UTC, datetime

import torch

from kvshift import __version__
from kvshift.paper.experiment import Experiment, Run
from kvshift.paper.place import Place, Texts
from kvshift.paper.records import ResultsFolder, RunRecord


def measured(experiment: Experiment, run: Run, folder: ResultsFolder, texts: Texts) -> RunRecord:
    """Does a run in its own folder; the caller adds the record to the experiment's."""
    own = folder.run_folder(experiment, run)
    started, clock, resumed = datetime.now(UTC), time.monotonic(), own.exists()
    found = experiment.measure(run.settings, Place(own, texts))
    on_gpu = folder.scale == "gpu" and experiment.uses_gpu
    return RunRecord(
        experiment=experiment.name,
        version=experiment.version,
        run=run.name,
        settings=run.settings,
        measured=found,
        started=started.isoformat(timespec="seconds"),
        seconds=time.monotonic() - clock,
        resumed=resumed,
        device=torch.cuda.get_device_name() if on_gpu else f"CPU, threads: {torch.get_num_threads()}",
        versions={"kvshift": __version__, "torch": torch.__version__, "python": platform.python_version()},
    )
