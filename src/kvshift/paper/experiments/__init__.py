"""Every experiment, in the order in which `kvshift reproduce all` does them."""

from kvshift.paper.experiment import Experiment
from kvshift.paper.experiments import (
    emergence,
    fig1a,
    fig1b,
    fig2,
    fig3,
    fig5a,
    fig5b,
    fig6,
    fig8a,
    fig8b,
    fig8c,
    fig9,
    fig10,
    hops_dropout,
    queries,
    starts,
    structures,
    structures_anew,
    table3,
    table4,
    table7,
    tap_rate,
    theorem1,
    theorem2,
    theorem3,
    travel,
    vocabulary,
)

_THEORY = (theorem1, theorem2, theorem3, fig2)
_TASKS = (fig1a, fig1b, fig3, fig9, table7)
_LANGUAGE = (fig5a, fig5b, fig6, fig8a, fig8b, fig8c, fig10, table3, table4)
_BEYOND = (
    vocabulary,
    hops_dropout,
    starts,
    tap_rate,
    structures,
    structures_anew,
    queries,
    travel,
    emergence,
)
EXPERIMENTS: dict[str, Experiment] = {
    module.EXPERIMENT.name: module.EXPERIMENT for module in (*_THEORY, *_TASKS, *_LANGUAGE, *_BEYOND)
}
