"""How kernels are simulated on a CPU, for tests.

Read when a program is traced: what jit has traced before stays as it was.
"""

from contextvars import ContextVar

# Whether simulated kernels look for races between their copies and the rest.
detect_races: ContextVar[bool] = ContextVar("detect_races", default=False)
# Whether the copies of a simulated TPU are done when they are started, and not when they are waited
# for: the two ends of what may happen.
eager_copies: ContextVar[bool] = ContextVar("eager_copies", default=False)
