"""The outcome of a pilot: the schema of `report.json`. The analysis writes it, the report shows it."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from kvshift.pilot.notes import Note
from kvshift.pilot.settings import Arm, PilotSettings, Size

RESULTS_VERSION = 2
Decision = Literal["adopt", "bigger_pilot", "no_benefit", "harmful"]


class Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Estimate(Model):
    """A number with its 95% interval. `low` and `high` are None where an interval cannot be had."""

    value: float
    low: float | None = None
    high: float | None = None
    n: int = 0  # pairs behind it

    @property
    def side(self) -> int:
        """1: the interval lies above zero, −1: below; 0: it holds zero, as one without that end does."""
        if self.low is not None and self.low > 0:
            return 1
        return -1 if self.high is not None and self.high < 0 else 0

    @property
    def clear_of_zero(self) -> bool:
        """Whether the interval lies on one side of zero."""
        return self.side != 0

    @property
    def turned(self) -> Estimate:
        """The same told the other way round: a loss for a gain."""
        low, high = (None if end is None else -end for end in (self.high, self.low))
        return Estimate(value=-self.value, low=low, high=high, n=self.n)


class Curve(Model):
    """One run's validation loss."""

    arm: str
    size: str
    seed: int
    tokens: list[int]
    nats_per_token: list[float]
    bits_per_byte: list[float]


class SizeResult(Model):
    """The comparison at one size. Gains are baseline minus candidate: positive is better."""

    size: str
    parameters: int
    pairs: int
    baseline_loss: Estimate | None  # nats a token, mean over seeds
    candidate_loss: Estimate | None
    baseline_bits_per_byte: float | None
    candidate_bits_per_byte: float | None
    differences: list[float]  # a pair each, nats a token, in the order of `seeds`
    seeds: list[int]
    gain: Estimate | None  # nats a token
    gain_bits_per_byte: Estimate | None
    data_saved: Estimate | None  # share of tokens
    data_saved_planned: bool = False  # from runs planned at a shorter length; False: from the curves
    curve_data_saved: Estimate | None = None  # what the main runs' curves say
    throughput_ratio: Estimate | None  # candidate ÷ baseline tokens per second
    time_saved: Estimate | None  # share of training time
    memory_ratio: float | None  # candidate ÷ baseline peak memory
    note: str | None = None  # a message key, when something above is None


class DataSavedCheck(Model):
    """Candidate runs planned at a shorter length against the baseline at full length."""

    size: str
    share: float  # of the tokens
    gain: Estimate  # baseline at full length minus candidate at the short length, nats a token
    data_saved: Estimate | None  # interpolated between planned lengths; lower end open if never reached
    curve_data_saved: Estimate | None  # what the main runs' curves said at this size
    agrees: bool


class ModelSaved(Model):
    """How much smaller a candidate reaches the largest baseline's loss; inside the ladder only."""

    reference_size: str
    reference_parameters: int
    parameters: Estimate | None  # share of parameters saved
    matching_parameters: float | None
    inference_compute: float | None  # share of FLOPs per generated token saved
    kv_cache: float | None  # share of KV-cache bytes a token saved
    bound: Literal["inside", "at_least", "none"]  # at_least: even the smallest candidate is better


class Projection(Model):
    """Gain against the logarithm of size, a line fitted to three sizes or more."""

    slope_per_tenfold: Estimate  # nats a token for ten times the parameters
    points: list[dict[str, float]]  # parameters, value, low, high; up to ten times the largest size
    measured_up_to: float


class Cost(Model):
    currency: str
    price_per_hour: float
    pilot: float  # what this pilot cost
    baseline_run: float  # one run at the largest size
    saved_per_run: Estimate | None
    saved_per_thousand: Estimate | None  # of each 1,000 spent on training


class Verdict(Model):
    decision: Decision
    decided: bool  # False: the interval spans zero
    reason: str  # a message key in the report's texts
    values: dict[str, float] = {}  # what that message needs
    next_budget_seconds: float | None = None  # for bigger_pilot: the budget that would decide it


class RunRow(Model):
    """One line of runs.csv."""

    name: str
    role: str
    arm: str
    size: str
    seed: int
    status: str
    error: str | None
    parameters: int
    tap_parameters: int
    tokens: int
    final_nats_per_token: float | None
    final_bits_per_byte: float | None
    train_seconds: float
    wall_seconds: float
    tokens_per_second: float
    peak_memory_bytes: int


class TapHead(Model):
    """One KV head's taps at the end, averaged over nothing: a row for each run, layer and head."""

    size: str
    seed: int
    layer: int
    head: int
    keys: list[float] | None  # current, previous, …
    values: list[float] | None


class AddedCost(Model):
    """What adding the shift costs at the ladder's top."""

    parameters: int
    parameters_share: float
    state_bytes_per_sequence: int  # beside the KV cache, in 16-bit numbers
    throughput_ratio: Estimate | None
    memory_ratio: float | None
    lines_of_code: int
    user_model: str | None  # the architecture of --model
    user_model_supported: bool | None


class Results(Model):
    """A pilot, decided."""

    version: int = RESULTS_VERSION
    settings: PilotSettings
    arms: tuple[Arm, Arm]
    sizes: list[Size]
    tokens: int
    seeds: list[int]
    verdict: Verdict
    overall_gain: Estimate | None  # nats a token, averaged over sizes
    by_size: list[SizeResult]
    check: DataSavedCheck | None
    model_saved: ModelSaved | None
    projection: Projection | None
    cost: Cost | None
    added: AddedCost
    curves: list[Curve]
    taps: list[TapHead]
    quadrants: dict[str, int]  # paper, Table 4: "current_current" (α1>α2 & β1>β2), "previous_current"
    # (the induction quadrant), "current_previous", "previous_previous"; over the candidate's main runs
    runs: list[RunRow]
    data: dict[str, Any] = Field(
        default_factory=dict
    )  # TextData.summary(): documents, tokens, bytes, skipped
    recipe: dict[str, Any] = Field(
        default_factory=dict
    )  # a main run's recipe at the largest size, `data`, `model`, `shift` and `seed` left out
    device: str
    versions: dict[str, str]
    seconds: float  # the whole pilot's wall time, summed over resumes
    peak_memory_bytes: int
    warnings: list[Note] = []  # what to know before believing this; the report has the words
    created: str  # ISO 8601, UTC
