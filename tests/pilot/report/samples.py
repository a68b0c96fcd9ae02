"""Results of every kind a pilot can end with, small but shaped like real ones."""

from __future__ import annotations

import math
import random

from kvshift.pilot.notes import note
from kvshift.pilot.results import (
    AddedCost,
    Cost,
    Curve,
    DataSavedCheck,
    Estimate,
    ModelSaved,
    Projection,
    Results,
    RunRow,
    SizeResult,
    TapHead,
    Verdict,
)
from kvshift.pilot.settings import Arm, PilotSettings, Size

SHIFT = {
    "version": 1,
    "window": 2,
    "shift_keys": True,
    "shift_values": True,
    "init": "structured",
    "lr_multiplier": 10.0,
}
LADDER = {"d64-L2": (230_144, 2, 64), "d96-L3": (528_960, 3, 96), "d128-L3": (853_632, 3, 128)}
TOKENS = 1_228_800
KINDS = (
    "adopt",
    "adopt_cost",
    "bigger_pilot",
    "slower",
    "no_benefit",
    "harmful",
    "missing",
    "diverged",
    "self_test",
    "one_size",
    "one_pair",
    "values_only",
)


def estimate(value: float, spread: float, n: int = 3) -> Estimate:
    return Estimate(value=value, low=value - spread, high=value + spread, n=n)


def results(kind: str = "adopt") -> Results:
    """The results of one kind of pilot, the same at every call."""
    names = ["d96-L3"] if kind == "one_size" else list(LADDER)
    seeds = [0] if kind == "one_pair" else [0, 1, 2]
    gains = {
        "adopt": (0.262, 0.231, 0.204),
        "slower": (0.21, 0.12, 0.05),
        "harmful": (-0.081, -0.064, -0.072),
    }
    gains |= {"bigger_pilot": (0.031, 0.012, -0.008), "no_benefit": (0.002, -0.001, 0.001)}
    family = {
        "adopt_cost": "adopt",
        "diverged": "adopt",
        "one_size": "adopt",
        "values_only": "adopt",
        "self_test": "no_benefit",
        "one_pair": "bigger_pilot",
        "missing": "bigger_pilot",
    }.get(kind, kind)
    spread = {"adopt": 0.038, "slower": 0.03, "harmful": 0.025, "bigger_pilot": 0.07, "no_benefit": 0.008}[
        family
    ]
    gain = dict(zip(LADDER, gains[family], strict=True))
    arms = (Arm(name="vanilla", shift=None), Arm(name="kvshift", shift=SHIFT))
    if kind == "self_test":
        arms = (Arm(name="vanilla", shift=None), Arm(name="vanilla-b", shift=None, seed_offset=1000))
    missing = kind == "missing"
    curves = (
        []
        if missing
        else [
            curve(arm, name, seed, gain[name] if index else 0.0)
            for name in names
            for index, arm in enumerate(a.name for a in arms)
            for seed in seeds
        ]
    )
    by_size = [size_result(name, seeds, gain[name], spread, kind) for name in names]
    largest = by_size[-1]
    overall = None if missing else Estimate(value=sum(gain[n] for n in names) / len(names), n=1)
    if overall and kind != "one_pair":
        overall = estimate(overall.value, spread * 0.8, 9)
    taps = [] if missing or kind == "self_test" else heads(names, seeds, values_only=kind == "values_only")
    return Results(
        settings=PilotSettings(
            seeds=tuple(seeds),
            price_per_hour=2.5 if kind == "adopt_cost" else None,
            arms=(arms[0].name, arms[1].name),
        ),
        arms=arms,
        sizes=[size(name) for name in names],
        tokens=TOKENS,
        seeds=seeds,
        verdict=verdict(kind, overall, spread),
        overall_gain=overall,
        by_size=by_size,
        check=None
        if missing or kind in ("one_pair", "self_test")
        else DataSavedCheck(
            size=names[0],
            share=0.5,
            gain=estimate(gain[names[0]] * 0.28, 0.03),
            data_saved=Estimate(value=0.52, low=0.46, n=3),
            curve_data_saved=largest.data_saved,
            agrees=family != "slower",
        ),
        model_saved=None
        if missing or len(names) == 1
        else ModelSaved(
            reference_size=names[-1],
            reference_parameters=LADDER[names[-1]][0],
            parameters=estimate(0.34, 0.06) if family == "adopt" else None,
            matching_parameters=563_000 if family == "adopt" else None,
            inference_compute=0.31 if family == "adopt" else None,
            kv_cache=0.22 if family == "adopt" else None,
            bound="inside" if family == "adopt" else "none",
        ),
        projection=None if missing or len(names) < 3 or kind == "one_pair" else projection(gain),
        cost=Cost(
            currency="USD",
            price_per_hour=2.5,
            pilot=0.41,
            baseline_run=0.021,
            saved_per_run=estimate(0.0079, 0.001),
            saved_per_thousand=estimate(374.0, 48.0),
        )
        if kind == "adopt_cost"
        else None,
        added=AddedCost(
            parameters=48,
            parameters_share=48 / LADDER[names[-1]][0],
            state_bytes_per_sequence=1536,
            throughput_ratio=None if missing else estimate(0.93, 0.02),
            memory_ratio=None if missing else 1.03,
            lines_of_code=2,
            user_model=None,
            user_model_supported=None,
        ),
        curves=curves,
        taps=taps,
        quadrants={} if kind == "values_only" else quadrants(taps),
        runs=runs(names, seeds, [arm.name for arm in arms], gain, kind),
        data={
            "source": "Python standard library",
            "documents": 737,
            "validation_documents": 74,
            "train_tokens": 3_512_044,
            "validation_tokens": 388_120,
            "train_bytes": 11_204_551,
            "validation_bytes": 1_240_220,
            "vocab_size": 2048,
            "tokenizer": "trained",
            "skipped": {"empty": 3},
            "duplicates_removed": {"exact": 2, "near": 5},
            "passages": False,
            "notes": [
                note("skipped", reasons={"empty": 3}).model_dump(),
                note("exact_copies", copies=2).model_dump(),
            ],
        },
        recipe={
            "sequence_length": 256,
            "batch_size": 16,
            "learning_rate": 3e-3,
            "warmup": 0.05,
            "weight_decay": 0.1,
            "betas": [0.9, 0.95],
            "clip": 1.0,
            "evaluations": 20,
            "precision": "auto",
            "compile": False,
        },
        device="CPU, 2 threads",
        versions={"python": "3.11.2", "torch": "2.13.0", "transformers": "5.23.0", "kvshift": "0.1.0"},
        seconds=587.4,
        peak_memory_bytes=1_310_000_000,
        warnings=[note("timed_on_a_cpu"), note("few_tokens", ratio=1.44)] if family == "adopt" else [],
        created="2026-11-23T20:10:00+00:00",
    )


