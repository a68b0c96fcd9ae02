"""Decoding: tokens a second of every arm on the same weights, in turns."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import CompileConfig, PreTrainedModel, StaticCache

from kvshift.bench.arms import ARMS, BASELINE, Arm
from kvshift.bench.attempts import Failure, attempt, release_memory
from kvshift.bench.configurations import Configuration, build
from kvshift.bench.schema import DecodingRow, Spread
from kvshift.bench.timing import Stopwatch, stopwatch, take_turns
from kvshift.bench.watch import LEFT_OUT, Watch

Decoder = Callable[[], tuple[float, Tensor]]
"""Decodes once; the seconds it took and the new tokens, `(batch, new)`."""


@dataclasses.dataclass(frozen=True)
class Job:
    """What every arm decodes."""

    prompt: Tensor
    """`(batch, time)` tokens."""
    new: int


@dataclasses.dataclass(frozen=True)
class Way:
    """One way of decoding."""

    name: str
    ready: Callable[[PreTrainedModel, Job, Stopwatch], Decoder]
    most_batch: int | None = None
    """Left out where the batch is larger."""
    quick: bool = True
    compiles: bool = False
    """On a CPU too."""


def _generate(model: PreTrainedModel, job: Job, time: Stopwatch, **settings: Any) -> Decoder:
    made: list[Tensor] = []

    def run() -> None:
        tokens: Any = model.generate(
            job.prompt,
            attention_mask=torch.ones_like(job.prompt),
            do_sample=False,
            max_new_tokens=job.new,
            min_new_tokens=job.new,
            pad_token_id=0,
            **settings,
        )
        made[:] = [tokens[:, job.prompt.shape[1] :]]

    def decode() -> tuple[float, Tensor]:
        return time(run), made[0]

    return decode


def _by_generate(model: PreTrainedModel, job: Job, time: Stopwatch) -> Decoder:
    """The library's `generate`, which compiles its steps on a GPU, with CUDA graphs; prompt included."""
    settings: dict[str, Any] = {"cache_implementation": "static"}
    if job.prompt.is_cuda:  # elsewhere the library does not compile, and warns if told how to
        settings["compile_config"] = CompileConfig(fullgraph=True, dynamic=False, mode="reduce-overhead")
    return _generate(model, job, time, **settings)


def _by_generate_eager(model: PreTrainedModel, job: Job, time: Stopwatch) -> Decoder:
    """The library's `generate` with the cache that grows, not compiled; prompt included."""
    return _generate(model, job, time, cache_implementation="dynamic")


