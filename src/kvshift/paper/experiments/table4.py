"""Table 4: which of the four quadrants heads end in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from scipy import stats

from kvshift.inspection.quadrants import PAPER_TABLE_4, QUADRANTS, count, quadrant
from kvshift.paper.experiment import Experiment, Judgement, Measurement, Scale, Verdict
from kvshift.paper.figure import paint
from kvshift.paper.language import PAPER, Arms, Trained, arms_runs, measure, taps_of
from kvshift.shift import KVShiftConfig

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAMED: dict[str, KVShiftConfig | None] = {"vanilla": None, "kv": PAPER}
LEVEL = 0.05
SEEDS: dict[Scale, int] = {"tiny": 2, "small": 5, "gpu": 5}
_ALIKE = ("current_current", "previous_previous")


def _counts(runs: Sequence[Trained], when: int) -> dict[str, int]:
    """Heads of all runs by quadrant; `when`: 0 at the start, -1 at the end."""
    return count(quadrant(keys, values) for run in runs for keys, values in taps_of(run, when))


def _changes(runs: Sequence[Trained]) -> tuple[int, int]:
    """How many heads came to read key and value at the same place, and how many ceased to."""
    became = ceased = 0
    for run in runs:
        for start, end in zip(taps_of(run, 0), taps_of(run, -1), strict=True):
            was, is_now = (quadrant(*taps) in _ALIKE for taps in (start, end))
            became += is_now and not was
            ceased += was and not is_now
    return became, ceased


def _mostly(more: int, fewer: int) -> bool:
    if not more + fewer:
        return False
    found: float = stats.binomtest(more, more + fewer, 0.5, alternative="greater").pvalue
    return found < LEVEL


def judge(measurements: Sequence[Measurement]) -> Judgement:
    """The rule of `EXPERIMENT`."""
    runs = Arms(measurements, NAMED).by_name["kv"]
    before, after = _counts(runs, 0), _counts(runs, -1)
    total, alike = sum(after.values()), sum(after[name] for name in _ALIKE)
    became, ceased = _changes(runs)
    verdict: Verdict = "undecided"
    if _mostly(became, ceased) and 2 * alike > total:
        verdict = "reproduced"
    elif _mostly(ceased, became):
        verdict = "not"
    return Judgement(
        verdict=verdict,
        ours=", ".join(f"{name.replace('_', ' key, ')} value: {after[name]}" for name in QUADRANTS),
        finding=f"{alike} of {total} heads read key and value at the same place; at the start it was "
        f"{sum(before[name] for name in _ALIKE)}: {became} became so, {ceased} ceased to be. The induction "
        f"quadrant holds {after['previous_current']}, at the start {before['previous_current']}.",
    )


def draw(measurements: Sequence[Measurement], kind: str) -> bytes:
    """Shares of heads: the paper's, ours at the start and at the end."""
    runs = Arms(measurements, NAMED).by_name["kv"]
    columns = {"paper, end": PAPER_TABLE_4, "here, start": _counts(runs, 0), "here, end": _counts(runs, -1)}

    def painter(figure: Figure) -> None:
        axes = figure.subplots()
        for number, (name, counts) in enumerate(columns.items()):
            total = max(sum(counts.values()), 1)
            places = [place + 0.27 * (number - 1) for place in range(len(QUADRANTS))]
            heights = [counts[each] / total for each in QUADRANTS]
            axes.bar(places, heights, 0.25, label=name, color=("C1", "#bbbbbb", "C0")[number])
        labels = [each.replace("_", " key,\n") + " value" for each in QUADRANTS]
        axes.set_xticks(range(len(QUADRANTS)), labels)
        axes.set(ylabel="share of heads", title="Which token's key finds, and which token's value is read")
        axes.legend(fontsize=7.5)

    return paint(kind, 5.6, 3.4, painter)


EXPERIMENT = Experiment(
    name="table4",
    version=1,
    title="Quadrants after training",
    claim="After training most heads read key and value at the same place, both at the current token (50 of "
    "128) or both at the one before (52); 17 are in the induction quadrant and 9 in its mirror.",
    paper="102 of 128 heads alike, at 2.9B parameters and 500B tokens",
    rule="Reproduced if more than half of the heads of all seeds end alike, and of those that changed more "
    f"became alike than ceased to be (binomial test, one-sided, {LEVEL:g}); not if more ceased, by the same "
    "test; else undecided. At the start half are, by chance.",
    runs={scale: arms_runs(scale, NAMED, seeds) for scale, seeds in SEEDS.items()},
    uses_gpu=True,
    measure=measure,
    judge=judge,
    draw=draw,
)
