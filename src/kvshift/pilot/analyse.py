"""From a pilot's records to its results: no file is read here and no clock, so the same runs decide the same.

How each number is made stands where it is made:

- `statistics`: intervals, and why each size keeps its own spread;
- `savings`: data and time saved, and the check with runs planned shorter;
- `ladder_results`: model saved, and the gain against size;
- `shift_findings`: learned taps, and what the shift adds;
- `verdict`: the written rule; `caveats`: the warnings.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from statistics import fmean, median

from kvshift.errors import RunsFailedError
from kvshift.pilot.caveats import caveats
from kvshift.pilot.ladder_results import model_saved, projection
from kvshift.pilot.pairs import Pair, Pairs, curve, diverged, end
from kvshift.pilot.results import Cost, Curve, Estimate, Results, RunRow, SizeResult, Verdict
from kvshift.pilot.savings import Savings, data_saved, planned_check, savings, throughput_ratio, time_saved
from kvshift.pilot.settings import Plan, PlannedRun, Size
from kvshift.pilot.shift_findings import added_cost, learned_taps, quadrants
from kvshift.pilot.statistics import mean_interval, ratio_interval, share_interval
from kvshift.pilot.verdict import Effort, Evidence, decide
from kvshift.training.record import Record

LEAST_PAIRS = 2  # for an interval


def analyse(
    plan: Plan,
    records: dict[str, Record],
    *,
    data_summary: dict,
    seconds: float,
    peak_memory_bytes: int,
    device: str,
    created: str,
) -> Results:
    """Compare the arms and decide.

    Args:
        plan: what was to be run.
        records: what the runs left, by name; a missing, failed, diverged or unfinished run costs its pair.
        data_summary: `TextData.summary()`.
        seconds: wall time of the whole pilot, summed over resumes.
        peak_memory_bytes: the largest of any run.
        device: for people.
        created: ISO 8601, UTC.

    Raises:
        RunsFailedError: no pair is complete, so there is nothing to compare (unless the candidate diverged
            where the baseline finished so often that this is the result).
    """
    pairs = Pairs.of(plan, records)
    by_size = [_size_result(pairs, records, size) for size in plan.sizes]
    overall, overall_seeds = overall_gain(pairs)
    verdict = _verdict(pairs, records, by_size[-1], overall, overall_seeds, seconds)
    if overall is None and verdict.decision != "harmful":
        raise RunsFailedError(_nothing_to_compare(pairs))
    check = planned_check(pairs, records, {result.size: result.curve_data_saved for result in by_size})
    heads = learned_taps(pairs)
    return Results(
        settings=plan.settings,
        arms=plan.arms,
        sizes=list(plan.sizes),
        tokens=plan.tokens,
        seeds=list(plan.seeds),
        verdict=verdict,
        overall_gain=overall,
        by_size=by_size,
        check=check,
        model_saved=model_saved(pairs),
        projection=projection(pairs),
        cost=_cost(pairs, by_size[-1].time_saved, seconds),
        added=added_cost(pairs, by_size[-1]),
        curves=list(_curves(pairs)),
        taps=heads,
        quadrants=quadrants(heads),
        runs=[_row(run, records.get(run.name)) for run in plan.runs],
        data=data_summary,
        recipe=_recipe(plan),
        device=device,
        versions=next((record.versions for record in records.values() if record.versions), {}),
        seconds=seconds,
        peak_memory_bytes=peak_memory_bytes,
        warnings=caveats(pairs, by_size, check, data_summary),
        created=created,
    )


def overall_gain(pairs: Pairs) -> tuple[Estimate | None, int]:
    """The gain averaged over sizes, and the number of seeds its interval rests on.

    Averaged over sizes within each seed, then a Student interval over seeds (`statistics` says why). Sizes
    with fewer than two pairs are left out, and so are seeds without a pair at every size that is in; if fewer
    than two seeds remain there is a mean of the sizes' means, without an interval. `n` counts pairs.
    """
    sizes = [size.name for size in pairs.plan.sizes if len(pairs.complete(size.name)) >= LEAST_PAIRS]
    seeds = pairs.seeds_complete_at(sizes) if sizes else []
    if len(seeds) < LEAST_PAIRS:
        gains = [[pair.gain for pair in pairs.complete(size.name)] for size in pairs.plan.sizes]
        means = [fmean(column) for column in gains if column]
        n = sum(map(len, gains))
        return (Estimate(value=fmean(means), n=n) if means else None), len(seeds)
    average = mean_interval(fmean(pairs.at(size, seed).gain for size in sizes) for seed in seeds)
    if average is not None:
        average = average.model_copy(update={"n": len(seeds) * len(sizes)})
    return average, len(seeds)


def _size_result(pairs: Pairs, records: dict[str, Record], rung: Size) -> SizeResult:
    size, complete = rung.name, pairs.complete(rung.name)
    saved = savings(pairs, records, size)
    ends = [pair.ends for pair in complete]
    ratios = _measured(throughput_ratio(pair) for pair in complete)
    notes = {0: "no_pairs", 1: "one_pair"}
    return SizeResult(
        size=size,
        parameters=rung.parameters,
        pairs=len(complete),
        baseline_loss=mean_interval(baseline.nats_per_token for baseline, _ in ends),
        candidate_loss=mean_interval(candidate.nats_per_token for _, candidate in ends),
        baseline_bits_per_byte=_mean(baseline.bits_per_byte for baseline, _ in ends),
        candidate_bits_per_byte=_mean(candidate.bits_per_byte for _, candidate in ends),
        differences=[pair.gain for pair in complete],
        seeds=[pair.seed for pair in complete],
        gain=mean_interval(pair.gain for pair in complete),
        gain_bits_per_byte=mean_interval(
            _measured(baseline.bits_per_byte - candidate.bits_per_byte for baseline, candidate in ends)
        ),
        data_saved=saved.estimate,
        data_saved_planned=saved.planned,
        curve_data_saved=share_interval(data_saved(pair) for pair in complete),
        throughput_ratio=ratio_interval(ratios),
        time_saved=_time_saved(complete, saved),
        memory_ratio=_memory_ratio(complete),
        note=notes.get(len(complete)),
    )


def _time_saved(complete: list[Pair], saved: Savings) -> Estimate | None:
    shares = _measured(time_saved(pair, share) for pair, share in zip(complete, saved.shares, strict=True))
    estimate = mean_interval(shares)
    return estimate.model_copy(update={"high": None}) if estimate and saved.at_least else estimate


def _memory_ratio(complete: list[Pair]) -> float | None:
    """Candidate ÷ baseline median peak memory; None if it was not measured."""
    if not complete:
        return None
    baseline, candidate = (
        median(run.peak_memory_bytes for run in arm)
        for arm in zip(*(pair.finished for pair in complete), strict=True)
    )
    return candidate / baseline if baseline > 0 and candidate > 0 else None


def _verdict(
    pairs: Pairs,
    records: dict[str, Record],
    top: SizeResult,
    overall: Estimate | None,
    overall_seeds: int,
    seconds: float,
) -> Verdict:
    """Gather the rule's evidence and apply it."""
    baseline_diverged, candidate_diverged = pairs.diverged_alone()
    evidence = Evidence(
        overall=overall,
        overall_seeds=overall_seeds,
        largest=top.gain,
        differences=[pair.gain for pair in pairs if pair.complete],
        baseline_loss=top.baseline_loss.value if top.baseline_loss else None,
        throughput_ratio=top.throughput_ratio.value if top.throughput_ratio else None,
        data_saved=top.data_saved.value if top.data_saved else None,
        time_saved=top.time_saved,
        candidate_diverged=candidate_diverged,
        baseline_diverged=baseline_diverged,
    )
    plan = pairs.plan
    run_seconds = sum(record.wall_seconds for record in records.values()) / plan.devices
    fixed = max(0.0, seconds - run_seconds)
    per_seed = (seconds - fixed) / max(1, len(plan.seeds))
    return decide(evidence, Effort(seconds=seconds, seconds_per_seed=per_seed, fixed_seconds=fixed))


