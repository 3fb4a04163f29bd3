"""A real model behind real engines: build once, then vary the scheduler around its runner."""

import asyncio
import json
import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from starlette.testclient import TestClient

from jaxserve.api.model_limits import ModelLimits
from jaxserve.api.request import FinishReason, PositionLogprobs, Request
from jaxserve.api.sampling_params import SamplingParams
from jaxserve.build import LoadedModel, build
from jaxserve.chat.parser import AnswerFormat
from jaxserve.chat.template import ChatTemplate
from jaxserve.client.in_process import InProcessClient
from jaxserve.config.engine import EngineOptions
from jaxserve.engine import Engine, Scheduler
from jaxserve.frontend.text_engine import TextEngine
from jaxserve.grammar import GrammarChecker, Vocabulary
from jaxserve.observability.metrics import Metrics
from jaxserve.observability.stats import EngineMetrics, StepStats
from jaxserve.planning.planner import plan_engine
from jaxserve.server import ServedModel, ServerConfig, create_app
from jaxserve.tokenization.tokenizer import Tokenizer
from tests.data import checkpoint
from tests.goldens.families import FAMILIES, golden, write
from tests.server.world import VOCAB_SIZE, write_tokenizer

NUM_GOLDEN_TOKENS = 200
MAX_NUM_SEQS = 32
PAGE_SIZE = 8


@dataclass(frozen=True)
class Golden:
    """What transformers generated greedily from a prompt, in float32."""

    prompt_ids: tuple[int, ...]
    token_ids: list[int]
    logprobs: list[float]
    first_step_top5: list[tuple[int, float]]


def goldens(name: str) -> list[Golden]:
    """Read a checkpoint's golden.json; skip the test where it is absent."""
    found = json.loads((checkpoint(name) / "golden.json").read_text("utf-8"))
    return [
        Golden(
            prompt_ids=tuple(case["prompt_ids"]),
            token_ids=case["generated_ids"],
            logprobs=case["generated_logprobs"],
            first_step_top5=[(token, logit) for token, logit in case["first_step_top5"]],
        )
        for case in found["cases"]
    ]


def write_one_layer(
    folder: Path,
    *,
    source: str = "stories260K-hf",
    change: Callable[[dict[str, NDArray[np.float32]]], None] = lambda tensors: None,
) -> Path:
    """Write the first layer of a checkpoint as a model, with a head of its own.

    change: what is done to its tensors, by their names, before.
    """
    whole = checkpoint(source)
    tensors = {
        name: tensor.copy()
        for name, tensor in load_file(whole / "model.safetensors").items()
        if ".layers." not in name or ".layers.0." in name
    }
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    config = json.loads((whole / "config.json").read_text("utf-8"))
    config |= {"num_hidden_layers": 1, "tie_word_embeddings": False}
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((whole / name).read_bytes())
    return folder


def load(folder: Path, **options: Any) -> LoadedModel:
    """Build an engine with all of its programs, unless `warm_up` says otherwise."""
    plan = plan_engine(
        EngineOptions(
            **{
                "model": str(folder),
                "max_num_seqs": 8,
                "max_num_batched_tokens": 16,
                "page_size": PAGE_SIZE,
                "compilation_cache": False,
                "warm_up": "full",
                **options,
            }
        )
    )
    return build(plan)


def engine_for(
    loaded: LoadedModel,
    *,
    num_pages: int | tuple[int, ...] | None = None,
    enable_prefix_caching: bool = True,
    metrics: EngineMetrics | None = None,
    **scheduler: Any,
) -> TextEngine:
    """Return a fresh engine, with limits within those the model was built for.

    The runner is the same one each time, so its slots and pages hold what earlier engines left.
    """
    plan = loaded.plan
    cache = replace(plan.cache, enable_prefix_caching=enable_prefix_caching)
    if num_pages is not None:
        cache = replace(
            cache, num_pages=num_pages if isinstance(num_pages, tuple) else (num_pages,)
        )
    engine = Engine(
        Scheduler(
            replace(plan.scheduler, **scheduler),
            cache,
            eos_ids=plan.generation.eos_token_ids,
            seed=3,
        ),
        loaded.runner,
        ModelLimits(vocab_size=plan.model.vocab_size),
        metrics=metrics,
    )
    return with_text(loaded, engine)


@contextmanager
def http_of(
    loaded: LoadedModel,
    engine: Engine,
    folder: Path,
    *,
    metrics: Metrics | None = None,
    answers: AnswerFormat | None = None,
) -> Iterator[TestClient]:
    """Serve an engine of a checkpoint with a chat template over HTTP, as the model "served".

    folder: for stored objects. answers: syntax of reasoning and tool calls.
    """
    tokenizer = Tokenizer.load(loaded.plan.tokenizer_folder)
    vocab_size, length = loaded.plan.model.vocab_size, loaded.plan.scheduler.max_model_len
    client = InProcessClient(engine, tokenizer.backend)
    model = ServedModel(
        names=("served",),
        client=client,
        tokenizer=tokenizer,
        chat=ChatTemplate(tokenizer),
        max_model_len=length,
        vocab_size=vocab_size,
        grammars=GrammarChecker(Vocabulary(lambda: tokenizer.backend, vocab_size=vocab_size)),
        answers=answers or AnswerFormat(),
    )
    metrics = metrics or Metrics(max_model_len=length)
    app = create_app([model], metrics=metrics, config=ServerConfig(port=0), folder=folder)
    with TestClient(app, base_url="http://127.0.0.1") as http:
        yield http
    asyncio.run(client.shutdown(drain_timeout_s=5.0))


