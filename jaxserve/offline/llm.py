"""Offline generation with a model in this process, without a server."""

import itertools
import logging
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from typing import Any, cast

from tqdm import tqdm

from jaxserve.api.request import Request, TokenEvent
from jaxserve.api.sampling_params import RequestOutputKind, SamplingParams
from jaxserve.build import build_with_tokenizer
from jaxserve.chat import AUTO
from jaxserve.config.flags import engine_options
from jaxserve.engine.engine import COULD_GENERATE, POOLS
from jaxserve.errors import ConfigError, InvalidRequestError, naming
from jaxserve.execution.logits_processors import LogitsProcessor, place_of
from jaxserve.frontend.beam_search import BeamSearch, BeamSearchParams, check_search, run_searches
from jaxserve.frontend.text_engine import TextEngine
from jaxserve.grammar import GrammarChecker, Vocabulary
from jaxserve.observability.metric_values import Metric, metric_values
from jaxserve.observability.metrics import Metrics
from jaxserve.observability.stats import StepStats
from jaxserve.observability.timeline import Timeline
from jaxserve.offline.engine import OfflineEngine, of_kind
from jaxserve.offline.outputs import BeamSearchOutput, OutputBuilder, RequestOutput, beam_output
from jaxserve.offline.pooling import OfflinePooler, PoolingMethods
from jaxserve.offline.prompts import (
    ChatOptions,
    Conversation,
    PreparedPrompt,
    Prompt,
    PromptReader,
    is_conversation,
    listed,
    one_each,
)
from jaxserve.planning.engine_plan import EnginePlan
from jaxserve.planning.planner import plan_engine

logger = logging.getLogger(__name__)

type Params = SamplingParams | Sequence[SamplingParams] | None


