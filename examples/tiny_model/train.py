"""Train the tiny model and write its Hugging Face folder: `python -m examples.tiny_model.train`.

The model is `jaxserve.models.qwen3` as it is served; the optimiser is optax. Everything is seeded.
"""

import argparse
import json
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax  # type: ignore[import-untyped]
from jax import Array
from transformers import PreTrainedTokenizerFast

from examples.tiny_model.corpus import training_texts
from examples.tiny_model.export import write_folder
from examples.tiny_model.tokenizer import END_OF_TEXT, TURN_END, TURN_START, render, train_tokenizer
from jaxserve.loading.weights import load_model
from jaxserve.models import DecoderConfig, Params, bind, config_from_hf, init_model, params_of

logger = logging.getLogger(__name__)

HISTORY = "training.json"  # in a folder: the schedule of each stage that made it
NUM_TOKENIZER_TEXTS = 20_000
ROW_LENGTHS = (48, 96, 192, 384, 640, 1024)  # tokens; a row takes the smallest that holds it
IGNORED_WEIGHT = 0.1  # of the tokens that the model does not have to say itself

HF_CONFIG: dict[str, object] = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "vocab_size": 2048,
    "hidden_size": 160,
    "intermediate_size": 480,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "hidden_act": "silu",
    "max_position_embeddings": 1024,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "use_sliding_window": False,
    "tie_word_embeddings": True,
    "initializer_range": 0.02,
    "use_cache": True,
}


