"""What only a ladder of sizes can tell: how much smaller a model will do, and where the gain goes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean

import numpy as np
from scipy import stats

from kvshift.pilot.pairs import Pairs
from kvshift.pilot.results import Estimate, ModelSaved, Projection
from kvshift.pilot.savings import between, crossing
from kvshift.pilot.settings import Size
from kvshift.pilot.statistics import censored_interval, t_quantile

LEAST_SIZES_FOR_A_LINE = 3
FURTHEST = 10.0  # times the largest size measured
POINTS = 25


@dataclass(frozen=True)
class _Rung:
    """One size, by what a decision about size saves."""

    parameters: float  # embeddings included
    flops: float  # per generated token
    kv_cache: float  # bytes per token


def model_saved(pairs: Pairs) -> ModelSaved | None:
    """How much smaller a candidate reaches the loss of the largest baseline, at equal tokens.

    The candidate's losses over the ladder are followed from the largest size down to the last one that is
    still above the reference; the match lies between it and the next, interpolated linearly in loss and
    logarithmically in each quantity (parameters, arithmetic, cache), so that it does not matter which of them
    one calls the size. Parameters are all of the model's, embeddings included, as the report counts them.
    One value a seed, over the seeds whose pair is complete at every size measured; a seed that falls outside
    the ladder is a bound and opens the interval on that side. `bound` is that of the mean over those seeds.

    Returns:
        None if fewer than two sizes, or not the largest, or no seed, can be compared.
    """
    sizes = [size for size in pairs.plan.sizes if pairs.complete(size.name)]
    seeds = pairs.seeds_complete_at([size.name for size in sizes])
    if len(sizes) < 2 or sizes[-1] != pairs.top or not seeds:
        return None
    rungs = [_rung(size, pairs, taps=True) for size in sizes]
    losses = [[pairs.at(size.name, seed).ends for size in sizes] for seed in seeds]
    candidate = [[ends[1].nats_per_token for ends in row] for row in losses]
    reference = [row[-1][0].nats_per_token for row in losses]
    places = [crossing(row, target) for row, target in zip(candidate, reference, strict=True)]
    mean_place = crossing([fmean(column) for column in zip(*candidate, strict=True)], fmean(reference))
    full = pairs.top
    if mean_place is None:
        return _unmatched(full)
    whole = _rung(full, pairs, taps=False)

    def saved(quantity: Callable[[_Rung], float]) -> list[float]:
        steps = [quantity(rung) for rung in rungs]
        return [0.0 if place is None else 1 - between(steps, place) / quantity(whole) for place in places]

    parameters = saved(lambda rung: rung.parameters)
    return ModelSaved(
        reference_size=full.name,
        reference_parameters=full.parameters,
        parameters=censored_interval(
            parameters, below=places.count(None), above=sum(place == (0, 0.0) for place in places)
        ),
        matching_parameters=full.parameters * (1 - fmean(parameters)),
        inference_compute=fmean(saved(lambda rung: rung.flops)),
        kv_cache=fmean(saved(lambda rung: rung.kv_cache)),
        bound="at_least" if mean_place == (0, 0.0) else "inside",
    )


def _unmatched(reference: Size) -> ModelSaved:
    return ModelSaved(
        reference_size=reference.name,
        reference_parameters=reference.parameters,
        parameters=None,
        matching_parameters=None,
        inference_compute=None,
        kv_cache=None,
        bound="none",
    )


def _rung(size: Size, pairs: Pairs, *, taps: bool) -> _Rung:
    """One size's model, with the candidate's taps or without.

    A generated token costs two operations a weight it meets (embeddings are looked up, the output head is
    multiplied) and, at the pilot's sequence length, 4 · length · channels of attention a layer. The shift's
    own arithmetic is left out: it is thousands of times smaller. Keys and values are 16-bit in the cache.
    """
    length = next(run.recipe.sequence_length for run in pairs.plan.runs if run.size == size.name)
    embeddings = size.parameters - size.non_embedding_parameters
    head = embeddings if size.model.get("tie_word_embeddings", False) else embeddings / 2
    channels = size.model.get("num_attention_heads", size.kv_heads) * size.head_dim
    return _Rung(
        parameters=size.parameters + (tap_parameters(pairs, size.name) if taps else 0),
        flops=2 * (size.non_embedding_parameters + head) + 4 * length * channels * size.layers,
        kv_cache=2 * 2 * size.layers * size.kv_heads * size.head_dim,
    )


def tap_parameters(pairs: Pairs, size: str) -> int:
    """What the candidate's records say the taps add at one size; 0 if no run says so."""
    return max((pair.candidate.tap_parameters for pair in pairs.by_size[size] if pair.candidate), default=0)


def projection(pairs: Pairs) -> Projection | None:
    """A straight line of the gain on the logarithm of the parameters, with its 95% confidence band.

    Every complete pair counts the same, so that what the line misses shows in the band. Parameters are all of
    the model's. Drawn from the smallest size to `FURTHEST` times the largest one measured, never beyond; the
    band is the line's own, and says nothing of a bend outside the sizes measured.

    Returns:
        None with fewer than three sizes that have a complete pair.
    """
    measured = [
        (size.parameters, pair.gain) for size in pairs.plan.sizes for pair in pairs.complete(size.name)
    ]
    if len({parameters for parameters, _ in measured}) < LEAST_SIZES_FOR_A_LINE:
        return None
    x, y = np.log10([parameters for parameters, _ in measured]), np.array([gain for _, gain in measured])
    line = stats.linregress(x, y)
    n, degrees = len(x), len(x) - 2
    spread = math.sqrt(float(np.sum((y - line.intercept - line.slope * x) ** 2)) / degrees)
    squares = float(np.sum((x - x.mean()) ** 2))
    t = t_quantile(degrees)
    largest = max(parameters for parameters, _ in measured)
    at = np.linspace(x.min(), math.log10(largest * FURTHEST), POINTS)
    values = line.intercept + line.slope * at
    halves = t * spread * np.sqrt(1 / n + (at - x.mean()) ** 2 / squares)
    half = t * spread / math.sqrt(squares)
    return Projection(
        slope_per_tenfold=Estimate(value=line.slope, low=line.slope - half, high=line.slope + half, n=n),
        points=[
            {
                "parameters": min(10.0**place, largest * FURTHEST),
                "value": value,
                "low": value - band,
                "high": value + band,
            }
            for place, value, band in zip(at.tolist(), values.tolist(), halves.tolist(), strict=True)
        ],
        measured_up_to=largest,
    )
