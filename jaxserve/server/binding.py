"""What a chat's answer is bound to: calls that it must make, strict ones that it may, a budget."""

from dataclasses import replace

from jaxserve.chat.harmony import Harmony
from jaxserve.errors import InvalidRequestError
from jaxserve.grammar import forced_calls, strict_calls
from jaxserve.server.protocol.chat import ChatBody
from jaxserve.server.reading import ChatReading, functions_of
from jaxserve.structured_outputs import StructuredOutputsParams

# What errors of grammars are about, where the chat has asked for none by itself.
FIELD_NAMES = {
    "structured_outputs.json": "tools",
    "structured_outputs.structural_tag": "tools",
    "structured_outputs.max_reasoning_tokens": "thinking_token_budget",
}
# Any answer, special tokens and all.
ANYTHING = "start: <[*]>*"


def bound_to(
    body: ChatBody, reading: ChatReading, asked: StructuredOutputsParams | None
) -> StructuredOutputsParams | None:
    """Return what the answers to a chat must look like, reasoning and all; None if they are free.

    asked: what `response_format` and its like say. Raises InvalidRequestError for what cannot be
    had together, or not of this model.
    """
    answer = _calls(body, reading)
    if asked is not None and answer is not None and body.must_call:
        raise InvalidRequestError(
            "tool_choice cannot force a call in an answer that has another form",
            param="tool_choice",
        )
    answer = asked or answer
    budget, reasoning = body.thinking_token_budget, reading.form.reasoning
    if budget is not None:
        if reasoning is None:
            raise InvalidRequestError(
                "thinking_token_budget can only be given where reasoning is parsed",
                param="thinking_token_budget",
            )
        answer = answer or StructuredOutputsParams(grammar=ANYTHING)
    if answer is None or reasoning is None or reading.is_open is False:
        return answer
    if isinstance(reasoning, Harmony) and answer is asked:
        # What follows reasoning there is another message, and no answer yet.
        return answer
    is_open = reading.is_open or reasoning.is_assumed
    return replace(
        answer,
        reasoning_begin=None if is_open else reasoning.begins[0],
        reasoning_end=reasoning.ends[0],
        max_reasoning_tokens=budget,
    )


def _calls(body: ChatBody, reading: ChatReading) -> StructuredOutputsParams | None:
    tools = reading.form.tools
    if tools is None:
        return None
    functions, parallel = functions_of(body), body.parallel_tool_calls
    if not body.must_call:
        return strict_calls(functions, tools, parallel=parallel)
    parallel = parallel and not body.must_call_once
    return forced_calls(functions, tools.written, parallel=parallel)
