"""A small engine around the fake device, and what its requests should come to."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from math import inf
from typing import Any

from tokenizers import Tokenizer, decoders, models

from jaxserve.api.caches import CacheSizes, LayerCache, PagedGroup, StatePages, plan_layout
from jaxserve.api.engine_config import CacheConfig, SchedulerConfig, WorkModel
from jaxserve.api.model_limits import ModelLimits
from jaxserve.api.plan import RowPlan
from jaxserve.api.request import FinishReason, Request, TokenEvent
from jaxserve.api.sampling_params import SamplingParams
from jaxserve.engine import Engine, Scheduler
from jaxserve.engine.drafts import Drafter
from jaxserve.engine.sequence import choice_seed
from jaxserve.frontend.text_engine import TextEngine
from jaxserve.grammar import MatcherPool
from jaxserve.observability.stats import EngineMetrics, StepStats
from tests.fakes import FakeRunner, solo_run

EOS = 3


def word_tokenizer() -> Tokenizer:
    """Token 7 is the word "w7"; decoding puts no spaces between words."""
    tokenizer = Tokenizer(models.WordLevel({f"w{token}": token for token in range(64)}))
    tokenizer.decoder = decoders.Fuse()
    return tokenizer


def words(token_ids: list[int]) -> str:
    """The text of tokens of `word_tokenizer`."""
    return "".join(f"w{token_id}" for token_id in token_ids)


def until_stop_string(token_ids: list[int], params: SamplingParams) -> list[int]:
    """The first of the tokens, up to the one whose word completes a stop string."""
    text = ""
    for count, token_id in enumerate(token_ids, start=1):
        num_old = len(text)
        text += words([token_id])
        for stop in params.stop if count > params.min_tokens else ():
            if stop in text[max(0, num_old - len(stop) + 1) :]:
                return token_ids[:count]
    return token_ids


def request(
    name: str = "a",
    prompt_ids: tuple[int, ...] | list[int] = (5, 6, 7),
    *,
    priority: int = 0,
    cache_salt: str = "",
    **params: Any,
) -> Request:
    """A request with a seed, so that `World.expected` knows its output."""
    return Request(
        id=name,
        prompt_ids=tuple(prompt_ids),
        params=SamplingParams(**{"seed": 0, "max_tokens": 8, **params}),
        priority=priority,
        cache_salt=cache_salt,
    )


@dataclass
class Answer:
    """All events of one choice, put together."""

    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    finish_reason: FinishReason | None = None
    last: TokenEvent | None = None


class World:
    """An engine on the fake device; every step is checked."""

    def __init__(
        self,
        *,
        num_pages: int = 64,
        page_size: int = 4,
        max_num_seqs: int = 4,
        max_num_batched_tokens: int = 16,
        max_model_len: int = 64,
        max_queued_requests: int = 1000,
        policy: str = "fcfs",
        max_in_flight: int = 2,
        async_scheduling: bool = True,
        max_decode_slowdown: float = inf,
        work: WorkModel = WorkModel(),  # noqa: B008
        step_sizes: tuple[int, ...] = (),
        enable_prefix_caching: bool = True,
        layers: Sequence[LayerCache] = (),
        num_states: int = 8,
        checkpoint_interval: int = 1,
        vocab_size: int = 64,
        tokenizer: Tokenizer | None = None,
        pools: bool = False,
        whole_prompts: bool = False,
        eos_id: int = EOS,
        matchers: MatcherPool | None = None,
        drafter: Drafter | None = None,
        metrics: EngineMetrics | None = None,
        fails: Callable[[RowPlan, list[int]], bool] = lambda row, tokens: False,
    ) -> None:
        self.max_model_len = max_model_len
        self.pool_tokens = (num_pages - 1) * page_size
        cache = CacheConfig.paged(
            num_pages=num_pages,
            page_size=page_size,
            enable_prefix_caching=enable_prefix_caching,
        )
        if layers:
            layout = plan_layout(
                layers,
                CacheSizes(
                    page_size=page_size,
                    max_model_len=max_model_len,
                    tokens_in_flight=2 * max_num_batched_tokens,
                    checkpoint_interval=checkpoint_interval,
                ),
            )
            cache = replace(
                cache,
                groups=layout.groups,
                num_pages=tuple(
                    num_states if isinstance(pool.pages, StatePages) else num_pages
                    for pool in layout.pools
                ),
            )
        self.scheduler = Scheduler(
            SchedulerConfig(
                max_model_len=max_model_len,
                max_num_seqs=max_num_seqs,
                max_num_batched_tokens=max_num_batched_tokens,
                max_queued_requests=max_queued_requests,
                policy=policy,
                async_scheduling=async_scheduling,
                max_decode_slowdown=max_decode_slowdown,
                work=work,
                step_sizes=step_sizes,
                pools=pools,
                whole_prompts=whole_prompts,
            ),
            cache,
            eos_ids=[eos_id],
            drafter=drafter,
        )
        if not any(isinstance(group, PagedGroup) for group in cache.groups):
            self.pool_tokens = max_model_len
        self.runner = FakeRunner(
            cache=cache,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            vocab_size=vocab_size,
            max_in_flight=max_in_flight if async_scheduling else 1,
            pools=pools,
            fails=fails,
        )
        self.engine = Engine(
            self.scheduler,
            self.runner,
            ModelLimits(vocab_size=vocab_size),
            matchers=matchers,
            metrics=metrics,
        )
        self.tokenizer = tokenizer
        self.text = TextEngine(self.engine, tokenizer)
        self.requests: dict[str, Request] = {}
        self.events: list[TokenEvent] = []
        self.answers: dict[tuple[str, int], Answer] = defaultdict(Answer)
        self.finished: list[str] = []
        self.stats: list[StepStats] = []

    def add(self, *requests: Request) -> None:
        """Add requests to the engine."""
        for each in requests:
            self.text.add(each)
            self.requests[each.id] = each

    def step(self) -> list[TokenEvent]:
        """Do a step, check every invariant, and collect what it brought."""
        events = self.text.step()
        self.engine.check_integrity()
        self.stats.append(self.engine.stats())
        for event in events:
            answer = self.answers[event.request_id, event.index]
            assert answer.finish_reason is None, "an event after the last one"
            assert event.request_id not in self.finished, "an event of a finished request"
            answer.token_ids.extend(event.token_ids)
            answer.text += event.text
            answer.finish_reason = event.finish_reason
            answer.last = event
            if event.request_finished:
                self.finished.append(event.request_id)
        self.events += events
        return events

    def run(self, *requests: Request, max_steps: int = 10_000) -> None:
        """Add requests and step until nothing is left to do; then everything must be free."""
        self.add(*requests)
        for _ in range(max_steps):
            if not self.engine.has_work:
                break
            self.step()
        assert not self.engine.has_work, f"still busy after {max_steps} steps"
        self.check_idle()

    def check_idle(self) -> None:
        """Assert that every request has ended once and that nothing is held."""
        assert sorted(self.finished) == sorted(self.requests)
        for each in self.requests.values():
            for index in range(each.params.n):
                assert self.answers[each.id, index].finish_reason is not None
        stats = self.engine.stats()
        assert stats.num_pages_used == stats.num_running == stats.num_waiting == 0
        assert not self.runner.pending

    def output(self, name: str = "a", index: int = 0) -> list[int]:
        """The tokens that a choice got."""
        return self.answers[name, index].token_ids

    def cached(self, name: str) -> int:
        """The prompt tokens of a request that were found in the cache."""
        last = self.answers[name, 0].last
        assert last is not None
        assert last.num_cached_tokens is not None
        return last.num_cached_tokens

    def expected(self, name: str = "a", index: int = 0) -> list[int]:
        """The tokens that a choice gets when it is alone in the world."""
        each = self.requests[name]
        assert each.params.seed is not None
        token_ids = solo_run(
            each.prompt_ids,
            each.params,
            seed=choice_seed(each.params.seed, index),
            vocab_size=self.runner.vocab_size,
            eos_ids=frozenset([EOS]),
            max_length=min(self.max_model_len, self.pool_tokens + 1),
        )
        return until_stop_string(token_ids, each.params)
