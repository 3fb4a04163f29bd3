"""Train a tiny model and write its Hugging Face folder: `python -m examples.tiny_model.train`.

The model is one of `architectures.py` as it is served; the optimiser is optax. Everything is
seeded.
"""

import argparse
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path as FilePath

import jax
import jax.numpy as jnp
import numpy as np
import optax  # type: ignore[import-untyped]
from flax.traverse_util import unflatten_dict
from jax import Array
from transformers import PreTrainedTokenizerFast

from examples.tiny_model.architectures import ARCHITECTURES
from examples.tiny_model.batched import batch_logits
from examples.tiny_model.corpus import training_texts
from examples.tiny_model.export import write_folder
from examples.tiny_model.tokenizer import END_OF_TEXT, TURN_END, TURN_START, render, train_tokenizer
from jaxserve.loading.weights import load_model
from jaxserve.models import (
    DecoderConfig,
    Params,
    Path,
    bind,
    config_from_hf,
    init_model,
    params_of,
    weight_specs,
)
from jaxserve.quantization import WeightSpec

logger = logging.getLogger(__name__)

HISTORY = "training.json"  # in a folder: the schedule of each stage that made it
NUM_TOKENIZER_TEXTS = 20_000
ROW_LENGTHS = (48, 96, 192, 384, 640, 1024)  # tokens; a row takes the smallest that holds it
IGNORED_WEIGHT = 0.1  # of the tokens that the model does not have to say itself


