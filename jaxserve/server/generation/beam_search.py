"""Beam search over HTTP: report its results as the events of a request, all at the end."""

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing

from jaxserve.api.request import FinishReason, PositionLogprobs, Request, RequestMetrics, TokenEvent
from jaxserve.errors import InvalidRequestError
from jaxserve.frontend.beam_search import BeamSearch, check_search
from jaxserve.frontend.detokenizer import Detokenizer
from jaxserve.frontend.schema.generation import GenerationBody
from jaxserve.server.generation.events import merged
from jaxserve.server.models import ServedModel


async def search_beams(
    model: ServedModel, body: GenerationBody, request: Request
) -> AsyncGenerator[TokenEvent]:
    """Run a beam search, and yield one event for each of its n answers, best first."""
    params = request.params
    check_search(
        params.n, max_logprobs=model.max_logprobs, logprobs_mode=model.logprobs_mode, param="n"
    )
    model.check_num_prompts(params.n, param="n")
    if params.structured_outputs is not None:
        raise InvalidRequestError(
            "use_beam_search cannot be given with forced or strict tools, or with"
            " thinking_token_budget",
            param="use_beam_search",
        )
    room = model.max_model_len - len(request.prompt_ids)
    search = BeamSearch(
        request,
        body.beam_search(params, max_tokens=min(params.max_tokens or room, room)),
        eos_ids={*model.tokenizer.eos_ids, *model.defaults.eos_token_ids},
    )
    num_cached: int | None = None
    scheduled_s = first_token_s = None
    while requests := search.requests():
        found: dict[int, PositionLogprobs] = {}
        async with aclosing(merged(model.client.generate, requests)) as events:
            async for index, event in events:
                if event.finish_reason is not FinishReason.LENGTH:
                    # If one request fails, the search fails.
                    yield _failed(event, request)
                    return
                found[index] = event.logprobs[0]
                if num_cached is None:
                    num_cached = event.num_cached_tokens
                    times = event.metrics
                    scheduled_s = None if times is None else times.scheduled_s
                    first_token_s = None if times is None else times.first_token_s
        search.extend([found[index] for index in range(len(requests))])
    beams = search.best()
    for index, beam in enumerate(beams):
        yield TokenEvent(
            request_id=request.id,
            index=index,
            token_ids=beam.token_ids,
            text=_text(model, request, beam.token_ids, beam.finish_reason),
            logprobs=beam.logprobs if params.logprobs is not None else (),
            num_prompt_tokens=len(request.prompt_ids),
            num_cached_tokens=num_cached or 0,
            finish_reason=beam.finish_reason,
            stop_reason=beam.stop_reason,
            request_finished=index == len(beams) - 1,
            metrics=RequestMetrics(
                arrival_s=request.arrival_s,
                scheduled_s=scheduled_s,
                first_token_s=first_token_s,
                finished_s=time.monotonic(),
            ),
        )


def _failed(event: TokenEvent, request: Request) -> TokenEvent:
    return TokenEvent(
        request_id=request.id,
        index=0,
        finish_reason=event.finish_reason,
        error=event.error,
        error_param=event.error_param,
        request_finished=True,
    )


def _text(
    model: ServedModel, request: Request, token_ids: tuple[int, ...], reason: FinishReason | None
) -> str:
    """Return the text of an answer, without its stop token unless the request includes it."""
    detokenizer = Detokenizer(model.tokenizer.backend, request)
    if reason is FinishReason.STOP and not request.params.include_stop_str_in_output:
        token_ids = token_ids[:-1]
    return "".join(map(detokenizer.push, token_ids)) + detokenizer.finish()
