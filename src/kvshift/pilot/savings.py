"""What the candidate saves: training tokens, training time and model size, each with its interval.

**Data saved, from curves.** The candidate has saved 1 - t/T of the data if, after t of T tokens, its
validation loss is where the baseline ends. But a loss in the middle of a schedule is no fair match for one at
the end of another: its learning rate has not decayed, which raises it, and more learning rate has been spent
than a run planned for t tokens would have had, which lowers it where runs are short. Which of the two weighs
more cannot be known beforehand (in docs/results/pilot.md the curves of one pilot promised twice too much).

**Data saved, from planned runs.** So at one size, the largest, further candidates are *planned* for a
shorter length, schedule and all, and the length at which the candidate equals the baseline is interpolated
between planned lengths. Headline, time, money and verdict rest on that share; the curves stand beside it, and
are all there is at the other sizes. Loss falls ever more slowly, so the straight line between two planned
lengths lies above it, and the share is rather too low than too high.

A candidate that ends worse is measured the other way round, with the baseline's curve and a minus sign.

Nothing is extrapolated: not before a curve's first evaluation, not outside the ladder.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from kvshift.pilot.pairs import Pair, Pairs, curve, end
from kvshift.pilot.results import DataSavedCheck, Estimate
from kvshift.pilot.statistics import censored_interval, clip, mean_interval
from kvshift.training.record import EvaluationPoint, Record


def crossing(losses: Sequence[float], target: float) -> tuple[int, float] | None:
    """Where a curve falls to `target` for good.

    A dip below the target that does not last is noise and does not count: what is looked for is the last
    point above it, and the place between that point and the next.

    Returns:
        (i, share): `share` of the way from point i to point i + 1. (0, 0.0) if no point lies above the
        target; None if the last one does.
    """
    above = [i for i, loss in enumerate(losses) if loss > target]
    if not above:
        return 0, 0.0
    i = above[-1]
    if i == len(losses) - 1:
        return None
    return i, (losses[i] - target) / (losses[i] - losses[i + 1])


def between(values: Sequence[float], place: tuple[int, float]) -> float:
    """The value at a `crossing`, interpolated in its logarithm; values are positive."""
    i, share = place
    if share in (0.0, 1.0):  # no rounding where there is nothing to interpolate
        return float(values[i + int(share)])
    return math.exp((1 - share) * math.log(values[i]) + share * math.log(values[i + 1]))


def tokens_to_reach(record: Record, target: float) -> float | None:
    """Tokens after which the run's validation loss stays at or below `target`, None if it does not.

    Linear in the logarithm of tokens between evaluations. A curve that is below from its first evaluation
    gives that evaluation's tokens: an upper bound.
    """
    points = [point for point in curve(record) if point.tokens > 0]
    place = crossing([point.nats_per_token for point in points], target) if points else None
    return None if place is None else between([point.tokens for point in points], place)


def data_saved(pair: Pair) -> float:
    """Share of the tokens a complete pair's candidate saves; negative where the baseline saves."""
    baseline, candidate = pair.finished
    baseline_end, candidate_end = pair.ends
    ahead = candidate_end.nats_per_token <= baseline_end.nats_per_token
    winner, winner_end, target = (
        (candidate, candidate_end, baseline_end) if ahead else (baseline, baseline_end, candidate_end)
    )
    tokens = tokens_to_reach(winner, target.nats_per_token)
    saved = 0.0 if tokens is None else 1 - tokens / winner_end.tokens
    return clip(saved if ahead else -saved)


def throughput_ratio(pair: Pair) -> float | None:
    """Candidate ÷ baseline training tokens a second; None if either was not measured."""
    baseline, candidate = (record.tokens_per_second for record in pair.finished)
    usable = baseline > 0 and candidate > 0 and math.isfinite(baseline) and math.isfinite(candidate)
    return candidate / baseline if usable else None


def time_saved(pair: Pair, saved: float) -> float | None:
    """Share of training time saved if `saved` of the tokens are: fewer of them, each at its own speed."""
    ratio = throughput_ratio(pair)
    return None if ratio is None else 1 - (1 - saved) / ratio