def write_family(folder: Path, family: str, case: str, *, max_model_len: int) -> Path:
    """Write a golden checkpoint with the vocabulary and the tokenizer of the tests of the server.

    The values of its tensors follow from their names.
    """
    config = FAMILIES[family][case]
    vocab_size = config["vocab_size"]
    shapes = {
        name: tuple(VOCAB_SIZE if size == vocab_size else size for size in shape)
        for name, shape in golden(family)[case][0].items()
    }
    changes = {key: VOCAB_SIZE for key in config if key.startswith("vocab_size")}
    changes["max_position_embeddings"] = max_model_len
    return write_tokenizer(write(folder, {**config, **changes}, shapes))


def with_text(loaded: LoadedModel, engine: Engine) -> TextEngine:
    """Return an engine that speaks text."""
    return TextEngine(engine, Tokenizer.load(loaded.plan.tokenizer_folder).backend)


@dataclass
class Answer:
    """All events of one choice, put together."""

    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    logprobs: list[PositionLogprobs] = field(default_factory=list)
    prompt_logprobs: tuple[PositionLogprobs, ...] | None = None
    num_cached_tokens: int = 0
    num_preemptions: int = 0
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    error: str | None = None
    error_param: str | None = None


type Answers = dict[tuple[str, int], Answer]


def serve(
    engine: TextEngine, requests: Iterable[Request], *, arrivals_per_step: int = 100
) -> Answers:
    """Run requests to their ends, a few of them arriving before each step; by id and choice."""
    answers: Answers = defaultdict(Answer)
    coming: Iterator[Request] = iter(requests)
    is_over = False
    while not is_over or engine.has_work:
        for _ in range(arrivals_per_step):
            request = next(coming, None)
            if request is None:
                is_over = True
                break
            engine.add(request)
        for event in engine.step():
            answer = answers[event.request_id, event.index]
            answer.token_ids += event.token_ids
            answer.text += event.text
            answer.logprobs += event.logprobs
            answer.prompt_logprobs = event.prompt_logprobs or answer.prompt_logprobs
            answer.num_cached_tokens = event.num_cached_tokens
            if event.finish_reason is not None:
                assert answer.finish_reason is None, "a choice ended twice"
                answer.finish_reason, answer.stop_reason = event.finish_reason, event.stop_reason
                answer.error, answer.error_param = event.error, event.error_param
                assert event.metrics is not None
                answer.num_preemptions = event.metrics.num_preemptions
    engine.engine.check_integrity()
    assert is_idle(engine.engine.stats()), "something is left behind"
    return answers


def is_idle(stats: StepStats) -> bool:
    """Whether nothing runs, waits or holds pages."""
    return stats.num_running == stats.num_waiting == stats.num_pages_used == 0


def request(name: str, prompt_ids: Iterable[int], **params: Any) -> Request:
    """A request that is greedy and runs to its length, unless `params` say otherwise."""
    chosen = {"temperature": 0.0, "ignore_eos": True, "max_tokens": NUM_GOLDEN_TOKENS, **params}
    return Request(id=name, prompt_ids=tuple(prompt_ids), params=SamplingParams(**chosen))


def golden_requests(found: list[Golden], **params: Any) -> list[Request]:
    """A request for each golden, named by its number."""
    return [request(str(i), golden.prompt_ids, **params) for i, golden in enumerate(found)]


def noise(count: int, *, vocab_size: int, max_length: int = 200, seed: int = 0) -> list[Request]:
    """Requests of random lengths that ask for something of everything."""
    rng = random.Random(seed)
    found = []
    for i in range(count):
        prompt_ids = rng.choices(range(3, vocab_size), k=rng.randint(1, max_length))
        params: dict[str, Any] = rng.choice(
            [
                {},
                {"temperature": 1.5},
                {"temperature": 0.8, "top_k": 20, "top_p": 0.9},
                {"temperature": 1.0, "min_p": 0.1, "seed": 5, "n": 2},
                {"repetition_penalty": 1.3, "logprobs": 5},
                {"temperature": 1.0, "frequency_penalty": 1.0, "logit_bias": {7: 5.0}},
                {"min_tokens": 1, "prompt_logprobs": 2},
            ]
        )
        name = f"noise {i}"
        found.append(request(name, prompt_ids, max_tokens=rng.randint(1, 60), **params))
    return found


def mixed(requests: list[Request], others: list[Request], *, seed: int = 0) -> list[Request]:
    """Both in one random order."""
    together = requests + others
    random.Random(seed).shuffle(together)
    return together