def _cost(pairs: Pairs, saved: Estimate | None, seconds: float) -> Cost | None:
    """Money, where a price was given: that of the whole machine for an hour.

    A run costs the mean wall time of the largest baseline's, on its share of the machine where several runs
    went side by side; what is saved is that times the share of time saved at the largest size.
    """
    settings = pairs.plan.settings
    if settings.price_per_hour is None:
        return None
    price = settings.price_per_hour
    runs = [pair.baseline for pair in pairs.by_size[pairs.top.name] if pair.baseline and end(pair.baseline)]
    hours = fmean(run.wall_seconds for run in runs) / 3600 / pairs.plan.devices if runs else 0.0
    return Cost(
        currency=settings.currency,
        price_per_hour=price,
        pilot=price * seconds / 3600,
        baseline_run=price * hours,
        saved_per_run=_times(saved, price * hours) if runs else None,
        saved_per_thousand=_times(saved, 1000.0),
    )


def _curves(pairs: Pairs) -> Iterable[Curve]:
    """Of every main run that finished or diverged, up to the divergence."""
    baseline, candidate = pairs.plan.arms
    for pair in pairs:
        for arm, record in ((baseline, pair.baseline), (candidate, pair.candidate)):
            points = curve(record) if record and (end(record) or diverged(record)) else []
            if points:
                yield Curve(
                    arm=arm.name,
                    size=pair.size,
                    seed=pair.seed,
                    tokens=[point.tokens for point in points],
                    nats_per_token=[point.nats_per_token for point in points],
                    bits_per_byte=[point.bits_per_byte for point in points],
                )


