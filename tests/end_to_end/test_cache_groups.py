"""Real models whose layers keep less than every token: sliding windows and recurrent states."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from jaxserve.api.caches import Recurrent, StateArray
from jaxserve.build import LoadedModel
from jaxserve.execution.memory import tree_bytes
from jaxserve.layers.attention import attend_dense
from jaxserve.layers.linear import einsum
from jaxserve.layers.recurrent import States, WholeSequence
from jaxserve.loading.weights import load_model
from jaxserve.models import (
    Decoder,
    DecoderConfig,
    DecoderFamily,
    ForwardContext,
    _registered,
    bind,
    random_params,
    register_family,
)
from jaxserve.models.config import GroupedQuery
from jaxserve.models.declare import matrix
from tests.data import checkpoint
from tests.end_to_end.world import PAGE_SIZE, engine_for, load, request, serve

WINDOW = 64
# By hand, with 100_000: 3 minutes.
NUM_PROMPT = 6_000


def write(folder: Path, **changes: Any) -> Path:
    """Write the small checkpoint with other settings."""
    source = checkpoint("stories260K-hf")
    for path in source.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    config = json.loads((source / "config.json").read_text("utf-8"))
    (folder / "config.json").write_text(json.dumps(config | changes), "utf-8")
    return folder


def prompt(length: int, *, seed: int = 0) -> list[int]:
    """Return random tokens."""
    return [int(token) for token in np.random.default_rng(seed).integers(3, 500, length)]


def continued(model: Decoder, token_ids: Sequence[int], *, start: int, count: int) -> list[int]:
    """Return `count` greedy tokens after these, the first of which stands at `start`.

    The model sees these tokens only, all at once, and keeps nothing.
    """
    tokens = list(token_ids)
    length = len(tokens) + count
    caches = (None,) * model.config.num_layers

    @jax.jit
    def logits(padded: jax.Array) -> jax.Array:
        positions = jnp.arange(start, start + length)
        return model.logits(model.hidden(padded, positions, caches, attend_dense)[0])

    for _ in range(count):
        padded = jnp.array(tokens + [0] * (length - len(tokens)))
        tokens.append(int(logits(padded)[len(tokens) - 1].argmax()))
    return tokens[len(token_ids) :]


# Windows


@pytest.fixture(scope="module")
def windowed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of the Mistral family that sees 64 tokens in every layer."""
    return write(
        tmp_path_factory.mktemp("windowed"),
        model_type="mistral",
        sliding_window=WINDOW,
        max_position_embeddings=NUM_PROMPT + 100,
    )


def test_a_window_serves_a_prompt_of_many_times_its_pool(windowed: Path) -> None:
    """A prompt that is many times as long as the pool gets the tokens of the whole model."""
    loaded = load(
        windowed,
        num_pages=200,
        page_size=4,
        max_num_batched_tokens=128,
        max_num_seqs=2,
        warm_up="none",
    )
    assert loaded.plan.memory.num_pages * 4 < NUM_PROMPT
    prompt_ids = prompt(NUM_PROMPT)
    engine = engine_for(loaded)
    answer = serve(engine, [request("a", prompt_ids, max_tokens=20)])["a", 0]
    # A token depends on the windows of the layers below one another, and on nothing before those.
    model = load_model(windowed, dtype="float32")
    seen = model.config.num_layers * WINDOW
    expected = continued(model, prompt_ids[-seen:], start=NUM_PROMPT - seen, count=20)
    assert answer.token_ids == expected
    num_released = engine.engine.stats().num_released_pages
    assert num_released >= (NUM_PROMPT - WINDOW) // 4 - 1


def test_windows_among_full_layers_share_one_pool(tmp_path: Path) -> None:
    folder = write(
        tmp_path,
        model_type="qwen2",
        use_sliding_window=True,
        sliding_window=16,
        max_window_layers=2,
        num_hidden_layers=4,
    )
    loaded = load(folder, load_format="dummy", warm_up="none")
    plan = loaded.plan
    groups = plan.cache.groups
    assert [group.layers for group in groups] == [(0, 1), (2, 3)]
    assert len(plan.cache.num_pages) == 1
    assert len(plan.programs.cache) == 2
    _check_against_whole(loaded)


# Recurrent states

DECAY = 0.8


class Mean(nnx.Module):
    """A mixer in place of attention: each channel is a decaying mean of the tokens so far."""

    def __init__(self, config: DecoderConfig, mixer: "Decaying") -> None:
        self.mixer = mixer
        self.values = matrix("embed", embed=config.embed, pooled=config.embed)
        self.out = matrix("pooled", pooled=config.embed, embed=config.embed)

    def __call__(
        self, x: jax.Array, cache: States | None, context: ForwardContext[Any]
    ) -> tuple[jax.Array, States]:
        states = WholeSequence(self.mixer.cache, x.shape[0]) if cache is None else cache

        def update(means: jax.Array, token: tuple[jax.Array, jax.Array]) -> Any:
            value, sequence = token
            mean = DECAY * means[sequence] + (1 - DECAY) * value
            return means.at[sequence].set(mean, mode="drop"), mean

        values = einsum("td,de->te", x, self.values[...], context.rows)
        means, mixed = lax.scan(update, states.read()[0], (values, states.row_sequences))
        out = einsum("te,ed->td", mixed, self.out[...], context.rows)
        return out, states.write((means,))


