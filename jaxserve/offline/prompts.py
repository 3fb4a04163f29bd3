"""Prompts of `LLM`, and their conversion to token ids."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import index
from typing import Any, NotRequired, TypedDict, TypeGuard, cast

from jaxserve.chat import AUTO, CONTENT_FORMATS
from jaxserve.chat.template import ChatTemplate
from jaxserve.errors import InvalidRequestError
from jaxserve.frontend.chat import Chat
from jaxserve.frontend.schema.ignored import IgnoredFields
from jaxserve.frontend.schema.parsing import parse, show
from jaxserve.observability.ignored_fields import IgnoredLog
from jaxserve.tokenization.tokenizer import Tokenizer


class TextPrompt(TypedDict):
    """A prompt as text."""

    prompt: str
    cache_salt: NotRequired[str]


class TokensPrompt(TypedDict):
    """A prompt as token ids. prompt: its text, which is only copied to the output."""

    prompt_token_ids: Iterable[int]
    prompt: NotRequired[str]
    cache_salt: NotRequired[str]


type Prompt = str | TextPrompt | TokensPrompt | Sequence[int]
type Conversation = Sequence[Mapping[str, Any]]

KINDS = "a text, token ids, {'prompt': text} or {'prompt_token_ids': ids}"


@dataclass(frozen=True, slots=True)
class PreparedPrompt:
    """A prompt for the engine. text: None if only token ids were given."""

    text: str | None
    token_ids: tuple[int, ...]
    cache_salt: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatOptions:
    """Options for rendering conversations; names and meanings are those of `LLM.chat`."""

    chat_template: str | None
    chat_template_content_format: str
    tools: Sequence[Mapping[str, Any]] | None
    add_generation_prompt: bool
    continue_final_message: bool
    chat_template_kwargs: Mapping[str, Any] | None


class PromptReader:
    """Converts prompts and conversations to token ids for one model.

    Raises InvalidRequestError for invalid prompts, and for those far above the context length.
    """

    def __init__(self, tokenizer: Tokenizer, *, max_model_len: int) -> None:
        self._tokenizer = tokenizer
        self._max_model_len = max_model_len
        self._ignored_log = IgnoredLog()

    def read(self, prompt: Prompt) -> PreparedPrompt:
        """Return a prompt as token ids. The model's special tokens are added to texts."""
        if isinstance(prompt, str):
            return PreparedPrompt(prompt, self._encode(prompt, add_special_tokens=True))
        if not isinstance(prompt, Mapping):
            return PreparedPrompt(None, _token_ids(prompt))
        fields: dict[str, Any] = {**prompt}
        text, token_ids = fields.pop("prompt", None), fields.pop("prompt_token_ids", None)
        cache_salt = fields.pop("cache_salt", "")
        if fields:
            raise InvalidRequestError(
                f"a prompt has no key {next(iter(fields))!r}: it is {KINDS}", param="prompt"
            )
        if not isinstance(text, str | None) or not isinstance(cache_salt, str):
            raise _refusal(prompt)
        if token_ids is not None:
            return PreparedPrompt(text, _token_ids(token_ids), cache_salt)
        if text is None:
            raise _refusal(prompt)
        return PreparedPrompt(text, self._encode(text, add_special_tokens=True), cache_salt)

    def render(self, conversation: Conversation, options: ChatOptions) -> PreparedPrompt:
        """Return a conversation as token ids, validated and rendered as by the server.

        Unread keys are logged. Raises CheckpointError if there is no chat template.
        """
        fields = {
            "messages": [dict(m) if isinstance(m, Mapping) else m for m in conversation],
            "tools": None if options.tools is None else [*options.tools],
            "add_generation_prompt": options.add_generation_prompt,
            "continue_final_message": options.continue_final_message,
            "chat_template_kwargs": options.chat_template_kwargs,
        }
        template = self._template(options.chat_template, options.chat_template_content_format)
        ignored = IgnoredFields()
        text = parse(fields, Chat, ignored).render(template, ignored)
        for name, is_hint in ignored.names.items():
            self._ignored_log.note(name, is_hint=is_hint)
        # A template writes the special tokens itself.
        return PreparedPrompt(text, self._encode(text, add_special_tokens=False))

    def _template(self, text: str | None, content_format: str) -> ChatTemplate:
        """Return a chat template, by default the model's. text: in Jinja."""
        if content_format not in CONTENT_FORMATS:
            raise InvalidRequestError(
                f"chat_template_content_format must be one of {', '.join(CONTENT_FORMATS)},"
                f" got {content_format!r}",
                param="chat_template_content_format",
            )
        if text is None and content_format == AUTO:
            return self._own_template
        tokenizer = self._tokenizer if text is None else self._tokenizer.with_chat_template(text)
        return ChatTemplate(tokenizer, content_format=content_format)

    @cached_property
    def _own_template(self) -> ChatTemplate:
        return ChatTemplate(self._tokenizer)

    def _encode(self, text: str, *, add_special_tokens: bool) -> tuple[int, ...]:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InvalidRequestError(
                f"prompt must be text without lone surrogates, got one at {error.start}",
                param="prompt",
            ) from error
        self._tokenizer.check_num_chars(
            len(text), max_model_len=self._max_model_len, param="prompt"
        )
        return self._tokenizer.encode(text, add_special_tokens=add_special_tokens)


def listed(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """Return one prompt or many as a list of prompts."""
    if isinstance(prompts, str | Mapping) or not isinstance(prompts, Sequence):
        return [prompts]
    if prompts and isinstance(prompts[0], int):
        return [cast(Prompt, prompts)]
    return [*cast(Sequence[Prompt], prompts)]


def is_conversation(value: object) -> TypeGuard[Conversation]:
    """Return whether a value is a list of messages."""
    return (
        isinstance(value, Sequence)
        and not isinstance(value, str)
        and len(value) > 0
        and isinstance(value[0], Mapping)
    )


def _token_ids(values: Iterable[int]) -> tuple[int, ...]:
    """Return token ids as Python integers, from any kind of array."""
    try:
        return tuple(index(value) for value in values)
    except TypeError as error:
        raise _refusal(values) from error


def _refusal(prompt: object) -> InvalidRequestError:
    return InvalidRequestError(f"a prompt must be {KINDS}, got {show(prompt)}", param="prompt")


def one_each[T](name: str, values: Sequence[T], kind: type[T], num_prompts: int) -> Sequence[T]:
    """Return the values if there is one for each prompt; raises InvalidRequestError."""
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise InvalidRequestError(
            f"{name} must be {kind.__name__} or a list of them, got {show(values)}", param=name
        )
    if len(values) != num_prompts:
        raise InvalidRequestError(
            f"{name} must be as many as there are prompts ({num_prompts}), got {len(values)}",
            param=name,
        )
    for value in values:
        if not isinstance(value, kind):
            raise InvalidRequestError(
                f"{name} must be {kind.__name__}, got {show(value)}", param=name
            )
    return values
