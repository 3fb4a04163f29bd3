"""The bodies of POST /tokenize and /detokenize, and their answers; the shapes are vLLM's."""

from typing import Annotated

import msgspec
from pydantic import Field

from jaxserve.frontend.chat import Chat
from jaxserve.frontend.schema.body import Body, TokenIds
from jaxserve.frontend.schema.fields import IGNORED, REFUSED, UNREAD, WITH_MESSAGES, Unread

MAX_TOKENS = 2**20


class TokenizeBody(Body):
    """A text to be turned into ids."""

    unread = UNREAD

    model: str | None = None
    prompt: str
    add_special_tokens: bool = True
    return_token_strs: bool = False


class TokenizeChatBody(Chat):
    """A chat to be rendered and turned into ids."""

    unread = Unread(ignored=IGNORED, refused={**REFUSED, "prompt": (WITH_MESSAGES, ())})

    return_token_strs: bool = False


class DetokenizeBody(Body):
    """Ids to be turned into a text."""

    unread = UNREAD

    model: str | None = None
    tokens: Annotated[TokenIds, Field(max_length=MAX_TOKENS)]


class TokenizeAnswer(msgspec.Struct):
    """The ids of a text. token_strs: as the vocabulary spells them, when asked for."""

    count: int
    max_model_len: int
    tokens: tuple[int, ...]
    token_strs: list[str] | None


class DetokenizeAnswer(msgspec.Struct):
    """The text of ids."""

    prompt: str
