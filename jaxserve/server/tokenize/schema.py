"""Bodies and answers of POST /tokenize and /detokenize, as in vLLM."""

from typing import Annotated

import msgspec
from pydantic import Field

from jaxserve.frontend.chat import Chat
from jaxserve.frontend.schema.body import Body, TokenIds
from jaxserve.frontend.schema.fields import IGNORED, REFUSED, UNREAD, WITH_MESSAGES, Unread

MAX_TOKENS = 2**20


class TokenizeBody(Body):
    """A text to tokenize."""

    unread = UNREAD

    model: str | None = None
    prompt: str
    add_special_tokens: bool = True
    return_token_strs: bool = False


class TokenizeChatBody(Chat):
    """A chat to render and tokenize."""

    unread = Unread(ignored=IGNORED, refused={**REFUSED, "prompt": (WITH_MESSAGES, ())})

    return_token_strs: bool = False


class DetokenizeBody(Body):
    """Token ids to detokenize."""

    unread = UNREAD

    model: str | None = None
    tokens: Annotated[TokenIds, Field(max_length=MAX_TOKENS)]


class TokenizeAnswer(msgspec.Struct):
    """The token ids of a text. token_strs: the tokens as in the vocabulary, if requested."""

    count: int
    max_model_len: int
    tokens: tuple[int, ...]
    token_strs: list[str] | None


class DetokenizeAnswer(msgspec.Struct):
    """The text of token ids."""

    prompt: str