@dataclass(frozen=True)
class Savings:
    """What the complete pairs of one size save, in their order."""

    shares: list[float]  # of the tokens, a pair each
    planned: bool  # measured with runs planned at a shorter length; False: read off the curves
    at_least: int  # how many of the shares are lower bounds

    @property
    def estimate(self) -> Estimate | None:
        """Mean and interval; the upper end is open where a share is a lower bound."""
        return censored_interval(self.shares, above=self.at_least)


def savings(pairs: Pairs, records: dict[str, Record], size: str) -> Savings:
    """Data saved at one size: from planned runs where every pair has one, else from the curves.

    A candidate that ends worse than its baseline has no planned run to be measured with: there the curves'
    negative share is taken.
    """
    complete = pairs.complete(size)
    planned = {one.seed: one for one in _planned_at(pairs, records, size)}
    if not complete or any(pair.seed not in planned for pair in complete):
        return Savings([data_saved(pair) for pair in complete], planned=False, at_least=0)
    found = [(pair, planned[pair.seed]) for pair in complete]
    return Savings(
        [data_saved(pair) if one.at_most else one.saved for pair, one in found],
        planned=True,
        at_least=sum(one.at_least for _, one in found),
    )


@dataclass(frozen=True)
class _Planned:
    """One seed of the check."""

    seed: int
    share: float  # short ÷ full tokens, as trained
    gain: float  # nats a token, baseline at full length minus candidate at the short one
    saved: float  # share of tokens
    at_least: bool  # `saved` is a lower bound: the short run is already better
    at_most: bool  # `saved` is an upper bound: even the full-length candidate is worse


def planned_check(
    pairs: Pairs, records: dict[str, Record], curve_saved: dict[str, Estimate | None]
) -> DataSavedCheck | None:
    """Test the curves' claim with candidates planned, schedule and all, for a shorter length.

    Data saved is interpolated, in the logarithm of tokens, between the two planned lengths of the candidate.
    Where the short candidate already beats the baseline, the share is at least 1 - short/full, and the
    interval's upper end is open; where even the full-length one does not, it is at most zero, and the lower
    end is open. The curves are contradicted if the planned interval lies wholly below what they say.

    Args:
        pairs: the main runs.
        records: every run's, by name.
        curve_saved: what the main runs' curves said, by size.

    Returns:
        The check at the largest size that has one, None if no check run has a complete pair beside it.
    """
    for size in reversed(pairs.plan.sizes):
        planned = _planned_at(pairs, records, size.name)
        gain = mean_interval(one.gain for one in planned)
        if gain is None:
            continue
        saved = censored_interval(
            [one.saved for one in planned],
            below=sum(one.at_most for one in planned),
            above=sum(one.at_least for one in planned),
        )
        claimed = curve_saved[size.name]
        return DataSavedCheck(
            size=size.name,
            share=planned[0].share,
            gain=gain,
            data_saved=saved,
            curve_data_saved=claimed,
            agrees=not _contradicts(saved, claimed),
        )
    return None


def _planned_at(pairs: Pairs, records: dict[str, Record], size: str) -> list[_Planned]:
    """The check runs of one size that ended well, each with its seed's pair."""
    planned = []
    for run in pairs.plan.runs:
        if run.role != "check" or run.size != size:
            continue
        short = end(records.get(run.name))
        pair = next((pair for pair in pairs.complete(size) if pair.seed == run.seed), None)
        if short is not None and pair is not None:
            planned.append(_planned(run.seed, short, *pair.ends))
    return planned


def _planned(seed: int, short: EvaluationPoint, baseline: EvaluationPoint, full: EvaluationPoint) -> _Planned:
    """Where between the two planned lengths of the candidate the baseline's loss lies."""
    place = crossing([short.nats_per_token, full.nats_per_token], baseline.nats_per_token)
    tokens = full.tokens if place is None else between([short.tokens, full.tokens], place)
    return _Planned(
        seed=seed,
        share=short.tokens / full.tokens,
        gain=baseline.nats_per_token - short.nats_per_token,
        saved=1 - tokens / full.tokens,
        at_least=place == (0, 0.0),
        at_most=place is None,
    )


def _contradicts(planned: Estimate | None, claimed: Estimate | None) -> bool:
    if planned is None or planned.high is None or claimed is None:
        return False
    return planned.high < claimed.value
