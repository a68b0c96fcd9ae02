"""What a bench found: bench.json. Times are seconds, sizes bytes, rates per second."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Status = Literal["timed", "not installed", "failed", "wrong", "left out"]
Direction = Literal["forward", "forward+backward"]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Spread(_Part):
    """Repeated measurements of one number."""

    median: float
    low: float = Field(description="the lower quartile")
    high: float = Field(description="the upper quartile")
    samples: list[float] = Field(description="every measurement, in the order they were taken")

    @classmethod
    def of(cls, samples: Sequence[float]) -> Spread:
        """The spread of at least one measurement."""
        median = statistics.median(samples)
        if len(samples) == 1:
            return cls(median=median, low=median, high=median, samples=list(samples))
        low, _, high = statistics.quantiles(samples, n=4, method="inclusive")
        return cls(median=median, low=low, high=high, samples=list(samples))

    @classmethod
    def of_ratios(cls, above: Spread, below: Spread) -> Spread:
        """`above` ÷ `below`, each measurement by the one of the same round."""
        return cls.of([a / b for a, b in zip(above.samples, below.samples, strict=True)])


class Machine(_Part):
    """Where, when and with what it was measured."""

    device: str = Field(description="the GPU's or the processor's name")
    kind: Literal["cuda", "cpu"]
    threads: int = Field(description="CPU threads of PyTorch")
    memory_bytes: int | None = Field(description="of the GPU; None on a CPU")
    cache_bytes: int = Field(description="the last cache before memory; buffers that rotate exceed it")
    python: str
    packages: dict[str, str] = Field(description="versions, of peers too where they are installed")
    commit: str | None = Field(description="of the checkout that ran, + if it had changes; None: none")
    started: str = Field(description="UTC, ISO 8601")


class Bandwidth(_Part):
    """Copying one large buffer into another: what every operator is measured against."""

    bytes_per_second: Spread = Field(description="bytes read and bytes written, together")
    buffer_bytes: int


class Row(_Part):
    """One measurement, or the reason why there is none."""

    status: Status
    reason: str | None = Field(default=None, description="why it was not timed, or what to know about it")


class OperatorRow(Row):
    """One way of computing one operator at one shape."""

    operator: str
    shape: tuple[int, int, int, int] = Field(description="batch, time, KV heads, head dimension")
    query_heads: int
    packed: bool = Field(description="several sequences in a row, beginning at random places")
    dtype: str
    direction: Direction
    contender: str = Field(description="`kvshift`, or a peer's name")
    work: Literal["ours", "same", "less"] = Field(description="how much a peer computes of what ours does")
    error: float | None = Field(
        default=None, description="‖result - exact‖ ÷ ‖exact‖, the largest of all results and gradients"
    )
    launched: Spread | None = Field(default=None, description="a call, launched from Python")
    device: Spread | None = Field(default=None, description="a call, replayed in a CUDA graph")
    floor_bytes: int = Field(description="the fewest bytes ours must move")
    floor: float | None = Field(default=None, description="floor_bytes ÷ copy bandwidth")
    share: float | None = Field(default=None, description="floor ÷ time: what was reached of copy bandwidth")
    over_ours: Spread | None = Field(default=None, description="time ÷ ours, round by round")

    @property
    def time(self) -> Spread | None:
        """What it takes: on the device where that was measured."""
        return self.device or self.launched


class StepRow(Row):
    """Training steps of one arm in one configuration."""

    configuration: str
    layers: int
    of_layers: int = Field(description="of the whole configuration")
    batch: int
    length: int
    mode: Literal["eager", "compiled"]
    arm: str
    parameters: int | None = None
    seconds: Spread | None = Field(default=None, description="one step: forward, backward, optimizer")
    tokens_per_second: float | None = None
    peak_bytes: int | None = Field(default=None, description="allocated at once on the GPU during a step")
    ready_seconds: float | None = Field(default=None, description="until the first step was done: compiling")
    over_vanilla: Spread | None = Field(default=None, description="time ÷ vanilla's, round by round")
    memory_over_vanilla: float | None = None


class DecodingRow(Row):
    """Generation by one arm."""

    configuration: str
    layers: int
    of_layers: int
    way: str = Field(description="how: see docs/guides/bench.md")
    batch: int
    prompt: int
    new: int = Field(description="tokens generated a sequence")
    arm: str
    seconds: Spread | None = Field(default=None, description="all new tokens of a batch")
    tokens_per_second: float | None = None
    over_vanilla: Spread | None = Field(default=None, description="tokens/s ÷ vanilla's, round by round")
    same_tokens: bool | None = Field(default=None, description="as vanilla, whose outputs it should have")


class BenchResult(BaseModel):
    """Everything. Written after every section, so that a bench that was killed keeps what it has."""

    model_config = ConfigDict(extra="forbid")

    version: Literal[1] = 1
    command: str
    machine: Machine
    quick: bool
    finished: bool = False
    seconds: float = Field(default=0, description="since it began")
    bandwidth: Bandwidth | None = None
    operators: list[OperatorRow] = []
    steps: list[StepRow] = []
    decoding: list[DecodingRow] = []
    notes: list[str] = []
