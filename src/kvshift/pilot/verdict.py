"""The written rule that turns a pilot's numbers into one decision.

The rule, in the order it is applied. Gain is the baseline's final validation loss minus the candidate's, in
nats a token; *overall* is its average over the sizes, *largest* its value at the ladder's top, each with a
95% interval; the *margin* is `MARGIN` of the baseline's loss at the largest size, the least gain worth acting
on.

1. **Harmful** (`harmful_diverges`): the candidate diverged where the baseline finished, so often that a sign
   test over the pairs in which exactly one arm diverged gives p <= 0.05.
2. **Bigger pilot** (`few_pairs`): the largest size has fewer than two pairs, or the overall gain no interval.
3. **Harmful** (`harmful_clear`): both intervals lie below zero, both losses are at least the margin, and the
   pairs agree.
4. Both intervals lie above zero, both gains are at least the margin, and the pairs agree:
   - **bigger pilot** (`candidate_unstable`) if the candidate diverged in a pair whose baseline finished, for
     then the pairs that are left are the candidate's lucky ones;
   - **bigger pilot** (`gain_but_slower`) if the interval of the training time saved at the largest size lies
     below zero: better for the same data, but not for the same time. Small models overstate what the shift
     costs a step;
   - **adopt**: `adopt_time_unclear` if that interval holds zero, or there is none, for the gain does not hang
     on the clock; `adopt_slower` if a step takes longer, yet time is saved; else `adopt_clear`.
5. **No benefit** (`null_precise`): both intervals end below the margin; a gain worth acting on is excluded.
   If the overall interval spans zero, which arm is ahead stays undecided, and `decided` says so.
6. **Bigger pilot** otherwise: `largest_unclear` (the overall interval is clear of zero, the largest size's is
   not, or lies on the other side), `pairs_disagree`, `gain_small` (clear of zero, but smaller than the
   margin), or `undecided` (the overall interval spans zero).

*The pairs agree* when a Wilcoxon signed-rank test over all pairs gives p <= 0.05. It is asked only of six
pairs or more, since fewer cannot reach 0.05. Student's interval holds whatever the correlation between sizes
but supposes a roughly normal spread; the rank test supposes independent pairs but no shape at all, as when
runs fall into two groups, those that found induction in time and those that did not. A claim needs both.

Two identical arms are told apart in at most 5% of pilots: rules 3 and 4 both need the overall 95% interval
clear of zero, which happens in 5%, and every further condition only takes away.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeGuard

from scipy import stats

from kvshift.pilot.results import Decision, Estimate, Verdict
from kvshift.pilot.statistics import t_quantile

MARGIN = 0.003  # of the baseline's loss: about 0.012 nats at a loss of 4
LEVEL = 0.05  # of every test
LEAST_PAIRS_FOR_RANKS = 6  # two-sided exact p of six pairs that all agree: 2/64
LEAST_SEEDS = 3
MOST_SEEDS = 32  # beyond that, longer runs or larger models tell more than seeds
LEAST_GROWTH = 2.0  # a pilot less than twice as long is no bigger pilot


class Reason(StrEnum):
    """The message keys of `Verdict.reason`, each with the `Verdict.values` its message can count on.

    Every key but `few_pairs` and `harmful_diverges` carries, in nats a token: `gain`, `low`, `high`
    (overall), `largest_gain`, `largest_low`, `largest_high`, `margin`; also `gain_share` (the largest size's
    gain as a share of its baseline loss), `pairs`, `candidate_diverged` and `baseline_diverged` (pairs in
    which only that arm diverged). `data_saved`, `throughput_ratio` and `time_saved` (shares, at the largest
    size) are there when measured; where a key below names them they always are. Every decision
    `bigger_pilot` also carries `seeds_needed` and `seeds_now`, and `capped` (1.0 if even the cap of seeds
    would not decide, else 0.0), and sets `Verdict.next_budget_seconds`.
    """

    ADOPT_CLEAR = "adopt_clear"  # adopt: throughput_ratio >= 1, time_saved > 0
    ADOPT_SLOWER = "adopt_slower"  # adopt: throughput_ratio < 1, time_saved > 0
    ADOPT_TIME_UNCLEAR = "adopt_time_unclear"  # adopt: time saved is not decided, or not measured
    GAIN_BUT_SLOWER = "gain_but_slower"  # bigger_pilot, decided: throughput_ratio, time_saved < 0
    CANDIDATE_UNSTABLE = "candidate_unstable"  # bigger_pilot: candidate_diverged
    HARMFUL_CLEAR = "harmful_clear"  # harmful
    HARMFUL_DIVERGES = "harmful_diverges"  # harmful: pairs, candidate_diverged, baseline_diverged only
    NULL_PRECISE = "null_precise"  # no_benefit; decided only if the interval is clear of zero
    LARGEST_UNCLEAR = "largest_unclear"  # bigger_pilot
    PAIRS_DISAGREE = "pairs_disagree"  # bigger_pilot
    GAIN_SMALL = "gain_small"  # bigger_pilot: above zero, below the margin
    UNDECIDED = "undecided"  # bigger_pilot: the interval spans zero
    FEW_PAIRS = "few_pairs"  # bigger_pilot: pairs, candidate_diverged, baseline_diverged only


@dataclass(frozen=True)
class Evidence:
    """What the rule looks at. Gains in nats a token, positive where the candidate is better."""

    overall: Estimate | None
    overall_seeds: int  # behind the overall interval
    largest: Estimate | None
    differences: Sequence[float]  # of every complete pair, all sizes
    baseline_loss: float | None  # at the largest size
    throughput_ratio: float | None = None  # candidate ÷ baseline at the largest size
    data_saved: float | None = None  # share at the largest size
    time_saved: Estimate | None = None  # share at the largest size
    candidate_diverged: int = 0  # pairs in which only the candidate diverged
    baseline_diverged: int = 0


@dataclass(frozen=True)
class Effort:
    """What the pilot took, to say what a deciding one would take."""

    seconds: float  # the pilot's wall time
    seconds_per_seed: float  # of wall time, over all sizes and both arms
    fixed_seconds: float  # what does not grow with seeds


def decide(evidence: Evidence, effort: Effort) -> Verdict:
    """Apply the rule in this module's docstring."""
    if _diverges_more(evidence):
        return Verdict(
            decision="harmful", decided=True, reason=Reason.HARMFUL_DIVERGES, values=_counts(evidence)
        )
    overall, largest = evidence.overall, evidence.largest
    if not (_has_interval(overall) and _has_interval(largest) and evidence.baseline_loss):
        return _bigger(Reason.FEW_PAIRS, evidence, effort, LEAST_SEEDS, _counts(evidence))
    margin = MARGIN * evidence.baseline_loss
    reason = _reason(evidence, overall, largest, margin)
    values = _values(evidence, overall, largest, margin)
    decision = _DECISIONS.get(reason, "bigger_pilot")
    if decision == "bigger_pilot":
        needed = _needed(overall, evidence.overall_seeds, largest, margin)
        return _bigger(reason, evidence, effort, needed, values)
    decided = reason is not Reason.NULL_PRECISE or overall.clear_of_zero
    return Verdict(decision=decision, decided=decided, reason=reason, values=values)


