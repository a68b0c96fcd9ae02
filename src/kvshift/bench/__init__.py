"""How fast the shift is on this machine: operators against their byte floor, training steps, decoding."""

from kvshift.bench.run import run_bench
from kvshift.bench.schema import BenchResult
from kvshift.bench.settings import Settings

__all__ = ["BenchResult", "Settings", "run_bench"]
