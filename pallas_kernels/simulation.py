"""Settings for simulating kernels on a CPU, for tests.

They are read when a program is traced, so functions that jit has already traced do not change.
"""

from contextvars import ContextVar

# Whether simulated kernels detect races between copies and other memory accesses.
detect_races: ContextVar[bool] = ContextVar("detect_races", default=False)
# Whether copies on a simulated TPU complete when they are started, the earliest possible time, or
# when they are waited for, the latest.
eager_copies: ContextVar[bool] = ContextVar("eager_copies", default=False)