_DECISIONS: dict[Reason, Decision] = {
    Reason.ADOPT_CLEAR: "adopt",
    Reason.ADOPT_SLOWER: "adopt",
    Reason.ADOPT_TIME_UNCLEAR: "adopt",
    Reason.HARMFUL_CLEAR: "harmful",
    Reason.NULL_PRECISE: "no_benefit",
}


def _reason(evidence: Evidence, overall: Estimate, largest: Estimate, margin: float) -> Reason:
    """Rules 3 to 6."""
    sides = {overall.side, largest.side}
    clear = sides in ({1}, {-1}) and pairs_agree(evidence.differences)
    large = min(abs(overall.value), abs(largest.value)) >= margin
    if clear and large and sides == {-1}:
        return Reason.HARMFUL_CLEAR
    if clear and large:
        return _reason_for_gain(evidence)
    if max(_end(overall.high), _end(largest.high)) < margin:
        return Reason.NULL_PRECISE
    if not overall.clear_of_zero:
        return Reason.UNDECIDED
    if len(sides) > 1:
        return Reason.LARGEST_UNCLEAR
    return Reason.GAIN_SMALL if clear else Reason.PAIRS_DISAGREE


def _reason_for_gain(evidence: Evidence) -> Reason:
    """Rule 4: the gain is real; is it also worth having?"""
    if evidence.candidate_diverged:
        return Reason.CANDIDATE_UNSTABLE
    time, ratio = evidence.time_saved, evidence.throughput_ratio
    if time is None or ratio is None or not time.side:
        return Reason.ADOPT_TIME_UNCLEAR
    if time.side < 0:
        return Reason.GAIN_BUT_SLOWER
    return Reason.ADOPT_SLOWER if ratio < 1 else Reason.ADOPT_CLEAR


