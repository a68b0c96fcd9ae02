"""Reading a model: its learned taps, and the induction scores of its heads."""

from kvshift.inspection.inspect import inspect_model
from kvshift.inspection.schema import Inspection

__all__ = ["Inspection", "inspect_model"]
