"""Model description that an engine sends before it loads the model."""

from typing import Any

import pytest

from jaxserve.commands.engine_process import load
from jaxserve.config.engine import EngineOptions
from jaxserve.processes.api import served_model
from jaxserve.processes.messages import Hello
from tests.server.world import World


class KnownError(Exception):
    """All that is wanted is known."""


def hello(**options: Any) -> Hello:
    found: list[Hello] = []

    def plan(said: Hello) -> None:
        found.append(said)
        raise KnownError

    with pytest.raises(KnownError):
        load(EngineOptions(max_model_len=64, max_num_seqs=2, **options), plan)
    return found[0]


def fingerprint(world: World, said: Hello) -> str:
    return served_model(said, world.client, world.tokenizer, world.config).system_fingerprint


def test_a_fingerprint_tells_whether_answers_can_differ() -> None:
    with World() as world:
        plain = fingerprint(world, hello())
        assert fingerprint(world, hello()) == plain
        others = [
            fingerprint(world, hello(**options))
            for options in (
                {"quantization": "int8"},
                {"dtype": "bfloat16"},
                {"override_generation_config": {"top_k": 7}},
                {"linear_backend": "xla"},
            )
        ]
    assert len({plain, *others}) == 5


def test_a_model_is_as_old_in_every_process() -> None:
    said = hello()
    with World() as world:
        ages = {
            served_model(said, world.client, world.tokenizer, world.config).created
            for _ in range(2)
        }
    assert ages == {said.created}
