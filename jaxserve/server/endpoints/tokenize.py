"""POST /tokenize and /detokenize: between text and ids, without the model."""

from functools import partial

from starlette.requests import Request
from starlette.responses import Response

from jaxserve.errors import InvalidRequestError
from jaxserve.server.answer import json_response
from jaxserve.server.prompts import encode, encode_chat, in_worker
from jaxserve.server.protocol.parsing import parse, read_object, show
from jaxserve.server.protocol.tokens import (
    DetokenizeAnswer,
    DetokenizeBody,
    TokenizeAnswer,
    TokenizeBody,
    TokenizeChatBody,
)
from jaxserve.server.state import server_state


async def tokenize(http: Request) -> Response:
    """Answer with the ids of a text or a chat, and how many there are."""
    state = server_state(http)
    fields = await read_object(http, max_bytes=state.config.max_body_bytes)
    body: TokenizeBody | TokenizeChatBody
    if "messages" in fields:
        body = parse(fields, TokenizeChatBody)
        model = state.model(body.model)
        work = partial(encode_chat, model, body)
    else:
        body = parse(fields, TokenizeBody)
        model = state.model(body.model)
        special = body.add_special_tokens
        work = partial(encode, model, body.prompt, add_special_tokens=special, param="prompt")
    tokens = await in_worker(state, work)
    strings = [model.tokenizer.token_string(token) for token in tokens]
    return json_response(
        TokenizeAnswer(
            count=len(tokens),
            max_model_len=model.max_model_len,
            tokens=tokens,
            token_strs=strings if body.return_token_strs else None,
        )
    )


async def detokenize(http: Request) -> Response:
    """Answer with the text of ids."""
    state = server_state(http)
    fields = await read_object(http, max_bytes=state.config.max_body_bytes)
    body = parse(fields, DetokenizeBody)
    model = state.model(body.model)
    for token in body.tokens:
        if not 0 <= token < model.vocab_size:
            raise InvalidRequestError(
                f"tokens must be in [0, {model.vocab_size - 1}], got {show(token)}",
                param="tokens",
            )
    text = await in_worker(state, partial(model.tokenizer.decode, body.tokens))
    return json_response(DetokenizeAnswer(text))
