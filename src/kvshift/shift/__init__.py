"""The mechanism: definition, parameters, configuration. Pure tensors, readable in five minutes."""

from kvshift.shift.config import TAP_LEARNING_RATE, KVShiftConfig
from kvshift.shift.definition import ShiftState, kv_shift, shift
from kvshift.shift.parameters import KVShift

__all__ = ["TAP_LEARNING_RATE", "KVShift", "KVShiftConfig", "ShiftState", "kv_shift", "shift"]
