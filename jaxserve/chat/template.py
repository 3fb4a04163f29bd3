"""Render chats with the model's Jinja template; nothing in a request is trusted."""

import re
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cached_property, lru_cache, partial
from typing import Any

from jinja2 import Environment, TemplateError, meta, nodes
from jinja2.defaults import DEFAULT_NAMESPACE
from jinja2.ext import loopcontrols

from jaxserve.chat import AUTO, CONTENT_FORMATS
from jaxserve.chat.harmony import Harmony
from jaxserve.chat.joined_messages import one_system_message, one_user_message
from jaxserve.chat.past_calls import RENDER_ERRORS, Apply, Message, render_calls
from jaxserve.chat.reasoning_format import ReasoningFormat
from jaxserve.errors import CheckpointError, InvalidRequestError
from jaxserve.tokenization.tokenizer import Tokenizer

MAX_REASON_CHARS = 200
# Roles beyond OpenAI's: in one chat, and of which it is remembered whether the template reads them.
MAX_CUSTOM_ROLES = 16
MAX_REMEMBERED_ROLES = 64

# Names a template reads that are no options of its caller: what the renderer itself supplies.
SUPPLIED = {
    "messages",
    "tools",
    "documents",
    "raise_exception",
    "strftime_now",
    "additional_special_tokens",
    *(f"{kind}_token" for kind in ("bos", "cls", "eos", "mask", "pad", "sep", "unk")),
    *DEFAULT_NAMESPACE,
}
# transformers' own tag around an assistant's turn; it does not change the prompt.
GENERATION_TAG = re.compile(r"\{%-?\s*(?:end)?generation\s*-?%\}")
# Names of a message's reasoning in templates.
REASONING = ("reasoning", "reasoning_content", "thinking")
PROBE = "jaxserve-probe"


