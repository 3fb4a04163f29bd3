"""What a chat's answer is bound to: calls that it must make, strict ones that it may, a budget."""

from dataclasses import replace

from jaxserve.api.structured_outputs import KINDS, StructuredOutputsParams
from jaxserve.chat.harmony import Harmony
from jaxserve.errors import InvalidRequestError
from jaxserve.grammar import calls_or, forced_calls, strict_calls
from jaxserve.server.chat.response_parser import ChatReading, functions_of
from jaxserve.server.chat.schema import ChatBody

# What errors of grammars are about that are not those of the form that a chat asked for.
BUDGET_NAMES = {"structured_outputs.max_reasoning_tokens": "thinking_token_budget"}
FIELD_NAMES = {
    **{f"structured_outputs.{name}": "tools" for name in (*KINDS, "frame")},
    **BUDGET_NAMES,
}
# Any answer, special tokens and all.
ANYTHING = "start: <[*]>*"


def bound_to(
    body: ChatBody, reading: ChatReading, asked: StructuredOutputsParams | None
) -> StructuredOutputsParams | None:
    """Return what the answers to a chat must look like, reasoning and all; None if they are free.

    asked: what `response_format` and its like say of the answer's text: calls that are forced come
    instead of it, and others may. Raises InvalidRequestError for what cannot be had of this model.
    """
    answer = _answer(body, reading, asked)
    budget, reasoning = body.thinking_token_budget, reading.form.reasoning
    if reasoning is None and body.takes_any_budget:
        budget = None
    if budget is not None:
        if reasoning is None:
            raise InvalidRequestError(
                "thinking_token_budget can only be given where reasoning is parsed",
                param="thinking_token_budget",
            )
        answer = answer or StructuredOutputsParams(grammar=ANYTHING)
    if answer is None or reasoning is None or reading.is_open is False:
        return answer
    is_open = reading.is_open or reasoning.is_assumed
    return replace(
        answer,
        reasoning_begin=None if is_open else reasoning.begins[0],
        reasoning_end=reasoning.ends[0],
        max_reasoning_tokens=budget,
    )


def _answer(
    body: ChatBody, reading: ChatReading, asked: StructuredOutputsParams | None
) -> StructuredOutputsParams | None:
    tools, functions, parallel = reading.form.tools, functions_of(body), body.parallel_tool_calls
    if asked is not None and not body.must_call:
        # An answer is a message in harmony, whether there are tools or not.
        form = tools or reading.form.reasoning
        if isinstance(form, Harmony) and body.continue_final_message and not reading.is_open:
            # The message that is continued is the answer.
            return asked
        tools = form if isinstance(form, Harmony) else tools
        return calls_or(asked, functions, tools, parallel=parallel)
    if tools is None:
        return None
    if not body.must_call:
        return strict_calls(functions, tools, parallel=parallel)
    parallel = parallel and not body.must_call_once
    return forced_calls(functions, tools.written, parallel=parallel)