class LLM(PoolingMethods):
    """A model in this process. Not thread-safe.

    model: a folder, a hub name, or None for the model that comes with jaxserve. report: called with
    progress messages during startup, one line each. logits_processors: classes, or their names as
    `module:Class`; see execution/logits_processors.py. disable_log_stats: whether to omit the
    statistics for `get_metrics`. options: options of `jaxserve serve` by the names of their flags,
    which are vLLM's: dtype, max_model_len, gpu_memory_utilization, kv_cache_memory_bytes,
    tensor_parallel_size, max_num_seqs, max_num_batched_tokens, block_size, enable_prefix_caching,
    seed, revision, download_dir, tokenizer, chat_template and so on.

    Raises ConfigError for unknown or invalid options, MemoryPlanError if the model does not fit,
    and CheckpointError if it cannot be loaded.
    """

    def __init__(
        self,
        model: str | None = None,
        *,
        report: Callable[[str], None] = logger.info,
        logits_processors: Sequence[str | type[LogitsProcessor]] = (),
        disable_log_stats: bool = True,
        **options: Any,
    ) -> None:
        options["logits_processors"] = [
            place if isinstance(place, str) else place_of(place) for place in logits_processors
        ]
        self.plan: EnginePlan = plan_engine(engine_options(model, options))
        self._metrics: Metrics | None = None
        if not disable_log_stats:
            self._metrics = Metrics(max_model_len=self.plan.scheduler.max_model_len)
        loaded, self._tokenizer = build_with_tokenizer(
            self.plan,
            metrics=None if self._metrics is None else self._metrics.engine(self.plan.name),
            report=report,
        )
        self._engine = OfflineEngine(
            TextEngine(loaded.engine, self._tokenizer.backend),
            has_priorities=self.plan.scheduler.policy == "priority",
        )
        self._compilations = loaded.compilations
        self._generation = loaded.generation
        self._max_model_len = self.plan.scheduler.max_model_len
        self._grammars = GrammarChecker(
            Vocabulary(lambda: self._tokenizer.backend, vocab_size=self.plan.model.vocab_size)
        )
        self._reader = PromptReader(self._tokenizer, max_model_len=self._max_model_len)
        self._ids = itertools.count()
        self._pooler = OfflinePooler(self.plan, self._tokenizer, self.run)
        # Requests added by `enqueue` since the last `wait_for_completion`.
        self._enqueued: list[tuple[Request, PreparedPrompt]] = []

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: Params = None,
        *,
        priority: Sequence[int] | None = None,
        use_tqdm: bool = True,
    ) -> list[RequestOutput]:
        """Continue one prompt or many; return an output for each, in order.

        prompts: a text, token ids, {"prompt": text} or {"prompt_token_ids": ids}, or a list of
        these. sampling_params: one for all or one for each; by default
        `get_default_sampling_params()`. priority: one for each; lower runs first if
        scheduling_policy is "priority". use_tqdm: show progress on a terminal.

        An answer that reaches the model's context ends there, with finish_reason "length".

        Raises InvalidRequestError before anything runs, with the index of the invalid prompt.
        Ctrl-C aborts the requests; the LLM stays usable.
        """
        prepared = self._prepare(listed(prompts), self._reader.read)
        requests = self._requests(prepared, sampling_params, priority=priority)
        return self._generate(requests, prepared, use_tqdm=use_tqdm)

    def chat(
        self,
        messages: Conversation | Sequence[Conversation],
        sampling_params: Params = None,
        *,
        chat_template: str | None = None,
        chat_template_content_format: str = AUTO,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        use_tqdm: bool = True,
    ) -> list[RequestOutput]:
        """Answer one conversation or many; return an output for each, in order.

        messages: as in OpenAI's API. chat_template: Jinja text in place of the model's own.
        chat_template_content_format: form in which the template gets contents: string, openai (a
        list of parts), or the one that it reads (auto). Without sampling_params, answers may fill
        the context unless the model's generation config has a limit. Raises what `generate` raises,
        and CheckpointError if the model has no chat template.
        """
        options = ChatOptions(
            chat_template=chat_template,
            chat_template_content_format=chat_template_content_format,
            tools=tools,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            chat_template_kwargs=chat_template_kwargs,
        )
        prepared = self._prepare(
            [messages] if is_conversation(messages) else [*messages],
            lambda conversation: self._reader.render(conversation, options),
        )
        requests = self._requests(prepared, sampling_params, is_chat=True)
        return self._generate(requests, prepared, use_tqdm=use_tqdm)

    def beam_search(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: BeamSearchParams,
        *,
        concurrency_limit: int | None = None,
    ) -> list[BeamSearchOutput]:
        """Return the most likely continuations of one prompt or many, by beam search.

        concurrency_limit: maximum number of beams in the engine at once. Raises what `generate`
        raises, and InvalidRequestError if beam_width is more than half of max_logprobs.
        """
        sampling = self.plan.context.sampling
        check_search(
            params.beam_width,
            max_logprobs=sampling.max_logprobs,
            logprobs_mode=sampling.logprobs_mode,
        )
        prepared = self._prepare(listed(prompts), self._reader.read)
        requests = self._requests(prepared, SamplingParams(max_tokens=params.max_tokens))
        eos_ids = {*self._tokenizer.eos_ids, *self._generation.eos_token_ids}
        searches = [
            BeamSearch(
                request,
                replace(params, max_tokens=request.params.max_tokens or params.max_tokens),
                eos_ids=eos_ids,
            )
            for request in requests
        ]
        run_searches(searches, partial(self.run, max_in_flight=concurrency_limit))
        return [
            beam_output(search, params, request, self._tokenizer)
            for search, request in zip(searches, requests, strict=True)
        ]

    def enqueue(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: Params = None,
        *,
        priority: Sequence[int] | None = None,
    ) -> list[str]:
        """Add prompts for `wait_for_completion`; return their request ids.

        Arguments and errors are those of `generate`.
        """
        prepared = self._prepare(listed(prompts), self._reader.read)
        requests = self._requests(prepared, sampling_params, priority=priority)
        self._enqueued += zip(requests, prepared, strict=True)
        return [request.id for request in requests]

    def wait_for_completion(self, *, use_tqdm: bool = True) -> list[RequestOutput]:
        """Run all added requests; return an output for each, in order."""
        enqueued, self._enqueued = self._enqueued, []
        return self._generate(
            [request for request, _ in enqueued],
            [prompt for _, prompt in enqueued],
            use_tqdm=use_tqdm,
        )

    def stream(
        self,
        prompt: Prompt | Conversation,
        sampling_params: SamplingParams | None = None,
        *,
        chat_template: str | None = None,
        chat_template_content_format: str = AUTO,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> Generator[TokenEvent]:
        """Continue a prompt or answer a conversation, and yield events as tokens arrive.

        The concatenated `text` of the events is the answer, unless `output_kind` says otherwise.
        With n > 1, events of the choices are interleaved; `index` is the choice. Closing the
        iterator aborts the request. Several may be open at once. Raises what `generate` and `chat`
        raise, when called.
        """
        if is_conversation(prompt):
            options = ChatOptions(
                chat_template=chat_template,
                chat_template_content_format=chat_template_content_format,
                tools=tools,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                chat_template_kwargs=chat_template_kwargs,
            )
            prepared = self._reader.render(prompt, options)
            requests = self._requests([prepared], sampling_params, is_chat=True)
        else:
            prepared = self._reader.read(cast(Prompt, prompt))
            requests = self._requests([prepared], sampling_params)
        kind = requests[0].params.output_kind or RequestOutputKind.DELTA
        return of_kind(self.run(requests), kind)

    def run(
        self, requests: Iterable[Request], *, max_in_flight: int | None = None
    ) -> Generator[TokenEvent]:
        """Run requests, and yield the events of all of them as they arrive.

        max_in_flight: maximum number of requests in the engine at once. Closing the iterator aborts
        unfinished requests. Raises InvalidRequestError for a request that the engine cannot run.
        """
        return self._engine.run(requests, max_in_flight=max_in_flight)

    @property
    def timeline(self) -> Timeline:
        """Times of recent steps."""
        return self._engine.engine.engine.timeline

    @property
    def num_compilations(self) -> int:
        """Programs compiled unexpectedly since the start; each one stalled a step."""
        return self._compilations.since_mark

    def stats(self) -> StepStats:
        """Return current gauges, and counts since the start."""
        return self._engine.engine.engine.stats()

    def get_metrics(self) -> list[Metric]:
        """Return the engine's metrics, as in GET /metrics.

        Raises ConfigError unless the LLM was created with disable_log_stats=False.
        """
        if self._metrics is None:
            raise ConfigError("there are metrics only with disable_log_stats=False")
        return metric_values(self._metrics.snapshot())

    def get_tokenizer(self) -> Any:
        """Return the tokenizer of transformers."""
        return self._tokenizer.pretrained

    def get_default_sampling_params(self) -> SamplingParams:
        """Return the defaults of the model's `generation_config.json`."""
        return self._generation.sampling_params()

    def reset_prefix_cache(self) -> None:
        """Clear the prefix cache."""
        self._engine.engine.engine.reset_prefix_cache()

    def _prepare[T](
        self, values: Sequence[T], prepare: Callable[[T], PreparedPrompt]
    ) -> list[PreparedPrompt]:
        prepared = []
        for position, value in enumerate(values):
            with naming(position, len(values)):
                prepared.append(prepare(value))
        return prepared

    def _requests(
        self,
        prepared: Sequence[PreparedPrompt],
        sampling_params: Params,
        *,
        priority: Sequence[int] | None = None,
        is_chat: bool = False,
    ) -> list[Request]:
        """Create and check the requests of prompts."""
        pooling = self.plan.pooling
        if pooling is not None:
            reason = COULD_GENERATE if pooling.can_generate else POOLS
            raise InvalidRequestError(reason.replace("--runner ", "runner="), param="model")
        num_prompts = len(prepared)
        if sampling_params is None or isinstance(sampling_params, SamplingParams):
            params: Sequence[SamplingParams | None] = [sampling_params] * num_prompts
        else:
            params = one_each("sampling_params", sampling_params, SamplingParams, num_prompts)
        priorities: Sequence[int] = [0] * num_prompts
        if priority is not None:
            priorities = one_each("priority", priority, int, num_prompts)
        requests = []
        for position, prompt in enumerate(prepared):
            chosen = params[position] or self._default_params(is_chat=is_chat)
            # An answer that reaches the context ends with "length"; the others continue.
            room = self._max_model_len - len(prompt.token_ids)
            if 0 < room < chosen.min_tokens:
                chosen = replace(chosen, min_tokens=room)
            chosen = chosen.within(room)
            request = Request(
                id=str(next(self._ids)),
                prompt_ids=prompt.token_ids,
                params=chosen,
                bad_word_ids=self._tokenizer.bad_word_ids(chosen.bad_words),
                priority=priorities[position],
                cache_salt=prompt.cache_salt,
            )
            with naming(position, num_prompts):
                self.plan.context.sampling.processors.check(chosen)
                if chosen.structured_outputs is not None:
                    self._grammars.check(chosen.structured_outputs)
                request.check(
                    vocab_size=self.plan.model.vocab_size,
                    max_model_len=self._max_model_len,
                    max_logprobs=self.plan.context.sampling.max_logprobs,
                )
            requests.append(request)
        return requests

    def _default_params(self, *, is_chat: bool) -> SamplingParams:
        """Return the default parameters. Answers to chats may fill the context."""
        params = self.get_default_sampling_params()
        if is_chat and self._generation.max_new_tokens is None:
            return replace(params, max_tokens=None)
        return params

    def _generate(
        self, requests: Sequence[Request], prepared: Sequence[PreparedPrompt], *, use_tqdm: bool
    ) -> list[RequestOutput]:
        builders = {
            request.id: OutputBuilder(request, prompt=prompt.text, tokenizer=self._tokenizer)
            for request, prompt in zip(requests, prepared, strict=True)
        }
        num_read = num_written = 0
        start_s = time.perf_counter()
        disable = None if use_tqdm else True  # None: only on a terminal
        with (
            tqdm(total=len(requests), desc="Prompts", unit="prompt", disable=disable) as bar,
            closing(self.run(requests)) as events,
        ):
            for event in events:
                builders[event.request_id].add(event)
                num_written += len(event.token_ids)
                if event.error is not None:
                    logger.warning("request %s failed: %s", event.request_id, event.error)
                if event.request_finished:
                    num_read += event.num_prompt_tokens
                    elapsed_s = time.perf_counter() - start_s
                    bar.set_postfix_str(
                        f"input {num_read / elapsed_s:.0f} tok/s,"
                        f" output {num_written / elapsed_s:.0f} tok/s",
                        refresh=False,
                    )
                    bar.update()
        return [builder.build() for builder in builders.values()]
