"""The models of these tests: each is loaded, and compiled, once."""

import pytest

from jaxserve.build import LoadedModel
from tests.data import checkpoint
from tests.end_to_end.world import MAX_NUM_SEQS, Golden, goldens, load


@pytest.fixture(scope="session")
def stories() -> LoadedModel:
    """A trained Llama of 260 thousand parameters, warm, with room for a batch of 32."""
    return load(checkpoint("stories260K-hf"), max_num_seqs=MAX_NUM_SEQS, max_num_batched_tokens=64)


@pytest.fixture(scope="session")
def stories_goldens() -> list[Golden]:
    return goldens("stories260K-hf")