@dataclass(frozen=True, kw_only=True)
class Decaying:
    """Description of `Mean`; see models.config.Mixer."""

    embed: int
    module: ClassVar[Any] = Mean
    sliding_window: ClassVar[None] = None
    rope: ClassVar[None] = None

    @property
    def cache(self) -> Recurrent:
        return Recurrent((StateArray((self.embed,), "float32", ("embed",)),))

    @property
    def stored(self) -> "Decaying":
        return self

    def fitted(self, devices: int) -> "Decaying":
        del devices
        return self

    def divides(self, devices: int) -> None:
        del devices

    def attention(self, **_device: Any) -> None:
        return None

    def row_bytes(self, *, devices: int, itemsize: int) -> int:
        del devices
        return 2 * self.embed * itemsize

    def pair_flops(self, *, devices: int) -> int:
        del devices
        return 0

    def key_bytes(self, *, devices: int, itemsize: int) -> int:
        del devices, itemsize
        return 0


class HybridFamily(DecoderFamily):
    """States in every other layer, and a window in the last."""

    def config_from_hf(self, hf: Mapping[str, object]) -> DecoderConfig:
        config = super().config_from_hf(hf)
        state, paged, window = Decaying(embed=config.embed), config.layers[1], config.layers[3]
        assert isinstance(window.mixer, GroupedQuery)
        layers = (
            replace(config.layers[0], mixer=state),
            paged,
            replace(config.layers[2], mixer=state),
            replace(window, mixer=replace(window.mixer, sliding_window=24)),
        )
        return replace(config, layers=layers)


@pytest.fixture(scope="module")
def hybrid(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoadedModel]:
    register_family("hybrid", HybridFamily())
    folder = tmp_path_factory.mktemp("hybrid")
    write(folder, model_type="hybrid", num_hidden_layers=4)
    # Not the folder's own: transformers does not know this type of model.
    tokenizer = str(checkpoint("stories260K-hf"))
    yield load(folder, load_format="dummy", num_pages=60, warm_up="none", tokenizer=tokenizer)
    del _registered["hybrid"]


def _check_against_whole(loaded: LoadedModel) -> None:
    """Assert that prompts of all lengths, computed together, get the whole model's tokens."""
    plan = loaded.plan
    assert isinstance(plan.model, DecoderConfig)
    model = bind(plan.model, random_params(plan.model, plan.layout, seed=plan.options.seed))
    prompts = [prompt(length, seed=length) for length in (1, 7, 8, 33, 70)]
    requests = [request(str(i), each, max_tokens=12) for i, each in enumerate(prompts)]
    answers = serve(engine_for(loaded), requests, arrivals_per_step=1)
    for i, each in enumerate(prompts):
        assert answers[str(i), 0].token_ids == continued(model, each, start=0, count=12)


def test_states_paged_layers_and_windows_compute_what_the_whole_model_does(
    hybrid: LoadedModel,
) -> None:
    assert [len(group.layers) for group in hybrid.plan.cache.groups] == [2, 1, 1]
    assert len(hybrid.plan.cache.num_pages) == 2
    _check_against_whole(hybrid)


def test_every_turn_of_a_chat_starts_from_a_checkpoint(hybrid: LoadedModel) -> None:
    engine = engine_for(hybrid)
    turn = prompt(40)
    turns: list[tuple[list[int], list[int]]] = []
    num_before = 1
    for number in range(4):
        found = serve(engine, [request(str(number), turn, max_tokens=9)])[str(number), 0]
        # All of the last turn, its answer included, but its last, incomplete page.
        assert found.num_cached_tokens == (num_before - 1) // PAGE_SIZE * PAGE_SIZE
        num_before = len(turn) + len(found.token_ids)
        turns.append((turn, found.token_ids))
        turn = [*turn, *found.token_ids, *prompt(7, seed=number)]
    # Afterwards, since all engines use the same pages of the device.
    for before, token_ids in turns:
        without = engine_for(hybrid, enable_prefix_caching=False)
        assert serve(without, [request("a", before, max_tokens=9)])["a", 0].token_ids == token_ids


def test_choices_and_preempted_sequences_get_the_tokens_of_a_sequence_alone(
    hybrid: LoadedModel,
) -> None:
    prompts = [prompt(50, seed=seed) for seed in range(6)]
    alone = [
        serve(engine_for(hybrid), [request("a", each, max_tokens=40)])["a", 0].token_ids
        for each in prompts
    ]
    pages = (hybrid.plan.cache.num_pages[0], 40)
    engine = engine_for(hybrid, num_pages=pages)
    requests = [request(str(i), each, max_tokens=40, n=2) for i, each in enumerate(prompts)]
    answers = serve(engine, requests)
    assert any(answer.num_preemptions for answer in answers.values())
    for (name, _), answer in answers.items():
        assert answer.token_ids == alone[int(name)]


def test_states_and_pages_are_updated_in_place(hybrid: LoadedModel) -> None:
    plan = hybrid.plan
    memory = plan.programs.compile(plan.abstract_params(), plan.shapes.shapes[0]).memory_analysis()
    assert memory is not None
    assert memory.alias_size_in_bytes >= tree_bytes(plan.programs.cache)
