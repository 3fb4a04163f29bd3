"""Constraints on the answers to a chat: forced and strict tool calls, and reasoning budgets."""

from dataclasses import replace

from jaxserve.api.structured_outputs import KINDS, StructuredOutputsParams
from jaxserve.chat.harmony import Harmony
from jaxserve.errors import InvalidRequestError
from jaxserve.frontend.chat import Chat
from jaxserve.frontend.response_parser import ResponseParserConfig, grammar_functions
from jaxserve.grammar import calls_or, forced_calls, strict_calls

# Names in errors: fields of the chat for fields of its constraints.
BUDGET_NAMES = {"structured_outputs.max_reasoning_tokens": "thinking_token_budget"}
FIELD_NAMES = {
    **{f"structured_outputs.{name}": "tools" for name in (*KINDS, "frame")},
    **BUDGET_NAMES,
}
# Any answer, including special tokens.
ANYTHING = "start: <[*]>*"


def constrain(
    chat: Chat,
    parsing: ResponseParserConfig,
    requested: StructuredOutputsParams | None,
    *,
    max_reasoning_tokens: int | None = None,
) -> StructuredOutputsParams | None:
    """Return the constraints on the answers to a chat, reasoning included; None if there are none.

    requested: constraints on the content, from `response_format` and similar fields. Forced calls
    replace the content; other calls are alternatives to it. Raises InvalidRequestError for
    constraints that the model's format cannot express.
    """
    content = _constrain_content(chat, parsing, requested)
    reasoning = parsing.form.reasoning
    if max_reasoning_tokens is not None:
        if reasoning is None:
            raise InvalidRequestError(
                "thinking_token_budget can only be given where reasoning is parsed",
                param="thinking_token_budget",
            )
        content = content or StructuredOutputsParams(grammar=ANYTHING)
    if content is None or reasoning is None or parsing.is_open is False:
        return content
    is_open = parsing.is_open or reasoning.is_assumed
    return replace(
        content,
        reasoning_begin=None if is_open else reasoning.begins[0],
        reasoning_end=reasoning.ends[0],
        max_reasoning_tokens=max_reasoning_tokens,
    )


def _constrain_content(
    chat: Chat, parsing: ResponseParserConfig, requested: StructuredOutputsParams | None
) -> StructuredOutputsParams | None:
    tools, functions = parsing.form.tools, grammar_functions(chat)
    parallel = not parsing.only_one_call
    if requested is not None and not chat.must_call:
        # In harmony the answer is a message, with tools or without.
        form = tools or parsing.form.reasoning
        if isinstance(form, Harmony) and chat.continue_final_message and not parsing.is_open:
            return requested  # the answer is the rest of the last message
        tools = form if isinstance(form, Harmony) else tools
        return calls_or(requested, functions, tools, parallel=parallel)
    if tools is None:
        return None
    if not chat.must_call:
        return strict_calls(functions, tools, parallel=parallel)
    parallel = parallel and not chat.must_call_once
    return forced_calls(functions, tools.written, parallel=parallel)