def size(name: str) -> Size:
    parameters, layers, hidden = LADDER[name]
    return Size(
        name=name,
        model={"model_type": "llama", "hidden_size": hidden, "num_hidden_layers": layers},
        parameters=parameters,
        non_embedding_parameters=parameters // 2,
        layers=layers,
        hidden=hidden,
        kv_heads=4,
        head_dim=32,
    )


def size_result(name: str, seeds: list[int], gain: float, spread: float, kind: str) -> SizeResult:
    base = final(name)
    if kind == "missing":
        return SizeResult(
            size=name,
            parameters=LADDER[name][0],
            pairs=0,
            baseline_loss=None,
            candidate_loss=None,
            baseline_bits_per_byte=None,
            candidate_bits_per_byte=None,
            differences=[],
            seeds=[],
            gain=None,
            gain_bits_per_byte=None,
            data_saved=None,
            throughput_ratio=None,
            time_saved=None,
            memory_ratio=None,
            note="no_pairs",
        )
    alone = kind == "one_pair"
    saved = saved_share(gain)

    def of(value: float, wide: float) -> Estimate:
        return Estimate(value=value, n=1) if alone else estimate(value, wide, len(seeds))

    return SizeResult(
        size=name,
        parameters=LADDER[name][0],
        pairs=len(seeds),
        baseline_loss=of(base, 0.04),
        candidate_loss=of(base - gain, 0.03),
        baseline_bits_per_byte=base / 2.2,
        candidate_bits_per_byte=(base - gain) / 2.2,
        differences=[gain + spread * shift for shift in (-0.4, 0.1, 0.3)[: len(seeds)]],
        seeds=seeds,
        gain=of(gain, spread),
        gain_bits_per_byte=of(gain / 2.2, spread / 2.2),
        data_saved=of(saved, 0.05 + spread),
        throughput_ratio=of(0.93, 0.02),
        time_saved=of(1 - (1 - saved) / 0.93, 0.06 + spread),
        memory_ratio=1.03,
    )


def saved_share(gain: float) -> float:
    """Where the sample curves, without their noise, cross the other side's end."""
    steps = [step / 1000 for step in range(1, 1001)]
    reached = next(step for step in steps if falling(step) - abs(gain) * min(1.0, step * 2.5) <= falling(1.0))
    return math.copysign(1 - reached, gain)


def falling(share: float) -> float:
    """How far a sample curve is above its end after this share of the tokens."""
    return 2.6 * math.exp(-4.2 * share) + 0.25 * (1 - share)


def final(name: str) -> float:
    return 4.35 - 0.42 * math.log(LADDER[name][0] / 230_144)


