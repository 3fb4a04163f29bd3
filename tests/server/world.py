"""A small server: the real engine and application around the fake device and a tiny tokenizer."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

import numpy as np
from starlette.testclient import TestClient
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, trainers

from jaxserve.api.engine_config import CacheConfig, SchedulerConfig
from jaxserve.api.model_limits import ModelLimits
from jaxserve.api.plan import RowPlan, StepPlan
from jaxserve.api.pooling import PoolingModel
from jaxserve.api.sampling_params import SamplingParams
from jaxserve.chat.parser import AnswerFormat
from jaxserve.chat.template import ChatTemplate
from jaxserve.client.in_process import InProcessClient
from jaxserve.engine import Engine, Scheduler
from jaxserve.engine.sequence import choice_seed
from jaxserve.frontend.generation_defaults import GenerationDefaults
from jaxserve.grammar import GrammarChecker, GrammarCompiler, MatcherPool, Vocabulary
from jaxserve.observability.metrics import Metrics
from jaxserve.server import ServedModel, ServerConfig, bind, create_app
from jaxserve.server.models import KernelChoice
from jaxserve.server.transport.run import Server
from jaxserve.tokenization.tokenizer import Tokenizer
from tests.fake_caches import Slot
from tests.fakes import FakePendingStep, FakeRunner, solo_run

CORPUS = ["the quick brown fox jumps over the lazy dog", "once upon a time there was a tale"]
SPECIAL = ["<|end|>", "<|im_start|>", "<|im_end|>"]
VOCAB_SIZE = 320
MAX_MODEL_LEN = 128
PAGE_SIZE = 4

# ChatML, with places for tools and for an option.
TEMPLATE = """\
{%- if tools %}{{ '<|im_start|>tools' + tools | tojson + '<|im_end|>' }}{% endif -%}
{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] + ':' + message['content'] + '<|im_end|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant:' -}}
{%- if enable_thinking is defined and not enable_thinking -%}{{- '<think></think>' -}}{%- endif -%}
{%- endif -%}"""


def write_tokenizer(folder: Path, *, template: str | None = TEMPLATE) -> Path:
    """Train a byte-level tokenizer on a few words and write it in Hugging Face's layout."""
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS, trainer)
    backend.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|end|>",
        "clean_up_tokenization_spaces": False,
        "chat_template": template,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), "utf-8")
    return folder


@cache
def tokenizer(template: str = TEMPLATE) -> Tokenizer:
    """The tokenizer of every world, with a template of its chats."""
    with TemporaryDirectory() as folder:
        return Tokenizer.load(write_tokenizer(Path(folder), template=template))


class TimedRunner(FakeRunner):
    """The fake device, with steps that take time, and a switch to break it.

    script: the tokens of every answer, instead of those of the fake's language model.
    """

    def __init__(
        self, *, step_s: float, script: tuple[int, ...] | None = None, **settings: Any
    ) -> None:
        super().__init__(**settings)
        self.script = script
        self.step_s = step_s
        self.is_broken = False

    def _sample(
        self, slot: Slot, entry: bytes, position: int, mask: np.ndarray | None = None
    ) -> int:
        if self.script is None:
            return super()._sample(slot, entry, position, mask)
        num_generated = position - len(slot.assignment.prompt_ids)
        return self.script[min(num_generated, len(self.script) - 1)]

    def dispatch(self, plan: StepPlan) -> FakePendingStep:
        if self.is_broken:
            raise RuntimeError("the device is gone")
        time.sleep(self.step_s)
        return super().dispatch(plan)


