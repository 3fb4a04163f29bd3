"""Answers of the engine to a request."""

from typing import Any

from jaxserve.api.request import TokenEvent
from tests.engine.world import World, request

LONG = tuple(range(10, 34))


def last_event(world: World, name: str = "a", index: int = 0) -> TokenEvent:
    last = world.answers[name, index].last
    assert last is not None
    return last


def unstopped(**params: Any) -> list[int]:
    """Output of the same request when nothing stops it."""
    world = World()
    world.run(request("a", (1, 2, 3), ignore_eos=True, **params))
    return world.output()
