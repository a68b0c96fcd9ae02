"""Every experiment, in the order in which `kvshift reproduce all` does them."""

from kvshift.paper.experiment import Experiment
from kvshift.paper.experiments import (
    fig1a,
    fig1b,
    fig2,
    fig3,
    fig9,
    table7,
    theorem1,
    theorem2,
    theorem3,
)

EXPERIMENTS: dict[str, Experiment] = {
    module.EXPERIMENT.name: module.EXPERIMENT
    for module in (theorem1, theorem2, theorem3, fig1a, fig1b, fig2, fig3, fig9, table7)
}
