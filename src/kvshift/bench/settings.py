"""What a bench measures: checked before anything long, and the tables behind `--quick`."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from kvshift.bench import configurations, decoding, operators, steps
from kvshift.bench.arms import ARMS, BASELINE, Arm
from kvshift.bench.configurations import CONFIGURATIONS, Configuration
from kvshift.errors import UsageError

SECTIONS = ("operators", "steps", "decoding")


@dataclass(frozen=True)
class Settings:
    """What the user chose."""

    device: str
    """`cuda` or `cpu`."""
    only: tuple[str, ...] = SECTIONS
    models: tuple[str, ...] | None = None
    """Names of configurations. None: those that suit the device."""
    arms: tuple[str, ...] | None = None
    """Names of arms, which vanilla joins. None: all."""
    only_modes: tuple[str, ...] | None = None
    """Of training steps: `eager`, `compiled`. None: those that suit the device."""
    layers: int | None = None
    """At most so many in each configuration."""
    quick: bool = False
    minutes: float | None = None
    """After which nothing more is begun. None: as long as it takes, or two for a quick bench."""

    def __post_init__(self) -> None:
        if unknown := [name for name in self.only if name not in SECTIONS]:
            raise UsageError(
                f"There is no section {unknown[0]!r} of the bench; there are {', '.join(SECTIONS)}."
            )
        known = ", ".join(CONFIGURATIONS)
        if unknown := [name for name in self.models or () if name not in CONFIGURATIONS]:
            raise UsageError(f"There is no configuration {unknown[0]!r}; there are {known}.")
        known = ", ".join(arm.name for arm in ARMS)
        if unknown := [name for name in self.arms or () if name not in {arm.name for arm in ARMS}]:
            raise UsageError(f"There is no arm {unknown[0]!r}; there are {known}.")
        if unknown := [name for name in self.only_modes or () if name not in steps.MODES]:
            raise UsageError(f"There is no mode {unknown[0]!r}; there are {', '.join(steps.MODES)}.")
        if self.layers is not None and self.layers < 1:
            raise UsageError(f"{self.layers} layers; expected 1 or more.")
        if self.device not in ("cuda", "cpu"):
            raise UsageError(f"The device is {self.device!r}; expected cuda or cpu.")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise UsageError(
                "This machine has no CUDA GPU that PyTorch can use. Bench its CPU: --device cpu."
            )

        self._check_that_something_is_measured()

    def _check_that_something_is_measured(self) -> None:
        """In each section that was asked for by its name."""
        others = [arm for arm in self.compared if arm.name != BASELINE]
        for section, models, arms in (
            ("steps", self.trained, [arm for arm in others if arm.trained]),
            ("decoding", self.decoded, [arm for arm in others if arm.decoded]),
        ):
            if section in self.only and self.only != SECTIONS and not (models and arms):
                what = "arm beside vanilla" if models else "configuration"
                raise UsageError(f"No {what} that was named has {section} to measure; leave {section} out.")

    @property
    def on_gpu(self) -> bool:
        return self.device == "cuda"

    @property
    def dtype(self) -> torch.dtype:
        """Of rows and weights."""
        return torch.bfloat16 if self.on_gpu else torch.float32

    @property
    def budget(self) -> float | None:
        """Seconds after which nothing more is begun; what was begun before may take some more."""
        if self.minutes is not None:
            return 60 * self.minutes
        if not self.quick:
            return None
        return 100.0 if self.on_gpu else 50.0

    @property
    def trained(self) -> tuple[Configuration, ...]:
        """The configurations whose steps are measured."""
        return tuple(each for each in self._chosen(self.models) if each.trained)

    @property
    def decoded(self) -> tuple[Configuration, ...]:
        """The configurations whose decoding is measured: one of the paper's, unless others are named."""
        default = configurations.DECODED_ON_GPU if self.on_gpu else None
        return tuple(each for each in self._chosen(self.models or default) if each.decoded)

    def _chosen(self, models: tuple[str, ...] | None) -> tuple[Configuration, ...]:
        """In the table's order."""
        default: tuple[str, ...] = configurations.ON_CPU
        if self.on_gpu:
            default = configurations.QUICK_ON_GPU if self.quick else configurations.ON_GPU
        names = models or default
        return tuple(each for name, each in CONFIGURATIONS.items() if name in names)

    @property
    def most_layers(self) -> int | None:
        """Of a configuration that is built."""
        return self.layers or (configurations.QUICK_LAYERS if self.quick else None)

    @property
    def modes(self) -> tuple[steps.Mode, ...]:
        """Of a training step; compiling takes longer than a quick bench of a CPU has."""
        if self.only_modes:
            return tuple(mode for mode in steps.MODES if mode in self.only_modes)
        return steps.MODES if self.on_gpu or not self.quick else ("eager",)

    @property
    def compared(self) -> tuple[Arm, ...]:
        """The arms, in their order."""
        return tuple(arm for arm in ARMS if self.arms is None or arm.name in (BASELINE, *self.arms))

    @property
    def ways(self) -> tuple[decoding.Way, ...]:
        """Of decoding."""
        if not self.quick:
            return decoding.WAYS
        if self.on_gpu:
            return tuple(way for way in decoding.WAYS if way.quick)
        return tuple(way for way in decoding.WAYS if way.quick and not way.compiles)

    @property
    def bandwidth_bytes(self) -> int:
        """Of the buffer that is copied."""
        return 1 << 30 if self.on_gpu else 1 << (26 if self.quick else 28)

    @property
    def operator_effort(self) -> operators.Effort:
        if self.quick:
            return operators.Effort(rounds=9, sample_seconds=0.003, most_seconds=3)
        return operators.Effort(rounds=21, sample_seconds=0.005, most_seconds=15)

    @property
    def step_effort(self) -> steps.Effort:
        if self.quick:
            return steps.Effort(rounds=5, steps=2, most_seconds=6)
        return steps.Effort(rounds=15, steps=2, most_seconds=60)

    @property
    def decoding_effort(self) -> decoding.Effort:
        batches = (1, 32) if self.on_gpu else (1, 4)
        if self.quick:
            return decoding.Effort(batches=batches[:1], prompt=64, new=32, rounds=5, most_seconds=4)
        return decoding.Effort(batches=batches, prompt=128, new=128, rounds=9, most_seconds=40)
