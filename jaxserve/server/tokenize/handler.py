"""POST /tokenize and /detokenize, and GET /tokenizer_info."""

from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from jaxserve.api.limits import Limits
from jaxserve.frontend.schema.ignored import IgnoredFields
from jaxserve.frontend.schema.parsing import parse
from jaxserve.server.generation.prompts import encode, encode_chat
from jaxserve.server.http.answer import json_response
from jaxserve.server.http.bodies import read, read_as
from jaxserve.server.http.lanes import run_in
from jaxserve.server.http.record import request_record
from jaxserve.server.models import ServedModel
from jaxserve.server.state import server_state
from jaxserve.server.tokenize.schema import (
    DetokenizeAnswer,
    DetokenizeBody,
    TokenizeAnswer,
    TokenizeBody,
    TokenizeChatBody,
)


async def tokenize(http: Request) -> Response:
    """Answer with the token ids of a text or a chat, and their number."""
    state = server_state(http)
    body = await read(http, _text_or_chat)
    work = partial(
        _tokenized, state.router.model(body.model), body, request_record(http.scope).ignored
    )
    return json_response(await run_in(state.lanes.prompts, work))


async def detokenize(http: Request) -> Response:
    """Answer with the text of token ids."""
    state = server_state(http)
    body = await read_as(http, DetokenizeBody)
    model = state.router.model(body.model)

    def work() -> str:
        Limits(0, model.vocab_size - 1).check_all("tokens", body.tokens)
        return model.tokenizer.decode(body.tokens)

    return json_response(DetokenizeAnswer(await run_in(state.lanes.prompts, work)))


async def tokenizer_info(http: Request) -> Response:
    """Answer with the settings of the model's tokenizer, including its chat template."""
    return json_response(server_state(http).router.model(None).tokenizer.settings)


def _text_or_chat(
    fields: dict[str, Any], ignored: IgnoredFields
) -> TokenizeBody | TokenizeChatBody:
    if "messages" in fields:
        return parse(fields, TokenizeChatBody, ignored)
    return parse(fields, TokenizeBody, ignored)


def _tokenized(
    model: ServedModel, body: TokenizeBody | TokenizeChatBody, ignored: IgnoredFields
) -> TokenizeAnswer:
    if isinstance(body, TokenizeChatBody):
        tokens = encode_chat(model, body, ignored)
    else:
        special = body.add_special_tokens
        tokens = encode(model, body.prompt, add_special_tokens=special, param="prompt")
    strings = None
    if body.return_token_strs:
        strings = [model.tokenizer.token_string(token) for token in tokens]
    return TokenizeAnswer(
        count=len(tokens), max_model_len=model.max_model_len, tokens=tokens, token_strs=strings
    )