class ChatTemplate:
    """A model's chat template: renders chats, and knows what the template supports.

    defaults: template variables for chats that do not set them; variables that the template does
    not read are left out. content_format: form of every message's content, one of CONTENT_FORMATS;
    by default the one that the template reads for the message's role. Raises CheckpointError if the
    tokenizer has no template or it does not parse.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        defaults: Mapping[str, Any] | None = None,
        content_format: str = AUTO,
    ) -> None:
        template = tokenizer.chat_template
        if template is None:
            raise CheckpointError("the model has no chat template")
        self._tokenizer = tokenizer
        self._sources = [template] if isinstance(template, str) else list(template.values())
        self._trees = [_parse(source) for source in self._sources]
        self._reads = frozenset[str]().union(*map(meta.find_undeclared_variables, self._trees))
        self._defaults = {
            name: value for name, value in (defaults or {}).items() if name in self.variables
        }
        self._forms = self._find_forms()
        self._form = CONTENT_FORMATS[content_format]
        # Requests may make roles up, so only some are remembered.
        self._custom_form = lru_cache(MAX_REMEMBERED_ROLES)(self._find_custom_form)
        self._takes_later_system = self._takes_later("system")
        is_named = any("developer" in source for source in self._sources)
        self._takes_developer = is_named and self._takes_later("developer")

    @cached_property
    def variables(self) -> frozenset[str]:
        """The names `chat_template_kwargs` may set: what the template reads as an option."""
        options = frozenset[str]().union(*map(_options, self._trees))
        return frozenset(
            name
            for name in options - self._supplied
            if not name.startswith("_") and not name.endswith(("_token", "_tokens"))
        )

    @cached_property
    def _supplied(self) -> frozenset[str]:
        return self._tokenizer.render_parameters | SUPPLIED

    def readable(self, variables: Mapping[str, Any]) -> dict[str, Any]:
        """Return those of a chat's variables that the template reads as options.

        Raises InvalidRequestError for a name of something that the renderer supplies.
        """
        for name in variables:
            if name in self._supplied or (name in self._reads and name not in self.variables):
                known = ", ".join(sorted(self.variables)) or "none"
                raise InvalidRequestError(
                    f"chat_template_kwargs cannot set {name[:64]!r}, only options of this model's"
                    f" template ({known})",
                    param="chat_template_kwargs",
                )
        return {name: value for name, value in variables.items() if name in self.variables}

    def reads_content(self, content_format: str) -> bool:
        """Whether the template reads a user's content in one of CONTENT_FORMATS."""
        takes_text, takes_parts = self._forms["user"]
        is_text, is_parts = CONTENT_FORMATS[content_format] or self._forms["user"]
        return takes_text >= is_text and takes_parts >= is_parts

    @property
    def reads_tools(self) -> bool:
        """Whether the template has a place for tools."""
        return "tools" in self._reads

    @property
    def reads_documents(self) -> bool:
        """Whether the template has a place for documents."""
        return "documents" in self._reads

    def unread_roles(self, messages: Sequence[Message]) -> dict[str, int]:
        """Return roles whose messages the template leaves out, each with its first message.

        Raises InvalidRequestError for a chat with too many roles to look at.
        """
        roles: dict[str, int] = {}
        for index, message in enumerate(messages):
            if message["role"] not in self._forms:
                roles.setdefault(message["role"], index)
        if len(roles) > MAX_CUSTOM_ROLES:
            raise InvalidRequestError(
                f"messages must have at most {MAX_CUSTOM_ROLES} roles beyond"
                f" {', '.join(self._forms)}, got {len(roles)}",
                param="messages",
            )
        return {role: index for role, index in roles.items() if self._custom_form(role) is None}

    def has_all(self, texts: Sequence[str]) -> bool:
        """Whether the template has each of these texts in it."""
        return all(any(text in source for source in self._sources) for text in texts)

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """Return the prompt of a chat as text.

        messages: as in OpenAI's API, `content` a string or a list of text parts, and the arguments
        of tool calls as text or as an object. variables: those that the template does not read are
        left out. Raises InvalidRequestError when the template cannot take what the request holds.
        """
        self._check_place("tools", tools, has_place=self.reads_tools)
        self._check_place("documents", documents, has_place=self.reads_documents)
        self._check_default(has_tools=bool(tools))
        apply = partial(
            self._tokenizer.apply_chat_template,
            tools=tools or None,
            documents=documents or None,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            variables={**self._defaults, **self.readable(variables or {})},
        )
        if not self._takes_later_system:
            messages = one_system_message(messages)
        try:
            return self._apply_joined(messages, apply)
        except InvalidRequestError:
            raise
        except RENDER_ERRORS as error:
            raise InvalidRequestError(
                f"the model's chat template cannot take these messages{_reason(error)}",
                param="messages",
            ) from error

    def _check_default(self, *, has_tools: bool) -> None:
        """Refuse a chat where templates go by names and none is for it."""
        named = self._tokenizer.chat_template
        if isinstance(named, str) or named is None or "default" in named:
            return
        if not (has_tools and "tool_use" in named):
            raise InvalidRequestError(
                f"this model has chat templates by name ({', '.join(sorted(named))}), and none is"
                " the default: it must be started with --chat-template and the file or text of one",
                param="messages",
            )

    def render_reasoning(
        self,
        messages: Sequence[Message],
        *,
        reasoning: ReasoningFormat | Harmony | None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """Return the prompt of a chat whose last message has reasoning and no more, to go on.

        It ends within the reasoning. Where the template writes no reasoning there, it stands where
        an answer would begin, behind what `reasoning` says. See `render`.
        """
        render = partial(self.render, tools=tools, documents=documents, variables=variables)
        *before, last = messages
        thought: str = last.get("reasoning") or last["reasoning_content"]
        # A random placeholder shows where the template puts the reasoning.
        word = uuid.uuid4().hex
        marked = {**last, "reasoning": word, "reasoning_content": word}
        with suppress(InvalidRequestError):  # some templates take no message without content
            whole = render([*before, marked], add_generation_prompt=False)
            start, found, _ = whole.rpartition(word)
            if found:
                return start + thought
        if reasoning is None:
            place = f"messages[{len(before)}].reasoning"
            raise InvalidRequestError(
                f"{place} cannot be continued: the model's chat template has no place for it, and"
                " this server has no reasoning parser for the model",
                param=place,
            )
        begins = [begin for begin in reasoning.begins if self.has_all([begin])]
        return reasoning.opened(render(before), begin=(begins or reasoning.begins)[0]) + thought

    def _check_place(
        self, name: str, value: Sequence[Mapping[str, Any]] | None, *, has_place: bool
    ) -> None:
        if value and not has_place:
            raise InvalidRequestError(
                f"{name} cannot be given to this model: its chat template has no place for them",
                param=name,
            )

    def _adapt(self, message: Message) -> Message:
        """Give a message the role and the form of content that the template was written for."""
        role, content = message["role"], message.get("content")
        reasoning = message.get("reasoning") or message.get("reasoning_content")
        if role == "developer" and not self._takes_developer:
            # OpenAI's newer word for the same role; most templates would drop or refuse it.
            role = "system"
        form = self._form or self._forms.get(role) or self._custom_form(role)
        takes_text, takes_parts = form or (True, False)
        if isinstance(content, list) and not takes_parts:
            content = "\n".join(part["text"] for part in content)
        elif isinstance(content, str) and not takes_text:
            content = [{"type": "text", "text": content}]
        if content is None and role == "assistant":
            # A message that only calls: OpenAI's null, which templates try to add to text.
            content = ""
        adapted = {**message, "role": role, "content": content}
        if reasoning:
            adapted |= {name: reasoning for name in REASONING if self.has_all([name])}
        return adapted

    def _apply_joined(self, messages: Sequence[Message], apply: Apply) -> str:
        """Render messages, also where the user may not speak twice in a row."""
        try:
            return self._apply_either([self._adapt(message) for message in messages], apply)
        except RENDER_ERRORS:
            joined = one_user_message(messages)
            if len(joined) == len(messages):
                raise
            with suppress(*RENDER_ERRORS):
                return self._apply_either([self._adapt(message) for message in joined], apply)
            raise

    def _apply_either(self, messages: Sequence[Message], apply: Apply) -> str:
        """Render messages, also where calls may not have both reasoning and content beside them.

        Then both are reasoning, which such templates (gpt-oss) make of the content, too.
        """
        try:
            return render_calls(messages, apply)
        except RENDER_ERRORS:
            joined = [_joined(message) for message in messages]
            if joined == messages:
                raise
            try:
                return render_calls(joined, apply)
            except RENDER_ERRORS:
                pass
            raise

    def _find_forms(self) -> Mapping[str, tuple[bool, bool]]:
        """For each role, whether the template takes its content as a string, and as parts.

        Found by rendering a probe both ways: templates differ too much to be read for it. Parts
        are taken when they give what the string gives, or when only they work.
        """
        forms = {}
        for role, chat in _probes().items():
            text = self._probe(chat, PROBE)
            parts = self._probe(chat, [{"type": "text", "text": PROBE}])
            takes_text = PROBE in text
            takes_parts = text == parts if takes_text else PROBE in parts
            forms[role] = (takes_text or not takes_parts, takes_parts)
        return forms

    def _find_custom_form(self, role: str) -> tuple[bool, bool] | None:
        """Return the form of content for a role of a model's own, as `_find_forms` does.

        None if the template leaves such a message out, or raises wherever one stands.
        """
        user, answer = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "hi"}
        message: Message = {"role": role}
        chats = ([message, user], [user, message], [user, answer, message])
        for takes_parts in (False, True):
            content = [{"type": "text", "text": PROBE}] if takes_parts else PROBE
            prompts = list(filter(None, (self._probe(chat, content) for chat in chats)))
            if prompts and all(PROBE in prompt for prompt in prompts):
                return not takes_parts, takes_parts
        return None

    def _takes_later(self, role: str) -> bool:
        """Whether messages of a role are all read, also in the middle and at the end of a chat."""
        message: Message = {"role": role}
        user = {"role": "user", "content": "hi"}
        chat = [message, message, user, {"role": "assistant", "content": "hi"}, user, message]
        return self._probe(chat, PROBE).count(PROBE) == chat.count(message)

    def _probe(self, chat: Sequence[Message], content: Any) -> str:
        filled = [{**message, "content": message.get("content", content)} for message in chat]
        try:
            return self._tokenizer.apply_chat_template(filled)
        except RENDER_ERRORS:
            return ""