@dataclass(frozen=True, slots=True)
class Schedule:
    """How long and how fast to train.

    The rates rise over `warmup_steps`, stay, and fall linearly over the last `decay_steps`.
    """

    seed: int = 1
    tokenizer_seed: int = 0
    num_steps: int = 4800
    decay_steps: int = 4700
    warmup_steps: int = 60
    tokens_per_step: int = 2048
    matrix_rate: float = 0.015
    other_rate: float = 0.003
    weight_decay: float = 0.05

    def rate(self, step: int) -> float:
        """Return the share of the full rates at a step, counted from 0."""
        left = self.num_steps - step
        return min(1.0, (step + 1) / self.warmup_steps, left / self.decay_steps)


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of tokens, padded at the end.

    token_ids: int32[rows, tokens]; weights: float32[rows, tokens], what predicting each token
    counts (the first of a row is never predicted).
    """

    token_ids: np.ndarray
    weights: np.ndarray


def token_weights(token_ids: np.ndarray, tokenizer: PreTrainedTokenizerFast) -> np.ndarray:
    """Weigh each token: 1 in what the assistant says, with the end of its turn, else less."""
    vocab = tokenizer.get_vocab()
    start, end, end_of_text = vocab[TURN_START], vocab[TURN_END], vocab[END_OF_TEXT]
    assistant = vocab["assistant"]
    if token_ids[-1] == end_of_text:
        return np.ones(len(token_ids), np.float32)
    weights = np.full(len(token_ids), IGNORED_WEIGHT, np.float32)
    for at in np.flatnonzero((token_ids[:-1] == start) & (token_ids[1:] == assistant)):
        first = at + 3  # after <|im_start|>, "assistant" and the line end
        last = first + int(np.argmax(token_ids[first:] == end))
        weights[first : last + 1] = 1.0
    return weights


def batches(seed: int, tokenizer: PreTrainedTokenizerFast, tokens_per_step: int) -> Iterator[Batch]:
    """Draw batches without end, each of rows of about one length."""
    waiting: dict[int, list[np.ndarray]] = {length: [] for length in ROW_LENGTHS}
    for text in training_texts(seed):
        ids = np.asarray(tokenizer.encode(render(text), add_special_tokens=False), np.int32)
        if len(ids) > ROW_LENGTHS[-1]:
            continue
        length = next(length for length in ROW_LENGTHS if len(ids) <= length)
        waiting[length].append(ids)
        if len(waiting[length]) * length >= tokens_per_step:
            token_ids = np.zeros((len(waiting[length]), length), np.int32)
            weights = np.zeros(token_ids.shape, np.float32)
            for row, ids in enumerate(waiting[length]):
                token_ids[row, : len(ids)] = ids
                weights[row, : len(ids)] = token_weights(ids, tokenizer)
            waiting[length].clear()
            yield Batch(token_ids, weights)


def make_optimizer(schedule: Schedule) -> optax.GradientTransformation:
    """Return Muon (Jordan et al., 2024) for the matrices and AdamW for the rest, at full rate."""
    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.contrib.muon(
            schedule.matrix_rate,
            weight_decay=schedule.weight_decay,
            adam_learning_rate=schedule.other_rate,
            adam_b2=0.98,
            muon_weight_dimension_numbers=_matrices,
        ),
    )


def _matrices(params: Params) -> Params:
    """Say which axes of a projection are summed over and which remain; None for the rest."""

    def describe(path: tuple[Any, ...], _: Array) -> optax.contrib.MuonDimensionNumbers | None:
        match path[-1]:
            case jax.tree_util.DictKey(key="qkv"):
                return optax.contrib.MuonDimensionNumbers((0,), (1, 2, 3))
            case jax.tree_util.DictKey(key="o"):
                return optax.contrib.MuonDimensionNumbers((0, 1), (2,))
            case jax.tree_util.DictKey(key="gate_up"):
                return optax.contrib.MuonDimensionNumbers((0,), (2,))
            case jax.tree_util.DictKey(key="down"):
                return optax.contrib.MuonDimensionNumbers((0,), (1,))
            case _:
                return None

    described: Params = jax.tree_util.tree_map_with_path(describe, params)
    return described


def loss(params: Params, config: DecoderConfig, token_ids: Array, weights: Array) -> Array:
    """Return the weighted mean cross-entropy of each token given those before it."""
    logits = bind(config, params)(token_ids[:, :-1])
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, token_ids[:, 1:])
    return jnp.sum(losses * weights[:, 1:]) / jnp.sum(weights[:, 1:])


def train(
    config: DecoderConfig,
    stream: Iterator[Batch],
    schedule: Schedule,
    *,
    start: Params | None = None,
    save: Callable[[Params], None] | None = None,
    save_every: int = 250,
    log_every: int = 25,
) -> tuple[Params, list[float]]:
    """Train `start`, or random parameters; returns the parameters and the loss of each step.

    save: is given the parameters every `save_every` steps, to look at while training goes on.
    """
    optimizer = make_optimizer(schedule)

    @jax.jit
    def step(
        params: Params, state: optax.OptState, token_ids: Array, weights: Array, rate: Array
    ) -> tuple[Params, optax.OptState, Array]:
        value, gradient = jax.value_and_grad(loss)(params, config, token_ids, weights)
        updates, state = optimizer.update(gradient, state, params)
        updates = jax.tree.map(lambda update: rate * update, updates)
        return optax.apply_updates(params, updates), state, value

    params = params_of(init_model(config, seed=schedule.seed)) if start is None else start
    state = optimizer.init(params)
    losses: list[float] = []
    num_tokens, started = 0, time.perf_counter()
    for i, batch in enumerate(islice(stream, schedule.num_steps), 1):
        rate = np.float32(schedule.rate(i - 1))
        params, state, value = step(params, state, batch.token_ids, batch.weights, rate)
        losses.append(float(value))
        num_tokens += batch.token_ids.size
        if i % log_every == 0:
            recent = float(np.mean(losses[-log_every:]))
            speed = num_tokens / (time.perf_counter() - started)
            logger.info("step %d loss %.4f, %.0f tokens/s", i, recent, speed)
        if save is not None and i % save_every == 0:
            save(params)
    return params, losses


def main() -> None:
    """Train with the committed seeds and write the folder that ships with jaxserve."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--start-from", type=Path, help="folder whose model to train further")
    parser.add_argument("--num-steps", type=int, default=Schedule().num_steps)
    parser.add_argument("--decay-steps", type=int, default=Schedule().decay_steps)
    parser.add_argument("--seed", type=int, default=Schedule().seed)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")

    schedule = Schedule(seed=args.seed, num_steps=args.num_steps, decay_steps=args.decay_steps)
    config = config_from_hf(HF_CONFIG)
    start: Params | None = None
    stages: list[dict[str, object]] = []
    if args.start_from is None:
        texts = islice(training_texts(schedule.tokenizer_seed), NUM_TOKENIZER_TEXTS)
        tokenizer = train_tokenizer(render(text) for text in texts)
    else:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(args.start_from)
        start = params_of(load_model(args.start_from, dtype="float32"))
        stages = json.loads((args.start_from / HISTORY).read_text())["stages"]
    stream = batches(schedule.seed, tokenizer, schedule.tokens_per_step)

    def save(params: Params) -> None:
        write_folder(args.out, params, config, HF_CONFIG, tokenizer)

    params, losses = train(config, stream, schedule, start=start, save=save)
    save(params)
    history = {"stages": [*stages, asdict(schedule)]}
    (args.out / HISTORY).write_text(json.dumps(history, indent=2) + "\n")
    logger.info("loss %.4f, written to %s", losses[-1], args.out)


if __name__ == "__main__":
    main()