def _by_loop(model: PreTrainedModel, job: Job, time: Stopwatch) -> Decoder:
    """A compiled step with CUDA graphs in the barest loop; the prompt is not timed.

    What `generate` does between two steps, which is the same for all arms, is left out.
    """
    batch, past = job.prompt.shape
    cache = StaticCache(config=model.config, max_cache_len=past + job.new)
    mode = "reduce-overhead" if job.prompt.is_cuda else None
    compiled: Any = torch.compile(model, fullgraph=True, dynamic=False, mode=mode)
    positions = [
        torch.full((batch, 1), place, device=job.prompt.device) for place in range(past, past + job.new)
    ]

    @torch.no_grad()
    def decode() -> tuple[float, Tensor]:
        cache.reset()
        logits = model(job.prompt, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
        tokens = [logits[:, -1:].argmax(-1)]

        def steps() -> None:
            for position in positions[:-1]:
                torch.compiler.cudagraph_mark_step_begin()
                made = compiled(
                    input_ids=tokens[-1], position_ids=position, past_key_values=cache, use_cache=True
                )
                tokens.append(made.logits[:, -1:].argmax(-1))

        seconds = time(steps)
        return seconds * job.new / (job.new - 1), torch.cat(tokens, 1)  # the prompt's own token is not timed

    return decode


WAYS = (
    Way("static cache, compiled loop", _by_loop, compiles=True),
    Way("static cache, generate", _by_generate, most_batch=1),
    Way("dynamic cache, generate", _by_generate_eager, most_batch=1, quick=False),
)


@dataclasses.dataclass(frozen=True)
class Effort:
    """How much is decoded."""

    batches: tuple[int, ...]
    prompt: int
    new: int
    rounds: int
    most_seconds: float
    """For all arms of a way and batch, without compiling."""


def measure_decoding(
    configuration: Configuration,
    device: torch.device,
    dtype: torch.dtype,
    effort: Effort,
    watch: Watch,
    *,
    layers: int | None = None,
    ways: Sequence[Way] = WAYS,
    arms: Sequence[Arm] = ARMS,
) -> Iterator[DecodingRow]:
    """Every arm in every way at every batch, when that is done; an arm that fails has a row that says why."""
    arms = [arm for arm in arms if arm.decoded]
    built = min(layers or configuration.layers, configuration.built_layers or configuration.layers)
    length = max(effort.prompt + effort.new, configuration.length)
    vanilla = build(configuration, built, device, dtype, length).eval()
    for way, batch in parts_of(ways, effort):
        torch.compiler.reset()  # what another batch compiled counts against this one
        watch.now(f"{configuration.name} {way.name}, batch {batch}")
        tokens = torch.randint(configuration.vocabulary, (batch, effort.prompt), device=device)
        part = _Part(configuration, built, way, Job(tokens, effort.new), effort, watch)
        yield from part.measure(vanilla, arms)
        watch.done()
        release_memory()


def parts_of(ways: Sequence[Way], effort: Effort) -> list[tuple[Way, int]]:
    """Each way with each of its batches."""
    return [(way, batch) for way in ways for batch in effort.batches if batch <= (way.most_batch or batch)]


@dataclasses.dataclass(frozen=True)
class _Part:
    """One way and batch."""

    configuration: Configuration
    layers: int
    way: Way
    job: Job
    effort: Effort
    watch: Watch

    def measure(self, vanilla: PreTrainedModel, arms: Sequence[Arm]) -> list[DecodingRow]:
        time = stopwatch(self.job.prompt.device)
        decoders: dict[str, Decoder] = {}
        made: dict[str, Tensor] = {}
        failures: dict[str, Failure] = {}
        for arm in arms:
            if self.watch.over and arm.name != BASELINE:
                failures[arm.name] = LEFT_OUT
                continue
            outcome = attempt(partial(self._ready, arm, vanilla, time))
            if outcome.value is not None:
                decoders[arm.name], made[arm.name] = outcome.value
            else:
                failures[arm.name] = outcome.failure or LEFT_OUT
                self.watch.failed(self._name(arm.name), failures[arm.name])
        turns = {name: partial(_seconds, decoder) for name, decoder in decoders.items()}
        outcome_ = attempt(
            lambda: take_turns(turns, rounds=self.effort.rounds, seconds=self.effort.most_seconds)
        )
        if outcome_.failure is not None:
            self.watch.failed(self._name("in turns"), outcome_.failure)
            failures |= dict.fromkeys(decoders, outcome_.failure)
        taken = outcome_.value or {}
        return [self._row(arm.name, failures.get(arm.name), taken, made) for arm in arms]

    def _ready(self, arm: Arm, vanilla: PreTrainedModel, time: Stopwatch) -> tuple[Decoder, Tensor]:
        """A decoder that has compiled what it needs, and what it decoded."""
        decoder = self.way.ready(arm.make(vanilla).eval(), self.job, time)

        def decode() -> tuple[float, Tensor]:
            with arm.inside(vanilla.device):
                return decoder()

        for _ in range(3):  # compiles, warms up, records its CUDA graphs
            _, made = decode()
        return decode, made

    def _row(
        self, arm: str, failure: Failure | None, taken: dict[str, Spread], made: dict[str, Tensor]
    ) -> DecodingRow:
        row = DecodingRow(
            status="timed" if failure is None else failure.status,
            reason=None if failure is None else failure.reason,
            configuration=self.configuration.name,
            layers=self.layers,
            of_layers=self.configuration.layers,
            way=self.way.name,
            batch=self.job.prompt.shape[0],
            prompt=self.job.prompt.shape[1],
            new=self.job.new,
            arm=arm,
        )
        if failure is not None:
            return row
        rate = self.job.prompt.shape[0] * self.job.new / taken[arm].median
        row = row.model_copy(update={"seconds": taken[arm], "tokens_per_second": rate})
        if arm == BASELINE or BASELINE not in taken:
            return row
        over = Spread.of_ratios(taken[BASELINE], taken[arm])
        same = bool(torch.equal(made[arm], made[BASELINE]))
        return row.model_copy(update={"over_vanilla": over, "same_tokens": same})

    def _name(self, arm: str) -> str:
        batch = self.job.prompt.shape[0]
        return f"{self.configuration.name} {self.way.name}, batch {batch}, {arm}"


def _seconds(decoder: Decoder) -> float:
    return decoder()[0]
