"""How kernels are simulated on a CPU, for tests: one switch."""

from contextvars import ContextVar

# Whether simulated kernels look for races between their copies and the rest. Read when a program is
# traced: what jit has traced before stays as it was.
detect_races: ContextVar[bool] = ContextVar("detect_races", default=False)