def _row(run: PlannedRun, record: Record | None) -> RunRow:
    """A line of the table of runs; `missing` where a planned run left nothing."""
    last = end(record)
    tokens = [0]
    if record:
        tokens += [step.tokens for step in record.steps] + [point.tokens for point in record.evaluations]
    return RunRow(
        name=run.name,
        role=run.role,
        arm=run.arm,
        size=run.size,
        seed=run.seed,
        status=record.status if record else "missing",
        error=record.error if record else None,
        parameters=record.parameters if record else 0,
        tap_parameters=record.tap_parameters if record else 0,
        tokens=max(tokens),
        final_nats_per_token=last.nats_per_token if last else None,
        final_bits_per_byte=last.bits_per_byte if last else None,
        train_seconds=record.train_seconds if record else 0.0,
        wall_seconds=record.wall_seconds if record else 0.0,
        tokens_per_second=record.tokens_per_second if record else 0.0,
        peak_memory_bytes=record.peak_memory_bytes if record else 0,
    )


def _recipe(plan: Plan) -> dict:
    """The settings all runs share, from a main run at the largest size."""
    top = plan.sizes[-1].name
    runs = (run for run in plan.runs if run.role == "main" and run.size == top)
    recipe = next(runs).recipe
    return recipe.model_dump(mode="json", exclude={"data", "model", "shift", "seed"})


def _nothing_to_compare(pairs: Pairs) -> str:
    runs = [run for pair in pairs for run in (pair.baseline, pair.candidate)]
    finished = sum(end(run) is not None for run in runs)
    lost = sum(diverged(run) for run in runs)
    first = next((run.error for run in runs if run is not None and run.error), None)
    return (
        f"No pair of runs finished in both arms: of {len(runs)} main runs {finished} finished, {lost} "
        f"diverged and {len(runs) - finished - lost} failed or are missing, so there is nothing to compare."
        + (f" The first error was: {first}" if first else "")
        + " Start the same pilot again to run what is missing; if runs diverge, lower the learning rate."
    )


def _measured(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None and math.isfinite(value)]


def _mean(values: Iterable[float]) -> float | None:
    finite = _measured(values)
    return fmean(finite) if finite else None


def _times(estimate: Estimate | None, factor: float) -> Estimate | None:
    if estimate is None:
        return None
    low, high = (None if bound is None else bound * factor for bound in (estimate.low, estimate.high))
    return Estimate(value=estimate.value * factor, low=low, high=high, n=estimate.n)
