"""How long kernel rows take on a cluster's device: measured shapes first, physics behind them."""

from hwprofiles.timing.answer import time_kernels
from hwprofiles.timing.rows import TIMED, TIMES, Rows
from hwprofiles.timing.rules import RULES

__all__ = ["RULES", "TIMED", "TIMES", "Rows", "time_kernels"]
