"""One run: recipe → Trainer → record."""

from kvshift.training.model import build_model
from kvshift.training.recipe import Recipe
from kvshift.training.record import (
    EvaluationPoint,
    Record,
    RecordWriter,
    Status,
    StepPoint,
    TapsPoint,
    read_record,
)
from kvshift.training.run import Progress, run
from kvshift.training.speed import Speed, measure_speed

__all__ = [
    "EvaluationPoint",
    "Progress",
    "Recipe",
    "Record",
    "RecordWriter",
    "Speed",
    "Status",
    "StepPoint",
    "TapsPoint",
    "build_model",
    "measure_speed",
    "read_record",
    "run",
]