class World:
    """One server of one model; use as a context, which checks what is left at its end.

    says: what the model answers to everything. answers: how it is read. template: of chats.
    """

    name = "tiny/model"
    alias = "alias"

    def __init__(
        self,
        *,
        config: ServerConfig | None = None,
        defaults: GenerationDefaults | None = None,
        step_s: float = 0.0,
        max_num_seqs: int = 8,
        max_queued_requests: int = 64,
        policy: str = "fcfs",
        has_chat: bool = True,
        hang_timeout_s: float = 60.0,
        pooling: PoolingModel | None = None,
        fails: Callable[[RowPlan, list[int]], bool] = lambda row, tokens: False,
        folder: Path | None = None,
        says: str | None = None,
        answers: AnswerFormat | None = None,
        template: str = TEMPLATE,
        max_model_len: int = MAX_MODEL_LEN,
        trusts_templates: bool = False,
    ) -> None:
        self.config = config or ServerConfig(port=0)
        self.metrics = Metrics(max_model_len=max_model_len)
        self.tokenizer = tokenizer(template)
        script = None
        if says is not None:
            script = (
                *self.tokenizer.encode(says, add_special_tokens=False),
                *self.tokenizer.eos_ids,
            )
        scheduler = SchedulerConfig(
            max_model_len=max_model_len,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=64,
            max_queued_requests=max_queued_requests,
            policy=policy,
            pools=pooling is not None,
        )
        num_pages = 1 + max_num_seqs * max_model_len // PAGE_SIZE
        cache = CacheConfig.paged(num_pages=num_pages, page_size=PAGE_SIZE)
        self.runner = TimedRunner(
            step_s=step_s,
            script=script,
            cache=cache,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=64,
            vocab_size=VOCAB_SIZE,
            pools=pooling is not None,
            fails=fails,
        )
        vocabulary = Vocabulary(
            lambda: self.tokenizer.backend, vocab_size=VOCAB_SIZE, eos_ids=self.tokenizer.eos_ids
        )
        self.engine = Engine(
            Scheduler(
                scheduler,
                cache,
                eos_ids=self.tokenizer.eos_ids,
            ),
            self.runner,
            ModelLimits(vocab_size=VOCAB_SIZE),
            matchers=MatcherPool(GrammarCompiler(vocabulary)),
            metrics=self.metrics.engine(self.name),
        )
        self.client = InProcessClient(
            self.engine, self.tokenizer.backend, hang_timeout_s=hang_timeout_s
        )
        self.model = ServedModel(
            names=(self.name, self.alias),
            client=self.client,
            tokenizer=self.tokenizer,
            chat=ChatTemplate(self.tokenizer) if has_chat else None,
            max_model_len=max_model_len,
            vocab_size=VOCAB_SIZE,
            pooling=pooling,
            grammars=GrammarChecker(vocabulary),
            defaults=defaults or GenerationDefaults(),
            answers=answers or AnswerFormat(),
            trusts_templates=trusts_templates,
            has_priorities=policy == "priority",
            max_queued_requests=max_queued_requests,
            kernels={
                "paged_attention": KernelChoice(backend="fake", refusals={"fast": "not here"})
            },
        )
        self._own_folder = TemporaryDirectory(prefix="jaxserve-test-")
        self.folder = folder or Path(self._own_folder.name)
        self.app = create_app(
            [self.model], metrics=self.metrics, config=self.config, folder=self.folder
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run(self.client.shutdown(drain_timeout_s=5.0))
        self._own_folder.cleanup()
        if not self.runner.is_broken:
            self.engine.check_integrity()
            assert not self.engine.has_work

    def http(self) -> TestClient:
        """A client that talks to the application without a socket."""
        return TestClient(self.app, base_url="http://localhost")

    def expected_ids(
        self, prompt_ids: tuple[int, ...], *, index: int = 0, **params: Any
    ) -> list[int]:
        """The tokens of a choice, by the definition of the fake's language model; give a seed."""
        settings = SamplingParams(**params)
        assert settings.seed is not None
        return solo_run(
            prompt_ids,
            settings,
            seed=choice_seed(settings.seed, index),
            vocab_size=VOCAB_SIZE,
            eos_ids=frozenset(self.tokenizer.eos_ids),
            max_length=MAX_MODEL_LEN,
        )

    def text(self, token_ids: Sequence[int]) -> str:
        """The text of an answer, which ends before a character that is cut."""
        return self.tokenizer.decode(token_ids).rstrip("\ufffd")

    def is_idle(self) -> bool:
        """Whether the engine runs nothing and holds no page."""
        stats = self.client.stats()
        return stats.num_running == stats.num_waiting == stats.num_pages_used == 0

    def wait_until_idle(self) -> None:
        """Wait until the engine runs nothing; fails when it goes on."""
        wait_for(self.is_idle)

    @contextmanager
    def listening(self, *, send_buffer: int | None = None) -> Iterator["Address"]:
        """Serve on a free port, on a thread, for as long as the context lasts."""
        listener = bind(self.config)
        if send_buffer is not None:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        server = Server(self.app, self.config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            wait_for(lambda: server.started)
            yield Address(listener.getsockname()[1], server)
        finally:
            server.should_exit = True
            thread.join(20.0)
            assert not thread.is_alive(), "the server does not stop"


class Address:
    """Where a world listens."""

    def __init__(self, port: int, server: Server) -> None:
        self.port = port
        self.server = server
        self.url = f"http://127.0.0.1:{port}"


def wait_for(condition: Callable[[], bool], *, timeout_s: float = 10.0) -> None:
    """Wait until a condition holds."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, "it did not happen in time"
        time.sleep(0.005)


def events(lines: Iterator[str]) -> list[Any]:
    """The data of a stream's events; `[DONE]` as None."""
    data = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
    return [None if text == "[DONE]" else json.loads(text) for text in data]