def pairs_agree(differences: Sequence[float]) -> bool:
    """Whether a Wilcoxon signed-rank test over the pairs sides with the interval.

    True for fewer than `LEAST_PAIRS_FOR_RANKS` pairs, where the test has no say.
    """
    if len(differences) < LEAST_PAIRS_FOR_RANKS:
        return True
    if not any(differences):
        return False
    return bool(stats.wilcoxon(differences).pvalue <= LEVEL)


def seeds_needed(estimate: Estimate, seeds: int, target: float) -> int:
    """The least number of seeds, at most `MOST_SEEDS` + 1, whose interval would be narrower than ±`target`.

    The spread is the one observed, itself uncertain with few seeds, so this is an order of magnitude.
    """
    half = (_end(estimate.high) - _end(estimate.low)) / 2
    spread = half * math.sqrt(seeds) / t_quantile(seeds - 1)
    enough = (n for n in range(2, MOST_SEEDS + 1) if t_quantile(n - 1) * spread / math.sqrt(n) < target)
    return next(enough, MOST_SEEDS + 1)


def _needed(overall: Estimate, seeds: int, largest: Estimate, margin: float) -> int:
    """Seeds at which both intervals would be narrower than their estimate or than the margin, whichever is
    larger; the estimate counts divided by 1.25, for it will move."""
    return max(
        seeds_needed(estimate, n, target=max(abs(estimate.value) / 1.25, margin))
        for estimate, n in ((overall, seeds), (largest, largest.n))
    )


def _bigger(
    reason: Reason, evidence: Evidence, effort: Effort, needed: int, values: dict[str, float]
) -> Verdict:
    """A verdict that asks for more, with the budget that would decide: what is not spent on seeds, plus the
    measured cost of the seeds needed; never less than twice this pilot; in whole minutes."""
    now = evidence.overall_seeds
    capped = needed > MOST_SEEDS
    needed = min(max(needed, now, LEAST_SEEDS), MOST_SEEDS)
    budget = max(LEAST_GROWTH * effort.seconds, effort.fixed_seconds + needed * effort.seconds_per_seed)
    return Verdict(
        decision="bigger_pilot",
        decided=reason is Reason.GAIN_BUT_SLOWER,
        reason=reason,
        values={**values, "seeds_needed": needed, "seeds_now": now, "capped": float(capped)},
        next_budget_seconds=60.0 * math.ceil(budget / 60),
    )


def _diverges_more(evidence: Evidence) -> bool:
    """Rule 1: a two-sided sign test on the pairs in which exactly one arm diverged."""
    alone = evidence.candidate_diverged + evidence.baseline_diverged
    if evidence.candidate_diverged <= evidence.baseline_diverged:
        return False
    return bool(stats.binomtest(evidence.candidate_diverged, alone).pvalue <= LEVEL)


def _counts(evidence: Evidence) -> dict[str, float]:
    return {
        "pairs": len(evidence.differences),
        "candidate_diverged": evidence.candidate_diverged,
        "baseline_diverged": evidence.baseline_diverged,
    }


def _values(evidence: Evidence, overall: Estimate, largest: Estimate, margin: float) -> dict[str, float]:
    measured = {
        "data_saved": evidence.data_saved,
        "throughput_ratio": evidence.throughput_ratio,
        "time_saved": evidence.time_saved.value if evidence.time_saved else None,
    }
    return {
        "gain": overall.value,
        "low": _end(overall.low),
        "high": _end(overall.high),
        "largest_gain": largest.value,
        "largest_low": _end(largest.low),
        "largest_high": _end(largest.high),
        "margin": margin,
        "gain_share": largest.value * MARGIN / margin,
        **_counts(evidence),
        **{key: value for key, value in measured.items() if value is not None},
    }


def _has_interval(estimate: Estimate | None) -> TypeGuard[Estimate]:
    return estimate is not None and estimate.low is not None and estimate.high is not None


def _end(end: float | None) -> float:
    """An end of an interval known to be there."""
    return math.nan if end is None else end