def _joined(message: Message) -> Message:
    """Return a message of calls with its content at the end of its reasoning, if it has both."""
    content = message["content"]
    names = [name for name in REASONING if message.get(name)]
    if not (names and message.get("tool_calls") and content and isinstance(content, str)):
        return message
    return {**message, "content": "", **{name: f"{message[name]}\n{content}" for name in names}}


def _probes() -> Mapping[str, Sequence[Message]]:
    """For each role, the shortest chat around a message of it; that one lacks its content."""
    user = {"role": "user", "content": "hi"}
    call = {"id": "call00000", "type": "function", "function": {"name": "f", "arguments": {}}}
    return {
        "user": [{"role": "user"}],
        "system": [{"role": "system"}, user],
        "developer": [{"role": "developer"}, user],
        "assistant": [user, {"role": "assistant"}, user],
        "tool": [
            user,
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "call00000", "name": "f"},
        ],
    }


def _parse(source: str) -> nodes.Template:
    environment = Environment(extensions=[loopcontrols], autoescape=False)  # noqa: S701 (parses only)
    try:
        return environment.parse(GENERATION_TAG.sub("", source))
    except TemplateError as error:
        raise CheckpointError("the chat template is not valid Jinja") from error


def _options(template: nodes.Template) -> set[str]:
    """The names from outside that a template reads as options of its caller.

    A name it also assigns is its own, unless it asks whether the name is defined or gives it a
    default: that is how templates declare an option.
    """
    assigned = {name.name for name in template.find_all(nodes.Name) if name.ctx != "load"}
    declared = {
        question.node.name
        for question in template.find_all((nodes.Test, nodes.Filter))
        if question.name in {"defined", "undefined", "default", "d"}
        and isinstance(question.node, nodes.Name)
    }
    return meta.find_undeclared_variables(template) - (assigned - declared)


def _reason(error: Exception) -> str:
    """The template author's own words, where they wrote any with `raise_exception`."""
    if type(error) is not TemplateError or not error.message:
        return ""
    return f": {error.message[:MAX_REASON_CHARS]}"
