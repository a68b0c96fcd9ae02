"""Every experiment, in the order in which `kvshift reproduce all` does them."""

from kvshift.paper.experiment import Experiment
from kvshift.paper.experiments import fig2, theorem1, theorem2, theorem3

EXPERIMENTS: dict[str, Experiment] = {
    experiment.name: experiment
    for experiment in (theorem1.EXPERIMENT, theorem2.EXPERIMENT, theorem3.EXPERIMENT, fig2.EXPERIMENT)
}
