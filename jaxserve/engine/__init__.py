"""Scheduling: sequences, pages, the prefix cache, the scheduler and the engine's loop."""

from jaxserve.engine.engine import Engine as Engine
from jaxserve.engine.scheduler import Scheduler as Scheduler