@dataclass(frozen=True, slots=True)
class Schedule:
    """How long and how fast to train.

    The rates rise over `warmup_steps`, stay, and fall linearly over the last `decay_steps`. If
    `minutes` do not suffice for `num_steps`, training stops then, and the rates fall in time.
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
    minutes: float | None = None

    def left(self, step: int, seconds: float) -> float:
        """Return the share of the training that is left before a step, counted from 0."""
        by_time = 1.0 if self.minutes is None else 1 - seconds / (60 * self.minutes)
        return min(1 - step / self.num_steps, by_time)

    def rate(self, step: int, left: float = 1.0) -> float:
        """Return the share of the full rates at a step, counted from 0; see `left`."""
        left = min(left, self.left(step, 0.0)) * self.num_steps
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


def make_optimizer(schedule: Schedule, config: DecoderConfig) -> optax.GradientTransformation:
    """Return Muon (Jordan et al., 2024) for the matrices and AdamW for the rest, at full rate."""
    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.contrib.muon(
            schedule.matrix_rate,
            weight_decay=schedule.weight_decay,
            adam_learning_rate=schedule.other_rate,
            adam_b2=0.98,
            muon_weight_dimension_numbers=lambda _: matrices(config),
        ),
    )


def matrices(config: DecoderConfig) -> Params:
    """Say which axes of a matrix of a layer are summed over and which remain; None for the rest.

    Stacked matrices, and gate and up projection, count as matrices of their own.
    """
    described: Params = unflatten_dict(
        {path: _matrix(path, spec) for path, spec in weight_specs(config).items()}
    )
    return described


def _matrix(path: Path, spec: WeightSpec) -> optax.contrib.MuonDimensionNumbers | None:
    if path[0] != "layers" or not spec.summed:
        return None
    channels = tuple(spec.axes.index(word) for word in spec.channels if word != "gate_up")
    return optax.contrib.MuonDimensionNumbers(spec.summed_dims, channels)


def loss(
    params: Params, config: DecoderConfig, token_ids: Array, weights: Array, balance: float = 0.0
) -> Array:
    """Return the weighted mean cross-entropy of each token given those before it.

    balance: coefficient of `balance_loss`, which is added; 0 for models without experts.
    """
    model, inputs = bind(config, params), token_ids[:, :-1]
    seen: dict[str, Array] = {}

    def keep(name: str, value: Array) -> Array:
        seen[name] = value
        return value

    logits = batch_logits(model, inputs, tap=keep) if balance else model(inputs)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, token_ids[:, 1:])
    mean = jnp.sum(losses * weights[:, 1:]) / jnp.sum(weights[:, 1:])
    if not balance:
        return mean
    return mean + balance * balance_loss(seen, weights[:, :-1].reshape(-1) > 0)


def balance_loss(seen: Mapping[str, Array], is_live: Array) -> Array:
    """Return the mean load-balancing loss of the layers (Fedus et al., 2021, arXiv:2101.03961).

    A layer's loss is num_experts * sum(share * probability): the share of tokens that select each
    expert, and its mean probability. It is top_k if all experts are alike, and more if not. seen:
    activations by name. is_live: bool[tokens].
    """
    losses = [
        _imbalance(logits, seen[name.removesuffix("logits") + "experts"], is_live)
        for name, logits in seen.items()
        if name.endswith("router.logits")
    ]
    return jnp.mean(jnp.stack(losses))


def _imbalance(logits: Array, experts: Array, is_live: Array) -> Array:
    num_experts = logits.shape[-1]
    chosen = jnp.sum(jax.nn.one_hot(experts, num_experts), axis=1)
    shares, probabilities = (
        jnp.mean(each, axis=0, where=is_live[:, None]) for each in (chosen, jax.nn.softmax(logits))
    )
    return num_experts * jnp.sum(shares * probabilities)


def train(
    config: DecoderConfig,
    stream: Iterator[Batch],
    schedule: Schedule,
    *,
    balance: float = 0.0,
    start: Params | None = None,
    save: Callable[[Params], None] | None = None,
    save_every: int = 250,
    log_every: int = 25,
) -> tuple[Params, list[float]]:
    """Train `start`, or random parameters; returns the parameters and the loss of each step.

    balance: see `loss`. save: is given the parameters every `save_every` steps, to look at while
    training goes on.
    """
    optimizer = make_optimizer(schedule, config)

    @jax.jit
    def step(
        params: Params, state: optax.OptState, token_ids: Array, weights: Array, rate: Array
    ) -> tuple[Params, optax.OptState, Array]:
        value, gradient = jax.value_and_grad(loss)(params, config, token_ids, weights, balance)
        updates, state = optimizer.update(gradient, state, params)
        updates = jax.tree.map(lambda update: rate * update, updates)
        return optax.apply_updates(params, updates), state, value

    params = params_of(init_model(config, seed=schedule.seed)) if start is None else start
    state = optimizer.init(params)
    losses: list[float] = []
    num_tokens, started = 0, time.perf_counter()
    for i, batch in enumerate(islice(stream, schedule.num_steps), 1):
        left = schedule.left(i - 1, time.perf_counter() - started)
        if left <= 0:
            break
        rate = np.float32(schedule.rate(i - 1, left))
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
    parser.add_argument("--out", type=FilePath, required=True, help="folder to write")
    parser.add_argument("--start-from", type=FilePath, help="folder whose model to train further")
    parser.add_argument("--tokenizer", type=FilePath, help="folder whose tokenizer to use")
    parser.add_argument("--architecture", choices=ARCHITECTURES, default="dense")
    parser.add_argument("--minutes", type=float, help="longest time to train")
    parser.add_argument(
        "--num-steps", type=int, default=Schedule().num_steps, help="0: write random weights"
    )
    parser.add_argument("--decay-steps", type=int, default=Schedule().decay_steps)
    parser.add_argument("--seed", type=int, default=Schedule().seed)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")

    schedule = Schedule(
        seed=args.seed,
        num_steps=args.num_steps,
        decay_steps=args.decay_steps,
        minutes=args.minutes,
    )
    hf_config = ARCHITECTURES[args.architecture]
    config = config_from_hf(hf_config)
    start: Params | None = None
    stages: list[dict[str, object]] = []
    tokenizer_folder = args.tokenizer or args.start_from
    if tokenizer_folder is None:
        texts = islice(training_texts(schedule.tokenizer_seed), NUM_TOKENIZER_TEXTS)
        tokenizer = train_tokenizer(render(text) for text in texts)
    else:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(tokenizer_folder)
    if args.start_from is not None:
        start = params_of(load_model(args.start_from, dtype="float32"))
        stages = json.loads((args.start_from / HISTORY).read_text())["stages"]
    stream = batches(schedule.seed, tokenizer, schedule.tokens_per_step)

    def save(params: Params) -> None:
        write_folder(args.out, params, config, hf_config, tokenizer)

    balance = float(hf_config.get("router_aux_loss_coef", 0.0))
    params, losses = train(config, stream, schedule, balance=balance, start=start, save=save)
    save(params)
    history = {"stages": [*stages, asdict(schedule)]}
    (args.out / HISTORY).write_text(json.dumps(history, indent=2) + "\n")
    logger.info("%d steps, written to %s", len(losses), args.out)


if __name__ == "__main__":
    main()