def curve(arm: str, name: str, seed: int, gain: float) -> Curve:
    noise = random.Random(f"{arm}{name}{seed}")
    tokens = [TOKENS * step // 20 for step in range(1, 21)]
    wobble = noise.uniform(-0.03, 0.03)
    losses = []
    for count in tokens:
        share = count / TOKENS
        level = final(name) - gain * min(1.0, share * 2.5)
        losses.append(level + falling(share) - falling(1.0) + wobble + noise.uniform(-0.008, 0.008))
    return Curve(
        arm=arm,
        size=name,
        seed=seed,
        tokens=tokens,
        nats_per_token=losses,
        bits_per_byte=[x / 2.2 for x in losses],
    )


def heads(names: list[str], seeds: list[int], values_only: bool) -> list[TapHead]:
    draw = random.Random(7)
    centres = [(0.1, 0.95), (0.95, 0.05), (1.0, 0.0), (0.8, 0.2)]
    made = []
    for name in names:
        for seed in seeds:
            for layer in range(LADDER[name][1]):
                for head in range(4):
                    a, b = centres[head]
                    keys = [a + draw.gauss(0, 0.16), b + draw.gauss(0, 0.16)]
                    a, b = (centres[1], centres[0], centres[2], centres[3])[head]
                    values = [a + draw.gauss(0, 0.16), b + draw.gauss(0, 0.16)]
                    made.append(
                        TapHead(
                            size=name,
                            seed=seed,
                            layer=layer,
                            head=head,
                            keys=None if values_only else keys,
                            values=values,
                        )
                    )
    return made


def quadrants(taps: list[TapHead]) -> dict[str, int]:
    counts = dict.fromkeys(
        ("current_current", "previous_current", "current_previous", "previous_previous"), 0
    )
    for tap in taps:
        if tap.keys and tap.values:
            sides = ["current" if pair[0] > pair[1] else "previous" for pair in (tap.keys, tap.values)]
            counts["_".join(sides)] += 1
    return counts


def projection(gain: dict[str, float]) -> Projection:
    points = []
    for step in range(13):
        parameters = 230_144 * (8_536_320 / 230_144) ** (step / 12)
        value = gain["d64-L2"] - 0.1 * math.log10(parameters / 230_144)
        wide = 0.03 + 0.05 * abs(math.log10(parameters / 500_000))
        points.append({"parameters": parameters, "value": value, "low": value - wide, "high": value + wide})
    return Projection(slope_per_tenfold=estimate(-0.1, 0.07), points=points, measured_up_to=853_632)


def verdict(kind: str, overall: Estimate | None, spread: float) -> Verdict:
    values = {
        "margin": 0.012,
        "pairs": 9.0,
        "candidate_diverged": 0.0,
        "throughput_ratio": 0.93,
        "capped": 0.0,
    }
    if overall and overall.low is not None and overall.high is not None:
        values |= {"gain": overall.value, "low": overall.low, "high": overall.high}
    bigger = {"decision": "bigger_pilot", "decided": False, "next_budget_seconds": 2460.0, "values": values}
    made = {
        "bigger_pilot": Verdict(reason="undecided", **bigger),
        "slower": Verdict(reason="gain_but_slower", **{**bigger, "decided": True}),
        "missing": Verdict(reason="few_pairs", **{**bigger, "values": {"pairs": 0.0}}),
        "one_pair": Verdict(reason="few_pairs", **{**bigger, "values": {"pairs": 3.0}}),
        "diverged": Verdict(
            reason="candidate_unstable", **{**bigger, "values": {**values, "candidate_diverged": 2.0}}
        ),
        "no_benefit": Verdict(decision="no_benefit", decided=False, reason="null_precise", values=values),
        "self_test": Verdict(decision="no_benefit", decided=False, reason="null_precise", values=values),
        "harmful": Verdict(decision="harmful", decided=True, reason="harmful_clear", values=values),
    }
    return made.get(kind) or Verdict(decision="adopt", decided=True, reason="adopt_slower", values=values)


def runs(
    names: list[str], seeds: list[int], arms: list[str], gain: dict[str, float], kind: str
) -> list[RunRow]:
    made = []
    for name in names:
        for index, arm in enumerate(arms):
            for seed in seeds:
                status, error = "finished", None
                if kind == "missing":
                    status, error = (
                        "failed",
                        "The process was killed; most likely the machine ran out of memory.",
                    )
                elif kind == "diverged" and index == 1 and name == "d128-L3" and seed < 2:
                    status, error = "diverged", "The loss became NaN at step 211."
                loss = final(name) - (gain[name] if index else 0.0) if status == "finished" else None
                made.append(
                    RunRow(
                        name=f"{name}-{arm}-seed{seed}",
                        role="main",
                        arm=arm,
                        size=name,
                        seed=seed,
                        status=status,
                        error=error,
                        parameters=LADDER[name][0] + 48 * index,
                        tap_parameters=48 * index,
                        tokens=TOKENS,
                        final_nats_per_token=loss,
                        final_bits_per_byte=None if loss is None else loss / 2.2,
                        train_seconds=24.6,
                        wall_seconds=31.0,
                        tokens_per_second=49_900 - 3_000 * index,
                        peak_memory_bytes=920_000_000,
                    )
                )
    return made
